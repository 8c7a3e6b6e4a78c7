"""SegFormerHead equals SegFormer's head in NumPy, step by step."""

import numpy as np
import pytest
from keras import ops
from numpy_method import (
    array,
    assert_close,
    batch_norm,
    linear,
    maps,
    resize,
    set_random_weights,
)

import keras_segadapter as ksa

SHAPES = [(2, 9, 4, 3), (2, 5, 2, 4), (2, 3, 1, 5)]


def stages():
    return [maps(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]


def built(*args, **kwargs):
    layer = ksa.SegFormerHead(*args, **kwargs)
    layer.build(SHAPES)
    set_random_weights(layer)
    return layer


# Contract; the rest of it is in test_layers_contract.py


def test_one_map_outside_a_list_raises():
    words = "SegFormerHead 'one' takes a list of feature maps.* wrap a single one in"
    with pytest.raises(ValueError, match=words):
        ksa.SegFormerHead(3, name="one")(maps(1, 4, 4, 8))


# Meaning


def test_equals_biased_linear_layers_and_their_fusion():
    x, layer, rng = stages(), built(3, channels=8), np.random.default_rng(0)
    # Any matrix is the product of the linear layer of a stage and a part of the fusion.
    columns = [rng.normal(size=(8, 8)) for _ in x]
    biases = [rng.normal(size=8) for _ in x]
    fused = np.concatenate(columns[::-1])  # deep to shallow
    hidden = []
    for features, dense, matrix, bias in zip(
        x, layer.linears, columns, biases, strict=True
    ):
        kernel = array(dense.kernel) @ np.linalg.inv(matrix)
        hidden.append(resize(features @ kernel + bias, 9, 4))
    fused = np.concatenate(hidden[::-1], axis=-1) @ fused
    mean = sum(bias @ matrix for bias, matrix in zip(biases, columns, strict=True))
    expected = batch_norm(layer.norm, fused - mean)
    assert_close(layer(x), linear(layer.classifier, np.maximum(expected, 0)), 1e-5)


def test_training_updates_the_statistics_of_the_batch_norm():
    x, layer = stages(), ksa.SegFormerHead(3, channels=8, dropout=0.0)
    layer(x, training=True)
    hidden = sum(
        resize(features @ array(dense.kernel), 9, 4)
        for features, dense in zip(x, layer.linears, strict=True)
    )
    expected = 0.1 * hidden.mean((0, 1, 2))  # a momentum of 0.9, from 0
    np.testing.assert_allclose(array(layer.norm.moving_mean), expected, atol=1e-6)


def test_dropout_drops_single_values_in_training_only():
    x, layer = stages(), built(3, channels=8, dropout=0.5)
    layer.trainable = False  # keeps batch norm on its statistics
    inference = array(layer(x))
    np.testing.assert_array_equal(array(layer(x, training=False)), inference)
    assert np.abs(array(layer(x, training=True)) - inference).max() > 1e-2
    dropped = ops.convert_to_numpy(layer.drop(np.ones((2, 9, 4, 8)), training=True))
    assert set(np.unique(dropped)) == {0, 2}
    assert len(np.unique(dropped[0, :, :, 0])) == 2  # within a channel


# Edges


def test_one_stage_and_two_classes():
    layer, x = ksa.SegFormerHead(2, channels=8), maps(1, 5, 7, 3)
    layer.build([x.shape])
    set_random_weights(layer)
    fused = batch_norm(layer.norm, x @ array(layer.linears[0].kernel))
    assert_close(layer([x]), linear(layer.classifier, np.maximum(fused, 0)), 1e-5)
