"""SegAdapter equals its equation in NumPy and has the published costs."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from numpy_method import (
    array,
    assert_close,
    maps,
    seg_adapter,
    set_random_weights,
)

import keras_segadapter as ksa

MIT_B0 = (32, 64, 160, 256)
MIT_B1 = (64, 128, 320, 512)  # and B2 to B5
CONVNEXT_T = (96, 192, 384, 768)  # and S
CONVNEXT_B = (128, 256, 512, 1024)


def adapters(channels, num_classes):
    """Return an adapter per stage, built without drawing weights, slow on JAX."""
    layers = [ksa.SegAdapter(num_classes) for _ in channels]
    with keras.StatelessScope(initialize_variables=False):
        for layer, width in zip(layers, channels, strict=True):
            layer.build((None, None, None, width))
    keras.utils.clear_session()  # or these variables would still get values
    return layers


# Contract; the rest of it is in test_layers_contract.py


def test_without_scores_it_fits_a_sequential_model():
    model = keras.Sequential(
        [
            keras.Input((6, 8, 3)),
            keras.layers.Conv2D(4, 1),
            ksa.SegAdapter(5, return_scores=False),
            keras.layers.Conv2D(2, 1),
        ]
    )
    assert tuple(model(maps(2, 6, 8, 3)).shape) == (2, 6, 8, 2)


def test_float16_stays_close_where_the_product_leaves_its_range():
    # As late in training: features of rms 7 and at most 56, scores of order 20.
    x = np.random.default_rng(0).laplace(0, 7 / 2**0.5, (2, 12, 16, 32))
    x = x.clip(-56, 56).astype("float32")
    exact, low = ksa.SegAdapter(19), ksa.SegAdapter(19, dtype="mixed_float16")
    for layer in (exact, low):
        layer.build(x.shape)
        set_random_weights(layer)
        layer.scales[0].assign(np.full(32, 1e-2))
        kernel = layer.attentions[0].classifier.kernel
        kernel.assign(kernel * 20 / 7)
        for attention in (layer.attentions[0].visual, layer.attentions[0].semantic):
            attention.norm.gamma.assign(attention.norm.gamma * 4)
    attended, _ = exact.attentions[0](x)
    assert np.abs(array(attended)).max() > 65504
    expected, scores = exact(x)
    assert 15 < array(scores).std() < 25
    assert_close(low.attentions[0](x)[0], attended, 1e-2)
    assert_close(low(x)[0], expected, 1e-2)  # and so finite


# Meaning


@pytest.mark.parametrize(
    "kernel_size, num_blocks, width",
    [(3, 1, None), (5, 1, None), (5, 2, None), (5, 2, 4)],
)
def test_equations_3_to_6(kernel_size, num_blocks, width):
    x = maps(2, 7, 10, 6)
    layer = ksa.SegAdapter(9, kernel_size, num_blocks=num_blocks, width=width)
    layer.build(x.shape)
    set_random_weights(layer)
    for actual, expected in zip(layer(x), seg_adapter(layer, x), strict=True):
        assert_close(actual, expected, 1e-5)


def test_scale_of_zero_leaves_the_features_untouched():
    x = maps(2, 7, 10, 6)
    layer = ksa.SegAdapter(9, scale_init=0, num_blocks=2)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)[0]), x)


@pytest.mark.parametrize("value", [1e-5, 1.0])
def test_scale_init_is_the_initial_mu(value):
    layer = ksa.SegAdapter(9, scale_init=value)
    layer.build((None, None, None, 6))
    np.testing.assert_array_equal(array(layer.scales[0]), np.full(6, np.float32(value)))


def weights_that_a_step_leaves(layer, x, *targets):
    """Return the paths of the weights that a step of SGD does not change."""
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    before = [array(w) for w in layer.weights]
    model.compile(keras.optimizers.SGD(1.0), loss=["mse"] * len(targets))
    model.train_on_batch(x, list(targets))
    return [
        weight.path
        for weight, old in zip(layer.weights, before, strict=True)
        if not (array(weight) != old).any()
    ]


def test_every_weight_receives_a_gradient():
    x, y, s = maps(2, 5, 6, 4), maps(2, 5, 6, 4, seed=1), maps(2, 5, 6, 3, seed=2)
    layer = ksa.SegAdapter(3, kernel_size=3, scale_init=1, num_blocks=2)
    assert weights_that_a_step_leaves(layer, x, y, s) == []
    assert len(layer.weights) == 2 * 23
    narrow = ksa.SegAdapter(3, kernel_size=3, scale_init=1, width=2)
    assert weights_that_a_step_leaves(narrow, x, y, s) == []
    assert len(narrow.weights) == 25  # with those of the reduction
    # With a scale of 0, only mu and, through the scores, Cls learn: the helper sees it.
    frozen = ksa.SegAdapter(3, kernel_size=3, scale_init=0)
    assert len(weights_that_a_step_leaves(frozen, x, y, s)) == 20


@pytest.mark.parametrize(
    "channels, millions",
    [(MIT_B0, 1.037), (MIT_B1, 3.597), (CONVNEXT_T, 6.987), (CONVNEXT_B, 12.096)],
)
def test_published_parameters(channels, millions):
    count = sum(layer.count_params() for layer in adapters(channels, 150))
    assert round(count / 1e6, 3) == millions


def test_a_width_costs_what_the_docstring_says():
    channels, width, num_classes, kernel_size = 12, 4, 5, 3
    layer = ksa.SegAdapter(num_classes, kernel_size, width=width)
    layer.build((None, None, None, channels))
    # Kernels of linear layers; those of the depthwise convolutions have four axes.
    linear = sum(math.prod(w.shape) for w in layer.weights if len(w.shape) == 2)
    assert linear == 5 * width**2 + 4 * width * channels + num_classes * (
        channels + 2 * width
    )
    assert layer.scales[0].shape == (channels,)
    attention = layer.attentions[0]
    assert attention.classifier.kernel.shape == (channels, num_classes)
    assert attention.visual.value.kernel.shape == (width, width)


def test_without_a_width_weights_and_paths_are_the_papers():
    layer = ksa.SegAdapter(3, name="adapter")
    layer.build((None, None, None, 4))
    assert not any("reduction" in weight.path for weight in layer.weights)
    assert len(layer.weights) == 23


@pytest.mark.parametrize(
    "channels, num_classes, size, published, tolerance",
    [
        (MIT_B0, 150, 512, 1.3, 0.2),
        (MIT_B1, 150, 512, 3.6, 0.2),
        (CONVNEXT_T, 150, 512, 6.4, 0.2),  # the paper's row of ConvNeXt-S
        (CONVNEXT_B, 150, 512, 10.7, 0.2),
        # Our count is 2.82, 5.9 % below the difference of two rounded figures.
        (MIT_B0, 19, 1024, 3.0, 0.06 * 3.0),
        (MIT_B1, 19, 1024, 10.8, 0.04 * 10.8),
        (MIT_B1, 19, 1024, 10.9, 0.04 * 10.9),  # the rows of B2 and B3
        (CONVNEXT_T, 19, 1024, 20.9, 0.04 * 20.9),
        (CONVNEXT_B, 19, 1024, 36.5, 0.04 * 36.5),
        # This is our count: the paper prints 3.9 for ConvNeXt-T, unlike for
        # ConvNeXt-S, which has the same channels.
        (CONVNEXT_T, 150, 512, 6.3, 0.05),
    ],
)
def test_published_multiply_adds(channels, num_classes, size, published, tolerance):
    total = 0
    layers = adapters(channels, num_classes)
    for layer, stride in zip(layers, (4, 8, 16, 32), strict=True):
        kernels = [w.shape for w in layer.weights if len(w.shape) >= 2]
        # Every kernel is used once per pixel.
        total += sum(map(math.prod, kernels)) * (size // stride) ** 2
    assert abs(total / 1e9 - published) <= tolerance


# Edges


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_two_classes_and_maps_smaller_than_the_kernel(size):
    x = maps(3, *size, 4)
    layer = ksa.SegAdapter(2)
    layer.build(x.shape)
    set_random_weights(layer)
    for actual, expected in zip(layer(x), seg_adapter(layer, x), strict=True):
        assert_close(actual, expected, 1e-5)


def test_narrow_ffn_keeps_one_hidden_unit():
    layer = ksa.SegAdapter(2, ffn_ratio=0.01)
    layer.build((None, None, None, 4))
    assert layer.expansions[0].kernel.shape == (4, 1)


def test_the_ffn_ratio_counts_from_the_width():
    layer = ksa.SegAdapter(2, ffn_ratio=2.5, width=2)
    layer.build((None, None, None, 4))
    assert layer.expansions[0].kernel.shape == (2, 5)
    assert layer.contractions[0].kernel.shape == (5, 4)
