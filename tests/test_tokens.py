"""Tokens of a vision transformer: adapting them is adapting the map they make."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy_method import maps, set_random_weights

import keras_segadapter as ksa

WIDTH = 8


# Meaning


@pytest.mark.parametrize("leading", [0, 1, 5])
def test_adapting_tokens_is_adapting_the_map_that_they_make(leading):
    layer = ksa.SegAdapter(3, num_blocks=2)
    tokens = ops.convert_to_tensor(maps(2, leading + 4 * 5, WIDTH))
    grid = ops.convert_to_tensor(maps(2, 4, 5, 1))
    adapted, scores = layer([tokens, grid])
    set_random_weights(layer)
    adapted, scores = map(ops.convert_to_numpy, layer([tokens, grid]))
    features = ops.reshape(tokens[:, leading:], (2, 4, 5, WIDTH))
    expected, expected_scores = map(ops.convert_to_numpy, layer(features))
    np.testing.assert_array_equal(
        adapted[:, :leading], ops.convert_to_numpy(tokens)[:, :leading]
    )
    patches = adapted[:, leading:].reshape(expected.shape)
    assert np.abs(expected - ops.convert_to_numpy(features)).max() > 0.1
    np.testing.assert_allclose(patches, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)


def test_tokens_to_map_lays_out_the_last_tokens_row_by_row():
    tokens = np.arange(2 * 7 * 1, dtype="float32").reshape(2, 7, 1)
    grid = np.zeros((2, 2, 3, 5), "float32")
    features = ops.convert_to_numpy(ksa.TokensToMap()([tokens, grid]))
    expected = [[[1, 2, 3], [4, 5, 6]], [[8, 9, 10], [11, 12, 13]]]
    np.testing.assert_array_equal(features[..., 0], expected)


# Edges


PAIRS = {
    "eight patches of seven tokens": [(2, 7, 4), (2, 2, 4, 4)],
    "open channels": [(2, 7, None), (2, 2, 2, 4)],
    "two maps": [(2, 2, 2, 4), (2, 2, 2, 4)],
    "no grid": [(2, 7, 4)],
}


@pytest.mark.parametrize(
    ("cls", "arguments"), [(ksa.SegAdapter, [3]), (ksa.TokensToMap, [])]
)
@pytest.mark.parametrize("shapes", PAIRS.values(), ids=PAIRS)
def test_other_pairs_than_tokens_and_grid_raise(cls, arguments, shapes):
    with pytest.raises(ValueError, match=r"pair \[tokens .*Received: input_shape="):
        cls(*arguments).build(shapes)


def test_tokens_alone_raise():
    with pytest.raises(ValueError, match="takes feature maps"):
        ksa.SegAdapter(3)(keras.Input((7, 4)))
    with pytest.raises(ValueError, match="takes a pair"):
        ksa.TokensToMap()(keras.Input((7, 4)))
