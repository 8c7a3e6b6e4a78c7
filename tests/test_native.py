"""Our convolutions and Dense equal Keras' own."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from numpy_method import maps

from keras_segadapter.layers.native import Dense, DepthwiseConv2D, PatchConv2D

# On PyTorch some take a way of their own and the others that of Keras.
CASES = {
    "depthwise": (DepthwiseConv2D, {"kernel_size": 5, "padding": "same"}),
    "depthwise, multiplied": (
        DepthwiseConv2D,
        {"kernel_size": 3, "padding": "same", "depth_multiplier": 2},
    ),
    "depthwise, activated": (
        DepthwiseConv2D,
        {"kernel_size": 3, "padding": "same", "activation": "relu"},
    ),
    "depthwise, even": (DepthwiseConv2D, {"kernel_size": 4, "padding": "same"}),
    "depthwise, strided": (DepthwiseConv2D, {"kernel_size": 3, "strides": 2}),
    "patches": (PatchConv2D, {"filters": 4, "kernel_size": 2, "strides": 2}),
    "patches, overlapping": (
        PatchConv2D,
        {"filters": 4, "kernel_size": 3, "strides": 2, "use_bias": False},
    ),
    "patches, padded": (
        PatchConv2D,
        {"filters": 4, "kernel_size": 3, "padding": "same"},
    ),
    "dense": (Dense, {"units": 5, "activation": "gelu"}),
    "dense, no bias": (Dense, {"units": 5, "use_bias": False}),
}


@pytest.mark.parametrize(("cls", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_equals_the_layer_of_keras(cls, options, dtype):
    (parent,) = cls.__bases__
    assert parent in (layers.DepthwiseConv2D, layers.Conv2D, layers.Dense)
    x = maps(2, 9, 8, 6)
    layer, other = cls(**options, dtype=dtype), parent(**options, dtype=dtype)
    other.build(x.shape)
    other.set_weights([maps(*w.shape) for w in other.get_weights()])
    layer.build(x.shape)
    layer.set_weights(other.get_weights())
    actual, expected = layer(x), other(x)
    assert actual.dtype == expected.dtype
    assert layer(keras.Input((9, 8, 6))).shape[1:] == actual.shape[1:]
    actual, expected = (
        ops.convert_to_numpy(ops.cast(value, "float32")) for value in (actual, expected)
    )
    scale = np.abs(expected).max()
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(actual / scale, expected / scale, atol=tolerance)
