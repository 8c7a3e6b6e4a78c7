"""From images of any size to logits and class ids."""

import math
import numbers

import keras
import numpy as np

from keras_segadapter.layers.native import resize_bilinear
from keras_segadapter.validation import check_images, check_integer, check_segmenter

BATCH = 8  # Images per step: logits at image size are large.


def predict_logits(
    model,
    image,
    *,
    short_side=None,
    crop=None,
    stride=None,
    scales=(1.0,),
    flip=False,
):
    """Predict the logits of one image at its size: whole, or by windows, scales, flips.

    These are MMSegmentation's test modes, on any backend. Without arguments the image
    keeps its size, as in `Segmenter.segment`: its border is repeated up to a multiple
    of the model's deepest stride (32 for the paper's models) and the logits are
    cropped. With `short_side` or `scales` it is resized to such a multiple (once and
    without rounding pixels, where MMSegmentation resizes twice), and the logits are
    resized back. For a model of fixed size, images or windows are resized.

    Windows start every `stride` pixels; the last one in a row or column is moved back
    to end with the image. Logits are averaged where windows overlap. An image smaller
    than a window is one window of its own size.

    JAX compiles for each new input size, and so does TensorFlow for the first few.
    Windows and multiples of the stride keep the number of sizes small.

    Args:
        model: A `Segmenter`.
        image: Array `(H, W, C)`. One image, as for `Segmenter.segment`.
        short_side: Integer. Pixels that the shorter side is resized to, keeping the
            aspect ratio; None keeps the size. MMSegmentation's `(2048, 512)` is 512
            without its limit on the longer side. Defaults to `None`.
        crop: Integer. Side of square windows in pixels of the resized image; None for
            the whole image at once. Defaults to `None`.
        stride: Integer. Pixels from one window to the next; None for two thirds of
            `crop`. Defaults to `None`.
        scales: List of positive numbers. Factors on the size; one prediction is made
            for each. Defaults to `(1.0,)`.
        flip: Boolean. Whether to predict the mirrored image as well, at every scale.
            Defaults to `False`.

    Returns:
        Logits, float32 `(H, W, K)`. Several predictions are averaged as softmax
        probabilities, and the logarithm of the average is returned.

    Raises:
        TypeError: If `model` is not a `Segmenter`.
        ValueError: If an argument is not as described, if `crop` is below the deepest
            stride or below `stride`, or if the image does not fit the model.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=3)
    photo = np.random.randint(0, 256, (60, 90, 3), "uint8")
    logits = ksa.predict_logits(
        model, photo, short_side=48, crop=32, scales=(0.75, 1.0), flip=True
    )
    print(logits.shape)  # (60, 90, 3)
    ```

    Source: the tests in the paper's configuration files, which run MMSegmentation's
    whole, slide and augmented inference.
    """
    check_segmenter(model, "predict_logits")
    stride = check_view(model, short_side, crop, stride, scales)
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(
            "predict_logits takes one image (height, width, channels). For several, "
            f"call it in a loop. Received: image of shape {image.shape}"
        )
    check_input(model, image)

    size = image.shape[:2]
    total, count = 0, len(scales) * (2 if flip else 1)
    for scale in scales:
        resized = _resize(image[None], _size(model, size, short_side, scale))
        for mirrored in (False, True)[: 1 + bool(flip)]:
            view = _mirror(resized) if mirrored else resized  # (1, h, w, C)
            logits = _windows(model, view, crop, stride)  # (1, h, w, K)
            logits = _mirror(logits) if mirrored else logits
            logits = _resize(logits, size)[0]  # (H, W, K)
            if count == 1:
                return logits
            total = total + _softmax(logits)
    tiny = np.finfo("float32").tiny  # Probabilities may be 0.
    return np.log(np.maximum(total / count, tiny))


def label_images(model, images):
    """Predict the class ids of a batch of images of any size.

    Args:
        model: A `Segmenter`.
        images: NumPy array `(B, H, W, C)`.

    Returns:
        Class ids `(B, H, W)`; uint8 up to 256 classes, int32 beyond.
    """
    dtype = "uint8" if model.num_classes <= 256 else "int32"
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    labels = [_logits(model, batch).argmax(axis=-1).astype(dtype) for batch in batches]
    return np.concatenate(labels)


def check_view(model, short_side, crop, stride, scales):
    """Validate arguments of `predict_logits` and return the stride of the windows.

    Raises:
        ValueError: If one of them is not as described there.
    """
    if short_side is not None:
        check_integer("short_side", short_side)
    positive = isinstance(scales, (tuple, list)) and all(
        isinstance(scale, numbers.Real) and 0 < scale < math.inf for scale in scales
    )
    if not positive or not scales:
        raise ValueError(
            "`scales` must be a list of positive numbers, such as [0.75, 1.0]. "
            f"Received: scales={scales!r}"
        )
    if crop is None:
        if stride is not None:
            raise ValueError(
                "`stride` is the step from one window to the next. Pass the side of "
                f"the windows, `crop`, too. Received: stride={stride}, crop=None"
            )
        return None
    check_integer("crop", crop, least=deepest_stride(model))
    stride = check_integer("stride", 2 * crop // 3 if stride is None else stride)
    if stride > crop:
        raise ValueError(
            "`stride` must be at most `crop`, or the pixels between windows would be "
            f"left out. Received: stride={stride}, crop={crop}"
        )
    return stride


def window_starts(length, crop, stride):
    """Return where windows along a side start; the last one ends with the side."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def check_input(model, images):
    """Validate an image or a batch of images for a `Segmenter`."""
    normalizes = not isinstance(model.preprocessing, keras.layers.Identity)
    check_images(images, model.input_shape[-1], normalizes)


def deepest_stride(model):
    """Return the largest stride of a segmenter's stages."""
    return max(stage.stride for stage in model.stages)


def fitted(model, images):
    """Return images `(B, h, w, C)` at a size that the model takes.

    They are padded at the bottom and right to multiples of the deepest stride by
    repeating the border, or resized to the size of a model of fixed size.
    """
    _, height, width, _ = images.shape
    fixed = model.input_shape[1:3]
    if None not in fixed:
        return _resize(images, fixed)
    multiple = deepest_stride(model)
    below, right = -height % multiple, -width % multiple
    return np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def _size(model, size, short_side, scale):
    """Return the height and width that an image of `size` is resized to."""
    if short_side is None and scale == 1:
        return size
    factor = scale if short_side is None else scale * short_side / min(size)
    sides = (max(int(side * factor + 0.5), 1) for side in size)
    multiple = deepest_stride(model)
    return tuple(-(-side // multiple) * multiple for side in sides)  # rounded up


def _windows(model, images, crop, stride):
    """Predict logits `(B, h, w, K)` of images `(B, h, w, C)`, averaged over windows."""
    if crop is None:
        return _logits(model, images)
    batch, height, width, _ = images.shape
    total = np.zeros((batch, height, width, model.num_classes), "float32")
    counts = np.zeros((height, width, 1), "float32")
    # One window at a time: they all have one shape, and memory holds their logits once.
    for top in window_starts(height, crop, stride):
        for left in window_starts(width, crop, stride):
            window = np.s_[:, top : top + crop, left : left + crop]
            total[window] += _logits(model, images[window])
            counts[window[1:]] += 1
    return total / counts


def _logits(model, images):
    """Predict logits `(B, H, W, K)` of images `(B, H, W, C)` of any size."""
    _, height, width, _ = images.shape
    logits = model.predict_on_batch(fitted(model, images))
    if None not in model.input_shape[1:3]:
        return _resize(logits, (height, width))
    return logits[:, :height, :width]


def _resize(maps, size):
    """Resize NumPy maps `(B, h, w, C)` to `(B, *size, C)` where they differ in size."""
    if maps.shape[1:3] == tuple(size):
        return maps
    return keras.ops.convert_to_numpy(resize_bilinear(maps, *size))


def _mirror(maps):
    return np.ascontiguousarray(maps[:, :, ::-1])  # torch takes no negative strides


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers
