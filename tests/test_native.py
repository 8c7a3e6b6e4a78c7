import keras
import numpy as np
import pytest
from keras import ops
from numpy_method import assert_close, resize

import keras_segadapter as ksa
from keras_segadapter.layers.native import Dense, DepthwiseConv2D, PatchConv2D


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


LAYERS = [
    (
        DepthwiseConv2D,
        keras.layers.DepthwiseConv2D,
        {"kernel_size": 5, "padding": "same"},
    ),
    (
        DepthwiseConv2D,
        keras.layers.DepthwiseConv2D,
        {
            "kernel_size": 3,
            "padding": "same",
            "depth_multiplier": 2,
            "activation": "relu",
        },
    ),
    (
        DepthwiseConv2D,
        keras.layers.DepthwiseConv2D,
        {"kernel_size": 4, "padding": "same"},
    ),
    (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {"kernel_size": 3, "strides": 2}),
    (PatchConv2D, keras.layers.Conv2D, {"filters": 4, "kernel_size": 2, "strides": 2}),
    (
        PatchConv2D,
        keras.layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "strides": 2, "use_bias": False},
    ),
    (
        PatchConv2D,
        keras.layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "padding": "same"},
    ),
    (Dense, keras.layers.Dense, {"units": 5, "activation": "gelu"}),
    (Dense, keras.layers.Dense, {"units": 5, "use_bias": False}),
]


@pytest.mark.parametrize("ours, keras_own, options", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_our_layers_give_what_keras_own_give(ours, keras_own, options, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 6)).astype("float32")
    layer, other = ours(**options, dtype=dtype), keras_own(**options, dtype=dtype)
    other.build(x.shape)
    other.set_weights([rng.normal(size=w.shape) for w in other.get_weights()])
    layer.build(x.shape)
    layer.set_weights(other.get_weights())
    found, expected = layer(x), other(x)
    assert found.dtype == expected.dtype
    found, expected = (
        keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))
        for value in (found, expected)
    )
    scale = np.abs(expected).max()
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is ours and copy.get_config() == layer.get_config()
    assert layer(keras.Input((9, 8, 6))).shape[1:] == found.shape[1:]
