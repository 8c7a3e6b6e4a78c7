"""Segmenter.for_inference: the same logits from fewer layers."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_segadapter as ksa


def shaken(model):
    """The model with statistics, scales and biases that are not those of the start."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def images(size=(32, 48)):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (2, *size, 3)).astype("float32")


def logits(model, x):
    return keras.ops.convert_to_numpy(model(x))


def assert_same(model, size=(32, 48)):
    folded = model.for_inference()
    expected, found = logits(model, images(size)), logits(folded, images(size))
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)
    return folded


def of_type(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("num_classes", [2, 9])  # fewer than the channels, and more
@pytest.mark.parametrize("options", [{}, {"num_blocks": 2, "normalize": True}])
def test_logits_are_the_same(tiny_backbone, num_classes, options):
    adapters = [ksa.SegAdapter(num_classes, **options) for _ in range(2)]
    model = shaken(
        ksa.build_segmenter(
            tiny_backbone(),
            num_classes,
            adapters=adapters,
            head=ksa.MLPHead(num_classes, 8),
        )
    )
    before = [np.copy(weight) for weight in model.get_weights()]
    folded = assert_same(model)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert folded.output.dtype == "float32"
    # The backbone's two stand behind a tensor that the shortcut reads as well.
    assert len(of_type(folded, layers.BatchNormalization)) == 2
    assert not of_type(folded, (ksa.SegAdapter, ksa.MLPHead, layers.SpatialDropout2D))


def test_another_size_and_without_adapters(tiny_backbone):
    model = ksa.build_segmenter(
        tiny_backbone(), 3, adapters=False, head=ksa.MLPHead(3, 8)
    )
    assert_same(shaken(model), (40, 24))


def test_every_kind_of_linear_layer():
    inputs = keras.Input((None, None, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 4, 4, use_bias=False)(inputs))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    x = layers.SeparableConv2D(8, 2, 2)(x)
    x = layers.BatchNormalization(center=False)(x)
    x = layers.BatchNormalization()(layers.Dense(8)(x))
    model = ksa.build_segmenter(
        keras.Model(inputs, x), 3, taps=[x], head=ksa.MLPHead(3, 8)
    )
    assert not of_type(assert_same(shaken(model)), layers.BatchNormalization)


def test_what_cannot_be_folded_stays():
    inputs = keras.Input((None, None, 3))
    x = layers.BatchNormalization(name="of_the_image")(inputs)
    x = layers.Conv2D(6, 4, 4, activation="relu")(x)
    x = layers.BatchNormalization(name="behind_an_activation")(x)
    y = layers.Conv2D(6, 1)(x)
    x = layers.BatchNormalization(name="one_of_two_readers")(y) + y
    twice = layers.Conv2D(6, 1)
    norm = layers.BatchNormalization(name="of_a_shared_layer")
    x = twice(x) + norm(twice(x))
    model = ksa.build_segmenter(
        keras.Model(inputs, x), 3, taps=[x], head=ksa.MLPHead(3, 8)
    )
    folded = assert_same(shaken(model))
    left = [layer.name for layer in of_type(folded, layers.BatchNormalization)]
    assert left == [
        "of_the_image",
        "behind_an_activation",
        "one_of_two_readers",
        "of_a_shared_layer",
    ]


def test_a_head_of_the_users_own_and_frozen_norms(tiny_backbone):
    head = FirstStage(3)
    backbone = tiny_backbone()
    backbone.trainable = False
    folded = assert_same(shaken(ksa.build_segmenter(backbone, 3, head=head)))
    assert head in folded.layers


class FirstStage(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.scores = layers.Dense(units)

    def call(self, features):
        return self.scores(features[0])

    def compute_output_shape(self, shapes):
        return (*shapes[0][:-1], self.scores.units)


def test_adapters_on_tokens_stay(tiny_backbone):
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 6))(layers.Conv2D(6, 8, 8)(inputs))
    for _ in range(2):
        x = x + layers.Dense(6)(
            layers.Dense(12, "relu")(layers.LayerNormalization()(x))
        )
    model = ksa.build_segmenter(keras.Model(inputs, x), 3, head=ksa.MLPHead(3, 8))
    folded = assert_same(shaken(model), (32, 32))
    assert of_type(folded, ksa.SegAdapter) == model._parts.adapters


@pytest.mark.parametrize("num_classes, dtype", [(3, "uint8"), (300, "int32")])
def test_labels(tiny_backbone, num_classes, dtype):
    head = ksa.MLPHead(num_classes, 8)
    model = ksa.build_segmenter(tiny_backbone(), num_classes, head=head)
    labels = keras.ops.convert_to_numpy(model.for_inference(labels=True)(images()))
    assert labels.dtype == dtype
    expected = np.argmax(logits(model.for_inference(), images()), axis=-1)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) > 1


def test_saved_loaded_and_made_twice(tiny_backbone, tmp_path):
    model = shaken(
        ksa.build_segmenter(tiny_backbone(), 3, head=ksa.MLPHead(3, 8), name="streets")
    )
    folded, again = model.for_inference(), model.for_inference()
    assert folded.name == "streets_inference"
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    for other in (again, loaded):
        np.testing.assert_allclose(
            logits(other, images()), logits(folded, images()), atol=1e-6
        )


def test_a_graph_from_a_file_in_another_process(tmp_path):
    """Its unnamed operations are called as new ones would be there."""
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 4, 4)(inputs)
    x = keras.ops.cast(x + keras.ops.gelu(x * x), "float32")
    model = ksa.build_segmenter(
        keras.Model(inputs, x), 3, taps=[x], head=ksa.MLPHead(3, 8)
    )
    model.save(tmp_path / "model.keras")
    code = (
        "import keras, keras_segadapter, numpy\n"
        "model = keras.models.load_model('model.keras').for_inference(labels=True)\n"
        "print(tuple(model(numpy.zeros((1, 16, 16, 3))).shape))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.endswith("(1, 16, 16)\n")


def test_float16_keeps_the_wide_product(tiny_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = ksa.build_segmenter(tiny_backbone(), 3, head=ksa.MLPHead(3, 8))
    finally:
        keras.config.set_dtype_policy("float32")
    # Features of some hundreds: the product of four factors leaves float16's range.
    model.get_layer("reduce_1").bias.assign(np.full(4, 300.0))
    found = logits(model.for_inference(), images())
    assert found.dtype == "float32" and np.isfinite(found).all()
    expected = logits(model, images())
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)
