"""Our convolutions and Dense equal Keras' own."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from numpy_method import assert_close, maps

from keras_segadapter.layers import faster, native
from keras_segadapter.layers.faster import Dense, DepthwiseConv2D, PatchConv2D

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
def test_equals_the_layer_of_keras(cls, options, dtype, monkeypatch):
    monkeypatch.setattr(native, "FEW_PRODUCTS", 0)  # on JAX' CPU, not the library's way
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


@pytest.mark.parametrize("options", [{}, {"scale": False, "center": False}])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_batch_norm_trains_as_that_of_keras(options, dtype):
    x, target = maps(2, 9, 8, 3) + 2.0, maps(2, 9, 8, 4, seed=1)
    results = []
    for cls in (faster.BatchNormalization, layers.BatchNormalization):
        keras.utils.set_random_seed(0)
        norm = cls(momentum=0.9, dtype=dtype, **options)
        model = keras.Sequential(
            [keras.Input((9, 8, 3)), layers.Dense(4, use_bias=False), norm]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses = [model.train_on_batch(x, target) for _ in range(2)]
        results.append([*map(np.asarray, losses), *model.get_weights()])
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_exports_keep_depthwise_convolutions(monkeypatch):
    monkeypatch.setattr(native, "FEW_PRODUCTS", 0)
    used = []
    shifted = native.shifted_convolution
    monkeypatch.setattr(
        native, "shifted_convolution", lambda *a: used.append(a) or shifted(*a)
    )
    layer, x = DepthwiseConv2D(3, padding="same"), maps(1, 5, 6, 4)
    with native.library_convolutions():
        expected = layer(x)
    assert not used
    actual = layer(x)
    assert len(used) == native.on_jax()  # the tests run on CPUs
    assert_close(actual, expected, 1e-5)
