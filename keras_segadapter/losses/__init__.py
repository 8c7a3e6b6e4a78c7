"""Losses on integer masks with void pixels."""

from keras_segadapter.losses.class_weight import balanced_class_weight
from keras_segadapter.losses.crossentropy import SegmentationCrossentropy
from keras_segadapter.losses.lovasz import LovaszSoftmax
from keras_segadapter.losses.mask_loss import MaskLoss

__all__ = [
    "LovaszSoftmax",
    "MaskLoss",
    "SegmentationCrossentropy",
    "balanced_class_weight",
]
