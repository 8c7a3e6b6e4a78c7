"""Tests of losses on masks: cross-entropy with void pixels, and Keras' losses."""

import json
import math

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import ops
from sklearn.utils import class_weight as sk

import keras_segadapter as ksa


def batch(num_classes=4, void=(255,), seed=0):
    """Return masks `(2, 5, 7)`, partly void, and logits `(2, 5, 7, K)`."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(2, 5, 7, num_classes)).astype("float32")
    ids = [*range(num_classes), *void]
    return rng.choice(ids, (2, 5, 7)).astype("uint8"), logits


def cross_entropy(labels, logits):
    """Return the cross-entropy per pixel, of class 0 where the label is no class."""
    logits = logits.astype("float64")
    labels = np.where(labels < logits.shape[-1], labels, 0).astype(int)
    log_total = np.log(np.exp(logits).sum(-1))
    return log_total - np.take_along_axis(logits, labels[..., None], -1)[..., 0]


def gradient(loss, masks, logits):
    """Return the gradient by the logits, as SGD moves weights that are the logits."""
    layer = keras.layers.Embedding(1, logits.size)
    model = keras.Sequential(
        [keras.Input((1,)), layer, keras.layers.Reshape(logits.shape[1:])]
    )
    layer.embeddings.assign(logits.reshape(1, -1))
    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    model.train_on_batch(np.zeros((1, 1)), masks)
    after = ops.convert_to_numpy(layer.embeddings).reshape(logits.shape)
    return logits - after


def one_hot_and_shares(masks, logits, void=255):
    """Return one-hot masks and softmax `(B, H, W, K)`, and which pixels count."""
    shares = np.exp(logits.astype("float64"))
    shares /= shares.sum(-1, keepdims=True)
    truth = np.eye(256)[masks][..., : logits.shape[-1]]
    return truth, shares, masks != void


def tversky(masks, logits, axis, alpha=0.5, beta=0.5):
    """Return the Tversky loss, with alpha for missed pixels and beta for wrong ones."""
    truth, shares, counted = one_hot_and_shares(masks, logits)
    truth, shares = (part * counted[..., None] for part in (truth, shares))
    hits = (truth * shares).sum(axis)
    missed, wrong = truth.sum(axis) - hits, shares.sum(axis) - hits
    return np.mean(1 - hits / (hits + alpha * missed + beta * wrong))


def focal(masks, logits, alpha=0.25, gamma=2.0):
    truth, shares, counted = one_hot_and_shares(masks, logits)
    share = (truth * shares).sum(-1)[counted]
    return np.mean(-alpha * (1 - share) ** gamma * np.log(share))


def mix():
    """Return one loss of each kind that MaskLoss takes."""
    return [
        ksa.SegmentationCrossentropy(class_weight=[1, 2, 3, 4]),
        keras.losses.Dice(axis=(0, 1, 2)),
        keras.losses.Tversky(alpha=0.7, beta=0.3, axis=(1, 2)),
        keras.losses.CategoricalFocalCrossentropy(),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    ]


# Contract


def test_config_and_serialization():
    loss = ksa.SegmentationCrossentropy(
        ignore_class=[255, 254],
        class_weight=np.array([1, 2, 0.5, 3], "float32"),
        name="ce",
        reduction="mean",
    )
    config = keras.losses.serialize(loss)
    copy = keras.losses.deserialize(config)
    assert isinstance(copy, ksa.SegmentationCrossentropy)
    assert copy.get_config() == loss.get_config()
    assert copy.get_config() == {
        "name": "ce",
        "reduction": "mean",
        "ignore_class": [254, 255],
        "class_weight": [1, 2, 0.5, 3],
        "label_smoothing": 0.0,
        "ohem_threshold": None,
        "ohem_min_kept": 1 / 16,
    }


def test_a_compiled_model_keeps_its_loss_when_saved(tmp_path):
    masks, logits = batch()
    model = keras.Sequential(
        [keras.Input((5, 7, 4)), keras.layers.Activation("linear")]
    )
    model.compile(loss=ksa.SegmentationCrossentropy(255, class_weight=[1, 2, 3, 4]))
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    expected = model.evaluate(logits, masks, verbose=0)
    assert loaded.evaluate(logits, masks, verbose=0) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_masks_of_any_type_and_with_a_channel(dtype):
    masks, logits = batch()
    loss = ksa.SegmentationCrossentropy()
    expected = float(loss(masks.astype("int32"), logits))
    assert float(loss(masks.astype(dtype), logits)) == expected
    assert float(loss(masks[..., None].astype(dtype), logits)) == expected


@pytest.mark.parametrize("ignore_class", ["void", 255.0, True, [255, None]])
def test_wrong_ignore_class_raises(ignore_class):
    with pytest.raises(
        TypeError, match='`ignore_class` must be "auto", None, an integer'
    ):
        ksa.SegmentationCrossentropy(ignore_class)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1, -1], ValueError, r"finite .*at least 0.*Received: class_weight=\[1, -1\]"),
        ([1, math.nan], ValueError, "finite numbers"),
        ({0: math.inf}, ValueError, "finite numbers"),
        ([0, 0], ValueError, "not only zeros"),
        ("balanced", TypeError, r"balanced_class_weight\(pixels_per_class\)"),
        ({"road": 1}, ValueError, "must be classes, integers from 0"),
        ([1, 2, 3], ValueError, "one weight per class.*3 weights for 4 classes"),
        ({0: 1, 4: 2}, ValueError, r"from 0 to 3.*with the classes \[4\]"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value)[:20],
)
def test_wrong_class_weights_raise(weights, error, message):
    masks, logits = batch()
    with pytest.raises(error, match=message):
        ksa.SegmentationCrossentropy(class_weight=weights)(masks, logits)


def test_an_ignored_class_raises():
    masks, logits = batch(num_classes=300, void=())
    for loss in (ksa.SegmentationCrossentropy(255), ksa.MaskLoss(mix()[1:], None, 255)):
        with pytest.raises(
            ValueError, match=r"one of the 300 classes.*classes \[255\]"
        ):
            loss(masks, logits)


@pytest.mark.parametrize("pixels", [[], [0, 0], [[1]], [1, -1]], ids=str)
def test_wrong_counts_of_pixels_raise(pixels):
    with pytest.raises(ValueError, match="the number of pixels of each class"):
        ksa.balanced_class_weight(pixels)


@pytest.mark.parametrize(
    "shape", [(2, 5), (2, 5, 7, 4), (1, 5, 7)], ids=["flat", "one_hot", "one_mask"]
)
def test_masks_of_wrong_shape_raise(shape):
    words = r"one-hot masks .*numpy.argmax.*Received: masks of shape \(.*\(2, 5, 7, 4"
    with pytest.raises(ValueError, match=words):
        ksa.SegmentationCrossentropy()(np.zeros(shape, "int32"), batch()[1])


def test_config_and_serialization_of_a_mix():
    loss = ksa.MaskLoss(mix(), [1, 2, 3, 4, 0.5], 255, name="mixed")
    config = json.dumps(keras.losses.serialize(loss))  # tuples become lists
    copy = keras.losses.deserialize(json.loads(config))
    assert isinstance(copy, ksa.MaskLoss)
    assert json.dumps(keras.losses.serialize(copy)) == config
    assert set(copy.get_config()) == {
        "name",
        "reduction",
        "losses",
        "weights",
        "ignore_class",
        "classes",
    }
    assert (copy.name, copy.weights) == ("mixed", [1.0, 2.0, 3.0, 4.0, 0.5])
    assert float(copy(*batch())) == float(loss(*batch()))


@pytest.mark.integration
def test_a_segmenter_trains_on_a_mix_and_is_saved(tiny_backbone, tmp_path):
    model = ksa.build_segmenter(tiny_backbone([4]), 4)
    dice = ksa.MaskLoss(keras.losses.Dice(axis=(1, 2)), ignore_class=[77, 255])
    focal = keras.losses.CategoricalFocalCrossentropy(from_logits=True)
    model.compile(
        loss={"logits": dice, "aux": ksa.MaskLoss([focal], [2.0], 77)},
        run_eagerly=EAGER,
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), "uint8")
    masks = images[..., 0] % 4
    masks[0, :3] = 77
    assert np.isfinite(model.fit(images, masks, verbose=0).history["loss"][0])
    model.save(tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    logits = model.predict_on_batch(images)
    for output, loss in model.loss.items():
        assert json.dumps(loaded.loss[output].get_config()) == json.dumps(
            loss.get_config()
        )
        assert float(loaded.loss[output](masks, logits)) == float(loss(masks, logits))


def test_a_loss_of_the_users_own_is_accepted(tiny_backbone):
    class Dice(keras.losses.Loss):
        """A loss of class ids and logits that is named like one of Keras'."""

    model = ksa.build_segmenter(tiny_backbone([4]), 4)
    own = Dice()
    model.compile(loss=own)
    assert {key: loss.loss for key, loss in model.loss.items()} == {
        "logits": own,
        "aux": own,
    }


MASK_LOSS_ERRORS = {
    "name": (dict(losses="dice"), TypeError, "not names or functions. .*'dice'"),
    "function": (dict(losses=[keras.losses.dice]), TypeError, "<function dice"),
    "no_losses": (dict(losses=[]), ValueError, "0 losses and weights="),
    "two_weights": (
        dict(losses=mix(), weights=[1, 2]),
        ValueError,
        "5 losses and weights=",
    ),
    "weight_of_0": (
        dict(losses=mix()[:2], weights=[1, 0]),
        ValueError,
        r"weights\[1\]=0",
    ),
    "loss_of_ids": (
        dict(losses=keras.losses.SparseCategoricalCrossentropy()),
        ValueError,
        "SparseCategoricalCrossentropy takes class ids",
    ),
    "generalized_loss_of_ids": (
        dict(losses=keras.losses.CategoricalGeneralizedCrossEntropy()),
        ValueError,
        "CategoricalGeneralizedCrossEntropy takes class ids",
    ),
    "sum_of_a_loss": (
        dict(losses=keras.losses.Dice(reduction="sum")),
        ValueError,
        "Dice on masks is a mean.*reduction='sum'",
    ),
    "no_reduction": (
        dict(losses=mix(), reduction=None),
        ValueError,
        "MaskLoss on .*reduction=None",
    ),
    "other_ignored_ids": (
        dict(losses=mix(), ignore_class=[9, 255]),
        ValueError,
        r"\[9, 255\]\) of SegmentationCrossentropy\(ignore_class=auto\)",
    ),
    "ignored_name": (
        dict(losses=mix()[1:], ignore_class="void"),
        TypeError,
        "'void'",
    ),
    "dice_of_classes": (
        dict(losses=keras.losses.Dice(axis=-1)),
        ValueError,
        "must contain height and width.*axis=-1",
    ),
    "tversky_without_width": (
        dict(losses=keras.losses.Tversky(axis=(0, 1))),
        ValueError,
        r"must contain height and width.*axis=\(0, 1\)",
    ),
}


@pytest.mark.parametrize(
    ("arguments", "error", "message"), MASK_LOSS_ERRORS.values(), ids=MASK_LOSS_ERRORS
)
def test_wrong_arguments_of_a_mix_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        ksa.MaskLoss(**arguments)


def test_wrong_calls_of_a_mix_raise():
    masks, logits = batch()
    loss = ksa.MaskLoss(mix())
    with pytest.raises(ValueError, match=r"takes no `sample_weight`.*`ignore_class`"):
        loss(masks, logits, sample_weight=np.ones(2))
    with pytest.raises(ValueError, match=r"one-hot masks .* numpy.argmax"):
        loss(np.eye(256)[masks][..., :4], logits)
    columns = ksa.MaskLoss(keras.losses.CategoricalFocalCrossentropy(axis=1))
    with pytest.raises(ValueError, match=r"CategoricalFocal.*\(2, 7, 4\).*\(2, 5, 7\)"):
        columns(masks, logits)


# Meaning


def test_cross_entropy_equals_that_of_keras():
    masks, logits = batch()
    theirs = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    expected = float(theirs(masks.astype("int32"), logits))
    ours = float(ksa.SegmentationCrossentropy()(masks, logits))
    assert ours == pytest.approx(expected, rel=1e-6)
    assert (masks == 255).mean() > 0.1


def test_class_weights_weigh_as_in_pytorch():
    masks, logits = batch()
    table = np.array([0.3, 2, 0, 5])
    w = np.where(masks < 4, table[np.minimum(masks, 3)], 0)
    expected = (w * cross_entropy(masks, logits)).sum() / w.sum()
    loss = ksa.SegmentationCrossentropy(class_weight=table)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-6)


def test_a_dict_of_class_weights_leaves_the_others_at_1():
    masks, logits = batch()
    expected = ksa.SegmentationCrossentropy(class_weight=[1, 1, 5, 1])(masks, logits)
    loss = ksa.SegmentationCrossentropy(class_weight={2: 5})
    # JSON, which keeps keys as text, is what a file holds.
    config = json.loads(json.dumps(keras.losses.serialize(loss)))
    for each in (loss, keras.losses.deserialize(config)):
        assert float(each(masks, logits)) == float(expected)


def test_balanced_class_weights_are_those_of_scikit_learn():
    labels = np.array([0] * 6 + [2] * 3 + [3])
    expected = sk.compute_class_weight(
        "balanced", classes=np.array([0, 2, 3]), y=labels
    )
    weights = ksa.balanced_class_weight(np.bincount(labels))
    np.testing.assert_allclose(weights, np.insert(expected, 1, 1.0))


def test_class_255_of_300_counts():
    masks, logits = batch(num_classes=300, void=())
    masks = np.full_like(masks, 255)
    expected = cross_entropy(masks.astype(int), logits).mean()
    loss = ksa.SegmentationCrossentropy()
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-6)
    dice = ksa.MaskLoss(keras.losses.Dice(axis=(0, 1, 2)))
    assert float(dice(masks, logits)) > 0.9


@pytest.mark.parametrize("value", [0.5, math.nan], ids=str)
def test_a_fraction_makes_the_loss_nan(value):
    masks, logits = batch()
    masks = masks.astype("float32")
    loss, dice = ksa.SegmentationCrossentropy(), ksa.MaskLoss(mix()[1:])
    assert math.isfinite(float(loss(masks, logits)))
    assert math.isfinite(float(dice(masks, logits)))
    masks[0, 0, 0] = value
    assert math.isnan(float(loss(masks, logits)))
    assert math.isnan(float(dice(masks, logits)))


@pytest.mark.parametrize("ignore_class", [[255, 254], [-1, 254, 255], {99, 254, 255}])
def test_several_ignored_ids(ignore_class):
    masks, logits = batch(void=(254, 255))
    counted = ~np.isin(masks, list(ignore_class))
    expected = cross_entropy(masks, logits)[counted].mean()
    loss = ksa.SegmentationCrossentropy(ignore_class)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "weights",
    [np.array([2, 0.5]), np.linspace(0, 3, 70).reshape(2, 5, 7)],
    ids=["of_images", "of_pixels"],
)
def test_sample_weight(weights):
    masks, logits = batch()
    of_pixels = weights if weights.ndim == 3 else weights[:, None, None]
    counted = masks < 255
    terms = counted * of_pixels * cross_entropy(masks, logits)
    # The divisor stays the number of pixels that count.
    expected = terms.sum() / counted.sum()
    actual = ksa.SegmentationCrossentropy()(masks, logits, sample_weight=weights)
    assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_sample_weight_of_images_is_not_taken_for_that_of_columns():
    masks, logits = batch(void=())
    masks, logits = masks[:, :, :2], logits[:, :, :2]  # as many columns as images
    expected = cross_entropy(masks, logits)[0].sum() / masks.size
    loss = ksa.SegmentationCrossentropy()
    actual = float(loss(masks, logits, sample_weight=np.array([1.0, 0.0])))
    assert actual == pytest.approx(expected, rel=1e-6)


def test_gradient_is_softmax_minus_one_hot_on_counted_pixels():
    masks, logits = (x[:1] for x in batch())
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = (masks < 255)[..., None]
    expected = counted * (share - np.eye(256)[masks][..., :4]) / counted.sum()
    actual = gradient(ksa.SegmentationCrossentropy(), masks, logits)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 4, 100, 254])
def test_unknown_ids_give_nan(wrong):
    masks, logits = batch()
    masks = masks.astype("int32")
    masks[0, 2, 3] = wrong
    for arguments in ({}, {"class_weight": [1, 2, 3, 4]}):
        loss = ksa.SegmentationCrossentropy(255, **arguments)
        assert math.isnan(float(loss(masks, logits)))
        again = ksa.SegmentationCrossentropy([255, wrong], **arguments)
        assert math.isfinite(float(again(masks, logits)))


def test_void_that_is_not_ignored_gives_nan():
    masks, logits = batch()
    assert math.isnan(float(ksa.SegmentationCrossentropy(None)(masks, logits)))


@pytest.mark.parametrize("axis", [None, (1, 2), [0, 1, 2], (-3, -2, -1)])
def test_dice_and_tversky_over_counted_pixels(axis):
    masks, logits = batch()
    over = None if axis is None else tuple(axis)
    dice = ksa.MaskLoss(keras.losses.Dice(axis=axis))
    expected = tversky(masks, logits, over)
    assert float(dice(masks, logits)) == pytest.approx(expected, rel=1e-5)
    uneven = ksa.MaskLoss(keras.losses.Tversky(alpha=0.8, beta=0.1, axis=axis))
    expected = tversky(masks, logits, over, 0.8, 0.1)
    assert float(uneven(masks, logits)) == pytest.approx(expected, rel=1e-5)


def test_dice_without_axis_is_a_mean_over_the_pixels():
    masks, logits = batch()
    truth, shares, counted = one_hot_and_shares(masks, logits)
    expected = 1 - (truth * shares).sum(-1)[counted].mean()
    dice = ksa.MaskLoss(keras.losses.Dice())
    assert float(dice(masks, logits)) == pytest.approx(expected, rel=1e-5)


def test_an_absent_class_costs_one_and_gives_no_gradient():
    masks = np.zeros((1, 5, 7), "uint8")
    masks[:, 3:] = 1
    logits = 40 * np.eye(4, dtype="float32")[masks]
    dice = ksa.MaskLoss(keras.losses.Dice(axis=(0, 1, 2)))
    assert float(dice(masks, logits)) == pytest.approx(2 / 4)
    np.testing.assert_allclose(gradient(dice, masks, logits), 0, atol=1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
def test_focal_loss_over_counted_pixels(from_logits):
    masks, logits = batch()
    theirs = keras.losses.CategoricalFocalCrossentropy(0.4, 1.5, from_logits)
    expected = focal(masks, logits, 0.4, 1.5)
    actual = float(ksa.MaskLoss(theirs)(masks, logits))
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("from_logits", [False, True])
def test_categorical_cross_entropy_equals_the_sparse_one(from_logits):
    masks, logits = batch(void=(255, 254))
    theirs = keras.losses.CategoricalCrossentropy(from_logits)
    loss = ksa.MaskLoss(theirs, ignore_class=[254, 255])
    expected = float(ksa.SegmentationCrossentropy([254, 255])(masks, logits))
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-5)
    with_channel = masks[..., None].astype("int64")
    assert float(loss(with_channel, logits)) == float(loss(masks, logits))


def test_a_mix_is_the_weighted_sum():
    masks, logits = batch()
    weights = [1, 0.5, 2, 4, 3]
    weighted = ksa.SegmentationCrossentropy(class_weight=[1, 2, 3, 4])
    values = [
        float(weighted(masks, logits)),
        tversky(masks, logits, (0, 1, 2)),
        tversky(masks, logits, (1, 2), 0.7, 0.3),
        focal(masks, logits),
        cross_entropy(masks, logits)[masks < 255].mean(),
    ]
    actual = float(ksa.MaskLoss(mix(), weights)(masks, logits))
    assert actual == pytest.approx(np.dot(weights, values), rel=1e-5)
    actual = float(ksa.MaskLoss(mix())(masks, logits))
    assert actual == pytest.approx(sum(values), rel=1e-5)


def test_void_does_not_count_in_a_mix():
    masks, logits = (x[:1] for x in batch())
    loss = ksa.MaskLoss(mix())
    moved = gradient(loss, masks, logits)
    np.testing.assert_array_equal(moved[masks == 255], 0)
    assert np.abs(moved[masks < 255]).min() > 0
    other = np.where((masks == 255)[..., None], np.float32(7e3), logits)
    assert float(loss(masks, other)) == float(loss(masks, logits))


@pytest.mark.parametrize("wrong", [-1, 4, 254])
@pytest.mark.parametrize("member", [1, 3], ids=["dice", "focal"])
def test_unknown_ids_give_nan_in_a_mix(wrong, member):
    masks, logits = batch()
    masks = masks.astype("int32")
    masks[0, 2, 3] = wrong
    assert math.isnan(float(ksa.MaskLoss(mix()[member])(masks, logits)))
    again = ksa.MaskLoss(mix()[member], ignore_class=[wrong, 255])
    assert math.isfinite(float(again(masks, logits)))


# Edges


@pytest.mark.parametrize("class_weight", [None, [1, 2, 3, 4]])
def test_a_batch_of_void_gives_zero_and_no_gradient(class_weight):
    logits = batch()[1][:1]
    masks = np.full((1, 5, 7), 255, "uint8")
    loss = ksa.SegmentationCrossentropy(class_weight=class_weight)
    assert float(loss(masks, logits)) == 0
    np.testing.assert_array_equal(gradient(loss, masks, logits), 0)


def test_a_batch_of_void_and_large_logits_in_a_mix():
    masks, logits = (x[:1] for x in batch())
    void = np.full_like(masks, 255)
    loss = ksa.MaskLoss(mix())
    assert float(loss(void, logits)) == 0
    np.testing.assert_array_equal(gradient(loss, void, logits), 0)
    moved = gradient(loss, masks, 1e4 * logits)
    assert np.isfinite(moved).all() and np.abs(moved).max() > 0


def test_a_mix_computes_in_float32():
    masks, logits = batch()
    loss = ksa.MaskLoss(mix())
    half = logits.astype("float16")
    assert float(loss(masks, half)) == float(loss(masks, half.astype("float32")))
    # The sum over so many pixels is beyond float16's range.
    zeros = np.zeros((1, 300, 300, 2), "float16")
    dice = ksa.MaskLoss(keras.losses.Dice(axis=(1, 2)))
    assert float(dice(zeros[..., 0], zeros)) == pytest.approx((1 / 3 + 1) / 2)


def test_large_logits_in_float16():
    logits = np.array([[[[60000, -60000], [-60000, 60000]]]], "float16")
    loss = ksa.SegmentationCrossentropy()
    assert float(loss(np.array([[[0, 1]]]), logits)) == 0
    assert float(loss(np.array([[[0, 0]]]), logits)) == pytest.approx(60000, rel=1e-3)


def test_more_classes_than_uint8_holds():
    logits = np.zeros((1, 1, 2, 300), "float32")
    masks = np.array([[[299, 65535]]], "int32")
    loss = ksa.SegmentationCrossentropy(65535)
    assert float(loss(masks, logits)) == pytest.approx(math.log(300), rel=1e-6)


def test_a_reduction_that_is_not_a_mean_raises():
    with pytest.raises(ValueError, match="reduction='sum'"):
        ksa.SegmentationCrossentropy(reduction="sum")
