"""Picture files decoded by Pillow, NumPy or tifffile, whichever reads them right."""

import os

import numpy as np
from PIL import Image, UnidentifiedImageError

_TIFF = (".tif", ".tiff")
# The numbers of tags in TIFF files.
_BITS, _PLANES, _SAMPLE_FORMAT = 258, 284, 339


def decode(path, kind, channels=3):
    """Return a file as a Pillow picture, or as an array where Pillow can't read it.

    Args:
        path: Path of the file.
        kind: String. What errors call the file, `"image"` or `"mask"`.
        channels: Integer. Number of channels of an image. Defaults to `3`.

    Raises:
        ImportError: If tifffile is needed and not installed.
        ValueError: If the file cannot be read.
    """
    suffix, is_array = suffix_of(path), channels not in (1, 3, 4)
    if is_array and suffix not in (".npy", *_TIFF):
        raise ValueError(
            "Only .npy and TIFF files hold images of other than 1, 3 or 4 channels. "
            "Convert the image, or correct `channels` (--channels on the command "
            f"line). Received: {path}"
        )
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        picture = None if is_array else _open_picture(path, kind, channels)
        return _read_tiff(path) if picture is None else picture
    except ImportError:
        raise
    except Exception as error:  # decoders raise errors of all kinds
        raise ValueError(
            f"The {kind} cannot be read: {error}. Replace the file, or remove both the "
            f"image and its mask. Received: {path}"
        ) from error


def suffix_of(path):
    """Return what a file's name ends with, in lower case."""
    return os.path.splitext(path)[1].lower()


def _open_picture(path, kind, channels):
    """Return a file as a Pillow picture, or None for a TIFF file that it misreads."""
    is_tiff = suffix_of(path) in _TIFF
    try:
        with Image.open(path) as picture:
            if is_tiff and _is_misread(picture, channels):
                return None
            several = len(picture.getbands()) > 1
            if kind == "mask" and several and ";16" in str(picture.tile):
                # Pillow keeps the upper 8 bits, in which most ids are 0.
                raise ValueError("it has several channels of 16 bits")
            picture.load()
            picture.getexif()  # while the file is open
        return picture
    except UnidentifiedImageError:
        if is_tiff:
            return None
        raise


def _is_misread(picture, channels):
    """Return whether Pillow, without an error, loses a part of a TIFF file."""
    bits = picture.tag_v2.get(_BITS, (1,))  # of each band
    in_planes = picture.tag_v2.get(_PLANES) == 2
    has_sign = picture.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] != 1
    return (
        picture.n_frames > 1
        or (bits[0] == 8 and has_sign)
        or (bits[0] != 8 and in_planes)
        # Of an RGB file with a fourth band, the first three are the RGB image.
        or (
            len(bits) > len(picture.getbands())
            and (channels, picture.mode) != (3, "RGB")
        )
    )


def _read_tiff(path):
    """Return the array in a TIFF file.

    Raises:
        ImportError: If tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            "This TIFF file has bands, pages or numbers that need tifffile. Install it "
            f"with `pip install keras-segadapter[tiff]`. Received: {path}"
        ) from error
    return tifffile.imread(path)
