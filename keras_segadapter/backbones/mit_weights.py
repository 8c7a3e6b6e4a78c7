"""MiT weights from the files and models in which they are published.

Tensors are named here as in SegFormer's own code, with stages counted from 0:
`patch_embed.0.proj.weight`, `block.0.1.attn.q.bias`, `norm.3.weight`.
"""

import re

import keras
import numpy as np

from keras_segadapter.backbones.weight_files import (
    assign_tensors,
    read_tensors,
    to_values,
)

# Prefixes of the encoder's names in the file of a whole model, and its other parts.
PREFIX = r"^(backbone|segformer\.encoder|segformer|encoder)\."
DECODE_HEAD = r"(decode_head|decoder|segmentation_head)\."
OTHER_HEADS = r"(auxiliary_head|classifier|head)\."

# Patterns in a file's names and what replaces them here, applied from top to bottom.
TRANSFORMERS = (
    # Its own names since version 5; it saves the older ones by default.
    (r"^stages\.(\d)\.patch_embeddings\.", r"patch_embed.\1."),
    (r"^stages\.(\d)\.blocks\.", r"block.\1."),
    (r"^stages\.(\d)\.layer_norm\.", r"norm.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".sequence_reduction.sr."),
    (r"\.attention\.sequence_reduction\.", ".attn."),
    # The older ones.
    (r"^patch_embeddings\.", "patch_embed."),
    (r"layer_norm_", "norm"),
    (r"layer_norm", "norm"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.key\.", ".attn.k."),
    (r"\.attention\.self\.value\.", ".attn.v."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.mlp\.dense", ".mlp.fc"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)
OPENMMLAB = (
    (r"^layers\.(\d)\.0\.projection\.", r"patch_embed.\1.proj."),
    (r"^layers\.(\d)\.0\.", r"patch_embed.\1."),
    (r"^layers\.(\d)\.1\.", r"block.\1."),
    (r"^layers\.(\d)\.2\.", r"norm.\1."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
)
NVLABS = (
    (r"^(patch_embed|block|norm)(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)

STEM = "patch_embed.0.proj.weight"  # the kernel that reads the image

# Layers of a stage and of a block in `MiTB0` to `MiTB5`, and their names here.
STAGE = {
    "embed": "patch_embed.{}.proj",
    "embed_norm": "patch_embed.{}.norm",
    "norm": "norm.{}",
}
BLOCK = {
    "query": "attn.q",
    "key": "attn.k",
    "value": "attn.v",
    "projection": "attn.proj",
    "reduce": "attn.sr",
    "norm": "attn.norm",
    "expansion": "mlp.fc1",
    "depthwise": "mlp.dwconv",
    "contraction": "mlp.fc2",
}


def read_mit_weights(source):
    """Read the weights of a MiT from a file, the Hugging Face Hub or keras-hub.

    Args:
        source: Path, name on the Hub or model, as in `weights` of `MiTB0`.

    Returns:
        Dict of NumPy arrays in Keras' axis order, by their names here.

    Raises:
        TypeError: If `source` is not a path, a name or a model.
        ValueError: If there is no such file or repository, if the network fails, if the
            file is damaged or holds more than dense floats, or if the model is neither
            a MiT nor a SegFormer.
        ImportError: If the package that reads the source is not installed.
    """
    if isinstance(source, keras.Model):
        return _values_of_keras_hub(source)
    return to_mit_values(read_tensors(source, f"{DECODE_HEAD}|{OTHER_HEADS}"))


def to_mit_values(tensors):
    """Return the weights of a MiT in a dict of a file's tensors by their names here."""
    tensors = {re.sub(PREFIX, "", key): value for key, value in tensors.items()}
    if any(re.match(r"layers\.\d\.", key) for key in tensors):
        names, tensors = OPENMMLAB, _split(tensors, ".attn.attn.in_proj_", "qkv")
    elif any(re.match(r"(patch_embed|block|norm)\d\.", key) for key in tensors):
        names, tensors = NVLABS, _split(tensors, ".attn.kv.", "kv")
    else:
        names = TRANSFORMERS
    return to_values(tensors, names)


def assign_mit_weights(model, values):
    """Assign what `read_mit_weights` returned to a MiT: every weight, or none.

    Args:
        model: A model built by `MiTB0` to `MiTB5`.
        values: Dict of arrays in Keras' axis order, by their names here.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape. The message
            lists them.
    """
    assign_tensors(model, mit_variables(model), values)


def mit_variables(model):
    """Return a dict of the variables of a MiT of this package by their names here."""
    return dict(_weights_and_biases(_layers_of_mit(model)))


def _split(tensors, joint, letters):
    """Split the queries, keys and values that a file keeps in one tensor."""
    parts = {}
    for key, value in tensors.items():
        if joint in key:
            for letter, part in zip(
                letters, np.array_split(value, len(letters)), strict=True
            ):
                parts[key.replace(joint, f".attn.{letter}.")] = part
        else:
            parts[key] = value
    return parts


def _values_of_keras_hub(model):
    """Read the weights of a MiT of keras-hub by their names here."""
    # That of a whole SegFormer is a part of its backbone.
    encoder = getattr(getattr(model, "backbone", model), "image_encoder", model)
    layers = list(_layers_of_keras_hub(encoder))
    if not layers:
        raise ValueError(
            "A model given as `weights` must be a MiTBackbone or a SegFormer of "
            f"keras-hub. Received: weights='{model.name}' of type "
            f"{type(model).__name__}"
        )
    return {
        name: np.asarray(keras.ops.convert_to_numpy(variable), "float32")
        for name, variable in _weights_and_biases(layers)
    }


def _layers_of_keras_hub(model):
    """Yield the names here and the layers with weights of a keras-hub MiTBackbone."""
    stage = 0
    for layer in model.layers:
        if re.fullmatch(r"patch_and_embed_\d", layer.name):
            yield f"patch_embed.{stage}.proj", layer.proj
            yield f"patch_embed.{stage}.norm", layer.norm
        elif match := re.fullmatch(r"hierarchical_encoder_\d_(\d+)", layer.name):
            for part in ("norm1", "norm2", *BLOCK.values()):
                own = layer  # its attributes have the names that the parts have here
                for attribute in part.split("."):
                    own = getattr(own, attribute, None)
                if own is not None:  # a reduction of 1 has no convolution
                    yield f"block.{stage}.{match[1]}.{part}", own
        elif isinstance(layer, keras.layers.LayerNormalization):
            yield f"norm.{stage}", layer
            stage += 1


def _layers_of_mit(model):
    """Yield the names here and the layers with weights of a MiT of this package."""
    for layer in model.layers:
        match = re.fullmatch(r"stage(\d)_(?:block(\d+)_)?(\w+)", layer.name)
        if not match:
            continue
        stage, part = int(match[1]) - 1, match[3]
        if match[2] is None:
            yield STAGE[part].format(stage), layer
            continue
        block = f"block.{stage}.{int(match[2]) - 1}"
        if part in ("norm1", "norm2"):
            yield f"{block}.{part}", layer
        for attribute, name in BLOCK.items():
            if hasattr(layer, attribute):
                yield f"{block}.{name}", getattr(layer, attribute)


def _weights_and_biases(layers):
    """Yield the names here and the variables of named layers."""
    for name, layer in layers:
        weight, bias = layer.weights  # kernel or gamma, bias or beta
        yield f"{name}.weight", weight
        yield f"{name}.bias", bias
