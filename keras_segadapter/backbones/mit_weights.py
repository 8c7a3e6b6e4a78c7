"""MiT weights from the files that transformers writes."""

import re
from pathlib import Path

import numpy as np

# Parts of a SegFormer checkpoint that are no encoder.
OTHER_PARTS = re.compile(r"^(classifier|decode_head)\.")


def load_mit_weights(model, path):
    """Load a transformers checkpoint into a MiT, every tensor or none.

    Args:
        model: A model made by `MiTB0` to `MiTB5`.
        path: A folder with `model.safetensors`, or such a file, of a SegFormer or of
            its encoder.

    Raises:
        ValueError: If there is no such file, or tensors are missing, surplus or of
            another shape; the sentence lists them.
        ImportError: If the package safetensors is not installed.
    """
    # Read without running anything that a foreign file may hold.
    from safetensors.numpy import load_file

    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"There is no file {file}. Pass the folder or the .safetensors file of a "
            "SegFormer checkpoint, such as one that save_pretrained wrote."
        )
    found = {
        re.sub(r"^(segformer\.)?encoder\.", "", key): value
        for key, value in load_file(file).items()
        if not OTHER_PARTS.match(key)
    }
    wanted = dict(_variables(model))
    missing = sorted(wanted.keys() - found.keys())
    surplus = sorted(found.keys() - wanted.keys())
    values = {k: _to_keras(k, found[k]) for k in wanted.keys() & found.keys()}
    shapes = [
        f"{key} is {values[key].shape}, wanted {tuple(wanted[key].shape)}"
        for key in sorted(values)
        if values[key].shape != tuple(wanted[key].shape)
    ]
    if missing or surplus or shapes:
        raise ValueError(
            f"{file} does not fit {model.name}. Missing: {missing or 'none'}. Surplus: "
            f"{surplus or 'none'}. Shapes: {shapes or 'as wanted'}. Choose the size of "
            "MiT that the checkpoint is of."
        )
    for key, variable in wanted.items():
        variable.assign(values[key])


def _to_keras(key, value):
    """Turn a PyTorch tensor's axes to Keras' order."""
    if value.ndim == 2:
        return value.T  # linear: (out, in) -> (in, out)
    if value.ndim == 4:
        # Convolution: (out, in, h, w) -> (h, w, in, out), depthwise (h, w, in, 1).
        order = (2, 3, 0, 1) if ".dwconv." in key else (2, 3, 1, 0)
        return np.transpose(value, order)
    return value


def _variables(model):
    """Pairs of a checkpoint's key and the variable that it goes to."""
    for layer in model.layers:
        match = re.fullmatch(r"stage(\d)_(?:block(\d+)_)?(\w+)", layer.name)
        if not match:
            continue
        stage, part = int(match[1]) - 1, match[3]
        block = f"block.{stage}.{int(match[2]) - 1}" if match[2] else None
        if part == "attention":
            own = {
                "query": f"{block}.attention.self.query",
                "key": f"{block}.attention.self.key",
                "value": f"{block}.attention.self.value",
                "projection": f"{block}.attention.output.dense",
                "reduce": f"{block}.attention.self.sr",
                "norm": f"{block}.attention.self.layer_norm",
            }
        elif part == "ffn":
            own = {
                "expansion": f"{block}.mlp.dense1",
                "depthwise": f"{block}.mlp.dwconv.dwconv",
                "contraction": f"{block}.mlp.dense2",
            }
        else:
            keys = {
                "embed": f"patch_embeddings.{stage}.proj",
                "embed_norm": f"patch_embeddings.{stage}.layer_norm",
                "norm": f"layer_norm.{stage}",
                "norm1": f"{block}.layer_norm_1",
                "norm2": f"{block}.layer_norm_2",
            }
            yield from _weight_and_bias(keys[part], layer)
            continue
        for attribute, key in own.items():
            if hasattr(layer, attribute):  # a reduction of 1 has no convolution
                yield from _weight_and_bias(key, getattr(layer, attribute))


def _weight_and_bias(key, layer):
    weight, bias = layer.weights  # kernel or gamma, bias or beta
    yield f"{key}.weight", weight
    yield f"{key}.bias", bias
