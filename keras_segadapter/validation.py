"""Checks of arguments, before work is lost on them."""

import inspect
import math
from numbers import Real

import keras
import numpy as np


def check_integer(name, value, least=1):
    """Return `value` as an int, validated to be an integer of at least `least`."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: "
            f"{name}={value!r}"
        )
    return int(value)


def check_number(name, value, least=-math.inf, above=-math.inf, below=math.inf):
    """Return `value` as a float, validated to be finite and within the bounds."""
    # Comparisons are False for NaN, and bool(nan) is True: booleans come first.
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and max(least, above) <= value < below) or (
        value == above
    ):
        bounds = (("of at least", least), ("above", above), ("below", below))
        text = " and".join(f" {word} {at}" for word, at in bounds if math.isfinite(at))
        raise ValueError(
            f"`{name}` must be a finite number{text}. Received: {name}={value!r}"
        )
    return float(value)


def check_positive(name, value):
    """Return `value` as a float, validated to be above 0 and finite."""
    return check_number(name, value, above=0)


def check_rate(name, rate):
    """Return `rate` as a float, validated to be in [0, 1)."""
    return check_number(name, rate, least=0, below=1)


def check_boolean(name, value):
    """Return `value` as a bool, validated to be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def check_size(name, size, least=1):
    """Return `size` as (height, width), validated to be two integers."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`{name}` must be (height, width). Received: {name}={size!r}")
    return tuple(check_integer(f"{name}[{i}]", size[i], least) for i in (0, 1))


def check_num_classes(num_classes):
    """Return `num_classes`, validated to be an integer of at least 2."""
    if isinstance(num_classes, (int, np.integer)) and num_classes < 2:
        raise ValueError(
            "`num_classes` must be at least 2: a binary mask has two classes, the "
            f"background and the object. Received: num_classes={num_classes}"
        )
    return check_integer("num_classes", num_classes, least=2)


def check_names_and_colors(num_classes, class_names, colors=None):
    """Validate that classes have a name and a color each, where these are given.

    Raises:
        ValueError: If `class_names` is no list of strings or `colors` no array of RGB
            values in 0..255, with one for each class.
    """
    if class_names is not None:
        named = isinstance(class_names, (list, tuple)) and all(
            isinstance(name, str) for name in class_names
        )
        if not named or len(class_names) != num_classes:
            raise ValueError(
                f"`class_names` must be a list of {num_classes} strings, one for each "
                f"class. Received: class_names={class_names!r}"
            )
    if colors is not None:
        values = np.asarray(colors)
        fit = values.shape == (num_classes, 3) and values.dtype.kind in "uif"
        if not fit or not np.isin(values, range(256)).all():
            raise ValueError(
                f"`colors` must hold {num_classes} RGB colors, one for each class, as "
                f"integers in 0..255. Received: colors={colors!r}"
            )


def check_input_shape(shape):
    """Return `shape` as a tuple, validated to be (height, width, channels)."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(
            "`input_shape` must be (height, width, channels), with None for an open "
            f"height or width. Received: input_shape={shape!r}"
        )
    for index, side in enumerate(shape):
        if side is not None or index == 2:
            check_integer(f"input_shape[{index}]", side)
    return tuple(shape)


def check_config(cls, config):
    """Validate that a config has what the constructor of a class takes.

    Raises:
        ValueError: If arguments without a default are missing, or others are unknown.
    """
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    config = config if isinstance(config, dict) else {}
    missing = [p.name for p in named if p.default is p.empty and p.name not in config]
    unknown = set(config) - {p.name for p in named}
    if len(named) < len(parameters):
        unknown = set()  # The constructor of Keras' class says so.
    if missing or unknown:
        raise ValueError(
            f"The config of a {cls.__name__} must hold the arguments of its "
            "constructor. Was it edited, or written by another version? Received: a "
            f"config with the missing keys {missing} and the unknown keys "
            f"{sorted(unknown)}"
        )


def ignored_ids(ignore_class, num_classes=None):
    """Return `ignore_class` as a sorted list of ids.

    Args:
        ignore_class: None, an integer, a list of integers or, where `num_classes` is
            given, `"auto"`: 255 if it is not one of the classes.
        num_classes: Integer, the number of classes, or None if it is not known yet.

    Raises:
        TypeError: If `ignore_class` is none of these.
        ValueError: If an ignored id is also one of the classes.
    """
    if is_auto(ignore_class) and num_classes is not None:
        return [255] if num_classes <= 255 else []
    ids = [] if ignore_class is None else ignore_class
    ids = list(ids) if isinstance(ids, (list, tuple, set)) else [ids]
    if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in ids):
        raise TypeError(
            '`ignore_class` must be "auto", None, an integer id or a list of integer '
            f"ids. Received: ignore_class={ignore_class!r}"
        )
    ids = sorted(map(int, ids))
    both = [i for i in ids if 0 <= i < (num_classes or 0)]
    if both:
        raise ValueError(
            f"An ignored id can't be one of the {num_classes} classes 0.."
            f"{num_classes - 1}. Leave `ignore_class` out, or map the class to an id "
            f"beyond the classes. Received: ignore_class={ids}, with the classes {both}"
        )
    return ids


def is_auto(value):
    """Return whether an argument is left to the library, `"auto"`."""
    return isinstance(value, str) and value == "auto"


def is_segmenter(model):
    """Return whether `model` is a `Segmenter`."""
    # By its attributes: Segmenter stands below in the reading order.
    return hasattr(model, "stages") and hasattr(model, "adapters")


def check_segmenter(model, caller):
    """Validate that `model` is a `Segmenter`, for the function or class `caller`."""
    if not is_segmenter(model):
        raise TypeError(
            f"{caller} takes a keras_segadapter.Segmenter, as build_segmenter makes "
            f"it. Received: model={model!r} of type {type(model).__name__}"
        )


def check_channels_last():
    """Validate that Keras is not set to channels_first."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras_segadapter works on channels_last images and feature maps (B, H, W, "
            "C). Call keras.config.set_image_data_format('channels_last') before "
            "building the backbone. Received: image_data_format='channels_first'"
        )


def check_feature_map(layer, input_shape):
    """Validate that a layer's input is a channels-last feature map of known channels.

    Raises:
        ValueError: If it is not.
    """
    check_channels_last()
    if len(input_shape) != 4 or input_shape[-1] is None:
        raise ValueError(
            f"{type(layer).__name__} '{layer.name}' takes feature maps of shape "
            "(batch, height, width, channels) with a known number of channels. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def check_feature_maps(layer, input_shape):
    """Validate that a layer's input is a list of such feature maps.

    Raises:
        ValueError: If it is not.
    """
    if not input_shape or not isinstance(input_shape[0], (list, tuple)):
        raise ValueError(
            f"{type(layer).__name__} '{layer.name}' takes a list of feature maps, "
            "shallow to deep; wrap a single one in a list. Received: "
            f"input_shape={input_shape}"
        )
    for shape in input_shape:
        check_feature_map(layer, shape)


def list_names(names, most=4):
    """Return names in one line of text, of which the first `most` are written out."""
    if not names:
        return "none"
    more = len(names) - most
    return ", ".join([*names][:most] + [f"and {more} more"] * (more > 0))
