"""Masks of class ids, as losses and metrics read them."""

import keras
from keras import ops

from keras_segadapter.validation import ignored_ids, is_auto

# What Keras calls the mean; the last also scales for tf.distribute.
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
FRACTION = -(2**31)


def deferred_ids(ignore_class):
    """Return ignored ids as a list, or `"auto"` until the classes are known."""
    return "auto" if is_auto(ignore_class) else ignored_ids(ignore_class)


def check_reduction(loss, reduction):
    """Validate that a loss's reduction is a mean, in which void pixels can be left out.

    Raises:
        ValueError: If it is not.
    """
    if reduction not in MEANS:
        raise ValueError(
            f"{type(loss).__name__} on masks is a mean over the pixels that count: "
            f"`reduction` must be one of {MEANS}. Received: reduction={reduction!r}"
        )


def counted_pixels(labels, ids):
    """Return a boolean map of the pixels whose label is none of the ignored `ids`."""
    counted = ops.ones_like(labels, dtype="bool")
    for ignored in ids:
        counted = ops.logical_and(counted, ops.not_equal(labels, ignored))
    return counted


def integer_labels(y_true, y_pred):
    """Return labels as int32 `(B, H, W)`, checked against predictions `(B, h, w, K)`.

    Fractions and NaN become the id `FRACTION`, which is never a class nor ignored.

    Raises:
        ValueError: If the mask does not hold one id per pixel for as many images.
    """
    labels = ops.convert_to_tensor(y_true)
    if len(labels.shape) == 4 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    batches = {labels.shape[0], y_pred.shape[0]} - {None} if len(labels.shape) else ()
    if len(labels.shape) != 3 or len(y_pred.shape) != 4 or len(batches) > 1:
        raise ValueError(
            "Masks must hold one class id per pixel, (batch, height, width), and there "
            "must be one for each image. Turn one-hot masks into ids with "
            "numpy.argmax(mask, axis=-1). Received: masks of shape "
            f"{tuple(y_true.shape)} for predictions of shape {tuple(y_pred.shape)}"
        )
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype)):
        # A fraction would become the id below it, and NaN any id.
        whole = ops.equal(labels, ops.floor(labels))
        labels = ops.where(whole, labels, FRACTION)
    return ops.cast(labels, "int32")


def read_labels(y_true, y_pred, ignore_class):
    """Read masks of class ids for a loss of regions.

    Returns:
        Labels that are all classes, int32 `(B, H, W)`; which pixels count, bool
        `(B, H, W)`; and a factor for the loss: 1.0, or NaN if a pixel that counts is of
        no class, or 0.0 if none counts.
    """
    labels, num_classes = integer_labels(y_true, y_pred), y_pred.shape[-1]
    counted = counted_pixels(labels, ignored_ids(ignore_class, num_classes))
    known = ops.logical_and(labels >= 0, labels < num_classes)
    wrong = ops.any(ops.logical_and(counted, ops.logical_not(known)))
    factor = ops.where(wrong, float("nan"), ops.cast(ops.any(counted), "float32"))
    return ops.where(known, labels, 0), counted, factor


def refuse_sample_weight(loss, sample_weight):
    """Validate that a loss of regions gets no weights of samples.

    Raises:
        ValueError: If it does.
    """
    if sample_weight is not None:
        raise ValueError(
            f"{type(loss).__name__} takes no `sample_weight`: it compares regions, not "
            "pixels. Mark pixels that do not count with an id of `ignore_class`, or "
            "use SegmentationCrossentropy. Received: "
            f"sample_weight={sample_weight!r}"
        )
