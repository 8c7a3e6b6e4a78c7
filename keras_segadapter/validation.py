"""Arguments and data in memory, checked before work is lost on them."""

import math
from numbers import Real

import keras
import numpy as np


def check_integer(name, value, least=1):
    """Return `value` as an int if it is an integer of at least `least`."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: "
            f"{name}={value!r}"
        )
    return int(value)


def check_positive(name, value):
    """Return `value` as a float if it is above 0 and finite."""
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise ValueError(
            f"`{name}` must be a number above 0 and finite. Received: {name}={value!r}"
        )
    return float(value)


def check_rate(name, rate):
    """Return `rate` if it is in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={rate}")
    return rate


def check_size(name, size, least=1):
    """Return `size` as (height, width) if it is two integers of at least `least`."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`{name}` must be (height, width). Received: {name}={size!r}")
    return tuple(check_integer(f"{name}[{i}]", size[i], least) for i in (0, 1))


def check_num_classes(num_classes):
    """Return `num_classes` if it is an integer of at least 2."""
    if check_integer("num_classes", num_classes, least=0) < 2:
        raise ValueError(
            "`num_classes` must be at least 2: a binary mask has two classes, the "
            f"background and the object. Received: num_classes={num_classes}"
        )
    return int(num_classes)


def ignored_ids(ignore_class):
    """`ignore_class` (None, an id or several) as a sorted list of ids."""
    ids = [] if ignore_class is None else ignore_class
    ids = list(ids) if isinstance(ids, (list, tuple, set)) else [ids]
    if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in ids):
        raise TypeError(
            "`ignore_class` must be None, an integer id or a list of integer ids. "
            f"Received: ignore_class={ignore_class!r}"
        )
    return sorted(map(int, ids))


def check_segmenter(model, caller):
    """Validate that `model` is a `Segmenter`, for the function or class `caller`."""
    # By its attributes: Segmenter stands below in the reading order.
    if not hasattr(model, "stages") or not hasattr(model, "adapters"):
        raise TypeError(
            f"{caller} takes a keras_segadapter.Segmenter, as build_segmenter makes "
            f"it. Received: model={model!r} of type {type(model).__name__}"
        )


def check_channels_last():
    """Refuse Keras' channels_first setting."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras_segadapter works on channels_last images and feature maps (B, H, W, "
            "C), but Keras is set to channels_first. Call "
            "keras.config.set_image_data_format('channels_last') before building the "
            "backbone."
        )


def check_feature_map(layer, input_shape):
    """Refuse what is not a channels-last feature map with known channels."""
    check_channels_last()
    if len(input_shape) != 4 or input_shape[-1] is None:
        raise ValueError(
            f"{type(layer).__name__} '{layer.name}' takes feature maps of shape "
            "(batch, height, width, channels) with a known number of channels. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def check_outputs(names, **arguments):
    """Validate that dicts by output name outputs that the model has.

    Raises:
        ValueError: If one of `arguments` of `compile` is a dict with another name.
    """
    for argument, value in arguments.items():
        unknown = sorted(set(value) - set(names)) if isinstance(value, dict) else []
        if unknown:
            raise ValueError(
                f"`{argument}` must name outputs of the model, which are {names}. "
                f"Received: {argument}={value!r} with {unknown}"
            )


def check_size_of_masks(images, masks):
    """Validate that masks have the height and width of the images, where known.

    Raises:
        ValueError: If they have another; losses would resize the scores to it.
    """
    size = tuple(getattr(images, "shape", ()))[1:3]
    for mask in masks.values() if isinstance(masks, dict) else [masks]:
        found = tuple(getattr(mask, "shape", ()))[1:3]
        if any(a != b for a, b in zip(size, found, strict=False) if None not in (a, b)):
            raise ValueError(
                "Masks must hold one class id per pixel, (batch, height, width), at "
                f"the size of the images. Received: masks of shape {tuple(mask.shape)} "
                f"for images of shape {tuple(images.shape)}"
            )


def check_masks(masks, images_shape, num_classes, ignored):
    """Refuse masks that do not fit the images or the classes.

    Args:
        masks: NumPy array of class ids `(B, H, W)` or `(B, H, W, 1)`.
        images_shape: Shape of the images, `(B, H, W, C)`.
        num_classes: Number of classes K.
        ignored: Ids that are ignored.

    Raises:
        ValueError: A sentence with what was found and how to mend it.
    """
    one_id_a_pixel = masks.ndim == 3 or masks.shape[3:] == (1,)
    if not one_id_a_pixel or masks.shape[:3] != tuple(images_shape[:3]):
        raise ValueError(
            "Masks must hold one class id a pixel, (batch, height, width), at the size "
            "of the images; one-hot masks: take numpy.argmax(mask, axis=-1). Received: "
            f"masks of shape {masks.shape} for images of shape {tuple(images_shape)}"
        )
    present = set(np.unique(masks).tolist())
    wrong = sorted(present - set(ignored) - set(range(num_classes)))
    if wrong or present == {0, 255}:
        found = (
            f"The masks hold ids outside the {num_classes} classes "
            f"0..{num_classes - 1}: {wrong[:10]}"
            if wrong
            else "The masks hold nothing but class 0 and the ignored id 255"
        )
        fix = (
            "They look like black and white pictures: use masks // 255."
            if present == {0, 255}
            else "Map them to class ids, raise num_classes, or leave them out with "
            "compile(ignore_class=[...])."
        )
        raise ValueError(f"{found} (ignored: {sorted(ignored) or 'none'}). {fix}")


def check_images(images, channels, normalises):
    """Refuse what is no image or batch of images that a model can take.

    Args:
        images: NumPy array.
        channels: Channels C that the model takes.
        normalises: Whether the model takes pixels in 0..255 and normalises them.

    Raises:
        ValueError: A sentence with what was found and how to mend it.
    """
    if images.ndim not in (3, 4) or images.shape[-1] != channels or not images.size:
        raise ValueError(
            f"segment takes an image (height, width, {channels}), a batch of them or a "
            "list; convert a photo with Image.open(path).convert('RGB'). Received: "
            f"shape {images.shape}"
        )
    if images.dtype.kind not in "uif":
        raise ValueError(
            "Images must hold numbers in 0..255, uint8 or float. Received: dtype "
            f"{images.dtype}"
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise ValueError(
            "The image holds NaN or infinite values. Replace them before segment."
        )
    if images.dtype.kind == "f" and normalises and 0 < np.abs(images).max() <= 1:
        raise ValueError(
            "The image lies in 0..1, but the model takes pixels in 0..255 and "
            "normalises by itself. Multiply the image by 255. Received: values up to "
            f"{images.max():.3g}"
        )
