"""Images and masks as arrays, from picture files and back."""

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from keras_segadapter.data.decoding import decode, suffix_of

# What the names of files that can be read end with.
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".npy")

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels


def read_image(path, channels=3):
    """Read an image file.

    Args:
        path: Path of the file.
        channels: Integer of at least 1. Number of channels: 1 for gray, 3 for RGB and 4
            for RGBA; others are those of a TIFF file with as many bands, or of a `.npy`
            file `(H, W, channels)`. Defaults to `3`.

    Returns:
        Image `(H, W, channels)`. Pictures of 1, 3 or 4 channels become uint8, as in
        `picture_pixels`. Other TIFF files, and all `.npy` files, keep their values, as
        uint8 or uint16, or else as float32.

    Raises:
        ImportError: If tifffile is needed and not installed.
        ValueError: If the file cannot be read or has another number of channels.
    """
    image = decode(path, "image", channels)
    if isinstance(image, Image.Image):
        return picture_pixels(image, channels)
    image = _channels_last(image, channels, path)
    if channels in _MODES and suffix_of(path) != ".npy":
        return _eight_bits(image, path)
    return image if image.dtype in ("uint8", "uint16") else image.astype("float32")


def picture_pixels(picture, channels=3):
    """Return the pixels of a Pillow picture of any mode.

    The picture is turned as its EXIF orientation says. Of 16 bits, the upper 8 are
    kept. Numbers of 32 bits must be pixels already. Of an animation, the current frame
    is taken.

    Args:
        picture: `PIL.Image.Image`.
        channels: Integer. 1 for gray, 3 for RGB, or 4 for RGBA. Defaults to `3`.

    Returns:
        Image, uint8 `(H, W, channels)`.

    Raises:
        ValueError: If `channels` is another number, or if numbers of 32 bits are not
            all in 0..255, or are all in 0..1.
    """
    if channels not in _MODES:
        raise ValueError(
            "A Pillow picture can become an image of 1, 3 or 4 channels. Pass a NumPy "
            f"array of shape (height, width, {channels}) in its place. Received: "
            f"channels={channels}, picture of mode {picture.mode}"
        )
    name = getattr(picture, "filename", "") or f"a picture of mode {picture.mode}"
    # Older versions of Pillow open PNG files of 16 bits as pictures of 32 bits.
    is_deep = picture.mode == "I" and picture.format == "PNG"
    picture = _upright(picture)
    if picture.mode[0] in "IF":
        values = np.asarray(picture, "uint16" if is_deep else None)
        picture = Image.fromarray(_eight_bits(values, name))
    elif picture.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
    elif picture.mode in ("P", "PA"):
        # Pillow warns when palette colors with transparency go straight to RGB.
        picture = picture.convert("RGBA")
    if picture.mode != _MODES[channels]:  # else this would be one more copy
        picture = picture.convert(_MODES[channels])
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], channels)  # (H, W, C)


def read_mask(path):
    """Read a mask file.

    Returns:
        Ids `(H, W)`, uint8 or int32; or, of an RGB picture that is not gray, colors,
        uint8 `(H, W, 3)`.

    Raises:
        ImportError: If tifffile is needed and not installed.
        ValueError: If the file cannot be read or holds neither.
    """
    ids, colors = read_ids_and_colors(path)
    return colors if ids is None else ids


def read_ids_and_colors(path, by_color=False):
    """Read a mask file whose pixels may stand for ids or for colors.

    Args:
        path: Path of the file.
        by_color: Boolean. Whether all pictures of 8 bits hold colors, even gray ones.
            Defaults to `False`.

    Returns:
        Tuple of ids `(H, W)`, uint8 or int32, or None, and of colors, uint8
        `(H, W, 3)`, or None. Palette pictures, and RGB pictures that are gray, have
        both if not `by_color`.

    Raises:
        ImportError: If tifffile is needed and not installed.
        ValueError: If the file cannot be read or holds neither.
    """
    mask, colors = decode(path, "mask"), None
    if isinstance(mask, Image.Image):
        picture = _upright(mask)
        mode, mask = picture.mode, np.asarray(picture)
        if mode in ("CMYK", "YCbCr", "HSV", "LAB"):
            raise ValueError(
                "Masks must hold class ids, or RGB colors. Save the ids as a grayscale "
                f"PNG. Received: {path} of mode {mode}"
            )
        if mode in ("P", "PA") or (by_color and mode in ("1", "L", "LA")):
            colors = np.asarray(picture.convert("RGBA"))[..., :3]
        if mode in ("LA", "PA"):
            mask = mask[..., 0]  # (H, W)
    if mask.ndim == 3 and mask.shape[2] in (3, 4) and mask.dtype == "uint8":
        colors = mask[..., :3]  # (H, W, 3)
        is_gray = (colors[..., :1] == colors[..., 1:]).all()
        mask = colors[..., 0] if is_gray else None
    if mask is None or (by_color and colors is not None):
        return None, colors
    return _integers(mask, path), colors


def write_mask(path, labels):
    """Write class ids to a PNG file, of 8 bits if they are below 256, else of 16.

    Args:
        path: Path of the file, which must end in `.png`.
        labels: Integers from 0 to 65535, `(H, W)`.

    Raises:
        ValueError: If `path` or `labels` is not as described.
    """
    labels = np.asarray(labels)
    if suffix_of(path) != ".png":
        raise ValueError(
            "A mask must be written to a .png file, which keeps its ids. Received: "
            f"path={str(path)!r}"
        )
    has_ids = labels.ndim == 2 and labels.dtype.kind in "iu" and labels.size
    if not has_ids or labels.min() < 0 or labels.max() > 65535:
        raise ValueError(
            "`labels` must hold one integer id from 0 to 65535 per pixel, (height, "
            f"width). Received: labels of shape {labels.shape} and dtype {labels.dtype}"
        )
    dtype = "uint8" if labels.max() < 256 else "uint16"
    Image.fromarray(labels.astype(dtype)).save(path)


def _upright(picture):
    """Return a picture turned as its EXIF orientation says, not copied if it is so."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def _channels_last(image, channels, path):
    """Return an array as an image `(H, W, channels)`.

    Raises:
        ValueError: If it is not numeric or has another shape.
    """
    if image.ndim == 2:
        image = image[..., None]
    elif image.ndim == 3 and image.shape[2] != channels == image.shape[0]:
        image = np.moveaxis(image, 0, 2)  # from bands or pages
    if image.dtype.kind not in "biuf" or image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(
            f"The image must hold numbers of shape (height, width, {channels}). Correct"
            " `channels` (--channels on the command line) or the file. Received: "
            f"channels={channels}, {path} of shape {image.shape} and dtype "
            f"{image.dtype}"
        )
    return image


def _eight_bits(values, name):
    """Return the values of an image as uint8.

    Raises:
        ValueError: If they are neither integers of 8 or 16 bits nor pixels.
    """
    if values.dtype == "uint8":
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype("uint8")
    low, high = values.min(), values.max()
    # Any comparison with NaN is false.
    if not (low >= 0 and high <= 255) or 0 < high <= 1:
        raise ValueError(
            "An image of signed integers, floats or 32 bits must hold pixels in 0..255."
            " Scale its values and save it with 8 bits, or save it as a .npy file, "
            f"which keeps its values. Received: {name} of dtype {values.dtype} with "
            f"values in {low:g}..{high:g}"
        )
    return np.rint(values).astype("uint8")


def _integers(values, path):
    """Return the ids `(H, W)` in an array, as uint8 or int32.

    Raises:
        ValueError: If they are not integers of this shape.
    """
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not values.size:
        raise ValueError(
            "A mask must hold one integer id per pixel, (height, width), or RGB colors "
            "of 8 bits. Turn one-hot masks into ids with numpy.argmax(mask, axis=-1). "
            f"Received: {path} of shape {values.shape} and dtype {values.dtype}"
        )
    if values.dtype.kind == "f":
        fractions = np.count_nonzero(~np.isfinite(values) | (values != np.rint(values)))
        if fractions:
            raise ValueError(
                "A mask must hold integer ids. Save it again without interpolation or "
                f"scaling. Received: {path} with {fractions:,} pixels that are not "
                "integers"
            )
    if values.dtype in ("bool", "uint8"):
        return values.astype("uint8")
    return np.clip(values.astype("int64"), -(2**31), 2**31 - 1).astype("int32")
