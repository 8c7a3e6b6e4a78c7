"""Keras' losses, and the user's own, on scores smaller than the mask."""

import keras
from keras import ops

from keras_segadapter.layers.native import on_tensorflow
from keras_segadapter.losses.accepted import OF_IDS, ONE_HOT
from keras_segadapter.losses.crossentropy import SegmentationCrossentropy
from keras_segadapter.losses.mask_loss import MaskLoss
from keras_segadapter.losses.named import LOSSES, is_loss_name, named_loss
from keras_segadapter.losses.tiles import resized_whole


@keras.saving.register_keras_serializable("keras_segadapter")
class ResizedLoss(keras.losses.Loss):
    """Resize scores to the mask, then hand both to another loss.

    `Segmenter.compile` puts it around losses that are not of this package.

    Args:
        loss: `keras.losses.Loss`, or a function of `(y_true, y_pred)`, for class ids
            `(B, H, W)` and logits `(B, H, W, K)`.
        **kwargs: `name`, `reduction` and `dtype`, as in `keras.losses.Loss`. Default
            to those of `loss`.
    """

    def __init__(self, loss, **kwargs):
        for name in ("name", "reduction"):
            if hasattr(loss, name):
                kwargs.setdefault(name, getattr(loss, name))
        super().__init__(**kwargs)
        self.loss = loss

    def call(self, y_true, y_pred):
        compute = getattr(self.loss, "call", self.loss)
        return compute(y_true, resized_whole(y_pred, y_true))

    def get_config(self):
        config = super().get_config()
        config.update(loss=keras.saving.serialize_keras_object(self.loss))
        return config

    @classmethod
    def from_config(cls, config):
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def fit_loss(loss, num_classes, ignore_class="auto"):
    """Return a loss that takes a mask of ids and a segmenter's scores.

    Args:
        loss: A loss as `keras.Model.compile` takes it, a name of one of this package,
            or None.
        num_classes: Integer. Number of classes K.
        ignore_class: Ids of void pixels, for a loss by name.

    Raises:
        ValueError: If it is no loss, if its class weights do not fit the classes, or if
            it is one of Keras' losses that takes one-hot masks, probabilities or
            values; the message names the loss to use.
    """
    if is_loss_name(loss):
        return named_loss(loss, ignore_class)
    try:
        named = keras.losses.get(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`loss` must be a keras.losses.Loss of class ids and logits, a function of "
            "(y_true, y_pred), a dict of them by output, or a name: "
            f"{', '.join(LOSSES)}, or a sum of them such as crossentropy+dice. Leave "
            "it out for keras_segadapter.SegmentationCrossentropy. Received: "
            f"loss={loss!r}"
        ) from error
    for part in [named, *getattr(named, "losses", ())]:
        if isinstance(part, SegmentationCrossentropy):
            part.check_class_weight(num_classes)
    if named is None or isinstance(named, (*OF_IDS, MaskLoss, ResizedLoss)):
        return named
    if not is_of_keras(named) or (
        isinstance(named, keras.losses.SparseCategoricalCrossentropy)
        and named.get_config()["from_logits"]
    ):
        return ResizedLoss(named)
    if named in ONE_HOT or type(named) in ONE_HOT:
        raise ValueError(
            "Masks hold one class id per pixel, but this loss takes one-hot masks. "
            "Pass it as an instance to keras_segadapter.MaskLoss: "
            "compile(loss=keras_segadapter.MaskLoss(keras.losses.Dice(axis=(0, 1, 2))))"
            f". Received: loss={loss!r}"
        )
    raise ValueError(
        "The model gives logits of each class and masks hold class ids, but this loss "
        "compares probabilities or values. Leave `loss` out, or use "
        "keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: "
        f"loss={loss!r}"
    )


def is_of_keras(thing):
    """Return whether a function, or the class of an object, is one of Keras' own."""
    kind = thing if hasattr(thing, "__name__") else type(thing)
    return kind.__module__.partition(".")[0] == "keras"


def build_losses(model):
    """Make the variables in which Keras sums up the losses of a compiled model.

    Keras would make them in the first step. TensorFlow traces a step that makes
    variables into a graph twice, which doubles the time until training starts.
    """
    if model.run_eagerly or not on_tensorflow():
        return
    scores = {name: ops.zeros((1, 16, 16, model.num_classes)) for name in model.output}
    masks = dict.fromkeys(scores, ops.zeros((1, 64, 64), "uint8"))
    try:
        keras.Model.compute_loss(model, y=masks, y_pred=scores)
    except Exception:  # of any kind: a loss of a user's own that needs other masks
        pass
    model.reset_metrics()
