"""The attentions equal their equations in NumPy."""

import keras
import numpy as np
import pytest
from numpy_method import (
    assert_close,
    high_order_attention,
    maps,
    seg_attention,
    set_random_weights,
)

import keras_segadapter as ksa

# Meaning


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_equation_3(kernel_size):
    x = maps(2, 7, 10, 6)
    layer = ksa.SegAttention(5, kernel_size)
    layer.build(x.shape)
    set_random_weights(layer)
    assert_close(layer(x), seg_attention(layer, x), 1e-5)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_equations_4_and_5(kernel_size):
    x = maps(2, 7, 10, 6)
    layer = ksa.HighOrderSpatialAttention(9, kernel_size)
    layer.build(x.shape)
    set_random_weights(layer)
    for actual, expected in zip(layer(x), high_order_attention(layer, x), strict=True):
        assert_close(actual, expected, 1e-5)


# Edges


def test_two_classes_and_one_pixel():
    x = maps(3, 1, 1, 4)
    layer = ksa.HighOrderSpatialAttention(2)
    layer.build(x.shape)
    set_random_weights(layer)
    attended, scores = layer(x)
    expected = high_order_attention(layer, x)
    assert_close(attended, expected[0], 1e-5)
    assert_close(scores, expected[1], 1e-5)


def test_numpy_integers_become_integers_of_python():
    layer = ksa.HighOrderSpatialAttention(np.int64(9), kernel_size=np.int32(3))
    config = layer.get_config()
    assert (config["num_classes"], config["kernel_size"]) == (9, 3)
    assert type(config["num_classes"]) is type(config["kernel_size"]) is int
    assert layer(keras.Input((4, 5, 2)))[1].shape == (None, 4, 5, 9)
