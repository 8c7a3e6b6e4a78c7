"""Keras' losses of one-hot masks, on integer masks with void pixels."""

import keras
import numpy as np
from keras import ops

from keras_segadapter.losses.accepted import (
    OF_IDS,
    OF_REGIONS,
    check_loss,
    option,
    swaps_coefficients,
)
from keras_segadapter.losses.labels import (
    check_reduction,
    deferred_ids,
    read_labels,
    refuse_sample_weight,
)
from keras_segadapter.losses.tiles import resized_whole
from keras_segadapter.validation import check_config, check_positive


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
      loss stays high and its gradients small: `classes="present"` leaves absent classes
      out of the mean.
    - `Tversky` weighs missed pixels by `alpha`, wrongly found ones by `beta`, as in
      Keras up to 3.15. Keras 3.16 has them the other way round, and here they keep
      their meaning; a printed line says so.

    `SegmentationCrossentropy` and `LovaszSoftmax` can be in the mix like any other
    loss. A batch of void pixels only gives 0. An id that is neither a class nor ignored
    makes the loss NaN. Logits smaller than the mask are resized to it first (bilinear).

    Args:
        losses: A `keras.losses.Loss` or a list of them.
        weights: List of numbers above 0, one per loss, or None for 1 each. Defaults to
            `None`.
        ignore_class: Integer, list of integers, or None. Ids of void pixels. Defaults
            to `"auto"`: 255 where that is not a class, that is, up to 255 classes.
        classes: "all" or "present". Which classes' `Dice` and `Tversky` are averaged:
            of all, or of those that occur where they are compared. Defaults to `"all"`.
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
            no value per pixel; if the weights do not fit; if `classes` is neither "all"
            nor "present"; if `sample_weight` is given.

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
        self,
        losses,
        weights=None,
        ignore_class="auto",
        classes="all",
        name="mask_loss",
        **kwargs,
    ):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = deferred_ids(ignore_class)
        self.losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
        for loss in self.losses:
            check_loss(loss, self.ignore_class)
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
        if classes not in ("all", "present"):
            raise ValueError(
                '`classes` must be "all", or "present" to leave absent classes out. '
                f"Received: classes={classes!r}"
            )
        self.classes = classes
        self._swapped = [swaps_coefficients(loss) for loss in self.losses]

    def __call__(self, y_true, y_pred, sample_weight=None):
        refuse_sample_weight(self, sample_weight)
        return super().__call__(y_true, y_pred)

    def call(self, y_true, y_pred):
        labels, counted, factor = read_labels(y_true, y_pred, self.ignore_class)
        logits = resized_whole(y_pred, labels)  # (B, H, W, K)
        truth = ops.one_hot(labels, logits.shape[-1], dtype="float32")  # (B, H, W, K)
        total = 0.0
        for loss, weight, swapped in zip(
            self.losses, self.weights, self._swapped, strict=True
        ):
            if isinstance(loss, OF_IDS):
                value = ops.mean(loss.call(y_true, y_pred))
            elif isinstance(loss, OF_REGIONS):
                parts = _regions(truth, logits, counted)
                # Both change places together: it is symmetric in all four.
                values = loss.call(*(reversed(parts) if swapped else parts))
                value = self._mean_of_classes(values, parts[0], option(loss, "axis"))
            else:
                value = _mean_of_pixels(loss, truth, logits, counted)
            total = total + weight * value
        # (1,): Keras scales no bare number for tf.distribute.
        return ops.reshape(total * factor, (1,))

    def _mean_of_classes(self, values, truth, axis):
        if self.classes == "all":
            return ops.mean(values)
        present = ops.cast(ops.any(truth > 0, axis=axis), "float32")
        return ops.sum(values * present) / ops.maximum(ops.sum(present), 1.0)

    def get_config(self):
        config = super().get_config()
        config.update(
            losses=[keras.losses.serialize(loss) for loss in self.losses],
            weights=self.weights,
            ignore_class=self.ignore_class,
            classes=self.classes,
        )
        return config

    @classmethod
    def from_config(cls, config):
        check_config(cls, config)
        losses = [keras.losses.deserialize(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})


def _regions(truth, logits, counted):
    """Return one-hot masks and probabilities that void pixels add nothing to."""
    inside = counted[..., None]  # (B, H, W, 1)
    shares = ops.softmax(logits)  # (B, H, W, K)
    return [ops.where(inside, part, 0.0) for part in (truth, shares)]


def _mean_of_pixels(loss, truth, logits, counted):
    """Average over the pixels that count; zeros would make cross-entropies NaN."""
    shares = logits if option(loss, "from_logits") else ops.softmax(logits)
    values = loss.call(truth, shares)
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
