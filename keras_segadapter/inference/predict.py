"""From images of any size to logits and class ids, in bounded memory."""

import itertools

import numpy as np
from PIL import Image

from keras_segadapter.data.reading import picture_pixels
from keras_segadapter.data_validation import check_images
from keras_segadapter.inference.rows import (
    has_fixed_size,
    image_rows,
    label_dtype,
    resize,
    resized_rows,
)
from keras_segadapter.validation import (
    check_integer,
    check_positive,
    check_segmenter,
)

BATCH = 8  # images per step
TILE, OVERLAP = 1024, 128  # pixels, where predict_labels chooses


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

    Memory holds the result and what the model needs for one window, or for the whole
    image without `crop`. Use `predict_labels` for the class ids of large images.

    JAX compiles for each new input size, and so does TensorFlow for the first few.
    Windows and multiples of the stride keep the number of sizes small.

    Args:
        model: A `Segmenter`.
        image: Array `(H, W, C)` or Pillow image. One image, as for `Segmenter.segment`.
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
    image = checked_image(model, image, "predict_logits")
    rows = view_rows(model, image, short_side, crop, stride, scales, flip)
    if isinstance(rows, np.ndarray):
        return rows
    row = np.dtype(("float32", (image.shape[1], model.num_classes)))
    return np.fromiter(rows, row, count=len(image))


def predict_labels(model, image, *, tile=None, overlap=None):
    """Predict the class ids of one image of any size, in memory for one tile.

    A large image is predicted in square tiles. The model sees each of them with
    `overlap` pixels of its surroundings on every side, as far as the image goes, and
    the ids of the surroundings are dropped. What the model sees has one size
    throughout an image, so it is compiled once.

    The ids equal those of `Segmenter.segment` on the whole image where `overlap` is at
    least the radius of the receptive field: the distance in pixels within which an
    input pixel can change a score. Networks that look at the whole image, by global
    attention (MiT) or global pooling (squeeze-and-excitation), come close at most: the
    closer, the larger `tile` and `overlap` are.

    Args:
        model: A `Segmenter`. If its input size is fixed, whole images and tiles are
            resized to it.
        image: Array `(H, W, C)` or Pillow image. One image, as for `Segmenter.segment`.
        tile: Integer. Side of the tiles in pixels, without their surroundings; it is
            rounded up to a multiple of the model's deepest stride. Defaults to `None`:
            tiles of 1024 for images of more than 1280 x 1280 pixels, and the whole
            image if it is smaller or the input size of the model is fixed.
        overlap: Integer. Pixels of surroundings on each side of a tile, rounded up in
            the same way. Defaults to `None`, which stands for 128.

    Returns:
        Class ids `(H, W)`; uint8 up to 256 classes, int32 beyond.

    Raises:
        TypeError: If `model` is not a `Segmenter`.
        ValueError: If `tile` or `overlap` is not as described, or if the image does
            not fit the model.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=3)
    photo = np.random.randint(0, 256, (300, 200, 3), "uint8")
    print(ksa.predict_labels(model, photo, tile=128, overlap=32).shape)  # (300, 200)
    ```
    """
    check_segmenter(model, "predict_labels")
    whole = tile is None
    tile = check_integer("tile", TILE if whole else tile)
    overlap = check_integer("overlap", OVERLAP if overlap is None else overlap, least=0)
    image = checked_image(model, image, "predict_labels")
    height, width, _ = image.shape
    small = height * width <= (TILE + 2 * OVERLAP) ** 2
    if whole and (small or has_fixed_size(model)):
        return label_images(model, image[None])[0]

    # Tiles start at multiples of the deepest stride, where cells of every stage start.
    multiple = 1 if has_fixed_size(model) else model.size_divisor
    tile, overlap, *lengths = (
        _rounded_up(side, multiple) for side in (tile, overlap, height, width)
    )
    labels = np.empty((height, width), label_dtype(model.num_classes))
    rows, columns = (_tiles(length, tile, overlap) for length in lengths)
    for (seen_y, y), (seen_x, x) in itertools.product(rows, columns):
        found = label_images(model, image[None, seen_y, seen_x])[0]
        labels[y, x] = found[_shifted(y, seen_y), _shifted(x, seen_x)]
    return labels


def label_images(model, images):
    """Predict the class ids of a batch of images of any size.

    Args:
        model: A `Segmenter`.
        images: NumPy array `(B, H, W, C)`.

    Returns:
        Class ids `(B, H, W)`; uint8 up to 256 classes, int32 beyond.
    """
    labels = np.empty(images.shape[:3], label_dtype(model.num_classes))
    for start in range(0, len(images), BATCH):
        logits = image_rows(model, images[start : start + BATCH])
        for ids, rows in zip(labels[start : start + BATCH], logits, strict=True):
            for of_row, row in zip(ids, rows, strict=True):
                of_row[:] = row.argmax(axis=-1)  # (W,)
    return labels


def view_rows(model, image, short_side, crop, stride, scales, flip):
    """Return the rows `(W, K)` of what `predict_logits` returns.

    They come one by one from one view of the image, and as an array `(H, W, K)` from
    several, which are added up there.
    """
    views = _views(model, image, short_side, crop, stride, scales, flip)
    count = len(scales) * (2 if flip else 1)
    if count == 1:
        return next(views)
    logits = np.zeros((*image.shape[:2], model.num_classes), "float32")
    for view in views:
        for total, row in zip(logits, view, strict=True):
            total += _softmax(row)
    tiny = np.finfo("float32").tiny  # Probabilities may be 0.
    for total in logits:
        np.log(np.maximum(total / count, tiny), out=total)
    return logits


def check_view(model, short_side, crop, stride, scales):
    """Validate arguments of `predict_logits` and return the stride of the windows.

    Raises:
        ValueError: If one of them is not as described there.
    """
    if short_side is not None:
        check_integer("short_side", short_side)
    if not isinstance(scales, (tuple, list)) or not scales:
        raise ValueError(
            "`scales` must be a list of positive numbers, such as [0.75, 1.0]. "
            f"Received: scales={scales!r}"
        )
    for index, scale in enumerate(scales):
        check_positive(f"scales[{index}]", scale)
    if crop is None:
        if stride is not None:
            raise ValueError(
                "`stride` is the step from one window to the next. Pass the side of "
                f"the windows, `crop`, too. Received: stride={stride}, crop=None"
            )
        return None
    check_integer("crop", crop, least=model.size_divisor)
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
    check_images(images, model.input_shape[-1], model.takes_pixels)


def as_array(model, image):
    """Return an image as an array; a Pillow image with the channels of the model."""
    if isinstance(image, Image.Image):
        return picture_pixels(image, model.input_shape[-1])
    return np.asarray(image)


def checked_image(model, image, caller):
    """Return one image `(H, W, C)` as an array, checked to fit the model."""
    image = as_array(model, image)
    if image.ndim != 3:
        raise ValueError(
            f"{caller} takes one image (height, width, channels). For several, call it "
            f"in a loop. Received: image of shape {image.shape}"
        )
    check_input(model, image)
    return image


def _size(model, size, short_side, scale):
    """Return the height and width that an image of `size` is resized to."""
    if short_side is None and scale == 1:
        return size
    factor = scale if short_side is None else scale * short_side / min(size)
    sides = (max(int(side * factor + 0.5), 1) for side in size)
    return tuple(_rounded_up(side, model.size_divisor) for side in sides)


def _rounded_up(length, multiple):
    return -(-length // multiple) * multiple


def _tiles(length, tile, overlap):
    """Cut a side into tiles.

    Yields:
        For each tile, two slices of the side: what the model sees, and the part of it
        whose ids are kept.
    """
    seen = tile + 2 * overlap
    starts = window_starts(length, seen, tile)
    cuts = [0, *(start + overlap for start in starts[1:]), length]
    for start, kept in zip(starts, itertools.pairwise(cuts), strict=True):
        yield slice(start, start + seen), slice(*kept)


def _shifted(part, whole):
    """Return the slice `part` of a side as a slice of the slice `whole` of it."""
    return slice(part.start - whole.start, part.stop - whole.start)


def _views(model, image, short_side, crop, stride, scales, flip):
    """Yield the rows of logits `(W, K)` of an image at each scale and mirrored."""
    size = image.shape[:2]
    for scale in scales:
        resized = resize(image[None], _size(model, size, short_side, scale))[0]
        for mirrored in (False, True)[: 1 + bool(flip)]:
            # PyTorch takes no negative strides.
            view = np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized
            if crop is None:
                (rows,) = image_rows(model, view[None])
            else:
                rows = _windows(model, view, crop, stride)
            if mirrored:
                rows = (row[::-1] for row in rows)
            yield resized_rows(rows, view.shape[:2], size)


def _windows(model, image, crop, stride):
    """Yield rows of logits `(w, K)` of an image `(h, w, C)`, averaged over windows."""
    height, width, _ = image.shape
    tops, lefts = (window_starts(side, crop, stride) for side in (height, width))
    windows = []  # those that the row crosses
    for y in range(height):
        windows = [window for window in windows if y < window[0]]
        if y in tops:
            # One at a time: they all have one shape.
            for left in lefts:
                window = image[None, y : y + crop, left : left + crop]
                windows.append((y + crop, left, *image_rows(model, window)))
        total = np.zeros((width, model.num_classes), "float32")
        count = np.zeros((width, 1), "float32")
        for _, left, rows in windows:
            row = next(rows)
            total[left : left + len(row)] += row
            count[left : left + len(row)] += 1
        yield total / count


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers
