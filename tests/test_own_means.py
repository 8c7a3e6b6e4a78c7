"""Layers of Keras in a backbone compute by our means, and stay what they are."""

import copy
import pickle

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import layers, ops
from numpy_method import assert_close, maps, set_random_weights

import keras_segadapter as ksa
from keras_segadapter.layers import faster, native

CASES = {
    "kernel 3": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "padding": "same"}),
    "kernel 4": (layers.Conv2D, {"filters": 4, "kernel_size": 4, "padding": "same"}),
    "strided": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "strides": 2}),
    "strided, padded": (
        layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"},
    ),
    "dilated": (
        layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "dilation_rate": 2, "padding": "same"},
    ),
    "kernel 1": (layers.Conv2D, {"filters": 4, "kernel_size": 1, "activation": "relu"}),
    "kernel 1, strided": (
        layers.Conv2D,
        {"filters": 4, "kernel_size": 1, "strides": 2, "use_bias": False},
    ),
    "groups": (layers.Conv2D, {"filters": 12, "kernel_size": 3, "groups": 3}),
    "groups of one": (
        layers.Conv2D,
        {"filters": 12, "kernel_size": 3, "groups": 6, "padding": "same"},
    ),
    "depthwise": (layers.DepthwiseConv2D, {"kernel_size": 3, "padding": "same"}),
    "depthwise, strided": (
        layers.DepthwiseConv2D,
        {"kernel_size": 5, "strides": 2, "padding": "same", "depth_multiplier": 2},
    ),
    "separable": (
        layers.SeparableConv2D,
        {"filters": 4, "kernel_size": 3, "padding": "same", "depth_multiplier": 2},
    ),
    "separable, activated": (
        layers.SeparableConv2D,
        {"filters": 4, "kernel_size": 3, "strides": 2, "activation": "relu"},
    ),
    "pool": (layers.MaxPooling2D, {"pool_size": 3, "strides": 2}),
    "pool, padded": (layers.MaxPooling2D, {"pool_size": 3, "padding": "same"}),
    "norm": (layers.BatchNormalization, {"momentum": 0.9}),
}


@pytest.mark.parametrize(("cls", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_values_and_gradients_are_those_of_keras(cls, options, dtype, monkeypatch):
    monkeypatch.setattr(native, "FEW_PRODUCTS", 0)  # on JAX' CPU, not the library's way
    x = maps(2, 9, 8, 6)
    results = []
    for own in (True, False):
        keras.utils.set_random_seed(0)
        layer = cls(**options, dtype=dtype)
        if own:
            faster.call_by_own_means(layer)
        # What the scale in front learns comes from the gradient of the inputs.
        scale = layers.DepthwiseConv2D(1, dtype=dtype)
        model = keras.Sequential([keras.Input((9, 8, 6)), scale, layer])
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=EAGER)
        set_random_weights(model)
        before = model(x)
        losses = [
            model.train_on_batch(x, maps(*before.shape, seed=1)) for _ in range(2)
        ]
        before = ops.convert_to_numpy(ops.cast(before, "float32"))
        results.append([before, np.array(losses), *model.get_weights()])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-4 if dtype == "float32" else 5e-2)


def backbone():
    """Return a backbone of all layers that are called by other means."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 3, 2, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.SeparableConv2D(12, 3, padding="same", name="separable")(x)
    x = layers.Conv2D(12, 3, 2, groups=12, padding="same", name="groups")(x)
    x = layers.Conv2D(16, 1, name="pointwise")(x)
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="depthwise")(x)
    return keras.Model(inputs, x, name="backbone")


def segmenter():
    return ksa.build_segmenter(backbone(), num_classes=3, preprocessing=None)


def test_a_backbone_keeps_its_layers_and_numbers():
    x, fresh = maps(1, 32, 48, 3), backbone()
    model = segmenter()
    used = model.backbone
    assert [type(layer) for layer in used.layers] == [*map(type, fresh.layers)]
    assert used.get_config() == fresh.get_config()
    assert [w.path for w in used.weights] == [w.path for w in fresh.weights]
    used.set_weights(fresh.get_weights())
    assert_close(used(x), fresh(x), 1e-5)


@pytest.mark.integration
def test_copies_and_files_give_the_same_scores(tmp_path):
    x, model = maps(1, 32, 48, 3), segmenter()
    expected = model.predict_on_batch(x)
    model.save(tmp_path / "model.keras")
    copies = [
        keras.saving.load_model(tmp_path / "model.keras"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ]
    for other in copies:
        np.testing.assert_allclose(other.predict_on_batch(x), expected, atol=1e-5)
    plain = keras.models.clone_model(model.backbone)
    plain.set_weights(model.backbone.get_weights())
    assert_close(model.backbone(x), plain(x), 1e-5)


def test_channels_first_and_layers_of_others_are_left_alone():
    class Own(layers.Conv2D):
        pass

    for layer in (Own(2, 3), layers.Conv2D(2, 3, data_format="channels_first")):
        faster.call_by_own_means(layer)
        assert "call" not in vars(layer)
