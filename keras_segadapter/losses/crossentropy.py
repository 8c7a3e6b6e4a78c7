"""Pixel-wise cross-entropy that leaves void pixels out and can weigh classes."""

import keras
from keras import ops

from keras_segadapter.losses.tiles import resized_crossentropy
from keras_segadapter.validation import ignored_ids

# What Keras calls the mean; the last also scales for tf.distribute.
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


@keras.saving.register_keras_serializable("keras_segadapter")
class SegmentationCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer masks and logits, averaged over the pixels that count.

    Keras' `SparseCategoricalCrossentropy` takes one ignored id and no class weights;
    masks often need both. The mean is `sum(w * ce) / sum(w)`, as PyTorch's: w is 0 for
    void pixels and the class's weight elsewhere, so void never counts. `sample_weight`
    multiplies each pixel's term and leaves the divisor as it is. A batch of void pixels
    only gives 0. An id that is neither a class nor ignored makes the loss NaN, since
    each backend would train on it in a different way.

    Logits may be smaller than the mask, as a `Segmenter` gives them. They are then
    resized to it (bilinear, half-pixel centers) one tile at a time: the same loss and
    gradient as of the resized logits, which never exist as a whole.

    Args:
        ignore_class: Integer, list of integers, or None. Ids of void pixels. Defaults
            to `255`.
        class_weight: List of numbers of at least 0, one per class, or None for equal
            weights. Defaults to `None`.
        name: String. Name of the loss. Defaults to `"segmentation_crossentropy"`.
        **kwargs: `dtype`, as in `keras.losses.Loss`.

    Call arguments:
        y_true: Class ids `(B, H, W)` or `(B, H, W, 1)`, any integer type.
        y_pred: Logits `(B, h, w, K)`, of any height and width; computed on in float32.
        sample_weight: Weights of images `(B,)` or of pixels `(B, H, W)`, or None.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of integers.
        ValueError: If a class weight is negative, if there are not K of them, or if
            masks and logits do not fit.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    loss = ksa.SegmentationCrossentropy(ignore_class=[254, 255], class_weight=[1, 5])
    mask, logits = np.array([[[0, 1], [255, 254]]]), np.zeros((1, 2, 2, 2))
    print(float(loss(mask, logits)))  # 0.693...: two pixels count
    ```

    Source: paper, section 2 (objective).
    """

    def __init__(
        self,
        ignore_class=255,
        class_weight=None,
        name="segmentation_crossentropy",
        **kwargs,
    ):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = ignored_ids(ignore_class)
        self.class_weight = None if class_weight is None else list(class_weight)
        if self.class_weight is not None and not (
            self.class_weight and all(weight >= 0 for weight in self.class_weight)
        ):
            raise ValueError(
                "`class_weight` must hold one weight of at least 0 per class. "
                f"Received: class_weight={class_weight}"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        # The sum over the pixels is taken inside `call`, so their weights go there too.
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype="float32")
            rank = len(sample_weight.shape)
            if rank == 1:  # one weight an image: Keras would line it up with columns
                sample_weight = ops.reshape(sample_weight, (-1, 1, 1))
            elif rank == 4:
                sample_weight = ops.squeeze(sample_weight, axis=-1)
        weighted = [y_true, 1.0 if sample_weight is None else sample_weight]
        return super().__call__(weighted, y_pred)

    def call(self, y_true, y_pred):
        y_true, sample_weight = y_true if isinstance(y_true, list) else (y_true, 1.0)
        labels = integer_labels(y_true, y_pred)  # (B, H, W)
        logits = ops.cast(y_pred, "float32")  # (B, h, w, K)
        labels, weights = self._weights(labels, logits.shape[-1])  # (B, H, W) each
        total = ops.maximum(ops.sum(weights), keras.config.epsilon())
        loss = resized_crossentropy(labels, weights * sample_weight, logits) / total
        return ops.reshape(loss, (1,))  # Keras scales no scalar for tf.distribute

    def _weights(self, labels, num_classes):
        """Return labels that are all classes, and what each pixel counts."""
        counted = counted_pixels(labels, self.ignore_class)  # (B, H, W)
        known = ops.logical_and(labels >= 0, labels < num_classes)
        weights = ops.where(known, 1.0, float("nan"))
        weights = ops.cast(ops.where(counted, weights, 0.0), "float32")
        labels = ops.where(known, labels, 0)
        if self.class_weight is not None:
            if len(self.class_weight) != num_classes:
                raise ValueError(
                    "`class_weight` must hold one weight per class. Received: "
                    f"{len(self.class_weight)} weights for {num_classes} classes"
                )
            table = ops.convert_to_tensor(self.class_weight, dtype="float32")
            weights = weights * ops.take(table, labels)
        return labels, weights

    def get_config(self):
        config = super().get_config()
        config.update(ignore_class=self.ignore_class, class_weight=self.class_weight)
        return config


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
    return ops.cast(labels, "int32")
