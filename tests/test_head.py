"""MLPHead equals the paper's head in NumPy."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from numpy_method import array, assert_close, mlp_head, set_random_weights

import keras_segadapter as ksa


def stages(*sizes, channels=(3, 4, 5, 6), seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(2, *size, width)).astype("float32")
        for size, width in zip(sizes, channels, strict=False)
    ]


def built(inputs, *args, **kwargs):
    """Return a head with weights of order 1."""
    layer = ksa.MLPHead(*args, **kwargs)
    layer.build([x.shape for x in inputs])
    set_random_weights(layer)
    return layer


# Contract; the rest of it is in test_layers_contract.py


def test_one_map_outside_a_list_raises():
    words = "MLPHead 'one' takes a list of feature maps.* wrap a single one in a list"
    with pytest.raises(ValueError, match=words):
        ksa.MLPHead(3, name="one")(keras.Input((4, 4, 8)))


# Meaning


@pytest.mark.parametrize(
    "sizes",
    [((16, 8), (8, 4), (4, 2), (2, 1)), ((9, 4), (5, 2), (3, 2), (2, 1))],
    ids=["even", "odd"],
)
def test_equals_the_projection_of_the_concatenation(sizes):
    x = stages(*sizes)
    layer = built(x, 3, channels=8)
    assert_close(layer(x), mlp_head(layer, x), 1e-5)


def test_training_updates_the_statistics_of_the_batch_norms():
    x = stages((9, 4), (5, 2))
    layer = ksa.MLPHead(3, channels=8, dropout=0.0)
    layer(x, training=True)
    for stage, dense, norm in zip(x, layer.linears, layer.norms, strict=True):
        hidden = stage @ array(dense.kernel)
        expected = 0.1 * hidden.mean((0, 1, 2))  # a momentum of 0.9, from 0
        np.testing.assert_allclose(array(norm.moving_mean), expected, atol=1e-6)
    assert np.abs(array(layer.projection_norm.moving_mean)).max() > 1e-4


def test_dropout_drops_whole_channels_in_training_only():
    x = stages((9, 4), (5, 2))
    layer = built(x, 3, channels=8, dropout=0.5)
    layer.trainable = False  # keeps batch norm on its statistics
    inference = array(layer(x))
    np.testing.assert_array_equal(array(layer(x, training=False)), inference)
    training = array(layer(x, training=True))
    assert np.abs(training - inference).max() > 1e-2
    dropped = ops.convert_to_numpy(layer.drop(np.ones((2, 9, 4, 8)), training=True))
    assert set(np.unique(dropped)) == {0, 2}
    np.testing.assert_array_equal(dropped, dropped[:, :1, :1] * np.ones((9, 4, 1)))


@pytest.mark.parametrize(
    "channels, millions",
    [((32, 64, 160, 256), 0.434), ((64, 128, 320, 512), 0.565)],
)
def test_published_parameters(channels, millions):
    layer = ksa.MLPHead(150)
    layer.build([(None, None, None, width) for width in channels])
    count = sum(math.prod(w.shape) for w in layer.trainable_weights)
    assert round(count / 1e6, 3) == millions


# Edges


def test_one_stage_and_two_classes():
    x = stages((5, 7))
    layer = built(x, 2, channels=8)
    assert_close(layer(x), mlp_head(layer, x), 1e-5)


def test_stages_of_one_size_and_of_one_pixel():
    x = stages((4, 6), (4, 6), (1, 1))
    layer = built(x, 3, channels=8)
    assert_close(layer(x), mlp_head(layer, x), 1e-5)
