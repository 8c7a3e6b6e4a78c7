"""AdamW: decay of kernels only, its config, and its steps against the equation."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import ops
from numpy_method import maps

import keras_segadapter as ksa
from keras_segadapter.layers.native import on_torch
from keras_segadapter.training import optimizers


def small_model():
    """Build a model with each kind of weight: kernels, biases, norms, mu."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = ksa.SegAdapter(3, kernel_size=3, return_scores=False)(x)
    return keras.Model(inputs, keras.layers.Conv2D(3, 1)(x))


def array(variable):
    return ops.convert_to_numpy(variable)


def fill(variables, value):
    for variable in variables:
        variable.assign(np.full(variable.shape, value))


def check_decay(variables, value):
    """Assert that kernels have become `value` and vectors are still 1."""
    assert {len(v.shape) for v in variables} == {1, 2, 4}
    for variable in variables:
        expected = value if len(variable.shape) > 1 else 1
        np.testing.assert_allclose(array(variable), expected, err_msg=variable.path)


# Contract


def test_config_and_defaults():
    config = ksa.AdamW().get_config()
    assert config["learning_rate"] == pytest.approx(6e-5)
    assert (config["epsilon"], config["weight_decay"]) == (1e-8, 0.01)
    optimizer = ksa.AdamW(1e-3, weight_decay=0.1, epsilon=1e-6, clipnorm=1.0, name="x")
    config = optimizer.get_config()
    optimizer.build(small_model().trainable_variables)
    assert optimizer.get_config() == config
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(copy, ksa.AdamW)
    assert copy.get_config() == config
    assert (config["weight_decay"], config["epsilon"]) == (0.1, 1e-6)
    assert (config["clipnorm"], config["name"]) == (1.0, "x")


@pytest.mark.parametrize("by", ["var_list", "var_names"])
def test_weights_that_the_user_excludes_stay_excluded(by):
    shapes = {"position": (2, 2), "kernel": (2, 2), "bias": (2,)}
    weights = [keras.Variable(np.ones(s), name=name) for name, s in shapes.items()]
    optimizer = ksa.AdamW(0.5, weight_decay=0.5)
    excluded = {"var_list": weights[:1], "var_names": ["position"]}
    optimizer.exclude_from_weight_decay(**{by: excluded[by]})
    optimizer.build(weights)
    optimizer.apply([ops.zeros(weight.shape) for weight in weights])
    assert [array(weight).flat[0] for weight in weights] == [1, 0.75, 1]


def test_a_schedule_sets_the_rate():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0)
    optimizer = ksa.AdamW(schedule, weight_decay=0)
    copy = ksa.AdamW.from_config(optimizer.get_config())
    for each in (optimizer, copy):
        variable = keras.Variable(np.ones((2, 2)))
        each.build([variable])
        values = []
        for _ in range(3):
            each.apply([ops.ones((2, 2))], [variable])
            values.append(array(variable)[0, 0])
        # With equal gradients, each step of Adam is as large as the rate.
        np.testing.assert_allclose(values, [0.9, 0.81, 0.73], atol=1e-5)


# Meaning


def test_only_kernels_are_decayed():
    variables = small_model().trainable_variables
    fill(variables, 1)
    optimizer = ksa.AdamW(0.1, weight_decay=5.0)
    optimizer.build(variables)
    zeros = [ops.zeros(v.shape) for v in variables]
    optimizer.apply(zeros, variables)
    check_decay(variables, 0.5)
    optimizer.apply(zeros, variables)
    check_decay(variables, 0.25)


def test_keras_own_decays_vectors_too():
    # This is the reason for our AdamW. If Keras changes, it can go.
    variable = keras.Variable(np.ones(3))
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=5.0)
    optimizer.build([variable])
    optimizer.apply([ops.zeros(3)], [variable])
    np.testing.assert_allclose(array(variable), 0.5)


def test_decay_after_saving_and_loading(tmp_path):
    model = small_model()
    optimizer = ksa.AdamW(0.1, weight_decay=5.0)
    model.compile(optimizer, ksa.SegmentationCrossentropy(), run_eagerly=EAGER)
    images, void = np.ones((2, 8, 8, 3)), np.full((2, 8, 8), 255)
    for step in range(2):
        fill(model.trainable_variables, 1)
        # Void pixels have no gradient, so only decay moves the weights.
        model.fit(images, void, verbose=0)
        check_decay(model.trainable_variables, 0.5)
        assert int(model.optimizer.iterations) == step + 1
        model.save(tmp_path / "x.keras")
        model = keras.saving.load_model(tmp_path / "x.keras")
        model.run_eagerly = EAGER
        assert isinstance(model.optimizer, ksa.AdamW)


def test_steps_are_those_of_the_equation():
    start, gradients = np.full((2, 2), 3.0), [1e-7, -3e-7, 2e-7]
    variable = keras.Variable(start)
    optimizer = ksa.AdamW(0.01, weight_decay=0.1)
    optimizer.build([variable])
    m = v = 0.0
    expected = start
    for t, gradient in enumerate(gradients, start=1):
        optimizer.apply([ops.full((2, 2), gradient)], [variable])
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        # In Keras' form, epsilon is not corrected for bias.
        rate = 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        expected = expected * (1 - 0.01 * 0.1) - rate * m / (v**0.5 + 1e-8)
        np.testing.assert_allclose(array(variable), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"gradient_accumulation_steps": 2},
        {"amsgrad": True},
        {"use_ema": True, "ema_overwrite_frequency": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("view", [False, True])
def test_steps_are_those_of_keras(options, view, monkeypatch):
    calls, step_on_torch = [], optimizers.adam_on_torch

    def count(*args):
        calls.append(args)
        step_on_torch(*args)

    monkeypatch.setattr(optimizers, "adam_on_torch", count)
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.0)
    shapes = [(3, 4), (2, 2, 3, 5), (6, 1)]
    gradients = [[maps(*s, seed=seed) for s in shapes] for seed in range(5)]
    results = []
    for cls in (ksa.AdamW, keras.optimizers.AdamW):
        optimizer = cls(schedule, weight_decay=0.1, epsilon=1e-6, **options)
        values = [ops.convert_to_tensor(maps(*s)) for s in shapes]
        if view:  # as which PyTorch keeps it; such weights are left to Keras
            values[0] = ops.transpose(maps(4, 3))
        variables = [keras.Variable(value) for value in values]
        optimizer.build(variables)
        for step in gradients:
            optimizer.apply([*map(ops.convert_to_tensor, step)], variables)
        results.append([array(v) for v in (*variables, *optimizer.variables[2:])])
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    own = on_torch() and not view and "amsgrad" not in options
    assert bool(calls) == own


# Edges


def test_scalars_and_thin_kernels():
    variables = [keras.Variable(np.ones(shape)) for shape in ((), (1,), (1, 1))]
    optimizer = ksa.AdamW(0.1, weight_decay=5.0)
    optimizer.build(variables)
    optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
    values = [float(array(v).squeeze()) for v in variables]
    assert values == pytest.approx([1, 1, 0.5])
