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
from keras_segadapter.models.segformer import (
    SegFormerB0,
    SegFormerB1,
    SegFormerB2,
    SegFormerB3,
    SegFormerB4,
    SegFormerB5,
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
    "SegFormerB0",
    "SegFormerB1",
    "SegFormerB2",
    "SegFormerB3",
    "SegFormerB4",
    "SegFormerB5",
]
