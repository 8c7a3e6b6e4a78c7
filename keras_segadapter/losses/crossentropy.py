"""Pixel-wise cross-entropy that leaves void pixels out and can weigh classes."""

import math

import keras
from keras import ops

from keras_segadapter.losses.class_weight import (
    checked_class_weight,
    weight_of_each_class,
)
from keras_segadapter.losses.labels import (
    check_reduction,
    counted_pixels,
    deferred_ids,
    integer_labels,
)
from keras_segadapter.losses.tiles import (
    crossentropy_map,
    resized_crossentropy,
)
from keras_segadapter.validation import check_number, check_rate, ignored_ids


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

    With `ohem_threshold` only hard pixels count (online hard example mining): those
    whose class has a probability below it and, where these are few, the hardest others
    until a share of `ohem_min_kept` is reached. The mean is over them alone. It costs
    one more pass over the logits and a sort of the batch's pixels.

    Args:
        ignore_class: Integer, list of integers, or None. Ids of void pixels. Defaults
            to `"auto"`: 255 where that is not a class, that is, up to 255 classes.
        class_weight: List of K numbers of at least 0, one per class; dict from classes
            to numbers, as in `keras.Model.fit`, in which missing classes weigh 1; or
            None for equal weights. `balanced_class_weight` makes them from counts.
            Defaults to `None`.
        label_smoothing: Number from 0, below 1. Share of each label that is spread over
            all classes, as in Keras' `CategoricalCrossentropy`; a pixel still weighs
            what its class does. Defaults to `0.0`.
        ohem_threshold: Number between 0 and 1, such as the usual 0.7 or 0.9, or None to
            count all pixels. Defaults to `None`.
        ohem_min_kept: Number from 0, below 1. Share of the batch's pixels that count at
            least, void ones and those of a class of weight 0 left out. Defaults to
            `1 / 16`.
        name: String. Name of the loss. Defaults to `"segmentation_crossentropy"`.
        **kwargs: `dtype`, as in `keras.losses.Loss`.

    Call arguments:
        y_true: Class ids `(B, H, W)` or `(B, H, W, 1)`, any integer type.
        y_pred: Logits `(B, h, w, K)`, of any height and width; computed on in float32.
        sample_weight: Weights of images `(B,)` or of pixels `(B, H, W)`, or None.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of integers,
            or if `class_weight` is neither a list, a dict nor None.
        ValueError: If a class weight is negative, NaN or infinite, if all are 0, if
            they do not fit the K classes, if another number is out of its range, if an
            ignored id is a class, or if masks and logits do not fit.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    loss = ksa.SegmentationCrossentropy(ignore_class=[254, 255], class_weight=[1, 5])
    mask, logits = np.array([[[0, 1], [255, 254]]]), np.zeros((1, 2, 2, 2))
    print(float(loss(mask, logits)))  # 0.693...: two pixels count
    ```

    Source: paper, section 2 (objective). Label smoothing: Szegedy et al., CVPR 2016.
    Mining: Shrivastava, Gupta and Girshick, CVPR 2016; of pixels, MMSegmentation's
    `OHEMPixelSampler`, which keeps a number of pixels where this keeps a share (1 / 16
    as BiSeNet, Yu et al., is mostly trained).
    """

    def __init__(
        self,
        ignore_class="auto",
        class_weight=None,
        label_smoothing=0.0,
        ohem_threshold=None,
        ohem_min_kept=1 / 16,
        name="segmentation_crossentropy",
        **kwargs,
    ):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = deferred_ids(ignore_class)
        self.class_weight = checked_class_weight(class_weight)
        self.label_smoothing = check_rate("label_smoothing", label_smoothing)
        if ohem_threshold is not None:
            check_number("ohem_threshold", ohem_threshold, above=0, below=1)
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = check_rate("ohem_min_kept", ohem_min_kept)

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
        if self.ohem_threshold is not None:
            weights = weights * self._hard_pixels(labels, weights, logits)
        total = ops.sum(weights)
        total = ops.where(total > 0, total, 1.0)  # of void pixels only, it is 0
        weights = weights * sample_weight
        loss = resized_crossentropy(labels, weights, logits, self.label_smoothing)
        return ops.reshape(loss / total, (1,))  # Keras scales no scalar: tf.distribute

    def _weights(self, labels, num_classes):
        """Return labels that are all classes, and what each pixel counts."""
        ignored = ignored_ids(self.ignore_class, num_classes)
        counted = counted_pixels(labels, ignored)  # (B, H, W)
        known = ops.logical_and(labels >= 0, labels < num_classes)
        weights = ops.where(known, 1.0, float("nan"))
        weights = ops.cast(ops.where(counted, weights, 0.0), "float32")
        labels = ops.where(known, labels, 0)
        if self.class_weight is not None:
            table = weight_of_each_class(self.class_weight, num_classes)
            table = ops.convert_to_tensor(table, dtype="float32")
            weights = weights * ops.take(table, labels)
        return labels, weights

    def _hard_pixels(self, labels, weights, logits):
        """Return 1.0 for the pixels that the mining keeps, else 0.0, `(B, H, W)`."""
        counted = ops.not_equal(weights, 0.0)
        likelihood = ops.where(  # in logarithms; that of the easiest pixels is 0
            counted, -crossentropy_map(labels, logits), float("inf")
        )  # (B, H, W)
        ordered = ops.sort(ops.reshape(likelihood, (-1,)))
        count = ops.cast(ops.sum(ops.cast(counted, "int32")), "float32")
        kept = ops.cast(ops.ceil(self.ohem_min_kept * count), "int32")
        bound = ops.take(ordered, ops.maximum(kept - 1, 0))
        hard = likelihood < math.log(self.ohem_threshold)
        return ops.cast(ops.logical_or(hard, likelihood <= bound), "float32")

    def check_class_weight(self, num_classes):
        """Validate that the class weights are those of `num_classes` classes."""
        if self.class_weight is not None:
            weight_of_each_class(self.class_weight, num_classes)

    def get_config(self):
        config = super().get_config()
        config.update(
            ignore_class=self.ignore_class,
            class_weight=self.class_weight,
            label_smoothing=self.label_smoothing,
            ohem_threshold=self.ohem_threshold,
            ohem_min_kept=self.ohem_min_kept,
        )
        return config
