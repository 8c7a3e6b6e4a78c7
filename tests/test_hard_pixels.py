"""Tests of the cross-entropy's options: mining of hard pixels, label smoothing."""

import math

import keras
import numpy as np
import pytest
from gradients import check_gradient, value_and_gradient
from keras import ops

import keras_segadapter as ksa
from keras_segadapter.losses import tiles

# The tiles do not divide the height, and the factor of the resize is not an integer.
SIZE, SMALL, CLASSES = (11, 9), (3, 4), 4
WEIGHTS = [1.0, 3.0, 0.0, 0.5]
FEW = dict(ohem_threshold=0.01, ohem_min_kept=0.3)  # hard pixels are too few
OPTIONS = {
    "smoothed": dict(label_smoothing=0.2),
    "hard": dict(ohem_threshold=0.4, ohem_min_kept=0.1),
    "hardest": FEW,
    "both": dict(label_smoothing=0.1, class_weight=WEIGHTS, **FEW),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 4)


def batch(size=SMALL, void=True):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (2, *size, CLASSES)).astype("float32")
    labels = rng.integers(0, CLASSES, (2, *SIZE)).astype("uint8")
    if void:
        labels[:, :3] = 255
    return labels, scores


def crossentropy(
    class_weight=None,
    label_smoothing=0.0,
    ohem_threshold=None,
    ohem_min_kept=1 / 16,
    factors=1.0,
):
    """Return the equation of the loss, a function of masks and logits."""

    def compute(masks, logits):
        table = np.array(class_weight or [1.0] * CLASSES)
        known = np.where(masks == 255, 0, masks)
        weights = table[known] * (masks != 255)
        likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        truth = np.eye(CLASSES)[known]
        if ohem_threshold is not None:
            shares = np.exp((truth * likelihood).sum(-1))
            ordered = np.sort(shares[weights > 0])
            # As MMSegmentation: below what is next after the pixels to keep.
            kept = math.ceil(ohem_min_kept * len(ordered))
            weights = weights * (shares < max(ordered[kept], ohem_threshold))
        truth = (1 - label_smoothing) * truth + label_smoothing / CLASSES
        losses = -(truth * likelihood).sum(-1)
        return (weights * losses * factors).sum() / weights.sum()

    return compute


# Contract


def test_config_and_defaults():
    loss = ksa.SegmentationCrossentropy(**OPTIONS["both"])
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert copy.get_config() == loss.get_config()
    assert loss.get_config().items() >= OPTIONS["both"].items()
    # As of files that were saved before there were options.
    old = {"name": "ce", "reduction": "mean", "ignore_class": 9, "class_weight": None}
    config = ksa.SegmentationCrossentropy.from_config(old).get_config()
    assert config["ohem_threshold"] is None and config["label_smoothing"] == 0
    assert np.shape(loss.call(*batch())) == (1,)  # tf.distribute scales no scalar


@pytest.mark.parametrize(
    "option",
    [
        dict(label_smoothing=1.0),
        dict(label_smoothing=-0.1),
        dict(ohem_threshold=0.0),
        dict(ohem_threshold=1),
        dict(ohem_threshold=math.nan),
        dict(ohem_min_kept=1),
        dict(ohem_min_kept=100_000),
    ],
    ids=str,
)
def test_wrong_numbers_raise(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"`{name}` must be .*{name}={value}"):
        ksa.SegmentationCrossentropy(**option)


# Meaning


@pytest.mark.parametrize("size", [SIZE, SMALL], ids=["same_size", "smaller"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradient_equal_numpy(options, size):
    labels, scores = batch(size)
    loss = ksa.SegmentationCrossentropy(**options)
    check_gradient(loss, crossentropy(**options), labels, scores)


@pytest.mark.parametrize("xla", [False, True])
def test_with_weights_of_pixels(xla):
    labels, scores = batch()
    factors = np.random.default_rng(1).uniform(0, 2, labels.shape).astype("float32")
    loss = ksa.SegmentationCrossentropy(**OPTIONS["both"])
    equation = crossentropy(**OPTIONS["both"], factors=factors)
    check_gradient(loss, equation, labels, scores, xla=xla, sample_weight=factors)


def test_smoothing_is_that_of_keras():
    labels, scores = batch(SIZE, void=False)
    theirs = keras.losses.CategoricalCrossentropy(True, label_smoothing=0.3)
    expected = float(theirs(np.eye(CLASSES)[labels], scores))
    ours = ksa.SegmentationCrossentropy(label_smoothing=0.3)
    assert float(ours(labels, scores)) == pytest.approx(expected, rel=1e-6)


def test_only_hard_pixels_have_a_gradient():
    labels, scores = batch(SIZE)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    true = np.take_along_axis(shares, (labels % CLASSES)[..., None], -1)[..., 0]
    loss = ksa.SegmentationCrossentropy(ohem_threshold=0.5, ohem_min_kept=0)
    _, gradient = value_and_gradient(loss, labels, scores)
    expected = (true < 0.5) & (labels != 255)
    np.testing.assert_array_equal(np.abs(gradient).sum(-1) > 0, expected)


def test_without_options_no_pass_is_added(monkeypatch):
    monkeypatch.delattr("keras_segadapter.losses.crossentropy.crossentropy_map")
    assert np.isfinite(float(ksa.SegmentationCrossentropy()(*batch())))


# Edges


@pytest.mark.parametrize("size", [SIZE, SMALL], ids=["same_size", "smaller"])
def test_void_and_unknown_ids(size):
    labels, scores = batch(size)
    loss = ksa.SegmentationCrossentropy(**OPTIONS["both"])
    value, gradient = value_and_gradient(loss, np.full_like(labels, 255), scores)
    assert value == 0 and not gradient.any()
    labels[0, 10, 5] = CLASSES
    assert math.isnan(float(loss(labels, scores)))


def test_pixels_that_are_equally_hard_are_all_kept():
    labels, scores = batch(void=False)
    loss = ksa.SegmentationCrossentropy(ohem_threshold=0.1)
    value, gradient = value_and_gradient(loss, labels, np.zeros_like(scores))
    assert value == pytest.approx(math.log(CLASSES))
    assert (np.abs(gradient).sum(-1) > 0).all()


def test_half_precision():
    labels, scores = batch()
    half = ops.cast(scores, "float16")
    loss = ksa.SegmentationCrossentropy(**OPTIONS["both"])
    assert float(loss(labels, half)) == float(loss(labels, ops.cast(half, "float32")))
