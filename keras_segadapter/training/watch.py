"""A watch over the data that training sees: what makes the loss NaN or meaningless."""

import math
import os

import keras
import numpy as np
from keras import ops

from keras_segadapter.data_validation import (
    check_batch,
    check_masks,
    check_range,
    count_values,
)
from keras_segadapter.losses.labels import (
    FRACTION,
    counted_pixels,
    integer_labels,
)

NAMED = 256  # ids 0 to 255 are counted one by one
VALUES = 6  # that `count_values` counts


class DataWatch(keras.metrics.Metric):
    """Count odd values of images and odd ids of masks, batch by batch.

    It is a metric, since data from a tf.data.Dataset or generator is seen nowhere else
    on all backends, and shows nothing in the logs. Its counts are sums, which
    tf.distribute adds up over devices.

    Args:
        model: A `Segmenter`, which is not kept.
        ignored: List of the ids of void pixels. Defaults to `()`.
        with_loss: List of the names of the outputs with a loss. Defaults to `()`.
    """

    def __init__(self, model, ignored=(), with_loss=()):
        super().__init__(name="data_watch", dtype="float32")
        self.num_classes, self.ignored = model.num_classes, ignored
        self.takes_pixels = model.takes_pixels
        self.channels = model.input_shape[-1]
        self.outputs, self.with_loss = list(model.output), with_loss
        self.image_dtype = None
        add = {"initializer": "zeros", "dtype": "float32"}
        self.values = self.add_weight(shape=(VALUES,), name="values", **add)
        # Pixels by unknown id: fractions, negative ones, 0 to 255, and larger ones.
        self.unknown = self.add_weight(shape=(NAMED + 3,), name="unknown", **add)
        self.counted = self.add_weight(shape=(), name="counted", **add)

    def update_state(self, images, masks, scores):
        images = _single(images)
        self.image_dtype = keras.backend.standardize_dtype(images.dtype)
        if self.image_dtype != "uint8":
            counts = count_values(ops.cast(images, "float32"), ops)
            self.values.assign_add(ops.cast(ops.stack(counts), "float32"))
        for name, mask in masks.items():
            labels = integer_labels(mask, scores[name])  # (B, H, W)
            counted = counted_pixels(labels, self.ignored)
            known = ops.logical_and(labels >= 0, labels < self.num_classes)
            unknown = ops.logical_and(counted, ops.logical_not(known))
            places = ops.where(labels == FRACTION, 0, 2 + ops.clip(labels, -1, NAMED))
            self.unknown.assign_add(
                ops.segment_sum(
                    ops.cast(ops.reshape(unknown, (-1,)), "float32"),
                    ops.reshape(places, (-1,)),
                    num_segments=NAMED + 3,
                )
            )
            self.counted.assign_add(ops.sum(ops.cast(counted, "float32")))

    def result(self):
        return {}

    def check_images(self):
        """Validate the range of the images seen.

        Raises:
            ValueError: If the model does not take it.
        """
        if self.image_dtype != "uint8":
            counts = ops.convert_to_numpy(self.values)
            check_range(counts, self.image_dtype, self.takes_pixels)

    def reason(self):
        """Return why the loss may be NaN, and what to do."""
        unknown = ops.convert_to_numpy(self.unknown).astype(int)
        names = ["fractions", "below 0", *range(NAMED), f"{NAMED} and above"]
        found = [
            f"{name} ({count:,} pixels)"
            for name, count in zip(names, unknown, strict=True)
            if count
        ]
        if found:
            listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
            return (
                f"The masks hold ids that are neither one of the {self.num_classes} "
                f"classes 0..{self.num_classes - 1} nor ignored. Map them to class "
                "ids, raise num_classes, or leave them out with "
                f"compile(ignore_class=[...]). Received: the ids {listed} and "
                f"ignore_class={self.ignored}"
            )
        return (
            "Images and masks are as they should be, so the training diverged. Lower "
            "the learning rate, clip the gradients (clipnorm=1.0), or train in float32 "
            "or bfloat16 in place of float16. Received: loss=nan"
        )


class StopOnNonsense(keras.callbacks.Callback):
    """Callback that stops on data that a model can't learn from or be measured on."""

    def __init__(self):
        super().__init__()
        self.epoch, self.seen = "", set()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = f" of epoch {epoch + 1}"

    def on_train_batch_end(self, batch, logs=None):
        self._check_batch("training", batch, logs)

    def on_test_begin(self, logs=None):
        if self.epoch:  # Keras sets the counts back once validation has begun.
            self._check_pass("training")

    def on_test_batch_end(self, batch, logs=None):
        self._check_batch("validation" if self.epoch else "evaluation", batch, logs)

    def on_test_end(self, logs=None):
        self._check_pass("validation" if self.epoch else "evaluation")

    def on_epoch_end(self, epoch, logs=None):
        self._check_pass("training")

    def _check_batch(self, part, batch, logs):
        broken = math.isnan((logs or {}).get("loss", 0.0))
        if broken or part not in self.seen:
            self.seen.add(part)
            self._watch().check_images()
        if broken:
            raise ValueError(
                f"The loss became NaN in batch {batch + 1}{self.epoch} of the {part} "
                f"data. {self._watch().reason()}"
            )

    def _check_pass(self, part):
        """Validate, once, that something counted in the data of a whole pass."""
        if part not in self.seen:
            raise ValueError(
                f"The {part} data must hold at least one batch of images and masks. A "
                "generator that was read before is empty. Received: no batches"
            )
        if f"all {part}" in self.seen:
            return
        self.seen.add(f"all {part}")
        watch = self._watch()
        if not ops.convert_to_numpy(watch.counted):
            raise ValueError(
                f"The masks of the {part} data hold nothing but ignored ids, so there "
                "is nothing to learn or to measure. Correct the masks or "
                f"`ignore_class`. Received: ignore_class={watch.ignored}"
            )

    def _watch(self):
        # Asked for its model, Keras brings the metrics on JAX up to date.
        metrics = self.model.metrics
        return next(metric for metric in metrics if isinstance(metric, DataWatch))


def check_data(watch, x, y=None):
    """Validate images and masks in memory before work is lost on them.

    Args:
        watch: The `DataWatch` of the model.
        x: Images, or a source of batches, of which only a PyDataset is looked into:
            others would be read twice, or have no other first batch.
        y: Masks, or a dict of them by output.

    Raises:
        TypeError: If they are neither arrays nor sources of batches.
        ValueError: If they are not as the model takes them.
    """
    _check_source("x", x)
    if isinstance(x, keras.utils.PyDataset):
        x, y = (*_as_tuple(x[0]), None)[:2]
    images = _array(x, 1)
    if images is None and x is not None:
        return  # a source of batches
    masks = None if x is None else y
    check_batch(images, masks, watch.channels, watch.outputs, watch.with_loss)
    _check_images(watch, x)
    shape = (len(_single(x)), *images.shape[1:])
    for masks in y.values() if isinstance(y, dict) else [y]:
        _check_source("y", masks)
        masks = _array(masks)
        if masks is not None:
            check_masks(masks, shape, watch.num_classes, watch.ignored)


def check_validation(watch, data):
    """Validate the argument `validation_data` of `fit` as `check_data` does.

    Raises:
        ValueError: If it is a tuple of other than images, masks and weights.
    """
    if data is None:
        return
    pair = isinstance(data, (tuple, list))
    if pair and len(data) not in (2, 3):
        raise ValueError(
            "`validation_data` must be a pair (images, masks) or a dataset of such. "
            f"Received: validation_data={type(data).__name__} of {len(data)}"
        )
    check_data(watch, *(data[:2] if pair else [data]))


def _check_source(name, data):
    """Validate that data is one array or a source of batches, and not empty."""
    several = isinstance(data, (list, tuple)) and len(data) != 1
    if several or isinstance(data, (str, os.PathLike)) or np.isscalar(data):
        kind = type(data).__name__ + (f" of {len(data)}" if several else "")
        raise TypeError(
            f"`{name}` must be one array of all images or masks, as numpy.stack makes "
            "it of those of one size, or a dataset of batches, as "
            "keras_segadapter.data.open_folder makes it of files. Received: "
            f"{name} of type {kind}"
        )
    try:
        empty = len(_single(data)) == 0
    except (TypeError, NotImplementedError):  # no length, or an unknown one
        return
    if empty:
        raise ValueError(
            f"`{name}` must hold at least one image or batch. Received: {name} of "
            "length 0"
        )


def _check_images(watch, images):
    """Validate the range of the first of some images in memory."""
    images = _array(images, 32)
    if images is None or images.dtype == "uint8" or not images.size:
        return
    if images.dtype.kind in "OSU":
        raise ValueError(
            "Images must hold numbers in 0..255, uint8 or float. Received: images of "
            f"dtype {images.dtype}"
        )
    check_range(count_values(images, np), images.dtype, watch.takes_pixels)


def check_first_images(watch, data):
    """Validate the first batch of what is to be predicted.

    Args:
        watch: A `DataWatch`.
        data: Images, or a source of batches.

    Returns:
        The data, from its first batch on.

    Raises:
        ValueError: If the images are not as the model takes them.
    """
    _check_source("x", data)
    if isinstance(data, keras.utils.PyDataset) or _array(data, 1) is not None:
        batch = data[0] if isinstance(data, keras.utils.PyDataset) else data
        _check_images(watch, _as_tuple(batch)[0] if batch is not data else data)
        return data
    if not hasattr(data, "__iter__"):
        raise TypeError(
            "`x` must be images (N, height, width, channels) or a dataset of batches. "
            f"Received: x={data!r}"
        )
    batches = iter(data)
    first = next(batches, None)
    if first is not None:
        _check_images(watch, _as_tuple(first)[0])
    if batches is not data:  # as it is of a tf.data.Dataset or DataLoader
        return data

    def generator():
        yield from () if first is None else (first,)
        yield from batches

    return generator()


def _single(value):
    """Return the only array of a list or dict, as of a model with one input."""
    if isinstance(value, (list, dict)) and len(keras.tree.flatten(value)) == 1:
        return keras.tree.flatten(value)[0]
    return value


def _as_tuple(batch):
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _array(value, count=None):
    """Return the first `count` rows of an array or tensor as NumPy, else None."""
    value = _single(value)
    if not hasattr(value, "__array__") or not hasattr(value, "shape"):
        return None  # such as a dataset; tensors of another backend are arrays too
    return ops.convert_to_numpy(value[:count])
