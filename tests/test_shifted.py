"""The sum of shifted products equals the backend's own depthwise convolution."""

import keras
import pytest
from keras import ops
from numpy_method import assert_close, dtypes, maps

from keras_segadapter.layers.shifted import shifted_convolution

CASES = {
    "kernel 1": {"kernel": (1, 1)},
    "kernel 2": {"kernel": (2, 2)},
    "kernel 3": {},
    "kernel 4, valid": {"kernel": (4, 4), "padding": "valid"},
    "kernel 5": {"kernel": (5, 5)},
    "kernel 7, wider than the map": {"kernel": (7, 7), "size": (6, 5)},
    "kernel 3 x 1, valid": {"kernel": (3, 1), "padding": "valid"},
    "multiplied": {"multiplier": 2},
    "strides 2": {"strides": (2, 2)},
    "strides 2, even": {"strides": (2, 2), "size": (8, 12), "kernel": (5, 5)},
    "strides 2, valid": {"strides": (2, 2), "padding": "valid", "multiplier": 2},
    "strides 3, kernel 2": {"strides": (3, 3), "kernel": (2, 2)},
    "dilation 2": {"dilation": (2, 2)},
    "dilation 1 x 2, valid": {"dilation": (1, 2), "padding": "valid"},
}


class Both(keras.Model):
    """Convolve two copies of features by two copies of a kernel, each in one way."""

    def __init__(self, features, kernel, strides, padding, dilation):
        super().__init__()
        given = features, kernel, features, kernel
        self.given = [
            self.add_weight(shape=value.shape, initializer="zeros") for value in given
        ]
        for weight, value in zip(self.given, given, strict=True):
            weight.assign(value.copy())  # no memory that TensorFlow may learn in
        self.options = strides, padding, dilation

    def call(self, inputs):
        features, kernel, other_features, other_kernel = map(
            ops.convert_to_tensor, self.given
        )
        strides, padding, dilation = self.options
        ours = shifted_convolution(features, kernel, *self.options)
        other = ops.depthwise_conv(
            other_features,
            other_kernel,
            strides,
            padding,
            data_format="channels_last",
            dilation_rate=dilation,
        )
        return ops.stack([ours, other], axis=1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_library_in_value_and_gradient(case):
    size, kernel = case.get("size", (9, 8)), case.get("kernel", (3, 3))
    features, kernel = maps(2, *size, 3), maps(*kernel, 3, case.get("multiplier", 1))
    strides, dilation = case.get("strides", (1, 1)), case.get("dilation", (1, 1))
    model = Both(features, kernel, strides, case.get("padding", "same"), dilation)
    ours, other = ops.unstack(model(features), axis=1)
    assert_close(ours, other, 1e-6)
    # Gradient descent at the rate 1 moves the weights by their gradients.
    # In a graph of TensorFlow weights may move while others' gradients read them.
    model.compile(
        keras.optimizers.SGD(1.0), lambda y, x: ops.sum(y * x), run_eagerly=True
    )
    towards = maps(*ours.shape, seed=1)[:, None]
    model.train_on_batch(features, towards)
    moved = [
        ops.convert_to_numpy(weight) - start
        for weight, start in zip(model.given, [features, kernel] * 2, strict=True)
    ]
    for actual, expected in zip(moved[:2], moved[2:], strict=True):
        assert_close(actual, expected, 1e-5)


def test_low_precision_sums_in_float32():
    features, kernel = maps(1, 6, 6, 4), maps(5, 5, 4, 1)
    options = (1, 1), "same", (1, 1)
    low = ops.cast(features, "float16"), ops.cast(kernel, "float16")
    exact = shifted_convolution(*(ops.cast(x, "float32") for x in low), *options)
    actual = shifted_convolution(*low, *options)
    assert dtypes([actual]) == ["float16"]
    assert_close(actual, exact, 1e-3)
