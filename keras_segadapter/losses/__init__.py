"""Losses on integer masks with void pixels."""

from keras_segadapter.losses.crossentropy import (
    SegmentationCrossentropy,
    balanced_class_weight,
)
from keras_segadapter.losses.mask_loss import MaskLoss

__all__ = ["MaskLoss", "SegmentationCrossentropy", "balanced_class_weight"]
