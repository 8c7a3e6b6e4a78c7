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
    """Head with weights of order 1."""
    layer = ksa.MLPHead(*args, **kwargs)
    layer.build([x.shape for x in inputs])
    set_random_weights(layer)
    return layer


# Contract


def test_config():
    arguments = {"num_classes": 5, "channels": 16, "dropout": 0.3}
    layer = ksa.MLPHead(**arguments, name="layer", dtype="mixed_bfloat16")
    config = layer.get_config()
    assert arguments.items() <= config.items()
    shapes = [(None, None, None, 4), (None, None, None, 8)]
    layer.build(shapes)
    assert layer.get_config() == config
    copy = ksa.MLPHead.from_config(config)
    assert copy.get_config() == config
    copy.build(shapes)
    assert [w.shape for w in copy.weights] == [w.shape for w in layer.weights]


def test_saving_and_image_sizes_known_at_run_time(tmp_path):
    inputs = [keras.Input((None, None, c)) for c in (3, 4)]
    layer = ksa.MLPHead(5, channels=8)
    model = keras.Model(inputs, layer(inputs))
    set_random_weights(layer)
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    for sizes in [((6, 10), (3, 5)), ((9, 4), (5, 2)), ((8, 8), (4, 4))]:
        x = stages(*sizes)
        scores = loaded.predict(x, verbose=0)
        assert_close(scores, mlp_head(layer, x), 1e-5)
        shape = layer.compute_output_shape([part.shape for part in x])
        assert scores.shape == shape == (2, *sizes[0], 5)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-2), ("bfloat16", 5e-2)])
def test_low_precision(dtype, tolerance):
    x = stages((9, 4), (5, 2))
    low = built(x, 5, channels=8, dtype=f"mixed_{dtype}")
    assert {keras.backend.standardize_dtype(w.dtype) for w in low.weights} == {
        "float32"
    }
    scores = low(x)
    assert keras.backend.standardize_dtype(scores.dtype) == dtype
    assert_close(scores, mlp_head(low, x), tolerance)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_classes": 1}, "`num_classes` must be at least 2.*: num_classes=1"),
        ({"channels": 0}, "`channels` must be an integer of at least 1.*: channels=0"),
        ({"channels": 8.0}, "`channels` must be an integer of .*: channels=8.0"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\).*: dropout=1.0"),
        ({"dropout": -0.1}, r"`dropout` must be in \[0, 1\).*: dropout=-0.1"),
        ({"dropout": math.nan}, r"`dropout` must be in \[0, 1\).*: dropout=nan"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        ksa.MLPHead(**{"num_classes": 3, **arguments})


def test_input_that_is_no_list():
    words = "MLPHead 'one' takes a list of feature maps.* wrap a single one in a list"
    with pytest.raises(ValueError, match=words):
        ksa.MLPHead(3, name="one")(keras.Input((4, 4, 8)))


@pytest.mark.parametrize("shape", [(8, 4), (8, 8, None)])
def test_wrong_stage(shape):
    words = "MLPHead 'odd' takes feature maps .* Received: input_shape="
    with pytest.raises(ValueError, match=words):
        ksa.MLPHead(3, name="odd")([keras.Input((8, 8, 4)), keras.Input(shape)])


def test_channels_first(channels_first):
    with pytest.raises(ValueError, match=r"channels_first.*set_image_data_format"):
        ksa.MLPHead(3)(stages((4, 4)))


# Meaning


@pytest.mark.parametrize(
    "sizes",
    [((16, 8), (8, 4), (4, 2), (2, 1)), ((9, 4), (5, 2), (3, 2), (2, 1))],
    ids=["even", "odd"],
)
def test_same_numbers_as_over_the_concatenation(sizes):
    x = stages(*sizes)
    layer = built(x, 3, channels=8)
    assert_close(layer(x), mlp_head(layer, x), 1e-5)


def test_training_normalises_with_the_batch_and_learns_its_statistics():
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
    # With one weight a channel, scores of a dropped channel lose it everywhere.
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
