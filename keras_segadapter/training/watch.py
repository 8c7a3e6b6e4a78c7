"""A watch over the data that training sees: what makes the loss NaN or meaningless."""

import math

import keras
from keras import ops

from keras_segadapter.data_validation import check_range, count_values
from keras_segadapter.losses.labels import (
    FRACTION,
    counted_pixels,
    integer_labels,
)
from keras_segadapter.training.data_checks import single

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
        images = single(images)
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
