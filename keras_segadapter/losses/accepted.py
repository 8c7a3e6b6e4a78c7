"""Which losses `MaskLoss` takes, and what they want."""

import keras
import numpy as np

from keras_segadapter.losses.crossentropy import SegmentationCrossentropy
from keras_segadapter.losses.labels import check_reduction
from keras_segadapter.losses.lovasz import LovaszSoftmax
from keras_segadapter.validation import is_auto

# They take class ids and logits, and know void by themselves.
OF_IDS = (SegmentationCrossentropy, LovaszSoftmax)
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


def option(loss, name):
    """Return an argument of a loss; from Keras 3.16 on, not all are attributes."""
    return getattr(loss, name, loss.get_config().get(name))


def check_loss(loss, ignored):
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
    if isinstance(loss, OF_IDS) and mixed[0] != mixed[1]:
        raise ValueError(
            "All losses of a mix must ignore the same ids. Received: "
            f"MaskLoss(ignore_class={ignored}) of "
            f"{type(loss).__name__}(ignore_class={loss.ignore_class})"
        )
    axis = option(loss, "axis") if isinstance(loss, OF_REGIONS) else None
    if axis is not None:
        axes = [axis] if isinstance(axis, int) else axis
        if not {1, 2} <= {each % 4 for each in axes}:
            raise ValueError(
                f"{type(loss).__name__} compares regions: its `axis` must contain "
                "height and width, (1, 2) for each image separately or (0, 1, 2) for "
                f"the batch as a whole. Received: axis={axis}"
            )


def swaps_coefficients(loss):
    """Return whether a loss is a Tversky whose `alpha` weighs wrongly found pixels.

    It does from Keras 3.16 on.
    """
    if not isinstance(loss, keras.losses.Tversky):
        return False
    # One pixel is found and one is missed, which costs 0.5 if alpha weighs it.
    found = np.array([1.0, 0.0])
    of_keras = keras.losses.Tversky(alpha=1.0, beta=0.0)
    swapped = float(of_keras.call(np.ones(2), found)) < 0.25
    if swapped and option(loss, "alpha") != option(loss, "beta"):
        print(
            "MaskLoss: the alpha of Tversky weighs missed pixels and its beta wrongly "
            "found ones, as in Keras up to 3.15."
        )
    return swapped
