"""Keras' RematScope around a model: the same training, computed again in parts."""

import contextlib

import keras
import numpy as np
import pytest
from numpy_method import assert_close

import keras_segadapter as ksa
from keras_segadapter.backbones.mit import EfficientSelfAttention, MixFFN

NAMES = ["block_attention", "block_ffn", "adapter_s4"]


def build(scope):
    keras.utils.set_random_seed(0)
    with scope:
        image = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(8, 4, 4)(image)
        x = x + EfficientSelfAttention(2, 2, name="block_attention")(x)
        x = x + MixFFN(2, name="block_ffn")(x)
        model = ksa.build_segmenter(
            keras.Model(image, x),
            3,
            adapters=[ksa.SegAdapter(3, scale_init=0.1, name="adapter_s4")],
            head=ksa.MLPHead(3, channels=8, dropout=0.0, name="head"),
            preprocessing=keras.layers.Rescaling(1 / 255),
        )
    model.compile(keras.optimizers.SGD(0.1))
    return model


def named_layers():
    return keras.RematScope("list_of_layers", layer_names=NAMES)


@pytest.mark.integration
def test_named_layers_train_save_and_load_as_without(tmp_path, monkeypatch):
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 24, 3)).astype("float32")
    masks = np.arange(768).reshape(2, 16, 24) % 3
    called, call = [], MixFFN.call

    def counted(self, inputs):
        called.append(self)
        return call(self, inputs)

    monkeypatch.setattr(MixFFN, "call", counted)
    found = []
    for scope in (contextlib.nullcontext(), named_layers()):
        model = build(scope)
        called.clear()
        model.fit(images, masks, batch_size=2, epochs=2, verbose=0)
        found.append((len(called), model.get_weights()))
    (plain, expected), (again, weights) = found
    assert again > plain or keras.backend.backend() == "jax"  # which traces once
    for actual, weight in zip(weights, expected, strict=True):
        # Keys' biases have no gradient but for rounding.
        np.testing.assert_allclose(actual, weight, rtol=1e-4, atol=1e-6)
    model.save(tmp_path / "model.keras")
    with named_layers():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(images, masks, batch_size=2, verbose=0)
    model.fit(images, masks, batch_size=2, verbose=0)
    after, expected = (each.predict_on_batch(images) for each in (loaded, model))
    assert_close(after, expected, 1e-5)
