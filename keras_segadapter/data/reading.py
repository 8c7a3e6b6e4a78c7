"""Images and masks read from picture files."""

import numpy as np
from PIL import Image, ImageOps


def read_image(path):
    """Return a picture file of any mode as an RGB image, uint8 `(H, W, 3)`.

    Raises:
        ValueError: If the file cannot be read.
    """
    picture = _open(path, "image")
    if picture.mode.startswith("I"):  # of 16 bits, keep the upper eight
        picture = Image.fromarray((np.asarray(picture) >> 8).astype("uint8"))
    if picture.mode == "P":
        # Pillow warns when palette colors with transparency go straight to RGB.
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))  # (H, W, 3)


def read_mask(path):
    """Return the ids in a grayscale or palette picture, uint8 or int32 `(H, W)`.

    Raises:
        ValueError: If the file cannot be read or does not hold ids.
    """
    picture = _open(path, "mask")
    mask = np.asarray(picture)  # the indices, where the picture has a palette
    if picture.mode in ("RGB", "RGBA"):
        if (mask[..., :1] != mask[..., 1:3]).any():
            raise ValueError(
                "Masks must hold class ids, not colors. Convert the colors to ids and "
                f"save them as a grayscale PNG. Received: {path} of mode {picture.mode}"
            )
        mask = mask[..., 0]  # (H, W)
    elif picture.mode == "LA":
        mask = mask[..., 0]
    elif picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise ValueError(
            "Masks must hold class ids, one integer per pixel. Save the ids as a "
            f"grayscale PNG. Received: {path} of mode {picture.mode}"
        )
    return mask.astype("int32" if picture.mode.startswith("I") else "uint8")


def resize_image(image, size):
    """Resize an image `(H, W, 3)` to `size`, (height, width), by interpolation."""
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask, size):
    """Resize a mask `(H, W)` to `size`, (height, width), by the nearest pixel."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def _open(path, kind):
    """Read a whole picture file, turned as its EXIF orientation says."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow's decoders raise errors of all kinds
        raise ValueError(
            f"The {kind} cannot be read: {error}. Replace the file, or remove both the "
            f"image and its mask. Received: {path}"
        ) from error


def _resize(array, size, resampling):
    """Resize an array `(H, W)` or `(H, W, 3)` to `size`, (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))
