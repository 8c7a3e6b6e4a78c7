"""Layers of the method: attention, adapter, neck, decode heads, tokens, resizing."""

from keras_segadapter.layers.adapter import SegAdapter
from keras_segadapter.layers.attention import HighOrderSpatialAttention, SegAttention
from keras_segadapter.layers.head import MLPHead
from keras_segadapter.layers.neck import SimpleFeaturePyramid
from keras_segadapter.layers.resize import ResizeLike
from keras_segadapter.layers.segformer_head import SegFormerHead
from keras_segadapter.layers.tokens import TokensToMap

__all__ = [
    "HighOrderSpatialAttention",
    "MLPHead",
    "ResizeLike",
    "SegAdapter",
    "SegAttention",
    "SegFormerHead",
    "SimpleFeaturePyramid",
    "TokensToMap",
]
