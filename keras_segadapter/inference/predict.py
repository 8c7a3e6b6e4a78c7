"""From images of any size to logits and class ids."""

import math
import numbers

import keras
import numpy as np

from keras_segadapter.validation import check_images, check_integer, check_segmenter
from keras_segadapter.layers.native import resize_bilinear

BATCH = 8  # images a step: logits at image size are large


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
    """Logits of one image at its own size: whole or by windows, scales and flips.

    What MMSegmentation's tests do, on any backend. Without arguments the image keeps
    its size, as in `Segmenter.segment`: the border is repeated up to a multiple of the
    model's deepest stride (32 for the paper's) and the logits are cropped. An image
    that is resized goes up to such a multiple by the resize itself (one, pixels not
    rounded, where MMSegmentation makes two), and the logits are resized back. To a
    model of fixed size, images or windows are resized.

    Windows start every `stride` pixels; the last of a row or column is moved back to
    end with the image. Where windows overlap, logits are averaged. An image smaller
    than a window is one window of its own size.

    Each new size of input makes JAX compile anew, and TensorFlow the first times.
    Windows and multiples of the stride keep the number of sizes small.

    Args:
        model: A `Segmenter`.
        image: One image `(H, W, C)` as `Segmenter.segment` takes it.
        short_side: Pixels that the shorter side is resized to, the ratio kept; None
            keeps the size. MMSegmentation's `(2048, 512)` is 512, save for its limit on
            the longer side.
        crop: Side of square windows in pixels, of the resized image; None for the whole
            image at once.
        stride: Pixels from a window to the next. By default two thirds of `crop`.
        scales: Factors on the size, for a prediction each.
        flip: Whether to predict the mirrored image as well, for every scale.

    Returns:
        float32 `(H, W, K)`. Several predictions are merged as softmax probabilities:
        the logits are then the logarithm of their mean.

    Raises:
        TypeError: If `model` is no `Segmenter`.
        ValueError: If an argument is not as described, a window is smaller than the
            deepest stride or than `stride`, or the image does not fit the model.

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

    Source: the tests in the paper's settings files, which MMSegmentation runs: its
    whole, slide and augmented inference.
    """
    stride = check_view(model, short_side, crop, stride, scales)
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(
            "predict_logits takes one image (height, width, channels). Received: shape "
            f"{image.shape}"
        )
    check_input(model, image)

    multiple = deepest_stride(model)
    size = image.shape[:2]
    total, count = 0, len(scales) * (2 if flip else 1)
    for scale in scales:
        resized = _resize(image[None], _size(size, short_side, scale, multiple))
        for mirrored in (False, True)[: 1 + bool(flip)]:
            view = _mirror(resized) if mirrored else resized  # (1, h, w, C)
            logits = _windows(model, view, crop, stride, multiple)  # (1, h, w, K)
            logits = _mirror(logits) if mirrored else logits
            logits = _resize(logits, size)[0]  # (H, W, K)
            if count == 1:
                return logits
            total = total + _softmax(logits)
    tiny = np.finfo("float32").tiny  # probabilities may be 0
    return np.log(np.maximum(total / count, tiny))


def label_images(model, images):
    """Class ids `(B, H, W)` of a batch `(B, H, W, C)`; uint8 up to 256 classes.

    Args:
        model: A `Segmenter`.
        images: NumPy array `(B, H, W, C)`. Height and width are padded to a multiple of
            the deepest stride, by repeating the border, and the logits cropped. A model
            of fixed size gets them resized.
    """
    multiple, labels = deepest_stride(model), []
    for start in range(0, len(images), BATCH):
        logits = _logits(model, images[start : start + BATCH], multiple)
        dtype = "uint8" if logits.shape[-1] <= 256 else "int32"
        labels.append(np.argmax(logits, axis=-1).astype(dtype))
    return np.concatenate(labels)


def check_view(model, short_side, crop, stride, scales):
    """Refuse arguments of `predict_logits` that cannot be; return the stride."""
    multiple = deepest_stride(model)
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
                "`stride` is the step from window to window and needs the windows' "
                f"side `crop`. Received: stride={stride}, crop=None"
            )
        return None
    if check_integer("crop", crop) < multiple:
        raise ValueError(
            "`crop` must be at least the deepest stride of the model, "
            f"{multiple}. Received: crop={crop}"
        )
    stride = check_integer("stride", 2 * crop // 3 if stride is None else stride)
    if stride > crop:
        raise ValueError(
            "`stride` must be at most `crop`, or pixels between the windows are left "
            f"out. Received: stride={stride}, crop={crop}"
        )
    return stride


def window_starts(length, crop, stride):
    """First pixels of the windows along a side; the last window ends with the side."""
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def check_input(model, images):
    """Refuse what is no image or batch of images for a `Segmenter`."""
    normalises = not isinstance(model.preprocessing, keras.layers.Identity)
    check_images(images, model.input_shape[-1], normalises)


def deepest_stride(model):
    check_segmenter(model, "This function")
    return max(stage.stride for stage in model.stages)


def fitted(model, images, multiple):
    """Images `(B, H, W, C)` at a size that the model takes.

    Padded to multiples of `multiple` by repeating the border at the bottom and right,
    or resized to the size of a model of fixed size.
    """
    _, height, width, _ = images.shape
    fixed = model.input_shape[1:3]
    if None not in fixed:
        return _resize(images, fixed)
    below, right = -height % multiple, -width % multiple
    return np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def _size(size, short_side, scale, multiple):
    """Height and width that the model sees an image of `size` at."""
    if short_side is None and scale == 1:
        return size
    factor = scale if short_side is None else scale * short_side / min(size)
    sides = (max(int(side * factor + 0.5), 1) for side in size)
    return tuple(-(-side // multiple) * multiple for side in sides)  # rounded up


def _windows(model, images, crop, stride, multiple):
    """Logits `(B, h, w, K)` of images `(B, h, w, C)`, averaged over the windows."""
    if crop is None:
        return _logits(model, images, multiple)
    batch, height, width, _ = images.shape
    total = np.zeros((batch, height, width, model.num_classes), "float32")
    counts = np.zeros((height, width, 1), "float32")
    # One window at a time: all have one shape, and memory holds the logits once.
    for top in window_starts(height, crop, stride):
        for left in window_starts(width, crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            total[:, rows, columns] += _logits(
                model, images[:, rows, columns], multiple
            )
            counts[rows, columns] += 1
    return total / counts


def _logits(model, images, multiple):
    _, height, width, _ = images.shape
    logits = model.predict_on_batch(fitted(model, images, multiple))
    if None not in model.input_shape[1:3]:
        return _resize(logits, (height, width))  # (B, H, W, K)
    return logits[:, :height, :width]  # (B, H, W, K)


def _resize(maps, size):
    """NumPy `(B, h, w, C)` to `(B, *size, C)`; as it is if the size fits."""
    if maps.shape[1:3] == tuple(size):
        return maps
    return keras.ops.convert_to_numpy(resize_bilinear(maps, *size))


def _mirror(maps):
    return np.ascontiguousarray(maps[:, :, ::-1])  # torch takes no negative steps


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers
