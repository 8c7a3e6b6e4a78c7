"""Tests of MeanIoU: its figures are those of scikit-learn."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import ops
from sklearn import metrics as sk

import keras_segadapter as ksa
from keras_segadapter.metrics import LIMB


def batch(num_classes=5, void=(255,), images=4, seed=0):
    rng = np.random.default_rng(seed)
    ids = [*range(num_classes), *void]
    masks = rng.choice(ids, (images, 6, 9)).astype("uint8")
    logits = rng.normal(size=(*masks.shape, num_classes)).astype("float32")
    right = masks[..., None] == np.arange(num_classes)
    return masks, logits + right  # better than chance


def counted(masks, logits, ignored):
    """Return labels and predictions of the pixels that count."""
    chosen = ~np.isin(masks, ignored)
    return masks[chosen], logits.argmax(-1)[chosen]


# Contract


def test_config():
    metric = ksa.MeanIoU(5, ignore_class=[255, 254], name="iou")
    config = metric.get_config()
    assert config["num_classes"] == 5
    assert config["ignore_class"] == [254, 255]
    metric.update_state(*batch())
    assert metric.get_config() == config
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(copy, ksa.MeanIoU)
    assert copy.get_config() == config
    assert copy.name == "iou"


def test_reset_state():
    metric = ksa.MeanIoU(5)
    metric.update_state(*batch())
    assert metric.confusion_matrix().any()
    metric.reset_state()
    assert not metric.confusion_matrix().any()
    assert float(metric.result()) == 0


@pytest.mark.parametrize("num_classes", [1, 0, 2.0, True])
def test_wrong_num_classes_raises(num_classes):
    words = f"`num_classes` must be .*: num_classes={num_classes}"
    with pytest.raises(ValueError, match=words):
        ksa.MeanIoU(num_classes)


@pytest.mark.parametrize("ignore_class", ["void", 255.0, True, [255, None]])
def test_wrong_ignore_class_raises(ignore_class):
    with pytest.raises(
        TypeError, match='`ignore_class` must be "auto", None, an integer'
    ):
        ksa.MeanIoU(3, ignore_class)


def test_an_ignored_class_raises():
    with pytest.raises(ValueError, match=r"one of the 300 classes.*classes \[255\]"):
        ksa.MeanIoU(300, ignore_class=255)
    assert ksa.MeanIoU(300).get_config()["ignore_class"] == []
    assert ksa.MeanIoU(255).get_config()["ignore_class"] == [255]


def test_wrong_shapes_raise():
    masks, logits = batch()
    metric = ksa.MeanIoU(5)
    with pytest.raises(ValueError, match=r"one-hot masks.*masks of shape \(3, 6, 9\)"):
        metric.update_state(masks[:-1], logits)
    with pytest.raises(ValueError, match=r"must have 3 channels, one per class.*9, 5"):
        ksa.MeanIoU(3).update_state(masks, logits)
    assert not metric.confusion_matrix().any()


# Meaning


@pytest.mark.parametrize("ignored", [[255], [254, 255], [-1, 255]])
def test_equals_scikit_learn(ignored):
    masks, logits = batch(void=set(ignored) - {-1})
    metric = ksa.MeanIoU(5, ignore_class=ignored)
    metric.update_state(masks[..., None] if len(ignored) == 1 else masks, logits)
    labels, predicted = counted(masks, logits, ignored)
    matrix = sk.confusion_matrix(labels, predicted, labels=range(5))
    np.testing.assert_array_equal(metric.confusion_matrix(), matrix)
    assert metric.confusion_matrix().dtype == "int64"

    report = metric.report()
    iou = sk.jaccard_score(labels, predicted, labels=range(5), average=None)
    recall = [np.mean(predicted[labels == i] == i) for i in np.unique(labels)]
    np.testing.assert_allclose(report["IoU"], iou)
    np.testing.assert_allclose(report["Acc"][np.unique(labels)], recall)
    assert report["mIoU"] == pytest.approx(iou.mean())
    assert report["mAcc"] == pytest.approx(np.mean(recall))
    assert report["aAcc"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert float(metric.result()) == pytest.approx(report["mIoU"], abs=1e-6)
    balanced = sk.balanced_accuracy_score(labels, predicted)
    assert report["mAcc"] == pytest.approx(balanced)


def test_classes_that_do_not_occur_are_left_out():
    masks = np.array([[[0, 0, 1, 1]]])
    logits = np.eye(4)[[[[0, 1, 1, 2]]]]  # class 2 only predicted, class 3 nowhere
    metric = ksa.MeanIoU(4)
    metric.update_state(masks, logits)
    report = metric.report()
    np.testing.assert_allclose(report["IoU"], [1 / 2, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(report["Acc"], [1 / 2, 1 / 2, np.nan, np.nan])
    assert report["mIoU"] == pytest.approx(5 / 18)
    assert report["mAcc"] == report["aAcc"] == 0.5
    assert float(metric.result()) == pytest.approx(5 / 18)


def test_batches_add_up():
    masks, logits = batch(images=6)
    whole, stream = ksa.MeanIoU(5), ksa.MeanIoU(5)
    whole.update_state(masks, logits)
    for part in np.split(np.arange(6), [4]):
        stream.update_state(masks[part], logits[part])
    np.testing.assert_array_equal(stream.confusion_matrix(), whole.confusion_matrix())
    assert float(stream.result()) == float(whole.result())


def test_exact_past_the_range_of_int32():
    masks, logits = np.array([[[0, 0, 0, 1, 1]]]), np.eye(2)[[[[0, 0, 1, 1, 1]]]]
    metric = ksa.MeanIoU(2)
    start = np.array([[LIMB - 1, LIMB - 1], [0, LIMB - 2]])
    metric.low.assign(start)
    metric.high.assign([[9, 1], [0, 2**20]])
    metric.update_state(masks, logits)
    # Two hits carry, one error carries, and two hits carry with 0 left.
    np.testing.assert_array_equal(ops.convert_to_numpy(metric.low), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(
        ops.convert_to_numpy(metric.high), [[10, 2], [0, 2**20 + 1]]
    )
    matrix = metric.confusion_matrix()
    expected = [[10 * LIMB + 1, 2 * LIMB], [0, (2**20 + 1) * LIMB]]
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.sum() > 2**33
    iou = np.array([10 * LIMB + 1, matrix[1, 1]]) / (
        [12 * LIMB + 1, matrix[1, 1] + 2 * LIMB]
    )
    assert metric.report()["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    assert float(metric.result()) == pytest.approx(iou.mean(), abs=1e-6)


def test_fit_and_evaluate_report_it():
    masks, logits = batch(images=6)
    model = keras.Sequential([keras.Input((6, 9, 5)), keras.layers.Conv2D(5, 1)])
    metric = ksa.MeanIoU(5)
    # A rate of 0 keeps the weights, so that all batches see the same model.
    model.compile(
        keras.optimizers.SGD(0.0),
        ksa.SegmentationCrossentropy(),
        metrics=[metric],
        run_eagerly=EAGER,
    )
    history = model.fit(logits, masks, batch_size=4, epochs=2, verbose=0).history
    predicted = ops.convert_to_numpy(model(logits))
    expected = ksa.MeanIoU(5)
    expected.update_state(masks, predicted)
    mean = expected.report()["mIoU"]
    assert history["mIoU"] == pytest.approx([mean, mean], abs=1e-6)
    np.testing.assert_array_equal(
        metric.confusion_matrix(), expected.confusion_matrix()
    )
    scores = model.evaluate(logits, masks, batch_size=4, verbose=0, return_dict=True)
    assert scores["mIoU"] == pytest.approx(mean, abs=1e-6)


# Edges


def test_nothing_but_void_gives_zero_and_nan_in_the_report():
    metric = ksa.MeanIoU(3)
    metric.update_state(np.full((1, 2, 2), 255), np.zeros((1, 2, 2, 3)))
    assert float(metric.result()) == 0
    report = metric.report()
    assert np.isnan([report[name] for name in ("mIoU", "mAcc", "aAcc")]).all()


def test_unknown_ids_do_not_count():
    metric = ksa.MeanIoU(3, ignore_class=None)
    metric.update_state(np.array([[[-1, 3, 255, 1]]]), np.eye(3)[[[[0, 1, 2, 1]]]])
    np.testing.assert_array_equal(metric.confusion_matrix(), np.diag([0, 1, 0]))


def test_logits_in_low_precision():
    masks, logits = batch()
    metric, low = ksa.MeanIoU(5), ksa.MeanIoU(5)
    logits = logits.astype("float16")
    metric.update_state(masks, logits.astype("float32"))
    low.update_state(masks, logits)
    np.testing.assert_array_equal(low.confusion_matrix(), metric.confusion_matrix())


def test_sample_weight_raises():
    with pytest.raises(ValueError, match="takes no `sample_weight`"):
        ksa.MeanIoU(5).update_state(*batch(), np.ones(4))
