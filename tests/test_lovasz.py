"""Tests of the Lovasz-softmax loss."""

import json
import math

import keras
import numpy as np
import pytest
from gradients import check_gradient, value_and_gradient
from keras import ops

import keras_segadapter as ksa
from keras_segadapter.losses.lovasz import _lost_iou

SIZE, SMALL, CLASSES = (11, 9), (3, 4), 4


def batch(size=SMALL):
    """Return masks without class 2, a third void, and logits."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (2, *size, CLASSES)).astype("float32")
    return rng.choice([0, 1, 3, 255], (2, *SIZE)).astype("uint8"), scores


def lovasz(masks, logits):
    """Return the loss as in the paper: class by class, void pixels cut out."""
    shares = np.exp(logits)
    shares = (shares / shares.sum(-1, keepdims=True))[masks != 255]
    masks = masks[masks != 255]
    losses = []
    for class_ in np.unique(masks):
        truth = masks == class_
        errors = np.abs(truth - shares[:, class_])
        order = np.argsort(-errors)
        missed, wrong = np.cumsum(truth[order]), np.cumsum(~truth[order])
        jaccard = 1 - (truth.sum() - missed) / (truth.sum() + wrong)
        losses.append(errors[order] @ np.diff(jaccard, prepend=0.0))
    return np.mean(losses)


# Contract


def test_config_and_serialization():
    loss = ksa.LovaszSoftmax([254, 255], name="lovasz")
    copy = keras.losses.deserialize(
        json.loads(json.dumps(keras.losses.serialize(loss)))
    )
    assert isinstance(copy, ksa.LovaszSoftmax)
    assert copy.get_config() == loss.get_config()
    assert (copy.name, copy.ignore_class) == ("lovasz", [254, 255])
    assert np.shape(loss.call(*batch())) == (1,)  # tf.distribute scales no scalar


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ksa.LovaszSoftmax("void"), TypeError, "'void'"),
        (lambda: ksa.LovaszSoftmax(reduction="sum"), ValueError, "reduction='sum'"),
        (lambda: ksa.LovaszSoftmax(1)(*batch()), ValueError, r"classes \[1\]"),
        (
            lambda: ksa.LovaszSoftmax()(*batch(), sample_weight=np.ones(2)),
            ValueError,
            "LovaszSoftmax takes no `sample_weight`: it compares regions",
        ),
        (
            lambda: ksa.LovaszSoftmax()(batch()[0][:1], batch()[1]),
            ValueError,
            "one class id per pixel",
        ),
        (
            lambda: ksa.MaskLoss([ksa.LovaszSoftmax(7)]),
            ValueError,
            r"auto\) of LovaszSoftmax\(ignore_class=\[7\]",
        ),
    ],
    ids=["ids", "reduction", "ignored_class", "sample_weight", "masks", "mixed_ids"],
)
def test_wrong_use_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Meaning


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("size", [SIZE, SMALL], ids=["same_size", "smaller"])
def test_loss_and_gradient_equal_numpy(size, xla):
    check_gradient(ksa.LovaszSoftmax(), lovasz, *batch(size), xla=xla)


def test_a_mix_with_a_cross_entropy():
    labels, scores = batch()
    parts = [ksa.SegmentationCrossentropy(), ksa.LovaszSoftmax()]
    expected = [float(part(labels, scores)) for part in parts]
    mixed = ksa.MaskLoss(parts, [1.0, 0.5])
    expected = expected[0] + 0.5 * expected[1]
    assert float(mixed(labels, scores)) == pytest.approx(expected, rel=1e-6)


def test_of_certain_predictions_it_is_one_minus_miou():
    labels, _ = batch(SIZE)
    found = np.random.default_rng(1).integers(0, CLASSES, labels.shape)
    counted = labels != 255
    expected = []
    for class_ in (0, 1, 3):
        truth, guess = (labels == class_)[counted], (found == class_)[counted]
        expected.append(1 - (truth & guess).sum() / (truth | guess).sum())
    logits = 60 * np.eye(CLASSES, dtype="float32")[found]
    actual = float(ksa.LovaszSoftmax()(labels, logits))
    assert actual == pytest.approx(np.mean(expected), rel=1e-5)


def test_steps_among_a_million_pixels():
    truth = np.random.default_rng(0).random((1, 2**20)) < 0.3
    missed, wrong = np.cumsum(truth, 1), np.cumsum(~truth, 1)
    union = truth.sum() + wrong
    before = np.where(truth, truth.sum() - missed + 1, truth.sum() - missed) / np.where(
        truth, union, union - 1
    )
    expected = before - (truth.sum() - missed) / union
    actual = ops.convert_to_numpy(_lost_iou(ops.convert_to_tensor(truth)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# Edges


@pytest.mark.parametrize("size", [SIZE, SMALL], ids=["same_size", "smaller"])
def test_void_and_unknown_ids(size):
    labels, scores = batch(size)
    loss = ksa.LovaszSoftmax()
    value, gradient = value_and_gradient(loss, np.full_like(labels, 255), scores)
    assert value == 0 and not gradient.any()
    labels[1, 10, 5] = CLASSES
    assert math.isnan(float(loss(labels, scores)))
    again = ksa.LovaszSoftmax([CLASSES, 255])
    assert math.isfinite(float(again(labels, scores)))


def test_void_pixels_have_no_gradient():
    labels, scores = batch(SIZE)
    _, gradient = value_and_gradient(ksa.LovaszSoftmax(), labels, scores)
    np.testing.assert_array_equal(np.abs(gradient).sum(-1) > 0, labels != 255)


def test_half_precision_and_a_channel_of_the_mask():
    labels, scores = batch()
    half, loss = ops.cast(scores, "float16"), ksa.LovaszSoftmax()
    expected = float(loss(labels, ops.cast(half, "float32")))
    assert float(loss(labels[..., None].astype("int64"), half)) == expected
