"""Pixel-wise cross-entropy that leaves void pixels out and can weigh classes."""

import keras
from keras import ops

from keras_segadapter.checks import check_integer, ignored_ids
from keras_segadapter.training.blockwise import resized_crossentropy

# What Keras calls the mean; the last also scales for tf.distribute.
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


@keras.saving.register_keras_serializable("keras_segadapter")
class SegmentationCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer masks and logits, averaged over the pixels that count.

    Keras' `SparseCategoricalCrossentropy` takes one ignored id and no class weights;
    masks often need both. The mean is `sum(w * ce) / sum(w)`, as PyTorch's: w is 0 for
    void pixels and the class's weight elsewhere, so void never counts. `sample_weight`
    multiplies each pixel's term and leaves the divisor. A batch of void alone gives 0.
    An id that is neither a class nor ignored makes the loss NaN: each backend would
    train on it in a way of its own.

    Args:
        ignore_class: Id of void pixels, several ids, or None.
        class_weight: One weight a class, or None for equal ones.
        tile: None, or the side of the tiles of the mask to work on one after the other,
            in pixels: predictions may then be smaller than the mask, and are resized to
            it (bilinear) a tile at a time. A `Segmenter` compiled with it trains in a
            fraction of the memory, to the same numbers. 64 is a good value.
        name: Name of the loss.
        **kwargs: `dtype`, as in `keras.losses.Loss`.

    Call arguments:
        y_true: Class ids `(B, H, W)` or `(B, H, W, 1)`, any integer type.
        y_pred: Logits `(B, H, W, K)`, with `tile` of any height and width; computed
            on in float32.
        sample_weight: Weights of images `(B,)` or of pixels `(B, H, W)`, or None.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of integers.
        ValueError: If a class weight is negative, or there are not K of them.

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
        tile=None,
        name="segmentation_crossentropy",
        **kwargs,
    ):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = ignored_ids(ignore_class)
        self.tile = check_tile(tile)
        self.class_weight = None if class_weight is None else list(class_weight)
        if self.class_weight is not None and not (
            self.class_weight and all(weight >= 0 for weight in self.class_weight)
        ):
            raise ValueError(
                "`class_weight` must hold one weight of at least 0 a class. "
                f"Received: class_weight={class_weight}"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype="float32")
            # Keras would line up the weights (B,) of whole images with columns.
            if len(sample_weight.shape) == 1:
                sample_weight = ops.reshape(sample_weight, (-1, 1, 1))
        if to_resize(y_true, y_pred, self.tile):
            if sample_weight is not None and len(sample_weight.shape) == 4:
                sample_weight = ops.squeeze(sample_weight, axis=-1)
            # The sum over the pixels is taken inside `call`, so their weights too.
            y_true = [y_true, 1.0 if sample_weight is None else sample_weight]
            sample_weight = None
        return super().__call__(y_true, y_pred, sample_weight=sample_weight)

    def call(self, y_true, y_pred):
        smaller = isinstance(y_true, list)
        y_true, sample_weight = y_true if smaller else (y_true, None)
        labels = integer_labels(y_true, y_pred, self.tile)  # (B, H, W)
        logits = ops.cast(y_pred, "float32")  # (B, H, W, K)
        labels, weights = self._weights(labels, logits.shape[-1])  # (B, H, W) each
        total = ops.maximum(ops.sum(weights), keras.config.epsilon())
        if smaller:
            weights = weights * sample_weight
            return resized_crossentropy(labels, weights, logits, self.tile) / total
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )  # (B, H, W)
        # Keras averages over all pixels; this factor turns that into the mean over
        # those that count.
        pixels = ops.cast(ops.size(labels), "float32")
        return losses * weights * (pixels / total)

    def _weights(self, labels, num_classes):
        """Labels that are all classes, and what each pixel counts."""
        counted = counted_pixels(labels, self.ignore_class)  # (B, H, W)
        known = ops.logical_and(labels >= 0, labels < num_classes)
        weights = ops.where(known, 1.0, float("nan"))
        weights = ops.cast(ops.where(counted, weights, 0.0), "float32")
        labels = ops.where(known, labels, 0)
        if self.class_weight is not None:
            if len(self.class_weight) != num_classes:
                raise ValueError(
                    "`class_weight` must hold one weight a class. Received: "
                    f"{len(self.class_weight)} weights for {num_classes} classes"
                )
            table = ops.convert_to_tensor(self.class_weight, dtype="float32")
            weights = weights * ops.take(table, labels)
        return labels, weights

    def get_config(self):
        config = super().get_config()
        config.update(
            ignore_class=self.ignore_class,
            class_weight=self.class_weight,
            tile=self.tile,
        )
        return config


def check_reduction(loss, reduction):
    """Refuse a reduction under which void pixels would count."""
    if reduction not in MEANS:
        raise ValueError(
            f"{type(loss).__name__} on masks is a mean over the pixels that count: "
            f"`reduction` must be one of {MEANS}. Received: reduction={reduction!r}"
        )


def check_tile(tile):
    return None if tile is None else check_integer("tile", tile)


def to_resize(y_true, y_pred, tile):
    """Whether predictions are to be resized, or may have to at run time."""
    size = tuple(y_true.shape[1:3])
    return tile is not None and (None in size or size != tuple(y_pred.shape[1:3]))


def counted_pixels(labels, ids):
    """Boolean map of the pixels whose label is none of the ignored `ids`."""
    counted = ops.ones_like(labels, dtype="bool")
    for ignored in ids:
        counted = ops.logical_and(counted, ops.not_equal(labels, ignored))
    return counted


def integer_labels(y_true, y_pred, tile=None):
    """Labels as int32 `(B, H, W)`, checked against predictions `(B, H, W, K)`; with
    `tile` these may have another height and width."""
    labels = ops.convert_to_tensor(y_true)
    if len(labels.shape) == 4 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    expected = tuple(y_pred.shape[:1] if tile else y_pred.shape[:-1])
    fits = len(labels.shape) == len(y_pred.shape) - 1 and all(
        a is None or b is None or a == b
        for a, b in zip(labels.shape, expected, strict=not tile)
    )
    if not fits:
        raise ValueError(
            "Masks must hold one class id a pixel, (batch, height, width), at the size "
            "of the images; one-hot masks: take numpy.argmax(mask, axis=-1). Received: "
            f"masks of shape {tuple(y_true.shape)} for predictions of shape "
            f"{tuple(y_pred.shape)}"
        )
    return ops.cast(labels, "int32")
