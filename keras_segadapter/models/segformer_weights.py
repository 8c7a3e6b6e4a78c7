"""Weights of whole SegFormers from the files and models in which they are published.

The encoder's tensors are named as in `mit_weights`, those of SegFormer's head as in
transformers: `decode_head.linear_c.0.proj.weight`, with stages counted from 0.
OpenMMLab trains SegFormers with another head, whose tensors keep their names but for
the classifier's: `decode_head.convs.0.conv.weight`.
"""

import re

import keras
import numpy as np

from keras_segadapter.backbones.mit_weights import (
    DECODE_HEAD,
    OTHER_HEADS,
    mit_variables,
    read_mit_weights,
    to_mit_values,
)
from keras_segadapter.backbones.weight_files import (
    check_tensors,
    read_tensors,
    to_values,
)
from keras_segadapter.backbones.weight_sources import read_json
from keras_segadapter.layers.head import MLPHead
from keras_segadapter.layers.segformer_head import SegFormerHead

UNUSED = rf"{OTHER_HEADS}|.*\.num_batches_tracked$"  # the counters are integers

# Patterns in a file's names and what replaces them here, applied from top to bottom.
HEAD = (
    # NVlabs
    (
        r"^decode_head\.linear_c([1-4])\.",
        lambda match: f"decode_head.linear_c.{int(match[1]) - 1}.",
    ),
    (r"\.linear_fuse\.conv\.", ".linear_fuse."),
    (r"\.linear_fuse\.bn\.", ".batch_norm."),
    (r"\.linear_pred\.", ".classifier."),
    # OpenMMLab
    (r"\.conv_seg\.", ".classifier."),
    # transformers' own names since version 5; it saves the older ones by default.
    (r"\.linear_projections\.", ".linear_c."),
    # segmentation_models_pytorch counts from the deepest stage.
    (
        r"^decoder\.mlp_stage\.([0-3])\.linear\.",
        lambda match: f"decode_head.linear_c.{3 - int(match[1])}.proj.",
    ),
    (r"^decoder\.fuse_stage\.0\.", "decode_head.linear_fuse."),
    (r"^decoder\.fuse_stage\.1\.", "decode_head.batch_norm."),
    (r"^segmentation_head\.0\.", "decode_head.classifier."),
)


def read_segformer_weights(source):
    """Read the weights of a SegFormer from a file, the Hub or keras-hub.

    Args:
        source: Path, name on the Hub or model, as in `weights` of `SegFormerB0`.

    Returns:
        Two dicts of NumPy arrays in Keras' axis order by their names here: of the
        encoder, and of the decode head, which is empty if there is none.

    Raises:
        TypeError: If `source` is not a path, a name or a model.
        ValueError: If there is no such file or repository, if the network fails, if the
            file is damaged or holds more than dense floats, or if the model is not a
            SegFormer or MiT.
        ImportError: If the package that reads the source is not installed.
    """
    if isinstance(source, keras.Model):
        return read_mit_weights(source), _head_of_keras_hub(source)
    tensors = read_tensors(source, UNUSED)
    if "decode_head.linear_pred.weight" in tensors:
        # NVlabs' files hold a second classifier, which is not used.
        tensors = {key: v for key, v in tensors.items() if ".conv_seg." not in key}
    of_head = [key for key in tensors if re.match(DECODE_HEAD, key)]
    head = to_values({key: tensors.pop(key) for key in of_head}, HEAD)
    return to_mit_values(tensors), head


def build_head(values, num_classes, channels):
    """Return the head that fits the tensors that `read_segformer_weights` returned.

    Args:
        values: Dict of arrays by their names here; empty for SegFormer's own head.
        num_classes: Integer of at least 2. Number of classes.
        channels: Integer. Width of the head where the tensors do not tell it.
    """
    if any(name.startswith("decode_head.convs.") for name in values):
        bias = values.get("decode_head.fusion_conv.bn.bias", np.zeros(channels))
        return MLPHead(num_classes, bias.size, activation="relu", name="head")
    bias = values.get("decode_head.batch_norm.bias", np.zeros(channels))
    return SegFormerHead(num_classes, bias.size, name="head")


def assign_segformer_weights(model, encoder, head):
    """Assign what `read_segformer_weights` returned: every weight, or none.

    Args:
        model: A `Segmenter` of a MiT, without adapters, with the head of `build_head`.
        encoder: Dict of arrays in Keras' axis order by their names here.
        head: The same for the head.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape. The message
            lists them.
    """
    variables = mit_variables(model.backbone) | _variables_of_head(model.head)
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    values = encoder | head
    if isinstance(model.head, SegFormerHead):
        check_tensors(model, expected | _shapes_of_linears(model.head), values)
        values |= _assign_products(model.head, head)
    else:
        check_tensors(model, expected, values)
        # These norms add another epsilon to the variance than PyTorch's.
        shift = 1e-5 - model.head.projection_norm.epsilon
        values |= {k: v + shift for k, v in head.items() if k.endswith("running_var")}
    for name, variable in variables.items():
        variable.assign(values[name])


def read_class_names(source, num_classes):
    """Return the names that transformers keeps beside weights that have been read.

    Args:
        source: As in `read_segformer_weights`.
        num_classes: Integer. Number of classes of the weights.

    Returns:
        List of `num_classes` strings, or None if there are none, or only the names that
        transformers makes up.
    """
    if isinstance(source, keras.Model):
        return None
    by_id = read_json(source, "config.json").get("id2label")
    ids = [str(id_) for id_ in range(num_classes)]
    if not isinstance(by_id, dict) or by_id.keys() != {*ids}:
        return None
    names = [str(by_id[id_]).strip() for id_ in ids]
    return None if names == [f"LABEL_{id_}" for id_ in ids] else names


def _variables_of_head(layer):
    """Return a dict of those variables of a head that files hold as they are."""
    variables = {
        "decode_head.classifier.weight": layer.classifier.kernel,
        "decode_head.classifier.bias": layer.classifier.bias,
    }
    if isinstance(layer, SegFormerHead):
        return variables | _of_norm("batch_norm", layer.norm)
    variables["decode_head.fusion_conv.conv.weight"] = layer.projection
    variables |= _of_norm("fusion_conv.bn", layer.projection_norm)
    for i, (linear, norm) in enumerate(zip(layer.linears, layer.norms, strict=True)):
        variables[f"decode_head.convs.{i}.conv.weight"] = linear.kernel
        variables |= _of_norm(f"convs.{i}.bn", norm)
    return variables


def _shapes_of_linears(layer):
    """Return a dict of the shapes of the tensors that a `SegFormerHead` multiplies."""
    width = layer.channels
    fused = len(layer.linears) * width
    shapes = {"decode_head.linear_fuse.weight": (fused, width)}
    for i, linear in enumerate(layer.linears):
        shapes[f"decode_head.linear_c.{i}.proj.weight"] = tuple(linear.kernel.shape)
        shapes[f"decode_head.linear_c.{i}.proj.bias"] = (width,)
    return shapes


def _assign_products(layer, head):
    """Assign products of linear layers to a `SegFormerHead`.

    Returns:
        Dict with the moving mean of its batch norm, which takes the biases.
    """
    mean = head["decode_head.batch_norm.running_mean"].astype("float64")
    fuse = head["decode_head.linear_fuse.weight"].astype("float64")
    # The columns of the deepest stage come first.
    columns = np.split(fuse, len(layer.linears))[::-1]
    for i, (linear, matrix) in enumerate(zip(layer.linears, columns, strict=True)):
        name = f"decode_head.linear_c.{i}.proj"
        linear.kernel.assign(head[f"{name}.weight"] @ matrix)  # (C_i, channels)
        mean -= head[f"{name}.bias"] @ matrix
    return {"decode_head.batch_norm.running_mean": mean}


def _of_norm(name, layer):
    """Return a dict of the variables of a head's batch norm."""
    return {
        f"decode_head.{name}.weight": layer.gamma,
        f"decode_head.{name}.bias": layer.beta,
        f"decode_head.{name}.running_mean": layer.moving_mean,
        f"decode_head.{name}.running_var": layer.moving_variance,
    }


def _head_of_keras_hub(model):
    """Read the head of a keras-hub SegFormerImageSegmenter, which is the same one."""
    classifier = getattr(model, "output_segmentation_head", None)
    if classifier is None:
        return {}
    fuse, norm, _ = model.backbone.linear_fuse.layers
    variables = _of_norm("batch_norm", norm) | {
        "decode_head.linear_fuse.weight": fuse.kernel,
        "decode_head.classifier.weight": classifier.kernel,
        "decode_head.classifier.bias": classifier.bias,
    }
    for i, linear in enumerate(model.backbone.mlp_blocks):
        variables[f"decode_head.linear_c.{i}.proj.weight"] = linear.kernel
        variables[f"decode_head.linear_c.{i}.proj.bias"] = linear.bias
    values = {}
    for name, variable in variables.items():
        value = np.asarray(keras.ops.convert_to_numpy(variable), "float32")
        # A 1 x 1 convolution (1, 1, in, out) in place of a linear layer (in, out).
        values[name] = value[0, 0] if value.ndim == 4 else value
    return values
