"""Backbones, their weights, and the preprocessing that they expect."""

from keras_segadapter.backbones.convnext import (
    ConvNeXtAtto,
    ConvNeXtBase,
    ConvNeXtFemto,
    ConvNeXtLarge,
    ConvNeXtNano,
    ConvNeXtPico,
    ConvNeXtSmall,
    ConvNeXtTiny,
    ConvNeXtXLarge,
)
from keras_segadapter.backbones.mit import MiTB0, MiTB1, MiTB2, MiTB3, MiTB4, MiTB5
from keras_segadapter.backbones.widening import widen_input

__all__ = [
    "ConvNeXtAtto",
    "ConvNeXtBase",
    "ConvNeXtFemto",
    "ConvNeXtLarge",
    "ConvNeXtNano",
    "ConvNeXtPico",
    "ConvNeXtSmall",
    "ConvNeXtTiny",
    "ConvNeXtXLarge",
    "MiTB0",
    "MiTB1",
    "MiTB2",
    "MiTB3",
    "MiTB4",
    "MiTB5",
    "widen_input",
]
