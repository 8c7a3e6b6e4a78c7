"""ConvNeXt weights from the files and models in which they are published.

Tensors are named here as in Meta's own code, with stages counted from 0:
`downsample_layers.0.0.weight`, `stages.0.1.dwconv.weight`, `stages.0.1.gamma`,
`norm.weight`.
"""

import os
import re

import keras
import numpy as np
from keras import layers

from keras_segadapter.backbones.weight_files import (
    assign_tensors,
    read_tensors,
    to_values,
)
from keras_segadapter.backbones.weight_sources import read_json

# Prefixes of the backbone's names in the file of a whole model, and its other parts.
# DINOv3's files hold the last norm twice; OpenCLIP's hold a text model beside it.
PREFIX = r"^(convnext|model|visual\.trunk)\."
OTHER_PARTS = (
    r"(classifier|head\.(weight|bias|fc|pre_logits)|norms|visual\.head|text|transformer"
    r"|token_embedding|positional_embedding|ln_final|text_projection|logit_)"
)

# Patterns in the names of transformers and timm and what replaces them here, applied
# from top to bottom. They leave Meta's names as they are.
NAMES = (
    (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
    (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
    (r"^encoder\.stages\.", "stages."),
    (r"^stages\.(\d)\.downsampl(?:e|ing_layer|e_layers)\.", r"downsample_layers.\1."),
    (r"^stages\.(\d)\.(?:layers|blocks)\.", r"stages.\1."),
    (r"^stem\.", "downsample_layers.0."),
    (r"^head\.norm\.", "norm."),
    (r"\blayer_?norm\.", "norm."),
    (r"\.(?:depthwise_conv|conv_dw)\.", ".dwconv."),
    (r"\.(?:pointwise_conv|mlp\.fc)([12])\.", r".pwconv\1."),
    (r"\.layer_scale_parameter$", ".gamma"),
)

# Names in the files of networks whose layers differ from those of `ConvNeXtTiny`.
OTHER_NETWORKS = (
    (r"\.grn\.", "ConvNeXtV2, whose blocks normalize responses"),
    (r"^norm_pre\.", "timm's variant _hnf, which normalizes before it pools"),
    (r"^stem\.[2-9]", "timm's variant _ols, whose stem overlaps"),
)

# Means and standard deviations of RGB in 0..1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def read_convnext_weights(source):
    """Read the weights of a ConvNeXt from a file, the Hugging Face Hub or Keras.

    Args:
        source: Path, name on the Hub or model, as in `weights` of `ConvNeXtTiny`.

    Returns:
        Dict of NumPy arrays in Keras' axis order, by their names here.

    Raises:
        TypeError: If `source` is not a path, a name or a model.
        ValueError: If there is no such file or repository, if the network fails, if the
            file is damaged or holds more than dense floats, or if the weights are not
            those of a ConvNeXt.
        ImportError: If the package that reads the source is not installed.
    """
    if isinstance(source, keras.Model):
        return _values_of_keras(source)
    tensors = {
        re.sub(PREFIX, "", key): value
        for key, value in read_tensors(source, OTHER_PARTS).items()
    }
    _check_network(source, tensors)
    return to_values(tensors, NAMES)


def read_normalization(source):
    """Return the mean and standard deviation of RGB in 0..1 that weights expect.

    They are those of timm's `config.json` or transformers' `preprocessor_config.json`
    beside the weights; else CLIP's, where the source is named after it, or ImageNet's.

    Args:
        source: As in `read_convnext_weights`.

    Raises:
        ValueError: If such a file can't be fetched or read, or holds other values than
            three numbers each.
    """
    if isinstance(source, keras.Model):
        return IMAGENET
    found = read_json(source, "config.json").get("pretrained_cfg", {})
    if "mean" in found and "std" in found:
        found = found["mean"], found["std"]
    else:
        found = read_json(source, "preprocessor_config.json")
        found = found.get("image_mean"), found.get("image_std")
    if None in found:
        return CLIP if "clip" in os.path.basename(source).lower() else IMAGENET
    for values in found:
        if np.shape(values) != (3,) or np.array(values).dtype.kind not in "if":
            raise ValueError(
                "The mean and standard deviation beside the weights must be three "
                f"numbers each. Received: weights={str(source)!r} with {values!r}"
            )
    return found


def assign_convnext_weights(model, values):
    """Assign what `read_convnext_weights` returned to a ConvNeXt: all of it, or none.

    Args:
        model: A model built by `ConvNeXtTiny` or its like.
        values: Dict of arrays in Keras' axis order, by their names here.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape. The message
            lists them.
    """
    assign_tensors(model, dict(_variables(model)), values)


def _check_network(source, tensors):
    """Validate that tensors are not those of a network with other layers.

    Raises:
        ValueError: If they are.
    """
    others = [
        network
        for pattern, network in OTHER_NETWORKS
        if any(re.search(pattern, key) for key in tensors)
    ]
    if "stem.1.weight" in tensors and "stem.1.bias" not in tensors:
        others.append("timm's variant _rms, whose norms have no bias")
    if others:
        raise ValueError(
            "The weights must be those of the first ConvNeXt with its plain stem, such "
            "as timm/convnext_tiny.in12k. Received: "
            f"weights={str(source)!r} of {others[0]}"
        )


def _values_of_keras(model):
    """Read the weights of a ConvNeXt of keras.applications by their names here."""
    values = {}
    for name, variable in _variables(model):
        value = keras.ops.convert_to_numpy(variable).astype("float32")
        if ".dwconv.weight" in name and value.shape[2] == 1:
            value = value.swapaxes(2, 3)  # of a grouped convolution, (h, w, 1, C)
        values[name] = value
    if "downsample_layers.0.0.weight" not in values:
        raise ValueError(
            "A model given as `weights` must be a ConvNeXt of keras.applications. "
            f"Received: weights='{model.name}' of type {type(model).__name__}"
        )
    return values


def _variables(model):
    """Yield the names here and the variables of a ConvNeXt of Keras or this package."""
    for layer in model.layers:
        if isinstance(layer, keras.Sequential):
            yield from _variables(layer)
            continue
        name = _name(layer)
        if name is None:
            continue
        parts = [""] if name.endswith(".gamma") else [".weight", ".bias"]
        for part, variable in zip(parts, layer.weights, strict=False):
            yield f"{name}{part}", variable


def _name(layer):
    """Return what a layer of a ConvNeXt is called here, or None if it has no weights.

    This package names its layers as keras.applications does.
    """
    if match := re.search(r"_stage_(\d)_block_(\d+)_(\w+)$", layer.name):
        parts = {
            "depthwise_conv": "dwconv",
            "layernorm": "norm",
            "pointwise_conv_1": "pwconv1",
            "pointwise_conv_2": "pwconv2",
            "layer_scale": "gamma",
        }
        part = parts.get(match[3])
        return part and f"stages.{match[1]}.{match[2]}.{part}"
    if match := re.search(r"_stem_(conv|layernorm)$", layer.name):
        return f"downsample_layers.0.{['conv', 'layernorm'].index(match[1])}"
    if match := re.search(r"_downsampling_(layernorm|conv)_(\d)$", layer.name):
        part = ["layernorm", "conv"].index(match[1])
        return f"downsample_layers.{int(match[2]) + 1}.{part}"
    return "norm" if isinstance(layer, layers.LayerNormalization) else None
