"""The Lovasz-softmax loss, on integer masks with void pixels."""

import keras
from keras import ops

from keras_segadapter.losses.labels import (
    check_reduction,
    deferred_ids,
    read_labels,
    refuse_sample_weight,
)
from keras_segadapter.losses.tiles import resized_whole


@keras.saving.register_keras_serializable("keras_segadapter")
class LovaszSoftmax(keras.losses.Loss):
    """Compute the Lovasz-softmax loss of integer masks and logits.

    It is a smooth stand-in for 1 - mIoU: for each class the pixels are ordered by their
    errors `|truth - probability|`, and each error weighs what the IoU loses when its
    pixel joins the wrong ones. The loss is the mean over the classes that occur in the
    batch. Its authors fine-tune with it, or mix it with a cross-entropy:
    `MaskLoss([SegmentationCrossentropy(), LovaszSoftmax()])`, by name
    `compile(loss="crossentropy+lovasz")`.

    Ignored pixels have no part. A batch of void pixels only gives 0. An id that is
    neither a class nor ignored makes the loss NaN. Logits smaller than the mask are
    resized to it first (bilinear). It sorts all pixels once a class, and holds several
    numbers per pixel and class: with many classes it needs far more time and memory
    than the cross-entropy.

    Args:
        ignore_class: Integer, list of integers, or None. Ids of void pixels. Defaults
            to `"auto"`: 255 where that is not a class, that is, up to 255 classes.
        name: String. Name of the loss. Defaults to `"lovasz_softmax"`.
        **kwargs: `dtype`, as in `keras.losses.Loss`.

    Call arguments:
        y_true: Class ids `(B, H, W)` or `(B, H, W, 1)`, any integer type.
        y_pred: Logits `(B, h, w, K)`, of any height and width; computed on in float32.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of integers.
        ValueError: If an ignored id is a class, if masks and logits do not fit, or if
            `sample_weight` is given.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    loss = ksa.LovaszSoftmax()
    mask, logits = np.array([[[0, 1], [255, 255]]]), np.zeros((1, 2, 2, 2))
    print(float(loss(mask, logits)))  # 0.5
    ```

    Source: Berman, Rannen Triki and Blaschko, "The Lovasz-Softmax loss", CVPR 2018,
    over the batch, `classes="present"`.
    """

    def __init__(self, ignore_class="auto", name="lovasz_softmax", **kwargs):
        check_reduction(self, kwargs.setdefault("reduction", "sum_over_batch_size"))
        super().__init__(name=name, **kwargs)
        self.ignore_class = deferred_ids(ignore_class)

    def __call__(self, y_true, y_pred, sample_weight=None):
        refuse_sample_weight(self, sample_weight)
        return super().__call__(y_true, y_pred)

    def call(self, y_true, y_pred):
        labels, counted, factor = read_labels(y_true, y_pred, self.ignore_class)
        num_classes = y_pred.shape[-1]
        logits = resized_whole(y_pred, labels)  # (B, H, W, K)
        shares = ops.reshape(ops.softmax(logits), (-1, num_classes))
        shares = ops.transpose(shares)  # (K, P), P = B*H*W pixels
        labels, counted = (ops.reshape(part, (1, -1)) for part in (labels, counted))
        truth = ops.equal(labels, ops.arange(num_classes)[:, None])
        truth = ops.logical_and(truth, counted)  # (K, P)
        errors = ops.where(truth, 1.0 - shares, shares)
        # The largest first, void pixels last.
        order = ops.argsort(ops.where(counted, -ops.stop_gradient(errors), 1.0))
        errors = ops.where(counted, errors, 0.0)
        steps = _lost_iou(ops.take_along_axis(truth, order, axis=1))  # (K, P)
        losses = ops.sum(ops.take_along_axis(errors, order, axis=1) * steps, axis=1)
        present = ops.cast(ops.any(truth, axis=1), "float32")  # (K,)
        mean = ops.sum(losses * present) / ops.maximum(ops.sum(present), 1.0)
        return ops.reshape(mean * factor, (1,))  # Keras scales no scalar: tf.distribute

    def get_config(self):
        config = super().get_config()
        config.update(ignore_class=self.ignore_class)
        return config


def _lost_iou(truth):
    """Return how much IoU is lost as each pixel, in the order given, becomes wrong.

    This is the difference of neighboring IoUs `I / U` in closed form: a pixel of the
    class leaves I, any other joins U. Subtracting them would cancel all digits of
    float32 among millions of pixels.

    Args:
        truth: Booleans `(K, P)`. Whether each pixel is of the class.
    """
    missed = ops.cumsum(ops.cast(truth, "int32"), axis=1)  # (K, P)
    size = missed[:, -1:]
    wrong = ops.cumsum(ops.cast(ops.logical_not(truth), "int32"), axis=1)
    left = ops.cast(size - missed, "float32")  # I
    union = ops.cast(size + wrong, "float32")  # U
    return ops.where(truth, 1.0, left / ops.maximum(union - 1.0, 1.0)) / union
