"""Weights of whole SegFormers from the files and models in which they are published.

The encoder's tensors are named as in `mit_weights`, those of the head as in
transformers: `decode_head.linear_c.0.proj.weight`, with stages counted from 0.
"""

import re

import keras
import numpy as np

from keras_segadapter.backbones.mit_weights import (
    DECODE_HEAD,
    OTHER_HEADS,
    mit_variables,
    read_mit_weights,
    to_keras,
    to_mit_values,
)
from keras_segadapter.backbones.weight_files import (
    check_tensors,
    read_json,
    read_tensors,
)

# NVlabs' files have another classifier, which is not used. Counters are no floats.
UNUSED = rf"{OTHER_HEADS}|decode_head\.conv_seg\.|.*\.num_batches_tracked$"

# Patterns in a file's names and what replaces them here, applied from top to bottom.
HEAD = (
    # NVlabs and OpenMMLab
    (
        r"^decode_head\.linear_c([1-4])\.",
        lambda match: f"decode_head.linear_c.{int(match[1]) - 1}.",
    ),
    (r"\.linear_fuse\.conv\.", ".linear_fuse."),
    (r"\.linear_fuse\.bn\.", ".batch_norm."),
    (r"\.linear_pred\.", ".classifier."),
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
    head = {}
    for key in [key for key in tensors if re.match(DECODE_HEAD, key)]:
        value, name = tensors.pop(key), key
        for pattern, replacement in HEAD:
            name = re.sub(pattern, replacement, name)
        head[name] = to_keras(name, value)
    return to_mit_values(tensors), head


def assign_segformer_weights(model, encoder, head):
    """Assign what `read_segformer_weights` returned: every weight, or none.

    Args:
        model: A `Segmenter` of a MiT, without adapters, and a `SegFormerHead`.
        encoder: Dict of arrays in Keras' axis order by their names here.
        head: The same for the head.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape. The message
            lists them.
    """
    variables = mit_variables(model.backbone)
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    check_tensors(model, expected | _head_shapes(model), encoder | head)
    for name, variable in variables.items():
        variable.assign(encoder[name])
    get = {name.removeprefix("decode_head."): head[name] for name in head}.get
    # The columns of the deepest stage come first.
    columns = np.split(get("linear_fuse.weight").astype("float64"), 4)[::-1]
    mean = get("batch_norm.running_mean").astype("float64")
    for i, (linear, fuse) in enumerate(zip(model.head.linears, columns, strict=True)):
        linear.kernel.assign(get(f"linear_c.{i}.proj.weight") @ fuse)  # (C_i, channels)
        mean -= get(f"linear_c.{i}.proj.bias") @ fuse
    norm, classifier = model.head.norm, model.head.classifier
    norm.gamma.assign(get("batch_norm.weight"))
    norm.beta.assign(get("batch_norm.bias"))
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(get("batch_norm.running_var"))
    classifier.kernel.assign(get("classifier.weight"))
    classifier.bias.assign(get("classifier.bias"))


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


def _head_shapes(model):
    """Return a dict of the shapes of the head's tensors by their names here."""
    width, num_classes = model.head.channels, model.head.num_classes
    shapes = {
        "linear_fuse.weight": (len(model.stages) * width, width),
        "classifier.weight": (width, num_classes),
        "classifier.bias": (num_classes,),
    }
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"batch_norm.{name}"] = (width,)
    for i, stage in enumerate(model.stages):
        shapes[f"linear_c.{i}.proj.weight"] = (stage.channels, width)
        shapes[f"linear_c.{i}.proj.bias"] = (width,)
    return {f"decode_head.{name}": shape for name, shape in shapes.items()}


def _head_of_keras_hub(model):
    """Read the head of a keras-hub SegFormerImageSegmenter, which is the same one."""
    classifier = getattr(model, "output_segmentation_head", None)
    if classifier is None:
        return {}
    fuse, norm, _ = model.backbone.linear_fuse.layers
    variables = {
        "linear_fuse.weight": fuse.kernel,
        "batch_norm.weight": norm.gamma,
        "batch_norm.bias": norm.beta,
        "batch_norm.running_mean": norm.moving_mean,
        "batch_norm.running_var": norm.moving_variance,
        "classifier.weight": classifier.kernel,
        "classifier.bias": classifier.bias,
    }
    for i, linear in enumerate(model.backbone.mlp_blocks):
        variables[f"linear_c.{i}.proj.weight"] = linear.kernel
        variables[f"linear_c.{i}.proj.bias"] = linear.bias
    values = {}
    for name, variable in variables.items():
        value = np.asarray(keras.ops.convert_to_numpy(variable), "float32")
        # A 1 x 1 convolution (1, 1, in, out) in place of a linear layer (in, out).
        values[f"decode_head.{name}"] = value[0, 0] if value.ndim == 4 else value
    return values
