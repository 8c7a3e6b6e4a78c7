"""Images and masks of other sizes."""

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


def _resize(array, size, resampling):
    """Resize an array `(H, W)` or `(H, W, 3)` to `size`, (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))
