"""Logits of images of any size, one row at a time.

At the size of an image, logits take much memory: 29 GB for 48 megapixels and 150
classes. So a model predicts scores at its finest stride, and these are resized to the
image row by row.
"""

import itertools

import numpy as np
from keras import ops

from keras_segadapter.layers.native import resize_bilinear


def image_rows(model, images):
    """Predict images `(B, H, W, C)` and return each one's rows of logits `(W, K)`."""
    size, inputs = images.shape[1:3], fitted(model, images)
    maps = []
    for scores in _scores(model, inputs):  # (h, w, K)
        rows = resized_rows(scores, scores.shape[:2], inputs.shape[1:3])
        if has_fixed_size(model):
            rows = resized_rows(rows, inputs.shape[1:3], size)
        maps.append(row[: size[1]] for row in itertools.islice(rows, size[0]))
    return maps


def has_fixed_size(model):
    """Return whether a model takes images of one size only."""
    return None not in model.input_shape[1:3]


def fitted(model, images):
    """Return images `(B, h, w, C)` at a size that the model takes.

    They are padded at the bottom and right to multiples of the deepest stride by
    repeating the border, or resized to the size of a model of fixed size.
    """
    size = model.input_shape[1:3] if has_fixed_size(model) else None
    return fit_images(images, size, model.size_divisor)


def fit_images(images, size, stride):
    """Return images `(B, h, w, C)` of `size`, or padded to multiples of `stride`."""
    if size is not None:
        return resize(images, size)
    below, right = (-side % stride for side in images.shape[1:3])
    return np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def _scores(model, images):
    """Predict the class scores `(B, h, w, K)` at the finest stride, nothing else."""
    return model.scorer.predict_on_batch(images)


def resized_rows(rows, size, new_size):
    """Yield the rows `(W, K)` of a map that is resized bilinearly, half-pixel centers.

    Args:
        rows: Iterable of the map's rows `(w, K)`, from top to bottom.
        size: Height and width of the map.
        new_size: Height and width that it is resized to.
    """
    if tuple(size) == tuple(new_size):
        yield from rows
        return
    (tops, down), (left, across) = map(_cells, size, new_size)
    right, across = np.minimum(left + 1, size[1] - 1), across[:, None]
    rows = (_between(row.take(left, 0), row.take(right, 0), across) for row in rows)
    above = next(rows)
    below, index = next(rows, above), 0
    for top, share in zip(tops, down, strict=True):
        while index < top:
            above, below, index = below, next(rows, below), index + 1
        yield _between(above, below, share)


def resize(images, size):
    """Resize images `(B, h, w, C)` to `(B, *size, C)` where they differ in size."""
    if images.shape[1:3] == tuple(size):
        return images
    return ops.convert_to_numpy(resize_bilinear(images, *size))


def _between(one, other, share):
    """Interpolate between two arrays."""
    result = other - one
    result *= share
    result += one
    return result


def _cells(length, new_length):
    """Return the cell before each pixel of a resized side, and the next one's share."""
    positions = (np.arange(new_length) + 0.5) * (length / new_length) - 0.5
    positions = np.clip(positions, 0, length - 1)
    cells = positions.astype(int)
    return cells, (positions - cells).astype("float32")


def label_dtype(num_classes):
    """Return the dtype of the class ids that are predicted."""
    return "uint8" if num_classes <= 256 else "int32"
