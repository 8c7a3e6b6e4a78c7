"""Tests of losses and metrics that resize small scores one tile at a time."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from gradients import value_and_gradient
from keras import ops

import keras_segadapter as ksa
from keras_segadapter.layers.native import resize_bilinear
from keras_segadapter.losses import tiles

# The tiles do not divide the height, and the factor of the resize is not an integer.
SIZE, SMALL, CLASSES, TILE = (22, 27), (6, 7), 5, 4


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", TILE)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (2, *SMALL, CLASSES)).astype("float32")
    labels = rng.integers(0, CLASSES, (2, *SIZE)).astype("int32")
    labels[:, :3] = 255
    return labels, scores


# Meaning


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_those_of_resized_logits(weighted):
    labels, scores = batch()
    rng = np.random.default_rng(1)
    options, weights = {}, {}
    if weighted:
        options["class_weight"] = [1.0, 2.0, 0.0, 4.0, 0.5]
        weights["sample_weight"] = rng.uniform(0, 2, labels.shape).astype("float32")
    plain = ksa.SegmentationCrossentropy(**options)

    def on_logits(labels, scores, **kwargs):
        return plain(labels, resize_bilinear(scores, *SIZE), **kwargs)

    expected = value_and_gradient(on_logits, labels, scores, **weights)
    found = value_and_gradient(plain, labels, scores, **weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(found[1]).max() > 1e-3


@pytest.mark.parametrize("tile", [3, 22, 100])
def test_tiles_of_any_size_and_weights_of_images(tile, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    labels, scores = batch()
    logits = resize_bilinear(scores, *SIZE)
    images = np.array([1.0, 3.0], "float32")
    loss = ksa.SegmentationCrossentropy()
    expected = float(loss(labels, logits, images))
    assert float(loss(labels, scores, images)) == pytest.approx(expected, abs=1e-5)
    # Masks and weights may have a channel.
    pixels = np.ones(labels.shape, "float32") * images[:, None, None]
    found = float(loss(labels[..., None], scores, pixels[..., None]))
    assert found == pytest.approx(expected, abs=1e-5)


def test_mean_iou_counts_the_pixels_of_resized_logits():
    labels, scores = batch()
    labels[1, 5, 5] = 77  # neither a class nor void
    whole, in_tiles = ksa.MeanIoU(CLASSES), ksa.MeanIoU(CLASSES)
    whole.update_state(labels, resize_bilinear(scores, *SIZE))
    in_tiles.update_state(labels, scores)
    np.testing.assert_array_equal(in_tiles.confusion_matrix(), whole.confusion_matrix())
    assert in_tiles.confusion_matrix().sum() == 2 * (22 - 3) * 27 - 1


def small_model(loss, aux="sum", **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    x = keras.layers.Conv2D(6, 2, 2)(x)
    model = ksa.build_segmenter(
        keras.Model(inputs, x), 3, head=ksa.MLPHead(3, 8, dropout=0.0), aux=aux
    )
    model.compile(keras.optimizers.SGD(0.05), loss=loss, **options)
    return model


def whole():
    """Return Keras' loss, for which `compile` resizes the logits as a whole."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    "aux, eager",
    [
        pytest.param("sum", EAGER, id="eager"),
        pytest.param("per_stage", False, id="graph", marks=pytest.mark.integration),
    ],
)
def test_training_and_evaluation_equal_those_on_whole_logits(aux, eager, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 9)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 16, 24, 3)).astype("float32")
    masks = rng.integers(0, 3, (2, 16, 24)).astype("uint8")
    models = [small_model(loss, aux, run_eagerly=eager) for loss in (whole(), "auto")]
    for model in models:
        model.fit(images, masks, 1, shuffle=False, verbose=0)
    for one, other in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-5
        )
    expected, found = (
        model.evaluate(images, masks, 1, verbose=0, return_dict=True)
        for model in models
    )
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.integration
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only TensorFlow has sizes that are unknown until run time",
)
def test_sizes_unknown_until_run_time():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    pairs = [
        (
            rng.integers(0, 256, (1, *size, 3)).astype("float32"),
            rng.integers(0, 3, (1, *size)).astype("int32"),
        )
        for size in ((24, 40), (28, 33))
    ]
    shapes = (tf.TensorSpec((None, None, None, 3)), tf.TensorSpec([None] * 3, tf.int32))
    data = tf.data.Dataset.from_generator(
        lambda: iter(pairs), output_signature=shapes
    ).repeat()
    losses = []
    for loss in (whole(), "auto"):
        found = small_model(loss).evaluate(data, steps=2, verbose=0, return_dict=True)
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


# Edges


def test_a_batch_of_void_gives_zero_and_unknown_ids_give_nan():
    labels, scores = batch()
    loss = ksa.SegmentationCrossentropy()
    assert float(loss(np.full_like(labels, 255), scores)) == 0.0
    labels[0, 10, 10] = CLASSES
    assert np.isnan(float(loss(labels, scores)))


def test_masks_of_wrong_shape_raise():
    labels, scores = batch()
    for wrong in (labels[:1], labels[0], np.eye(CLASSES)[labels % CLASSES]):
        with pytest.raises(ValueError, match="one class id per pixel"):
            ksa.SegmentationCrossentropy()(wrong, scores)
