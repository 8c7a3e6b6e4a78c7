"""Checks of images and masks in memory, before work is lost on them."""

import numpy as np


def check_batch(images, masks, channels, outputs, with_loss):
    """Validate that images have their masks, as far as shapes are known.

    Args:
        images: Batch of images, or None in a custom training loop without them.
        masks: Batch of masks, or a dict of them by output.
        channels: Integer. Channels C that the model takes.
        outputs: Names of the outputs of the model.
        with_loss: Names of the outputs that have a loss.

    Raises:
        ValueError: If there are no masks, or of the wrong outputs or another size, to
            which losses would resize the scores; or if the images have other channels.
    """
    if masks is None:
        raise ValueError(
            "Training and evaluation take images and masks: fit(images, masks), or a "
            "dataset of pairs (images, masks). Received: "
            + ("x=None" if images is None else "images without masks, y=None")
        )
    if isinstance(masks, dict) and not set(with_loss) <= set(masks) <= set(outputs):
        raise ValueError(
            "Masks must be one array for all outputs, or a dict with an array for each "
            f"of {list(with_loss)}. Received: a dict with the keys {list(masks)}"
        )
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) == 4 and shape[-1] not in (None, channels):
        raise ValueError(
            f"Images must have the shape (batch, height, width, {channels}). Received: "
            f"images of shape {shape}"
        )
    size = tuple(getattr(images, "shape", ()))[1:3]
    for mask in masks.values() if isinstance(masks, dict) else [masks]:
        found = tuple(getattr(mask, "shape", ()))[1:3]
        if any(a != b for a, b in zip(size, found, strict=False) if None not in (a, b)):
            raise ValueError(
                "Masks must hold one class id per pixel, (batch, height, width), at "
                f"the size of the images. Received: masks of shape {tuple(mask.shape)} "
                f"for images of shape {tuple(images.shape)}"
            )


def check_masks(masks, images_shape, num_classes, ignored):
    """Validate that masks fit the images and the classes.

    Args:
        masks: NumPy array of class ids `(B, H, W)` or `(B, H, W, 1)`.
        images_shape: Shape of the images, `(B, H, W, C)`.
        num_classes: Integer. Number of classes K.
        ignored: Ids that are ignored.

    Raises:
        ValueError: If the shapes do not fit, if the masks hold ids that are neither
            classes nor ignored, or nothing but ignored ones, or if they look like black
            and white pictures.
    """
    one_id_per_pixel = masks.ndim == 3 or masks.shape[3:] == (1,)
    if not one_id_per_pixel or masks.shape[:3] != tuple(images_shape[:3]):
        raise ValueError(
            "Masks must hold one class id per pixel, (batch, height, width), at the "
            "size of the images. Turn one-hot masks into ids with numpy.argmax(mask, "
            f"axis=-1). Received: masks of shape {masks.shape} for images of shape "
            f"{tuple(images_shape)}"
        )
    present = set(np.unique(masks).tolist())
    wrong = sorted(present - set(ignored) - set(range(num_classes)))
    black_and_white = present == {0, 255}
    if not wrong and not black_and_white and not present <= set(ignored):
        return
    fault = f"The masks hold ids outside the {num_classes} classes 0..{num_classes - 1}"
    fix = (
        "Map them to class ids, raise num_classes, or leave them out with "
        "compile(ignore_class=[...])"
    )
    if black_and_white:
        fix = (
            "They look like black and white pictures: use masks // 255, or read the "
            "files with labels=keras_segadapter.data.BINARY"
        )
        if not wrong:
            fault = "The masks hold nothing but class 0 and the ignored id 255"
    elif not wrong:
        fault, fix = "The masks hold nothing but ignored ids", "Correct the masks"
    raise ValueError(
        f"{fault}. {fix}. Received: masks with the ids {wrong[:10] or sorted(present)} "
        f"and ignore_class={sorted(ignored)}"
    )


def check_images(images, channels, takes_pixels):
    """Validate that an array is an image, or a batch of them, that a model can take.

    Args:
        images: NumPy array.
        channels: Integer. Channels C that the model takes.
        takes_pixels: Boolean. Whether the model takes pixels in 0..255 and normalizes
            them.

    Raises:
        ValueError: If it is not: another shape, no numbers, or another range.
    """
    if images.ndim not in (3, 4) or images.shape[-1] != channels or not images.size:
        raise ValueError(
            f"An image must have the shape (height, width, {channels}), or be in a "
            "batch or list of such. Convert a photo with "
            f"Image.open(path).convert('RGB'). Received: images of shape {images.shape}"
        )
    if images.dtype.kind not in "uif":
        raise ValueError(
            "Images must hold numbers in 0..255, uint8 or float. Received: images of "
            f"dtype {images.dtype}"
        )
    if images.dtype != "uint8":
        check_range(count_values(images, np), images.dtype, takes_pixels)


def count_values(images, numpy):
    """Count what tells the range of images, as sums, which devices can add up.

    Args:
        images: Numbers of any shape.
        numpy: The module that computes, `numpy` or `keras.ops`.

    Returns:
        List of the number of all values, and of those that are not finite, not 0, in
        -1..1, below 0 and above 255.
    """
    tells = (
        images == images,
        ~numpy.isfinite(images),
        images != 0,
        numpy.abs(images) <= 1,
        images < 0,
        images > 255,
    )
    # Not `count_nonzero`: with PyTorch 2.14, that of Keras 3.15 warns.
    return [numpy.sum(values) for values in tells]


def check_range(counts, dtype, takes_pixels):
    """Validate the range of images by what `count_values` counted.

    Args:
        counts: List of integers.
        dtype: Dtype of the images.
        takes_pixels: As in `check_images`.

    Raises:
        ValueError: If values are not finite or, where the model takes pixels, if they
            were scaled or normalized, or have more than 8 bits.
    """
    size, broken, nonzero, small, negative, large = map(int, counts)
    if broken:
        raise ValueError(
            "Images must be finite. Replace their NaN or infinite values. Received: "
            f"images with {broken:,} of them"
        )
    # Interpolation and augmentation may overshoot a little.
    few = 0 if "int" in str(dtype) else size // 100
    if not takes_pixels or not nonzero:
        return
    if small == size:
        found, count = ("in -1..1" if negative else "in 0..1"), small
        fix = "Undo the normalization" if negative else "Multiply them by 255"
    elif negative > few:
        found, count, fix = "below 0", negative, "Undo the normalization"
    elif large > few:
        found, count, fix = "above 255", large, "Divide 16-bit images by 257"
    else:
        return
    raise ValueError(
        "The model takes pixels in 0..255 and normalizes them by itself, but these "
        f"images have values {found}. {fix}; or, to feed images that your own code "
        "normalizes, build the model with preprocessing=keras.layers.Identity() on a "
        f"backbone that does not normalize. Received: images of dtype {dtype} with "
        f"{count / size:.1%} of their values {found}"
    )


def check_pair(image, mask, padding):
    """Validate that an image and a mask belong together.

    Raises:
        ValueError: If one of them is not as described, or if the mask cannot hold the
            id `padding`.
    """
    if image.dtype.kind not in "uif" or image.ndim != 3:
        raise ValueError(
            "`image` must hold numbers of shape (height, width, channels). Received: "
            f"image of shape {image.shape} and dtype {image.dtype}"
        )
    if mask.dtype.kind not in "iu" or mask.shape != image.shape[:2] or not mask.size:
        raise ValueError(
            "`mask` must hold one integer class id for each pixel of the image. "
            f"Received: mask of shape {mask.shape} and dtype {mask.dtype} for an image "
            f"of shape {image.shape}"
        )
    if not np.iinfo(mask.dtype).min <= padding <= np.iinfo(mask.dtype).max:
        raise ValueError(
            "`mask` must be of a dtype that can hold the ignored id. Convert it with "
            f"mask.astype('int32'). Received: {mask.dtype} for the id {padding}"
        )
