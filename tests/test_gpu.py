"""Tests that need a GPU."""

import keras
import numpy as np
import pytest

import keras_segadapter as ksa


@pytest.fixture
def gpu():
    device = str(keras.ops.zeros(1).device).lower()
    if not any(word in device for word in ("gpu", "cuda", "mps")):
        pytest.skip(f"no GPU was found: the default device is {device}")
    return device


# Contract


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_fit(gpu, tiny_backbone, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = ksa.build_segmenter(tiny_backbone(), 8)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile()
    images, masks = ksa.data.make_scenes(8, size=(64, 64))
    history = model.fit(images, masks, batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# Meaning


@pytest.mark.gpu
def test_mean_iou_counts_as_numpy_does(gpu):
    metric = ksa.MeanIoU(3)
    labels = np.random.default_rng(0).integers(0, 3, (2, 64, 64))
    logits = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype("float32")
    metric.update_state(labels, logits)
    cells = 3 * labels + logits.argmax(-1)
    expected = np.bincount(cells.ravel(), minlength=9).reshape(3, 3)
    np.testing.assert_array_equal(metric.confusion_matrix(), expected)
