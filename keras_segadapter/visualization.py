"""Pictures of segmentation masks: colors, overlays and panels."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_segadapter.validation import check_integer

GAP = 6
PANEL_WIDTH = 240


def palette(num_classes):
    """Return well-separated colors for class ids.

    The colors of fewer classes are the first colors of more classes, so a class
    keeps its color. Black is left for void pixels.

    Args:
        num_classes: Number of colors, from 1 to 256.

    Returns:
        RGB colors, uint8 of shape `(num_classes, 3)`.

    Raises:
        ValueError: If `num_classes` is not an integer from 1 to 256.

    Example:

    ```python
    from keras_segadapter.visualization import palette

    print(palette(8).shape)  # (8, 3)
    ```
    """
    if check_integer("num_classes", num_classes) > 256:
        raise ValueError(
            "`num_classes` must be at most 256: there are no more colors. Received: "
            f"num_classes={num_classes}"
        )
    colors = [
        # Steps of the golden ratio never come back to a hue; brightness and
        # saturation part the hues that come close.
        colorsys.hsv_to_rgb(
            (0.58 + i * 0.618034) % 1,
            (0.7, 0.9, 0.5)[i % 3],
            (0.95, 0.7, 0.85, 0.5, 0.75)[i % 5],
        )
        for i in range(num_classes)
    ]
    return np.round(np.array(colors) * 255).astype("uint8")


def colorize(labels, num_classes=None, colors=None):
    """Paint class ids in the colors of `palette`, or of a dataset.

    Args:
        labels: Integer class ids of shape `(height, width)`.
        num_classes: Number of classes with a color; all other ids are black.
            By default every id but 255, the usual id of void pixels, has one.
        colors: RGB colors, uint8 of shape `(num_classes, 3)`, in place of those of
            `palette`: a dataset's `.colors`.

    Returns:
        An RGB image, uint8 of shape `(height, width, 3)`.

    Raises:
        ValueError: If `labels` is not a 2D array of integers, `num_classes` is not
            an integer from 1 to 256, or `colors` are not as described.

    Example:

    ```python
    import numpy as np
    from keras_segadapter.visualization import colorize

    image = colorize(np.array([[0, 1], [2, 255]]))
    print(image[1, 1])  # [0 0 0]
    ```
    """
    labels = _labels(labels)
    if colors is None:
        colors = palette(255 if num_classes is None else num_classes)
    colors = _checked_colors(colors)
    known = (labels >= 0) & (labels < len(colors))
    return np.where(known[..., None], colors[np.where(known, labels, 0)], np.uint8(0))


def overlay(image, labels, alpha=0.5, colors=None):
    """Lay the colors of class ids over an image.

    Pixels with the id 255, the usual id of void pixels, show the image itself.

    Args:
        image: RGB image, uint8 of shape `(height, width, 3)`.
        labels: Integer class ids of shape `(height, width)`.
        alpha: Weight of the colors, from 0 (only the image) to 1 (only colors).
        colors: As for `colorize`.

    Returns:
        An RGB image, uint8 of shape `(height, width, 3)`.

    Raises:
        ValueError: If the image is not uint8 RGB, the sizes differ, `alpha` is
            outside 0 to 1, or `colors` are not as described.

    Example:

    ```python
    from keras_segadapter.data import make_scenes
    from keras_segadapter.visualization import overlay

    images, masks = make_scenes(1)
    print(overlay(images[0], masks[0]).shape)  # (96, 96, 3)
    ```
    """
    image, labels = _rgb(image), _labels(labels)
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f"The image has the size {image.shape[:2]} and the labels have "
            f"{labels.shape}, but they must be equal. Resize one of them first."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"`alpha` must be a number from 0 to 1, but {alpha!r} was received. "
            "Pass a weight such as 0.5."
        )
    mixed = (1 - alpha) * image + alpha * colorize(labels, colors=colors)
    known = (labels >= 0) & (labels < (255 if colors is None else len(colors)))
    return np.where(known[..., None], np.round(mixed).astype("uint8"), image)


def panels(rows, titles, path):
    """Write rows of pictures with column titles to one PNG file.

    Small pictures are enlarged by a whole factor, pixels kept sharp, so that each
    is at least 240 pixels wide.

    Args:
        rows: List of rows; a row is a list of RGB images, uint8 of shape
            `(height, width, 3)`, of one size.
        titles: One title for each column.
        path: Where to write the PNG file.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        ValueError: If there are no rows, a row does not have one picture for each
            title, or the pictures of a row are not uint8 RGB of one size.

    Example:

    ```python
    from keras_segadapter.data import make_scenes
    from keras_segadapter.visualization import colorize, overlay, panels

    images, masks = make_scenes(2)
    rows = [[x, colorize(y), overlay(x, y)] for x, y in zip(images, masks)]
    panels(rows, ["image", "mask", "both"], "scenes.png")
    ```
    """
    rows = [[_enlarged(image) for image in row] for row in rows]
    titles = [str(title) for title in titles]
    if not rows or not titles:
        raise ValueError(
            f"`rows` has {len(rows)} rows and `titles` {len(titles)} titles, but "
            "there must be at least one of each. Pass some pictures."
        )
    for i, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(
                f"Row {i} has {len(row)} pictures for {len(titles)} titles. Pass "
                "one picture for each title."
            )
        if len({image.size for image in row}) > 1:
            raise ValueError(
                f"The pictures of row {i} differ in size. Resize them to one size."
            )
    column = max(row[0].width for row in rows)
    font = _font(titles, column)
    head = round(1.6 * font.size)
    width = GAP + len(titles) * (column + GAP)
    height = head + sum(row[0].height + GAP for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + i * (column + GAP) for i in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left + column / 2, head / 2), title, "black", font, anchor="mm")
    top = head
    for row in rows:
        for left, image in zip(lefts, row, strict=True):
            sheet.paste(image, (left, top))
        top += row[0].height + GAP
    sheet.save(path, "PNG")
    return Path(path)


def _labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            "The labels must be integers of shape (height, width), but "
            f"{labels.dtype} of shape {labels.shape} was received. Pass class ids, "
            "for example the argmax over the classes."
        )
    return labels


def _checked_colors(colors):
    colors = np.asarray(colors)
    if colors.dtype != "uint8" or colors.ndim != 2 or colors.shape[1] != 3:
        raise ValueError(
            "`colors` must be uint8 of shape (num_classes, 3), but "
            f"{colors.dtype} of shape {colors.shape} was received. Pass one RGB color "
            "a class, such as a dataset's `.colors`."
        )
    return colors


def _rgb(image):
    image = np.asarray(image)
    if image.dtype != "uint8" or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            "A picture must be uint8 of shape (height, width, 3), but "
            f"{image.dtype} of shape {image.shape} was received. Convert it to "
            "8-bit RGB first."
        )
    return image


def _enlarged(image):
    image = Image.fromarray(_rgb(image))
    factor = -(-PANEL_WIDTH // image.width)  # rounded up
    size = (factor * image.width, factor * image.height)
    return image.resize(size, Image.Resampling.NEAREST)


def _font(titles, column):
    """Return the largest font up to 20 with which every title fits its column."""
    for size in range(20, 7, -1):
        font = ImageFont.load_default(size)
        if max(font.getlength(title) for title in titles) <= column:
            break
    return font
