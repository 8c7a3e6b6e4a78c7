"""Metrics on integer masks: exact mIoU from a confusion matrix, and Keras' own."""

import keras
import numpy as np
from keras import ops

from keras_segadapter.losses.labels import counted_pixels, integer_labels
from keras_segadapter.losses.resized import is_of_keras
from keras_segadapter.losses.tiles import resized_argmax, resized_whole
from keras_segadapter.validation import check_num_classes, ignored_ids

# The matrix is kept in two int32 parts, matrix = high * LIMB + low: JAX has no int64 by
# default, and COCO-Stuff's training pixels do not fit into int32. tf.distribute adds up
# the parts of all devices: `low` leaves room for a hundred.
LIMB = 2**24


@keras.saving.register_keras_serializable("keras_segadapter")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union of logits and integer masks, by exact counts.

    Where `keras.metrics.MeanIoU` wants an argmax and gives one number, this takes the
    model's logits, ignores several ids, counts exactly past 2^31 pixels on every
    backend, and `report()` gives the other figures. Classes that occur neither in masks
    nor in predictions are left out of the mean, ids outside the classes out of the
    count. Logits smaller than the mask are resized to it, as in
    `SegmentationCrossentropy`.

    Args:
        num_classes: Integer of at least 2. Number of classes K.
        ignore_class: Integer, list of integers, or None. Ids of void pixels. Defaults
            to `"auto"`: 255 where that is not a class, that is, up to 255 classes.
        name: String. Name of the metric in logs and history. Defaults to `"mIoU"`.
        **kwargs: `dtype`, as in `keras.metrics.Metric`.

    Call arguments:
        y_true: Class ids `(B, H, W)` or `(B, H, W, 1)`, any integer type.
        y_pred: Logits or probabilities `(B, h, w, K)`, of any height and width.

    Raises:
        ValueError: If `num_classes` is below 2, if an ignored id is a class, if the
            shapes do not fit, or if `sample_weight` is given: a pixel counts or does
            not.
        TypeError: If `ignore_class` is neither None, an integer nor a list of integers.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    metric = ksa.MeanIoU(num_classes=2)
    logits = np.array([[[[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]]]])
    metric.update_state(np.array([[[0, 1, 1]]]), logits)
    print(float(metric.result()))  # 0.5
    print(metric.report()["aAcc"])  # 0.666...
    ```
    """

    def __init__(self, num_classes, ignore_class="auto", name="mIoU", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_classes = check_num_classes(num_classes)
        self.ignore_class = ignored_ids(ignore_class, num_classes)
        self._direction = "up"
        self.low, self.high = (
            self.add_weight(
                shape=(num_classes, num_classes),
                initializer="zeros",
                dtype="int32",
                name=part,
            )
            for part in ("low", "high")
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            raise ValueError(
                "MeanIoU counts whole pixels and takes no `sample_weight`. Mark pixels "
                "that do not count with an id of `ignore_class`. Received: "
                f"sample_weight={sample_weight!r}"
            )
        y_pred = ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"Predictions must have {self.num_classes} channels, one per class. "
                f"Received: predictions of shape {tuple(y_pred.shape)}"
            )
        labels = integer_labels(y_true, y_pred)  # (B, H, W)
        counts = self._count(*resized_argmax(labels, y_pred))
        low = self.low + ops.reshape(counts, (self.num_classes, self.num_classes))
        carry = low // LIMB
        self.low.assign(low - carry * LIMB)
        self.high.assign(self.high + carry)

    def _count(self, labels, predicted):
        """Count pixels by true and predicted class, int32 `(K*K,)`."""
        # Ids outside the classes have no row in the matrix.
        counted = counted_pixels(labels, self.ignore_class)
        counted = ops.logical_and(counted, labels >= 0)
        counted = ops.logical_and(counted, labels < self.num_classes)
        cells = ops.where(counted, labels * self.num_classes + predicted, 0)
        return ops.segment_sum(
            ops.cast(ops.reshape(counted, (-1,)), "int32"),
            ops.reshape(cells, (-1,)),
            num_segments=self.num_classes**2,
        )

    def result(self):
        matrix = ops.cast(self.high, "float32") * LIMB + ops.cast(self.low, "float32")
        hits = ops.diagonal(matrix)
        union = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - hits
        present = ops.cast(union > 0, "float32")
        iou = hits / ops.maximum(union, 1.0)
        return ops.sum(iou * present) / ops.maximum(ops.sum(present), 1.0)

    def confusion_matrix(self):
        """Return exact counts, int64 `(K, K)`, a row per true class."""
        low = ops.convert_to_numpy(self.low).astype("int64")
        high = ops.convert_to_numpy(self.high).astype("int64")
        return high * LIMB + low

    def report(self):
        """Compute all figures, in float64 from the exact counts.

        Returns:
            Dict of `mIoU`, `mAcc` (mean of the classes' recall), `aAcc` (share of
            pixels that are right), and by class `IoU` and `Acc`, NaN for classes that
            do not occur.
        """
        return figures(self.confusion_matrix())

    def get_config(self):
        config = super().get_config()
        config.update(num_classes=self.num_classes, ignore_class=self.ignore_class)
        return config


@keras.saving.register_keras_serializable("keras_segadapter")
class ResizedMetric(keras.metrics.Metric):
    """Resize scores to the mask, then hand both to another metric.

    `Segmenter.compile` puts it around metrics that are not of this package. Keras' own
    metrics know no void: they get it with weight 0.

    Args:
        metric: `keras.metrics.Metric` for class ids `(B, H, W)` and logits
            `(B, H, W, K)`; one of Keras' `IoU` gets them as it is set to take them.
        ignore_class: List of ids of void pixels, or None for a metric that gets the
            mask as it is. Defaults to `None`.
        **kwargs: `name` and `dtype`, as in `keras.metrics.Metric`. The name defaults to
            that of `metric`.
    """

    def __init__(self, metric, ignore_class=None, **kwargs):
        super().__init__(**{"name": metric.name, **kwargs})
        self.metric = metric
        self.ignore_class = ignore_class
        self._direction = getattr(metric, "_direction", None)  # as of Keras' own

    def update_state(self, y_true, y_pred, sample_weight=None):
        logits = resized_whole(y_pred, y_true)  # (B, H, W, K)
        if self.ignore_class is not None:
            y_true = integer_labels(y_true, y_pred)  # (B, H, W)
            counted = counted_pixels(y_true, self.ignore_class)
            y_true = ops.where(counted, y_true, 0)
            weights = 1 if sample_weight is None else sample_weight
            if len(getattr(weights, "shape", ())) == 1:  # one weight per image
                weights = ops.reshape(weights, (-1, 1, 1))
            # Keras' IoU counts in integers.
            sample_weight = ops.cast(counted, self.metric.dtype) * weights
            if isinstance(self.metric, keras.metrics.IoU):
                if self.metric.sparse_y_pred:
                    logits = ops.argmax(logits, axis=-1)
                if not self.metric.sparse_y_true:
                    y_true = ops.one_hot(y_true, y_pred.shape[-1])
        self.metric.update_state(y_true, logits, sample_weight)

    def result(self):
        return self.metric.result()

    def reset_state(self):
        self.metric.reset_state()

    def get_config(self):
        config = super().get_config()
        config.update(
            metric=keras.saving.serialize_keras_object(self.metric),
            ignore_class=self.ignore_class,
        )
        return config

    @classmethod
    def from_config(cls, config):
        metric = keras.saving.deserialize_keras_object(config["metric"])
        return cls(**{**config, "metric": metric})


def fit_metric(metric, num_classes, ignored):
    """Return a metric that takes a mask of ids and a segmenter's scores.

    Args:
        metric: A metric as `keras.Model.compile` takes it.
        num_classes: Integer. Number of classes K.
        ignored: List of the ids of void pixels.

    Raises:
        ValueError: If it is no metric, if it is one of Keras' metrics that does not
            take ids and scores of each class, or if it is made for another number of
            classes; the message names those that do.
    """
    if isinstance(metric, MeanIoU) and metric.num_classes != num_classes:
        raise ValueError(
            "Metrics and model must have the same number of classes. Received: "
            f"MeanIoU(num_classes={metric.num_classes}) for a model with "
            f"num_classes={num_classes}"
        )
    if isinstance(metric, (MeanIoU, ResizedMetric)):
        return metric
    if isinstance(metric, str) and metric in ("accuracy", "acc"):
        metric = keras.metrics.SparseCategoricalAccuracy(name=metric)
    try:
        named = keras.metrics.get(metric)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`metrics` must hold instances of keras.metrics.Metric, names that Keras "
            "knows, or functions of (y_true, y_pred). Received: "
            f"metrics=[..., {metric!r}, ...]"
        ) from error
    if not isinstance(named, keras.metrics.Metric):
        own = not is_of_keras(named)
        named = keras.metrics.MeanMetricWrapper(named, name=named.__name__)
    else:  # a wrapper of Keras holds a function of the user's
        own = not is_of_keras(named) or type(named) is keras.metrics.MeanMetricWrapper
    if own:
        return ResizedMetric(named)
    takes_ids = isinstance(named, _OF_IDS)
    if isinstance(named, keras.metrics.IoU):
        takes_ids = type(named) is not keras.metrics.BinaryIoU
        takes_ids = takes_ids and named.num_classes == num_classes
    if isinstance(named, keras.metrics.SparseCategoricalCrossentropy):
        takes_ids = named.from_logits
    if not takes_ids:
        raise ValueError(
            f"The model gives logits of {num_classes} classes and masks hold class "
            "ids, but this metric takes other values. Use "
            f"keras_segadapter.MeanIoU({num_classes}), whose report() has the recall "
            f'of each class, "accuracy", keras.metrics.MeanIoU({num_classes}), or a '
            f"metric of your own. Received: metrics=[..., {metric!r}, ...]"
        )
    return ResizedMetric(named, ignored)


# What Keras has for ids and scores of each class, besides `IoU` and its kin.
_OF_IDS = (
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
    keras.metrics.SparseCategoricalCrossentropy,
)


def figures(confusion):
    """Return what `MeanIoU.report` gives for counts `(K, K)`, rows the true classes."""
    matrix = confusion.astype("float64")
    hits, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou = hits / (true + predicted - hits)
        acc = hits / true
        overall = hits.sum() / matrix.sum()
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(acc),
        "aAcc": float(overall),
        "IoU": iou,
        "Acc": acc,
    }


def _mean(values):
    """Return the mean of the values that exist; NaN where none does."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
