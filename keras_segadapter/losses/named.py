"""Losses by name, such as "crossentropy+dice"."""

import keras

from keras_segadapter.losses.crossentropy import SegmentationCrossentropy
from keras_segadapter.losses.lovasz import LovaszSoftmax
from keras_segadapter.losses.mask_loss import MaskLoss

LOSSES = {
    "crossentropy": SegmentationCrossentropy,
    "ohem": lambda ids: SegmentationCrossentropy(ids, ohem_threshold=0.7),
    "lovasz": LovaszSoftmax,
    "dice": lambda ids: keras.losses.Dice(axis=(0, 1, 2)),
}


def is_loss_name(name):
    """Return whether `name` is one of `LOSSES`, or several of them joined by "+"."""
    return isinstance(name, str) and LOSSES.keys() >= {*name.split("+")}


def named_loss(name, ignore_class):
    """Return the loss that a name stands for, or the sum of several.

    Dice is that of each class over the batch, averaged over the classes that occur in
    it: one that is absent would add a constant.

    Args:
        name: String, for which `is_loss_name` is true.
        ignore_class: Ids of void pixels, as for the losses.
    """
    losses = [LOSSES[part](ignore_class) for part in name.split("+")]
    if len(losses) == 1 and name != "dice":
        return losses[0]
    return MaskLoss(losses, ignore_class=ignore_class, classes="present")
