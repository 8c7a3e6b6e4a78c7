"""What every layer of the package promises, checked by `check_layer`."""

import inspect

import keras
import numpy as np
from numpy_method import assert_close, dtypes, maps, set_random_weights

flatten = keras.tree.flatten
SIZES = [(5, 7), (8, 3), (6, 6)]  # height and width
TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}


def check_layer(cls, arguments, shapes, equation, folder, wide=()):
    """Check a layer's contract.

    Args:
        cls: Class of the layer.
        arguments: Dict of its constructor's arguments.
        shapes: Function from a height and a width to the list of input shapes.
        equation: Function from the layer and its inputs to its outputs, in NumPy.
        folder: Path of an empty folder.
        wide: Indices of outputs that are float32 where the layer computes in float16.
    """

    def build(**kwargs):
        layer = cls(**arguments, **kwargs)
        layer.build(single(shapes(*SIZES[0])))
        set_random_weights(layer)
        return layer

    check_config(cls, arguments, build(name="layer", dtype="mixed_bfloat16"))
    check_saving(build(name="layer"), shapes, equation, folder / "layer.keras")
    check_freezing(build(trainable=False), shapes)
    for dtype in TOLERANCES:
        check_low_precision(build(), build(dtype=f"mixed_{dtype}"), shapes, dtype, wide)


def check_config(cls, arguments, layer):
    """Check that the config is complete, not changed by `build`, and gives a twin."""
    unbuilt = cls(**arguments, name="layer", dtype="mixed_bfloat16")
    config = unbuilt.get_config()
    if "__init__" in vars(cls):
        assert {*inspect.signature(cls).parameters} - {"kwargs"} <= config.keys()
    assert arguments.items() <= config.items()
    assert layer.get_config() == config
    twin = cls.from_config(config)
    assert twin.get_config() == config
    twin.build_from_config(layer.get_build_config())
    assert [w.shape for w in twin.weights] == [w.shape for w in layer.weights]


def check_saving(layer, shapes, equation, path):
    """Check that a loaded model of open size gives the equation at several sizes."""
    inputs = [
        keras.Input((*[None] * len(shape[1:-1]), shape[-1]))
        for shape in shapes(*SIZES[0])
    ]
    keras.Model(inputs, layer(single(inputs))).save(path)
    model = keras.models.load_model(path)
    assert type(model.get_layer("layer")) is type(layer)
    for size in SIZES:
        x = arrays(shapes(*size))
        specs = flatten(layer(symbolic(x)))  # by compute_output_shape
        actual = flatten(model.predict(x, verbose=0))
        expected = flatten(equation(layer, *x))
        for value, reference, spec, open_spec in zip(
            actual, expected, specs, model.outputs, strict=True
        ):
            assert_close(value, reference, 1e-5)
            assert spec.shape == value.shape
            assert open_spec.shape[-1] == value.shape[-1]


def check_freezing(layer, shapes):
    """Check that a frozen layer comes back frozen, batch statistics included."""
    x = arrays(shapes(*SIZES[0]))
    inputs = symbolic(x)
    model = keras.Model(inputs, layer(inputs))
    twin = keras.Model.from_config(model.get_config())
    assert twin.trainable_weights == []
    before = twin.get_weights()
    twin(single(x), training=True)
    for weight, old in zip(twin.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def check_low_precision(exact, low, shapes, dtype, wide):
    """Check that half precision has float32 weights and gives close outputs."""
    x = arrays(shapes(*SIZES[0]))
    actual, expected = flatten(low(single(x))), flatten(exact(single(x)))
    assert {*dtypes(low.weights)} <= {"float32"}
    for value, reference in zip(actual, expected, strict=True):
        assert_close(value, reference, TOLERANCES[dtype])
    wide = wide if dtype == "float16" else ()
    named = ["float32" if i in wide else dtype for i in range(len(actual))]
    assert dtypes(actual) == dtypes(low(symbolic(x))) == named


def arrays(shapes):
    """Return one array per shape."""
    return [maps(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def symbolic(arrays):
    """Return the symbolic input for arrays of these shapes."""
    return single([keras.Input(batch_shape=x.shape) for x in arrays])


def single(values):
    """Return a list as a layer takes it: the only value, or else the list."""
    return values[0] if len(values) == 1 else values
