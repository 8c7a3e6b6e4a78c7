"""Checks of the arguments of `fit`, `evaluate` and `predict` that are data."""

import os

import keras
import numpy as np
from keras import ops

from keras_segadapter.data_validation import (
    check_batch,
    check_masks,
    check_range,
    count_values,
)


def check_data(watch, x, y=None):
    """Validate images and masks in memory before work is lost on them.

    Args:
        watch: The `DataWatch` of the model.
        x: Images, or a source of batches, of which only a PyDataset is looked into:
            others would be read twice, or have no other first batch.
        y: Masks, or a dict of them by output.

    Raises:
        TypeError: If they are neither arrays nor sources of batches.
        ValueError: If they are not as the model takes them.
    """
    _check_source("x", x)
    if isinstance(x, keras.utils.PyDataset):
        x, y = (*_as_tuple(x[0]), None)[:2]
    images = _array(x, 1)
    if images is None and x is not None:
        return  # a source of batches
    masks = None if x is None else y
    check_batch(images, masks, watch.channels, watch.outputs, watch.with_loss)
    _check_images(watch, x)
    shape = (len(single(x)), *images.shape[1:])
    for masks in y.values() if isinstance(y, dict) else [y]:
        _check_source("y", masks)
        masks = _array(masks)
        if masks is not None:
            check_masks(masks, shape, watch.num_classes, watch.ignored)


def check_validation(watch, data):
    """Validate the argument `validation_data` of `fit` as `check_data` does.

    Raises:
        ValueError: If it is a tuple of other than images, masks and weights.
    """
    if data is None:
        return
    pair = isinstance(data, (tuple, list))
    if pair and len(data) not in (2, 3):
        raise ValueError(
            "`validation_data` must be a pair (images, masks) or a dataset of such. "
            f"Received: validation_data={type(data).__name__} of {len(data)}"
        )
    check_data(watch, *(data[:2] if pair else [data]))


def _check_source(name, data):
    """Validate that data is one array or a source of batches, and not empty."""
    several = isinstance(data, (list, tuple)) and len(data) != 1
    if several or isinstance(data, (str, os.PathLike)) or np.isscalar(data):
        kind = type(data).__name__ + (f" of {len(data)}" if several else "")
        raise TypeError(
            f"`{name}` must be one array of all images or masks, as numpy.stack makes "
            "it of those of one size, or a dataset of batches, as "
            "keras_segadapter.data.open_folder makes it of files. Received: "
            f"{name} of type {kind}"
        )
    try:
        empty = len(single(data)) == 0
    except (TypeError, NotImplementedError):  # no length, or an unknown one
        return
    if empty:
        raise ValueError(
            f"`{name}` must hold at least one image or batch. Received: {name} of "
            "length 0"
        )


def _check_images(watch, images):
    """Validate the range of the first of some images in memory."""
    images = _array(images, 32)
    if images is None or images.dtype == "uint8" or not images.size:
        return
    if images.dtype.kind in "OSU":
        raise ValueError(
            "Images must hold numbers in 0..255, uint8 or float. Received: images of "
            f"dtype {images.dtype}"
        )
    check_range(count_values(images, np), images.dtype, watch.takes_pixels)


def check_first_images(watch, data):
    """Validate the first batch of what is to be predicted.

    Args:
        watch: A `DataWatch`.
        data: Images, or a source of batches.

    Returns:
        The data, from its first batch on.

    Raises:
        ValueError: If the images are not as the model takes them.
    """
    _check_source("x", data)
    if isinstance(data, keras.utils.PyDataset) or _array(data, 1) is not None:
        batch = data[0] if isinstance(data, keras.utils.PyDataset) else data
        _check_images(watch, _as_tuple(batch)[0] if batch is not data else data)
        return data
    if not hasattr(data, "__iter__"):
        raise TypeError(
            "`x` must be images (N, height, width, channels) or a dataset of batches. "
            f"Received: x={data!r}"
        )
    batches = iter(data)
    first = next(batches, None)
    if first is not None:
        _check_images(watch, _as_tuple(first)[0])
    if batches is not data:  # as it is of a tf.data.Dataset or DataLoader
        return data

    def generator():
        yield from () if first is None else (first,)
        yield from batches

    return generator()


def single(value):
    """Return the only array of a list or dict, as of a model with one input."""
    if isinstance(value, (list, dict)) and len(keras.tree.flatten(value)) == 1:
        return keras.tree.flatten(value)[0]
    return value


def _as_tuple(batch):
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _array(value, count=None):
    """Return the first `count` rows of an array or tensor as NumPy, else None."""
    value = single(value)
    if not hasattr(value, "__array__") or not hasattr(value, "shape"):
        return None  # such as a dataset; tensors of another backend are arrays too
    return ops.convert_to_numpy(value[:count])
