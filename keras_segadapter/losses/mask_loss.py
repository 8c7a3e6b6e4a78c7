"""Keras' losses of one-hot masks, on integer masks with void pixels."""

import keras
import numpy as np
from keras import ops

from keras_segadapter.losses.crossentropy import SegmentationCrossentropy
from keras_segadapter.losses.labels import (
    check_reduction,
    counted_pixels,
    deferred_ids,
    integer_labels,
)
from keras_segadapter.losses.tiles import resized_whole
from keras_segadapter.validation import (
    check_config,
    check_positive,
    ignored_ids,
    is_auto,
)

# They compare regions; all others that are accepted give one value per pixel.
OF_REGIONS = (keras.losses.Dice, keras.losses.Tversky)
WITHOUT_ONE_HOT = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalGeneralizedCrossEntropy,
)

ONE_HOT = (
    *OF_REGIONS,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.dice,
    keras.losses.tversky,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)


@keras.saving.register_keras_serializable("keras_segadapter")
class MaskLoss(keras.losses.Loss):
    """Compute Dice, Tversky, focal and other losses of Keras on integer masks.

    Keras' losses of classes want one-hot masks and probabilities and know no void. This
    one gives them both: the softmax of the logits, or the logits themselves to a loss
    with `from_logits=True`. The result is the sum of `weight * loss`, in which ignored
    pixels have no part:

    - Losses of pixels, such as `CategoricalFocalCrossentropy`, are averaged over the
      pixels that count.
    - `Dice` and `Tversky` see zeros at void pixels, in the mask and in the prediction,
      and are averaged over what their `axis` leaves. With `axis=(0, 1, 2)` that is one
      figure per class for the whole batch, as is usual; with `axis=(1, 2)` one per
      image and class. Keras' default, None, puts all classes into one sum: Dice is then
      1 minus the mean probability of the true class, which does not help rare classes.
    - There, a class that is absent (from the batch, or the image) costs 1 whatever is
      predicted, and gives no gradient. Where only few of many classes are in sight, the
      loss stays high and its gradients small: mix it with a cross-entropy.
    - Keras' `Tversky` weighs missed pixels by `alpha`, wrongly found ones by `beta`.

    `SegmentationCrossentropy` can be in the mix like any other loss. A batch of void
    pixels only gives 0. An id that is neither a class nor ignored makes the loss NaN.
    Logits smaller than the mask are resized to it first (bilinear).

    Args:
        losses: A `keras.losses.Loss` or a list of them.
        weights: List of numbers above 0, one per loss, or None for 1 each. Defaults to
            `None`.
        ignore_class: Integer, list of integers, or None. Ids of void pixels. Defaults
            to `"auto"`: 255 where that is not a class, that is, up to 255 classes.
        name: String. Name of the loss. Defaults to `"mask_loss"`.
        **kwargs: `dtype`, as in `keras.losses.Loss`.

    Call arguments:
        y_true: Class ids `(B, H, W)` or `(B, H, W, 1)`, any integer type.
        y_pred: Logits `(B, h, w, K)`, of any height and width; computed on in float32.

    Raises:
        TypeError: If a loss is not a `keras.losses.Loss`, or if `ignore_class` is
            neither None, an integer nor a list of integers.
        ValueError: If a loss takes class ids, has a reduction other than a mean,
            compares regions without height and width, has other ignored ids, or gives
            no value per pixel; if the weights do not fit; if `sample_weight` is given.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_segadapter as ksa

    loss = ksa.MaskLoss(
        [ksa.SegmentationCrossentropy(), keras.losses.Dice(axis=(0, 1, 2))],
        weights=[1.0, 0.5],
    )
    mask, logits = np.array([[[0, 1], [255, 255]]]), np.zeros((1, 2, 2, 2))
    print(float(loss(mask, logits)))  # 0.943...: 0.693 + 0.5 * 0.5
    ```
    """

    def __init__(
        self, losses, weights=None, ignore_class="auto", name="mask_loss", **kwargs
    ):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = deferred_ids(ignore_class)
        self.losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
        for loss in self.losses:
            _check_loss(loss, self.ignore_class)
        weights = [1.0] * len(self.losses) if weights is None else weights
        numbers = isinstance(weights, (list, tuple, np.ndarray))
        if not self.losses or not numbers or len(weights) != len(self.losses):
            raise ValueError(
                "MaskLoss takes at least one loss, and `weights` as a list of one "
                f"number per loss. Received: {len(self.losses)} losses and "
                f"weights={weights!r}"
            )
        self.weights = [
            check_positive(f"weights[{i}]", weight) for i, weight in enumerate(weights)
        ]

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            raise ValueError(
                "MaskLoss takes no `sample_weight`: Dice and Tversky compare regions, "
                "not pixels. Mark pixels that do not count with an id of "
                "`ignore_class`, or use SegmentationCrossentropy. Received: "
                f"sample_weight={sample_weight!r}"
            )
        return super().__call__(y_true, y_pred)

    def call(self, y_true, y_pred):
        labels = integer_labels(y_true, y_pred)  # (B, H, W)
        logits = resized_whole(y_pred, labels)  # (B, H, W, K)
        ignored = ignored_ids(self.ignore_class, logits.shape[-1])
        counted = counted_pixels(labels, ignored)  # (B, H, W)
        known = ops.logical_and(labels >= 0, labels < logits.shape[-1])
        wrong = ops.any(ops.logical_and(counted, ops.logical_not(known)))
        truth = ops.one_hot(
            ops.where(known, labels, 0), logits.shape[-1], dtype="float32"
        )  # (B, H, W, K)
        total = 0.0
        for loss, weight in zip(self.losses, self.weights, strict=True):
            if isinstance(loss, SegmentationCrossentropy):
                value = ops.mean(loss.call(labels, y_pred))
            elif isinstance(loss, OF_REGIONS):
                value = _mean_of_regions(loss, truth, logits, counted)
            else:
                value = _mean_of_pixels(loss, truth, logits, counted)
            total = total + weight * value
        factor = ops.where(wrong, float("nan"), ops.cast(ops.any(counted), "float32"))
        # (1,): Keras scales no bare number for tf.distribute.
        return ops.reshape(total * factor, (1,))

    def get_config(self):
        config = super().get_config()
        config.update(
            losses=[keras.losses.serialize(loss) for loss in self.losses],
            weights=self.weights,
            ignore_class=self.ignore_class,
        )
        return config

    @classmethod
    def from_config(cls, config):
        check_config(cls, config)
        losses = [keras.losses.deserialize(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


def _mean_of_regions(loss, truth, logits, counted):
    """Compute Dice or Tversky, with void pixels adding nothing to any sum."""
    inside = counted[..., None]  # (B, H, W, 1)
    shares = ops.softmax(logits)  # (B, H, W, K)
    truth, shares = (ops.where(inside, part, 0.0) for part in (truth, shares))
    return ops.mean(loss.call(truth, shares))


def _mean_of_pixels(loss, truth, logits, counted):
    """Average over the pixels that count; zeros would make cross-entropies NaN."""
    takes_logits = getattr(loss, "from_logits", False)
    values = loss.call(truth, logits if takes_logits else ops.softmax(logits))
    shape, expected = tuple(values.shape), tuple(truth.shape[:3])
    if len(shape) != 3 or any(
        a != b for a, b in zip(shape, expected, strict=True) if None not in (a, b)
    ):
        raise ValueError(
            "Besides Dice and Tversky, MaskLoss takes losses with one value per pixel. "
            f"Received: {type(loss).__name__}, which gave values of shape {shape} for "
            f"masks of shape {expected}"
        )
    pixels = ops.maximum(ops.sum(ops.cast(counted, "float32")), 1.0)
    return ops.sum(ops.where(counted, values, 0.0)) / pixels


def _check_loss(loss, ignored):
    """Validate that a loss means on one-hot masks what it says.

    Raises:
        TypeError: If it is not a `keras.losses.Loss`.
        ValueError: If it does not take one-hot masks, has another reduction, ignores
            other ids, or compares regions without height and width.
    """
    if not isinstance(loss, keras.losses.Loss):
        raise TypeError(
            "MaskLoss takes losses such as keras.losses.Dice(axis=(0, 1, 2)), not "
            f"names or functions. Received: losses=[..., {loss!r}, ...]"
        )
    if isinstance(loss, WITHOUT_ONE_HOT):
        raise ValueError(
            f"MaskLoss gives one-hot masks, but {type(loss).__name__} takes class ids. "
            "Use keras_segadapter.SegmentationCrossentropy, "
            "keras.losses.CategoricalCrossentropy(from_logits=True) or another loss. "
            f"Received: losses=[..., {loss!r}, ...]"
        )
    check_reduction(loss, loss.reduction)
    ids = [ignored, getattr(loss, "ignore_class", ignored)]
    mixed = [[255] if is_auto(each) else each for each in ids]
    if isinstance(loss, SegmentationCrossentropy) and mixed[0] != mixed[1]:
        raise ValueError(
            "All losses of a mix must ignore the same ids. Received: "
            f"MaskLoss(ignore_class={ignored}) of "
            f"SegmentationCrossentropy(ignore_class={loss.ignore_class})"
        )
    if isinstance(loss, OF_REGIONS) and loss.axis is not None:
        axes = [loss.axis] if isinstance(loss.axis, int) else loss.axis
        if not {1, 2} <= {axis % 4 for axis in axes}:
            raise ValueError(
                f"{type(loss).__name__} compares regions: its `axis` must contain "
                "height and width, (1, 2) for each image separately or (0, 1, 2) for "
                f"the batch as a whole. Received: axis={loss.axis}"
            )
