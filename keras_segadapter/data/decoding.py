"""Picture files decoded by Pillow, NumPy or tifffile, whichever reads them right."""

import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from keras_segadapter.data.disk import check_file
from keras_segadapter.extras import import_extra

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
        ValueError: If the file cannot be read, or has more than twice
            `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    suffix, is_array = suffix_of(path), channels not in (1, 3, 4)
    if is_array and suffix not in (".npy", *_TIFF):
        raise ValueError(
            "Only .npy and TIFF files hold images of other than 1, 3 or 4 channels. "
            "Convert the image, or correct `channels` (--channels on the command "
            f"line). Received: {path}"
        )
    try:
        check_file(path)
        if suffix == ".npy":
            # Mapped first, so that a wrong header takes no memory.
            array = np.lib.format.open_memmap(path, mode="r")
            _check_size(array.size, channels)
            return np.array(array)
        picture = None if is_array else _open_picture(path, kind, channels)
        return _read_tiff(path, channels) if picture is None else picture
    except ImportError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"The {kind} is too large: {error} If it is meant to be, set "
            "PIL.Image.MAX_IMAGE_PIXELS to its number of pixels; else replace the file,"
            f" or remove both the image and its mask. Received: {path}"
        ) from error
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


def _read_tiff(path, channels):
    """Return the array in a TIFF file.

    Raises:
        ImportError: If tifffile is not installed.
        Image.DecompressionBombError: If it is too large.
    """
    tifffile = import_extra(
        "tifffile", f"Reading the bands, pages or numbers of {path}"
    )
    with tifffile.TiffFile(path) as file:
        _check_size(file.series[0].size, channels)
        return file.asarray()


def _check_size(size, channels):
    """Validate the number of values in an array by Pillow's limit for pictures.

    Raises:
        Image.DecompressionBombError: If it is too large.
    """
    pixels = size // max(channels, 4)  # masks may be RGBA
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of "
            f"{2 * Image.MAX_IMAGE_PIXELS} pixels."
        )
