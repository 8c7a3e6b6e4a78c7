"""One image and its mask, read from their files."""

from keras_segadapter.data.reading import read_ids_and_colors, read_image
from keras_segadapter.data.resizing import resize_mask


def read_pair(image_path, mask_path, table, channels=3, resize_masks=False):
    """Read an image and the classes in its mask.

    Args:
        image_path: Path of the image.
        mask_path: Path of the mask, or a `CocoMask`.
        table: `LabelTable` of the classes.
        channels: Integer. Channels of the image. Defaults to `3`.
        resize_masks: Boolean. Whether a mask of another size is resized rather than an
            error. Defaults to `False`.

    Returns:
        Image `(H, W, C)` and classes `(H, W)`.

    Raises:
        ValueError: If one of the two files is faulty.
    """
    image = read_image(image_path, channels)
    classes, size = read_classes(mask_path, table), image.shape[:2]
    if classes.shape == size:
        return image, classes
    turned = (size[0] - size[1]) * (classes.shape[0] - classes.shape[1]) < 0
    if resize_masks and not turned:
        return image, resize_mask(classes, size)
    fix = (
        "One of them is turned: correct the file."
        if turned
        else "Pass `resize_masks=True` (--resize-masks on the command line)"
        " to resize the mask."
    )
    raise ValueError(
        f"An image and its mask must have the same (height, width). {fix} Received: "
        f"{image_path} of size {size}, {mask_path} of size {classes.shape}"
    )


def read_classes(path, table):
    """Read the classes `(H, W)` in a mask, at its own size.

    Raises:
        ValueError: If the file is faulty.
    """
    if hasattr(path, "read"):  # drawn from a COCO file
        return table.look_up(path.read(), path, None)
    mask, colors = read_ids_and_colors(path, table.by_color)
    return table.look_up(mask, path, colors)
