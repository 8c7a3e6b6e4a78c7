import keras
import numpy as np
import pytest
from keras import ops
from numpy_method import assert_close, resize

import keras_segadapter as ksa


def maps(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# Contract


def test_config_and_saving(tmp_path):
    layer = ksa.ResizeLike(name="up", dtype="mixed_bfloat16")
    config = layer.get_config()
    layer([maps(1, 2, 3, 4), maps(1, 4, 6, 1)])
    assert layer.get_config() == config
    assert ksa.ResizeLike.from_config(config).get_config() == config

    inputs = [keras.Input((3, 4, 2)), keras.Input((9, 6, 1))]
    model = keras.Model(inputs, ksa.ResizeLike()(inputs))
    assert model.output_shape == (None, 9, 6, 2)
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    pair = [maps(2, 3, 4, 2), maps(2, 9, 6, 1)]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded(pair)), ops.convert_to_numpy(model(pair))
    )


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_low_precision(dtype, tolerance):
    x, reference = maps(2, 3, 5, 4), maps(2, 8, 11, 1)
    resized = ksa.ResizeLike(dtype=f"mixed_{dtype}")([x, reference])
    assert keras.backend.standardize_dtype(resized.dtype) == dtype
    assert_close(resized, resize(x, 8, 11), tolerance)


def test_image_sizes_known_at_run_time():
    inputs = [keras.Input((None, None, 3)), keras.Input((None, None, 1))]
    output = ksa.ResizeLike()(inputs)
    assert output.shape == (None, None, None, 3)
    model = keras.Model(inputs, output)
    # TensorFlow compiles for the first size, then once for all: the third reuses it.
    for size, target in [((4, 5), (8, 13)), ((3, 7), (11, 6)), ((5, 5), (9, 21))]:
        x = maps(2, *size, 3)
        actual = model.predict([x, maps(2, *target, 1)], verbose=0)
        assert_close(actual, resize(x, *target), 1e-6)


# Meaning


@pytest.mark.parametrize(
    "size, target",
    [((4, 6), (16, 24)), ((3, 5), (10, 8)), ((7, 4), (5, 9)), ((9, 8), (4, 3))],
    ids=["up", "odd", "mixed", "down"],
)
def test_half_pixel_bilinear(size, target):
    x = maps(2, *size, 3)
    resized = ksa.ResizeLike()([x, maps(2, *target, 5)])
    assert_close(resized, resize(x, *target), 1e-6)


def test_same_size_changes_nothing():
    x = maps(2, 5, 3, 4)
    np.testing.assert_array_equal(ops.convert_to_numpy(ksa.ResizeLike()([x, x])), x)


# Edges


def test_reference_of_integers():
    x, image = maps(1, 2, 3, 4), np.zeros((1, 6, 9, 3), "uint8")
    assert_close(ksa.ResizeLike()([x, image]), resize(x, 6, 9), 1e-6)


def test_one_pixel_fills_the_map():
    resized = ops.convert_to_numpy(
        ksa.ResizeLike()([maps(1, 1, 1, 4), maps(1, 5, 3, 1)])
    )
    np.testing.assert_allclose(resized, resized[:, :1, :1].repeat(5, 1).repeat(3, 2))
