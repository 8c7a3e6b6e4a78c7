"""Segmenter.for_inference: a plain model from images to logits or labels."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import layers

import keras_segadapter as ksa

K = 3
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3)).astype("float32")


def build(backbone, num_classes=K, **options):
    head = ksa.MLPHead(num_classes, 8)
    return ksa.build_segmenter(backbone, num_classes, head=head, **options)


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def check_logits(model, images=IMAGES):
    """Assert that the logits are the model's scores, resized to the image."""
    plain = model.for_inference()
    found = array(plain(images))
    assert found.dtype == "float32"
    assert np.ptp(found) > 1e-3
    expected = array(ksa.ResizeLike()([model(images)["logits"], images]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    return plain


# Contract


@pytest.mark.integration
def test_it_is_a_functional_model_that_is_saved_and_made_twice(tiny_backbone, tmp_path):
    model = build(tiny_backbone(), name="streets")
    plain, again = model.for_inference(), model.for_inference()
    assert len(plain.inputs) == len(plain.outputs) == 1
    assert plain.name == "streets_inference"
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    expected = array(plain(IMAGES))
    for other in (again, loaded):
        np.testing.assert_allclose(array(other(IMAGES)), expected, atol=1e-6)


@pytest.mark.integration
def test_a_graph_from_a_file_in_another_process(tmp_path):
    # Operations without a name are numbered by process, so those of the file have the
    # names that new ones would get.
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 4, 4)(inputs)
    x = keras.ops.cast(x + keras.ops.gelu(x * x), "float32")
    x = x + keras.ops.cast(keras.ops.argmax(x, axis=-1), "float32")[..., None]
    model = build(keras.Model(inputs, x), taps=[x])
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


# Meaning


@pytest.mark.parametrize("num_classes", [2, 9], ids=["2 classes", "9 classes"])
@pytest.mark.parametrize(
    "options", [{}, {"num_blocks": 2, "normalize": True}], ids=["plain", "two blocks"]
)
def test_logits_are_the_resized_scores(tiny_backbone, num_classes, options):
    adapters = [ksa.SegAdapter(num_classes, **options) for _ in range(2)]
    model = build(tiny_backbone(), num_classes, adapters=adapters)
    before = model.get_weights()
    check_logits(model)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_another_size_without_adapters_and_a_frozen_backbone(tiny_backbone):
    backbone = tiny_backbone()
    backbone.trainable = False
    check_logits(build(backbone, adapters=False), IMAGES[:, :, :24])


def test_adapters_on_tokens():
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 6))(layers.Conv2D(6, 8, 8)(inputs))
    for _ in range(2):
        x = x + layers.Dense(6)(layers.Dense(12, "relu")(x))
    model = build(keras.Model(inputs, x))
    plain = check_logits(model, IMAGES[:, :, :32])
    assert len(model.adapters) > 0
    assert all(adapter in plain.layers for adapter in model.adapters)


@pytest.mark.parametrize("num_classes, dtype", [(3, "uint8"), (300, "int32")])
def test_labels_are_the_argmax_of_the_logits(tiny_backbone, num_classes, dtype):
    model = build(tiny_backbone(), num_classes)
    labels = array(model.for_inference(labels=True)(IMAGES))
    assert labels.dtype == dtype
    expected = np.argmax(array(model.for_inference()(IMAGES)), axis=-1)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) > 1


@pytest.mark.integration
def test_nested_and_trained_it_trains_the_segmenter(tiny_backbone):
    model = build(tiny_backbone())
    inputs = keras.Input((None, None, 3))
    outer = keras.Model(inputs, layers.Rescaling(2.0)(model.for_inference()(inputs)))
    expected = 2 * model.predict_on_batch(IMAGES)
    np.testing.assert_allclose(outer.predict_on_batch(IMAGES), expected, atol=1e-5)
    outer.compile(
        keras.optimizers.SGD(0.1), ksa.SegmentationCrossentropy(), run_eagerly=EAGER
    )
    before = [np.copy(weight) for weight in model.get_weights()]
    outer.fit(IMAGES, np.zeros(IMAGES.shape[:3], "uint8"), verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert np.mean(moved) > 0.5
    assert len(outer.trainable_variables) == len(model.trainable_variables)


# Edges


def test_float16_stays_finite(tiny_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build(tiny_backbone())
    finally:
        keras.config.set_dtype_policy("float32")
    # With features of some hundreds, HSA's product of four factors leaves float16's
    # range.
    model.get_layer("reduce_1").bias.assign(np.full(4, 300.0))
    assert np.isfinite(array(check_logits(model)(IMAGES))).all()
