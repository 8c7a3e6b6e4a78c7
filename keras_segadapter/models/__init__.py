"""Whole models by name, as in keras.applications."""

from keras_segadapter.models.adapted import (
    AdaptConvNeXtBase,
    AdaptConvNeXtLarge,
    AdaptConvNeXtSmall,
    AdaptConvNeXtTiny,
    AdaptConvNeXtXLarge,
    AdaptMiTB0,
    AdaptMiTB1,
    AdaptMiTB2,
    AdaptMiTB3,
    AdaptMiTB4,
    AdaptMiTB5,
)

__all__ = [
    "AdaptConvNeXtBase",
    "AdaptConvNeXtLarge",
    "AdaptConvNeXtSmall",
    "AdaptConvNeXtTiny",
    "AdaptConvNeXtXLarge",
    "AdaptMiTB0",
    "AdaptMiTB1",
    "AdaptMiTB2",
    "AdaptMiTB3",
    "AdaptMiTB4",
    "AdaptMiTB5",
]
