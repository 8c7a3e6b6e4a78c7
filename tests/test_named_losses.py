"""Tests of losses by name, of absent classes in Dice, and of Tversky's coefficients."""

import re

import keras
import numpy as np
import pytest
from gradients import check_gradient

import keras_segadapter as ksa
from keras_segadapter.losses.resized import fit_loss

CLASSES = 5


class SquaredTversky(keras.losses.Tversky):
    """A loss of a user's own."""

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) ** 2


def batch():
    """Return masks without classes 2 and 4, image 0 without class 3, and logits."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (2, 3, 4, CLASSES)).astype("float32")
    labels = rng.choice([0, 1, 3, 77], (2, 11, 9)).astype("uint8")
    labels[0, labels[0] == 3] = 0
    return labels, scores


def tversky(axis, alpha=0.5, beta=0.5, power=1):
    """Return the equation of Tversky, of the classes that occur."""

    def compute(masks, logits):
        shares = np.exp(logits)
        shares = shares / shares.sum(-1, keepdims=True) * (masks != 77)[..., None]
        truth = np.eye(256)[masks][..., :CLASSES]
        hits, size = (truth * shares).sum(axis), truth.sum(axis)
        missed, wrong = size - hits, shares.sum(axis) - hits
        losses = 1 - hits / (hits + alpha * missed + beta * wrong)
        return np.mean(losses[size > 0] ** power)

    return compute


# Contract


NAMES = {
    "crossentropy": lambda ids: ksa.SegmentationCrossentropy(ids),
    "ohem": lambda ids: ksa.SegmentationCrossentropy(ids, ohem_threshold=0.7),
    "lovasz": lambda ids: ksa.LovaszSoftmax(ids),
    "dice": lambda ids: ksa.MaskLoss(
        keras.losses.Dice(axis=(0, 1, 2)), ignore_class=ids, classes="present"
    ),
    "crossentropy+dice": lambda ids: ksa.MaskLoss(
        [ksa.SegmentationCrossentropy(ids), keras.losses.Dice(axis=(0, 1, 2))],
        ignore_class=ids,
        classes="present",
    ),
    "ohem+lovasz": lambda ids: ksa.MaskLoss(
        [
            ksa.SegmentationCrossentropy(ids, ohem_threshold=0.7),
            ksa.LovaszSoftmax(ids),
        ],
        ignore_class=ids,
        classes="present",
    ),
}


def test_names_stand_for_losses():
    for name, make in NAMES.items():
        found, expected = fit_loss(name, CLASSES, [77, 255]), make([77, 255])
        assert keras.losses.serialize(found) == keras.losses.serialize(expected)


def test_a_segmenter_is_saved_with_losses_by_name(tiny_backbone, tmp_path):
    model = ksa.build_segmenter(tiny_backbone([4]), CLASSES)
    losses = {"logits": "ohem+lovasz", "aux": "dice"}
    model.compile(loss=losses, ignore_class=[77, 255], run_eagerly=True)
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    labels, scores = batch()
    for output, name in losses.items():
        expected = float(NAMES[name]([77, 255])(labels, scores))
        for each in (model, loaded):
            assert float(each.loss[output](labels, scores)) == expected


@pytest.mark.parametrize("name", ["foo", "crossentropy+foo", "", "dice+"])
def test_unknown_names_raise(name):
    known = rf"crossentropy, ohem, lovasz, dice.*loss='{re.escape(name)}'"
    with pytest.raises(ValueError, match=known):
        fit_loss(name, CLASSES)


def test_configs_without_classes_are_of_all():
    loss = ksa.MaskLoss(keras.losses.Dice(axis=(1, 2)), classes="present")
    config = loss.get_config()
    assert ksa.MaskLoss.from_config(config).classes == config.pop("classes")
    assert ksa.MaskLoss.from_config(config).classes == "all"
    with pytest.raises(ValueError, match=r"`classes` must be .*classes='absent'"):
        ksa.MaskLoss(keras.losses.Dice(axis=(1, 2)), classes="absent")


# Meaning


@pytest.mark.parametrize("axis", [(0, 1, 2), (1, 2)])
def test_absent_classes_are_left_out(axis):
    dice = ksa.MaskLoss(
        keras.losses.Dice(axis=axis), ignore_class=77, classes="present"
    )
    check_gradient(dice, tversky(axis), *batch())


@pytest.mark.parametrize("other_keras", [False, True])
def test_alpha_weighs_missed_pixels_whatever_keras_does(
    other_keras, monkeypatch, capsys
):
    if other_keras:  # Keras 3.16 has alpha and beta where 3.15 has beta and alpha
        call = keras.losses.Tversky.call
        monkeypatch.setattr(
            keras.losses.Tversky, "call", lambda self, *parts: call(self, *parts[::-1])
        )
    axis = (0, 1, 2)
    for kind, power in ((keras.losses.Tversky, 1), (SquaredTversky, 2)):
        loss = kind(alpha=0.8, beta=0.1, axis=axis)
        mixed = ksa.MaskLoss(loss, ignore_class=77, classes="present")
        check_gradient(mixed, tversky(axis, 0.8, 0.1, power), *batch())
    ksa.MaskLoss(keras.losses.Tversky(axis=axis))  # equal weights have no order
    # What the last one does by itself, on a pixel that is found and one that is missed.
    alone = float(loss(np.ones((1, 2, 1, 1)), np.eye(2)[None, :, :1, None])) ** 0.5
    swapped = alone == pytest.approx(1 - 1 / 1.1, rel=1e-5)
    assert swapped != (alone == pytest.approx(1 - 1 / 1.8, rel=1e-5))
    lines = capsys.readouterr().out.count("alpha of Tversky weighs missed pixels")
    assert lines == 2 * swapped


def test_arguments_that_are_not_attributes_are_read_from_the_config():
    labels, scores = batch()
    for loss in (
        keras.losses.CategoricalCrossentropy(from_logits=True),
        keras.losses.Tversky(0.7, 0.3, axis=(0, 1, 2)),
    ):
        expected = float(ksa.MaskLoss(loss, None, 77, "present")(labels, scores))
        for name in {"from_logits", "alpha", "beta", "axis"} & vars(loss).keys():
            config = loss.get_config()
            delattr(loss, name)
            loss.get_config = lambda config=config: config  # as that of Keras 3.16
        mixed = ksa.MaskLoss(loss, None, 77, "present")
        assert float(mixed(labels, scores)) == expected


# Edges


def test_a_batch_of_void_is_zero():
    labels, scores = batch()
    for make in NAMES.values():
        assert float(make(77)(np.full_like(labels, 77), scores)) == 0
