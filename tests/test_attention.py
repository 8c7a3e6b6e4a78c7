import keras
import numpy as np
import pytest
from numpy_method import (
    assert_close,
    dtypes,
    high_order_attention,
    maps,
    seg_attention,
    set_random_weights,
)

import keras_segadapter as ksa

LAYERS = [
    (ksa.SegAttention, {"filters": 5, "kernel_size": 3}),
    (ksa.HighOrderSpatialAttention, {"num_classes": 9, "kernel_size": 3}),
]
EQUATIONS = [seg_attention, high_order_attention]


# Contract


@pytest.mark.parametrize("cls, arguments", LAYERS)
def test_config(cls, arguments):
    layer = cls(**arguments, name="layer", dtype="mixed_bfloat16")
    config = layer.get_config()
    assert arguments.items() <= config.items()
    layer.build((None, None, None, 8))
    assert layer.get_config() == config
    copy = cls.from_config(config)
    assert copy.get_config() == config
    copy.build((None, None, None, 8))
    assert [w.shape for w in copy.weights] == [w.shape for w in layer.weights]


@pytest.mark.parametrize(
    "cls, arguments, equation",
    [(*layer, equation) for layer, equation in zip(LAYERS, EQUATIONS, strict=True)],
)
def test_saving_and_image_sizes_known_at_run_time(tmp_path, cls, arguments, equation):
    inputs = keras.Input((None, None, 4))
    layer = cls(**arguments)
    model = keras.Model(inputs, layer(inputs))
    set_random_weights(layer)
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    for size in [(5, 7), (8, 3), (6, 6)]:
        x = maps(2, *size, 4)
        results = [
            keras.tree.flatten(outputs)
            for outputs in (
                layer(keras.Input(batch_shape=x.shape)),  # compute_output_shape
                loaded.predict(x, verbose=0),
                equation(layer, x),
            )
        ]
        for symbolic, actual, expected in zip(*results, strict=True):
            assert symbolic.shape == actual.shape
            assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-2), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("cls, arguments", LAYERS)
def test_low_precision(cls, arguments, dtype, tolerance):
    x = maps(2, 7, 10, 6)
    exact, low = cls(**arguments), cls(**arguments, dtype=f"mixed_{dtype}")
    for layer in (exact, low):
        layer.build(x.shape)
        set_random_weights(layer)
    assert {keras.backend.standardize_dtype(w.dtype) for w in low.weights} == {
        "float32"
    }
    expected, actual = keras.tree.flatten(exact(x)), keras.tree.flatten(low(x))
    for result, reference in zip(actual, expected, strict=True):
        assert_close(result, reference, tolerance)
    # Z alone is wider: a product of four factors leaves float16's range.
    z = "float32" if dtype == "float16" else dtype
    assert dtypes(actual) == ([z, dtype] if len(actual) == 2 else [dtype])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"filters": 0}, "`filters` must be an integer of at least 1.*: filters=0"),
        ({"filters": 4.0}, "`filters` must be an integer of .*: filters=4.0"),
        ({"kernel_size": 0}, "`kernel_size` must be an integer of .*: kernel_size=0"),
        ({"kernel_size": (3, 3)}, r"`kernel_size` must be .*: kernel_size=\(3, 3\)"),
    ],
)
def test_wrong_arguments_of_seg_attention(arguments, words):
    with pytest.raises(ValueError, match=words):
        ksa.SegAttention(**{"filters": 4, **arguments})


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_classes": 1}, "`num_classes` must be at least 2.*: num_classes=1"),
        ({"num_classes": 0}, "`num_classes` must be at least 2.*: num_classes=0"),
        ({"num_classes": True}, "`num_classes` must be .*: num_classes=True"),
        ({"num_classes": 2.0}, "`num_classes` must be .*: num_classes=2.0"),
        ({"kernel_size": 0}, "`kernel_size` must be an integer of .*: kernel_size=0"),
    ],
)
def test_wrong_arguments_of_high_order_attention(arguments, words):
    with pytest.raises(ValueError, match=words):
        ksa.HighOrderSpatialAttention(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize("shape", [(None, 8, 4), (None, 8, 8, None)])
@pytest.mark.parametrize("cls, arguments", LAYERS)
def test_wrong_inputs(cls, arguments, shape):
    words = f"{cls.__name__} 'odd' takes feature maps .* Received: input_shape="
    with pytest.raises(ValueError, match=words):
        cls(**arguments, name="odd")(keras.Input(shape[1:]))


@pytest.mark.parametrize("cls, arguments", LAYERS)
def test_channels_first(channels_first, cls, arguments):
    with pytest.raises(ValueError, match=r"channels_first.*set_image_data_format"):
        cls(**arguments)(maps(1, 4, 4, 4))


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


def test_numpy_integers_are_arguments_too():
    layer = ksa.HighOrderSpatialAttention(np.int64(9), kernel_size=np.int32(3))
    config = layer.get_config()
    assert (config["num_classes"], config["kernel_size"]) == (9, 3)
    assert type(config["num_classes"]) is type(config["kernel_size"]) is int
    assert layer(keras.Input((4, 5, 2)))[1].shape == (None, 4, 5, 9)
