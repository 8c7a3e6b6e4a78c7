"""Images and masks of other sizes."""

import cv2
import numpy as np
from PIL import Image


def resize_image(image, size):
    """Resize an image `(H, W, C)` to `size`, (height, width), by interpolation."""
    if image.dtype == "uint8" and image.shape[2] == 3:
        return _resize(image, size, Image.Resampling.BILINEAR)
    # One channel at a time: Pillow weighs the colors of RGBA pictures by their alpha,
    # and has no pictures of other numbers of channels.
    kind = "uint8" if image.dtype == "uint8" else "float32"
    channels = [
        _resize(channel.astype(kind), size, Image.Resampling.BILINEAR)
        for channel in np.moveaxis(image, 2, 0)
    ]
    resized = np.stack(channels, axis=-1)
    if image.dtype.kind in "iu":
        resized = np.rint(resized)
    return resized.astype(image.dtype)


def resize_mask(mask, size):
    """Resize a mask `(H, W)` to `size`, (height, width), by the nearest pixel."""
    kind = "uint8" if mask.dtype == "uint8" else "int32"  # Pillow has no others
    resized = _resize(mask.astype(kind), size, Image.Resampling.NEAREST)
    return resized.astype(mask.dtype)


def crop_resized_image(image, size, corner, shape):
    """Return what resizing and then cropping makes of an image `(H, W, C)`.

    Only the crop is computed. It is interpolated between pixels or, where the image
    shrinks to a half or less, between the means of blocks of pixels.

    Args:
        image: Image `(H, W, C)`.
        size: `(height, width)` that the image is resized to.
        corner: `(top, left)` of the crop in the resized image.
        shape: `(height, width)` of the crop, which lies in the resized image.

    Returns:
        Crop `(height, width, C)`, of the image's dtype.
    """
    dtype = image.dtype
    if dtype not in ("uint8", "uint16", "float32"):  # OpenCV lacks some others
        image = image.astype("float64")
    scale = np.divide(image.shape[:2], size)  # of the axes, as all that follows
    block = max(1, int(scale.min()))
    # Places of the first and the last pixel of the crop in the image.
    first, last = (
        scale * (np.array(place) + 0.5) - 0.5
        for place in (corner, np.add(corner, shape) - 1)
    )
    low = np.maximum(first // block - 1, 0).astype(int) * block
    high = np.ceil(last + 2 * block).astype(int)
    window = image[low[0] : high[0], low[1] : high[1]]  # all that the crop depends on
    blocks = np.array(window.shape[:2]) // block
    rows, columns = blocks * block
    (y, x), (dy, dx) = (first - low + 0.5) / block - 0.5, scale / block
    matrix = np.array([[dx, 0, x], [0, dy, y]])

    def view(bands):
        if block > 1:
            bands = cv2.resize(
                bands[:rows, :columns], blocks[::-1], interpolation=cv2.INTER_AREA
            )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        edge = {"borderMode": cv2.BORDER_REPLICATE}
        bands = cv2.warpAffine(bands, matrix, shape[::-1], flags=flags, **edge)
        return bands.reshape(*shape, -1)

    # OpenCV takes four channels at a time.
    parts = [view(window[..., i : i + 4]) for i in range(0, image.shape[2], 4)]
    crop = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    if crop.dtype != dtype and dtype.kind in "iu":
        crop = np.rint(crop)
    return crop.astype(dtype, copy=False)


def crop_resized_mask(mask, size, corner, shape):
    """Do the same to a mask `(H, W)`, of which the nearest pixels are taken."""
    rows, columns = _nearest(mask.shape, size, corner, shape)
    return mask[rows][:, columns]


def draw_pixel(mask, size, classes, rng):
    """Draw a class that a resized mask holds, and then a pixel of it.

    Args:
        mask: Class ids `(H, W)`.
        size: `(height, width)` that the mask is resized to.
        classes: List of the classes to draw from.
        rng: `np.random.Generator`.

    Returns:
        `(row, column)` of the pixel in the resized mask, or None if that holds none of
        the classes.
    """
    rows, columns = _nearest(mask.shape, size, (0, 0), size)
    # The first class found, in a random order, is any of them with equal probability.
    for class_ in rng.permutation(classes).tolist():
        # (N,) each, by way of a flat array, in which NumPy finds places far faster.
        y, x = np.divmod(np.flatnonzero(mask == class_), mask.shape[1])
        kept = np.flatnonzero(np.isin(y, rows) & np.isin(x, columns))
        if kept.size:
            i = kept[rng.integers(kept.size)]
            at = np.searchsorted(rows, y[i]), np.searchsorted(columns, x[i])
            return np.array(at)
    return None


def _nearest(full, size, corner, shape):
    """Return the rows and columns of a mask that a crop of the resized mask holds."""
    return [
        ((np.arange(start, start + length) + 0.5) * side / resized).astype(int)
        for start, length, side, resized in zip(corner, shape, full, size, strict=True)
    ]


def _resize(array, size, resampling):
    """Resize an array `(H, W)` or `(H, W, 3)` to `size`, (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))
