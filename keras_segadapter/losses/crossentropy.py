"""Pixel-wise cross-entropy that leaves void pixels out and can weigh classes."""

import operator

import keras
import numpy as np
from keras import ops

from keras_segadapter.losses.tiles import resized_crossentropy
from keras_segadapter.validation import check_number, ignored_ids, is_auto

# What Keras calls the mean; the last also scales for tf.distribute.
MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
FRACTION = -(2**31)


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
            to `"auto"`: 255 where that is not a class, that is, up to 255 classes.
        class_weight: List of K numbers of at least 0, one per class; dict from classes
            to numbers, as in `keras.Model.fit`, in which missing classes weigh 1; or
            None for equal weights. `balanced_class_weight` makes them from counts.
            Defaults to `None`.
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
            they do not fit the K classes, if an ignored id is a class, or if masks and
            logits do not fit.

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
        ignore_class="auto",
        class_weight=None,
        name="segmentation_crossentropy",
        **kwargs,
    ):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = deferred_ids(ignore_class)
        self.class_weight = _checked_class_weight(class_weight)

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
        total = ops.sum(weights)
        total = ops.where(total > 0, total, 1.0)  # of void pixels only, it is 0
        loss = resized_crossentropy(labels, weights * sample_weight, logits) / total
        return ops.reshape(loss, (1,))  # Keras scales no scalar for tf.distribute

    def _weights(self, labels, num_classes):
        """Return labels that are all classes, and what each pixel counts."""
        ignored = ignored_ids(self.ignore_class, num_classes)
        counted = counted_pixels(labels, ignored)  # (B, H, W)
        known = ops.logical_and(labels >= 0, labels < num_classes)
        weights = ops.where(known, 1.0, float("nan"))
        weights = ops.cast(ops.where(counted, weights, 0.0), "float32")
        labels = ops.where(known, labels, 0)
        if self.class_weight is not None:
            table = _weight_of_each_class(self.class_weight, num_classes)
            table = ops.convert_to_tensor(table, dtype="float32")
            weights = weights * ops.take(table, labels)
        return labels, weights

    def check_class_weight(self, num_classes):
        """Validate that the class weights are those of `num_classes` classes."""
        if self.class_weight is not None:
            _weight_of_each_class(self.class_weight, num_classes)

    def get_config(self):
        config = super().get_config()
        config.update(ignore_class=self.ignore_class, class_weight=self.class_weight)
        return config


def balanced_class_weight(pixels):
    """Return class weights that are inverse to how often each class occurs.

    A class that makes up the share p of N pixels among the P classes that occur weighs
    1 / (P p), so that all of them have the same part in the loss. A class that does not
    occur weighs 1.

    Args:
        pixels: Integers `(K,)`. Number of pixels per class.

    Returns:
        List of K floats, for `SegmentationCrossentropy(class_weight=...)`.

    Raises:
        ValueError: If `pixels` are not one count per class, or are all 0.

    Example:

    ```python
    import keras_segadapter as ksa

    weights = ksa.balanced_class_weight([750, 250])
    print(weights)  # [0.666..., 2.0]
    loss = ksa.SegmentationCrossentropy(class_weight=weights)
    ```

    Source: scikit-learn's `compute_class_weight("balanced")`.
    """
    counts = np.asarray(pixels)
    finite = counts.dtype.kind in "uif" and np.isfinite(counts).all()
    if counts.ndim != 1 or not finite or (counts < 0).any() or not counts.any():
        raise ValueError(
            "`pixels` must hold the number of pixels of each class, (num_classes,), "
            f"and not only zeros. Received: pixels={pixels!r}"
        )
    occurring = np.count_nonzero(counts)
    weights = counts.sum() / (occurring * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).tolist()


def deferred_ids(ignore_class):
    """Return ignored ids as a list, or `"auto"` until the classes are known."""
    return "auto" if is_auto(ignore_class) else ignored_ids(ignore_class)


def _checked_class_weight(class_weight):
    """Return class weights as a list or dict of floats, or None.

    Raises:
        TypeError: If they are neither a list, a dict nor None.
        ValueError: If one is negative, NaN or infinite, or if all are 0.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, (dict, list, tuple, np.ndarray)):
        raise TypeError(
            "`class_weight` must be a list of one weight per class, or a dict from "
            "classes to weights. For balanced ones pass "
            "keras_segadapter.balanced_class_weight(pixels_per_class). Received: "
            f"class_weight={class_weight!r}"
        )
    named = isinstance(class_weight, dict)
    weights = list(class_weight.values() if named else class_weight)
    try:
        weights = [check_number("class_weight", weight, least=0) for weight in weights]
    except ValueError:
        weights = None
    if weights is None or not (named or any(weights)):
        raise ValueError(
            "`class_weight` must hold finite numbers of at least 0, and not only "
            f"zeros. Received: class_weight={class_weight!r}"
        )
    if not named:
        return weights
    try:  # JSON keeps the classes of a saved dict as text.
        classes = [
            int(c) if isinstance(c, str) else operator.index(c) for c in class_weight
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The keys of `class_weight` must be classes, integers from 0. Received: "
            f"class_weight={class_weight!r}"
        ) from error
    return dict(zip(classes, weights, strict=True))


def _weight_of_each_class(class_weight, num_classes):
    """Return a list of `num_classes` weights.

    Raises:
        ValueError: If there are weights of other classes, or too few in a list.
    """
    if not isinstance(class_weight, dict):
        if len(class_weight) != num_classes:
            raise ValueError(
                "`class_weight` must hold one weight per class. Received: "
                f"{len(class_weight)} weights for {num_classes} classes"
            )
        return class_weight
    wrong = sorted(set(class_weight) - set(range(num_classes)))
    if wrong:
        raise ValueError(
            f"`class_weight` must name classes from 0 to {num_classes - 1}. Received: "
            f"class_weight={class_weight} with the classes {wrong}"
        )
    return [class_weight.get(class_, 1.0) for class_ in range(num_classes)]


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
