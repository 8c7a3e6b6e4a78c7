import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_segadapter as ksa


def batch(num_classes=4, void=(255,), seed=0):
    """Logits `(2, 5, 7, K)` and masks with a good share of void."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(2, 5, 7, num_classes)).astype("float32")
    ids = [*range(num_classes), *void]
    return rng.choice(ids, (2, 5, 7)).astype("uint8"), logits


def cross_entropy(labels, logits):
    """Cross-entropy of each pixel; of class 0 where the label is none."""
    logits = logits.astype("float64")
    labels = np.where(labels < logits.shape[-1], labels, 0).astype(int)
    log_total = np.log(np.exp(logits).sum(-1))
    return log_total - np.take_along_axis(logits, labels[..., None], -1)[..., 0]


def gradient(loss, masks, logits):
    """Gradient by the logits: what plain SGD moves, where the weights are logits."""
    layer = keras.layers.Embedding(1, logits.size)
    model = keras.Sequential(
        [keras.Input((1,)), layer, keras.layers.Reshape(logits.shape[1:])]
    )
    layer.embeddings.assign(logits.reshape(1, -1))
    model.compile(keras.optimizers.SGD(1.0), loss=loss)
    model.train_on_batch(np.zeros((1, 1)), masks)
    after = ops.convert_to_numpy(layer.embeddings).reshape(logits.shape)
    return logits - after


# Contract


def test_config_and_serialisation():
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
    }


def test_survives_saving_of_a_compiled_model(tmp_path):
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
def test_wrong_ignore_class(ignore_class):
    with pytest.raises(
        TypeError, match="`ignore_class` must be None, an integer id or"
    ):
        ksa.SegmentationCrossentropy(ignore_class)


def test_wrong_class_weights():
    with pytest.raises(ValueError, match=r"at least 0 .*: class_weight=\[1, -1\]"):
        ksa.SegmentationCrossentropy(class_weight=[1, -1])
    masks, logits = batch()
    with pytest.raises(ValueError, match=r"one weight a class.*3 weights for 4 cla"):
        ksa.SegmentationCrossentropy(class_weight=[1, 2, 3])(masks, logits)


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5), (2, 5, 7, 4), (1, 5, 7)])
def test_masks_that_do_not_fit(shape):
    words = (
        r"one-hot masks: take numpy.argmax.*Received: masks of shape \(.*\(2, 5, 7, 4"
    )
    with pytest.raises(ValueError, match=words):
        ksa.SegmentationCrossentropy()(np.zeros(shape, "int32"), batch()[1])


# Meaning


def test_equals_keras_loss():
    masks, logits = batch()
    theirs = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255)
    expected = float(theirs(masks.astype("int32"), logits))
    ours = float(ksa.SegmentationCrossentropy()(masks, logits))
    assert ours == pytest.approx(expected, rel=1e-6)
    assert (masks == 255).mean() > 0.1


def test_class_weights_are_those_of_pytorch():
    masks, logits = batch()
    table = np.array([0.3, 2, 0, 5])
    w = np.where(masks < 4, table[np.minimum(masks, 3)], 0)
    expected = (w * cross_entropy(masks, logits)).sum() / w.sum()
    loss = ksa.SegmentationCrossentropy(class_weight=table)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ignore_class", [[255, 254], [0, 254, 255], {3, 254, 255}])
def test_several_ignored_ids(ignore_class):
    masks, logits = batch(void=(254, 255))
    counted = ~np.isin(masks, list(ignore_class))
    expected = cross_entropy(masks, logits)[counted].mean()
    loss = ksa.SegmentationCrossentropy(ignore_class)
    assert float(loss(masks, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weights", [np.array([2, 0.5]), np.linspace(0, 3, 70)])
def test_sample_weight_of_images_and_of_pixels(weights):
    masks, logits = batch()
    weights = weights.reshape(2, 5, 7) if weights.size == 70 else weights
    of_pixels = weights if weights.ndim == 3 else weights[:, None, None]
    counted = masks < 255
    terms = counted * of_pixels * cross_entropy(masks, logits)
    # They leave the divisor: the number of pixels that count.
    expected = terms.sum() / counted.sum()
    actual = ksa.SegmentationCrossentropy()(masks, logits, sample_weight=weights)
    assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_sample_weight_of_images_in_square_batches():
    # As many images as columns: weights of images must not fall on columns.
    masks, logits = batch(void=())
    masks, logits = masks[:, :, :2], logits[:, :, :2]
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
def test_ids_that_are_neither_class_nor_ignored_give_nan(wrong):
    masks, logits = batch()
    masks = masks.astype("int32")
    masks[0, 2, 3] = wrong
    for arguments in ({}, {"class_weight": [1, 2, 3, 4]}):
        loss = ksa.SegmentationCrossentropy(255, **arguments)
        assert math.isnan(float(loss(masks, logits)))
        again = ksa.SegmentationCrossentropy([255, wrong], **arguments)
        assert math.isfinite(float(again(masks, logits)))


def test_void_must_be_named():
    masks, logits = batch()
    assert math.isnan(float(ksa.SegmentationCrossentropy(None)(masks, logits)))


# Edges


@pytest.mark.parametrize("class_weight", [None, [1, 2, 3, 4]])
def test_void_alone_gives_zero_and_no_gradient(class_weight):
    logits = batch()[1][:1]
    masks = np.full((1, 5, 7), 255, "uint8")
    loss = ksa.SegmentationCrossentropy(class_weight=class_weight)
    assert float(loss(masks, logits)) == 0
    np.testing.assert_array_equal(gradient(loss, masks, logits), 0)


def test_large_logits_in_float16():
    logits = np.array([[[[60000, -60000], [-60000, 60000]]]], "float16")
    loss = ksa.SegmentationCrossentropy()
    assert float(loss(np.array([[[0, 1]]]), logits)) == 0
    assert float(loss(np.array([[[0, 0]]]), logits)) == pytest.approx(60000, rel=1e-3)


def test_more_classes_than_uint8_counts():
    logits = np.zeros((1, 1, 2, 300), "float32")
    masks = np.array([[[299, 65535]]], "int32")
    loss = ksa.SegmentationCrossentropy(65535)
    assert float(loss(masks, logits)) == pytest.approx(math.log(300), rel=1e-6)


def test_a_reduction_that_is_no_mean():
    with pytest.raises(ValueError, match="reduction='sum'"):
        ksa.SegmentationCrossentropy(reduction="sum")
