"""From images of any size to class ids."""

import keras
import numpy as np

from keras_segadapter.resize import resize_bilinear

BATCH = 8  # images a step: logits at image size are large


def label_images(model, images, multiple):
    """Class ids `(B, H, W)` of a batch `(B, H, W, C)`; uint8 up to 256 classes.

    Args:
        model: Model from images to logits `(B, H, W, K)`.
        images: NumPy array `(B, H, W, C)`.
        multiple: Height and width are padded to a multiple of it, by repeating the
            border, and the logits cropped. A model of fixed size gets them resized.
    """
    labels = []
    for start in range(0, len(images), BATCH):
        logits = _logits(model, images[start : start + BATCH], multiple)
        dtype = "uint8" if logits.shape[-1] <= 256 else "int32"
        labels.append(np.argmax(logits, axis=-1).astype(dtype))
    return np.concatenate(labels)


def _logits(model, images, multiple):
    _, height, width, _ = images.shape
    fixed = model.input_shape[1:3]
    if None not in fixed:
        resized = keras.ops.convert_to_numpy(resize_bilinear(images, *fixed))
        logits = resize_bilinear(model.predict_on_batch(resized), height, width)
        return keras.ops.convert_to_numpy(logits)  # (B, H, W, K)
    below, right = -height % multiple, -width % multiple
    padded = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
    return model.predict_on_batch(padded)[:, :height, :width]  # (B, H, W, K)
