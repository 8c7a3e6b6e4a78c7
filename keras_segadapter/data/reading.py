"""Images and masks read from picture files, with a sentence where that fails."""

import numpy as np
from PIL import Image, ImageOps


def read_image(path):
    """Read a picture file of any mode as RGB, uint8 of shape `(height, width, 3)`."""
    picture = _open(path, "image")
    if picture.mode.startswith("I"):  # 16 bits: keep the upper ones
        picture = Image.fromarray((np.asarray(picture) >> 8).astype("uint8"))
    if picture.mode == "P":
        # Directly to RGB, Pillow would warn about transparent palette colors.
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))  # (H, W, 3)


def read_mask(path):
    """Read the ids in a grey or palette picture, integers `(height, width)`."""
    picture = _open(path, "mask")
    mask = np.asarray(picture)  # of a palette picture, the palette index
    if picture.mode in ("RGB", "RGBA"):
        if (mask[..., :1] != mask[..., 1:3]).any():
            raise ValueError(
                f"The mask {path} is a picture in colors (mode {picture.mode}), not "
                "class ids. Convert its colors to ids and save them as a grey PNG."
            )
        mask = mask[..., 0]  # (H, W)
    elif picture.mode == "LA":
        mask = mask[..., 0]
    elif picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise ValueError(
            f"The mask {path} has the picture mode {picture.mode}, which holds no "
            "class ids. Save the ids as a grey PNG."
        )
    return mask.astype("int32" if picture.mode.startswith("I") else "uint8")


def resize_image(image, size):
    """Resize an image `(H, W, 3)` smoothly to `size`, (height, width)."""
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask, size):
    """Resize a mask `(H, W)` to `size`, (height, width), by the nearest pixel."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def _open(path, kind):
    """Read a whole picture file, turned as its EXIF orientation says."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture)
    except Exception as error:  # the decoders of Pillow raise all kinds of errors
        raise ValueError(
            f"The {kind} {path} cannot be read: {error}. Replace the file, or remove "
            "it together with its partner."
        ) from error


def _resize(array, size, resampling):
    height, width = size
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))
