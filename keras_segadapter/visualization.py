"""Pictures of segmentation masks: colors, overlays and panels."""

import colorsys
import math
from pathlib import Path

import numpy as np

from keras_segadapter.validation import check_integer, check_number

LEGEND = 40  # classes that a legend names


def palette(num_classes):
    """Return colors for class ids, well separated for the first 256.

    A class has the same color however many classes there are. Black is left for void
    pixels.

    Args:
        num_classes: Integer of at least 1. Number of colors.

    Returns:
        RGB colors, uint8 `(num_classes, 3)`. Beyond 256 some may be alike.

    Raises:
        ValueError: If `num_classes` is not an integer of at least 1.

    Example:

    ```python
    from keras_segadapter.visualization import palette

    print(palette(8).shape)  # (8, 3)
    ```
    """
    colors = [
        # Steps of the golden ratio never come back to a hue. Saturation and brightness
        # separate the hues that come close.
        colorsys.hsv_to_rgb(
            (0.58 + i * 0.618034) % 1,
            (0.7, 0.9, 0.5)[i % 3],
            (0.95, 0.7, 0.85, 0.5, 0.75)[i % 5],
        )
        for i in range(check_integer("num_classes", num_classes))
    ]
    return np.round(np.array(colors) * 255).astype("uint8")


def colorize(labels, num_classes=None, colors=None):
    """Paint class ids in the colors of `palette` or of a dataset.

    Args:
        labels: Integer class ids `(H, W)`.
        num_classes: Integer of at least 1, or None. Number of classes with a color; all
            other ids are black. Defaults to `None`: every id from 0 to 65535 but 255,
            the usual id of void pixels, has a color.
        colors: RGB colors, uint8 `(num_classes, 3)`, such as a dataset's `.colors`, or
            None for those of `palette`. Defaults to `None`.

    Returns:
        An RGB image, uint8 `(H, W, 3)`.

    Raises:
        ValueError: If `labels` is not a 2D array of integers, `num_classes` is not
            an integer of at least 1, or `colors` are not as described.

    Example:

    ```python
    import numpy as np
    from keras_segadapter.visualization import colorize

    image = colorize(np.array([[0, 1], [2, 255]]))
    print(image[1, 1])  # [0 0 0]
    ```
    """
    table, rows = _table(labels, num_classes, colors)
    return table[rows]


def overlay(image, labels, alpha=0.5, colors=None):
    """Blend an image with the colors of its class ids.

    Pixels with an id that has no color show the image itself: ids beyond `colors`, or
    255 without them.

    Args:
        image: Image `(H, W, C)` or `(H, W)`, shown as `as_rgb` returns it.
        labels: Integer class ids `(H, W)`.
        alpha: Number from 0 (only the image) to 1 (only the colors). Weight of the
            colors. Defaults to `0.5`.
        colors: As in `colorize`. Defaults to `None`.

    Returns:
        An RGB image, uint8 `(H, W, 3)`.

    Raises:
        ValueError: If the image is not one, the sizes differ, `alpha` is outside 0 to
            1, or `colors` are not as described.

    Example:

    ```python
    from keras_segadapter.data import make_scenes
    from keras_segadapter.visualization import overlay

    images, masks = make_scenes(1)
    print(overlay(images[0], masks[0]).shape)  # (96, 96, 3)
    ```
    """
    image = as_rgb(image)
    table, rows = _table(labels, None, colors)
    if image.shape[:2] != rows.shape:
        raise ValueError(
            "`image` and `labels` must have one height and width. Resize one of them. "
            f"Received: image of shape {image.shape}, labels of shape {rows.shape}"
        )
    if check_number("alpha", alpha, least=0) > 1:
        raise ValueError(
            f"`alpha` must be a number from 0 to 1. Received: alpha={alpha!r}"
        )
    mixed = np.empty_like(image)
    for result, pixels, of_row in zip(mixed, image, rows, strict=True):  # (W, 3)
        shown = np.round((1 - alpha) * pixels + alpha * table[of_row])
        result[:] = np.where(of_row[:, None] < len(table) - 1, shown, pixels)
    return mixed


def as_rgb(image):
    """Return an image of any number of channels and range of values as RGB.

    One channel, or the first of two, is shown as gray, and the first three of more as
    red, green and blue. Values other than uint8 are rounded if they lie in 0..255 and
    some are above 1; others are scaled from the smallest to the largest.

    Args:
        image: Image `(H, W, C)` or `(H, W)`.

    Returns:
        An RGB image, uint8 `(H, W, 3)`.

    Raises:
        ValueError: If the image has another shape, or does not hold numbers.

    Example:

    ```python
    import numpy as np
    from keras_segadapter.visualization import as_rgb

    bands = np.random.rand(20, 30, 7)
    print(as_rgb(bands).shape)  # (20, 30, 3)
    ```
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or not image.size or image.dtype.kind not in "uifb":
        raise ValueError(
            "An image must hold numbers, of shape (height, width, channels) or "
            f"(height, width). Received: shape {image.shape} and dtype {image.dtype}"
        )
    image = np.atleast_3d(image)
    image = image[..., :3] if image.shape[-1] > 2 else image[..., :1]
    if image.dtype != "uint8":
        image = np.nan_to_num(image.astype("float32"), posinf=0, neginf=0)
        least, most = image.min(), image.max()
        if least < 0 or not 1 < most <= 255:
            image = (image - least) * (255 / ((most - least) or 1))
        image = np.round(image).astype("uint8")
    return image if image.shape[-1] == 3 else image.repeat(3, axis=-1)


def panels(rows, titles, path, class_names=None, colors=None):
    """Write rows of pictures with column titles, and a legend, to one PNG file.

    Each column is at least 240 pixels wide. Small pictures are enlarged with their
    pixels kept sharp, and none loses pixels.

    Args:
        rows: List of rows. A row is a list of RGB images, uint8 `(H, W, 3)`, of one
            size.
        titles: List of strings. One title per column.
        path: Path of the PNG file.
        class_names: List of names for a legend below the pictures, such as those of the
            classes that occur. After 40 it says how many more there are. Defaults to
            `None`: no legend, or the numbers of the `colors`.
        colors: RGB colors of the legend, uint8 `(len(class_names), 3)`. Defaults to
            `None`, for those of `palette`.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        ValueError: If there are no rows or titles, a row does not have one picture
            per title, the pictures of a row are not uint8 RGB of one size, or there is
            not one color per name.

    Example:

    ```python
    from keras_segadapter.data import SCENE_CLASSES, make_scenes
    from keras_segadapter.visualization import colorize, overlay, panels

    images, masks = make_scenes(2)
    rows = [[x, colorize(y), overlay(x, y)] for x, y in zip(images, masks)]
    panels(rows, ["image", "mask", "both"], "scenes.png", SCENE_CLASSES)
    ```
    """
    # The import takes half a second, which only those who draw should wait for. Without
    # pyplot, no backend is chosen and no figure is kept.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [[_rgb(image) for image in row] for row in rows]
    titles = [str(title) for title in titles]
    if not rows or not titles:
        raise ValueError(
            "There must be at least one row of pictures and one title. Received: "
            f"{len(rows)} rows and {len(titles)} titles"
        )
    for index, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(
                "Each row must have one picture per title. Received: "
                f"{len(row)} pictures in row {index} for {len(titles)} titles"
            )
        if len({image.shape for image in row}) > 1:
            raise ValueError(
                "The pictures of a row must have one size. Resize them first. "
                f"Received: shapes {[image.shape for image in row]} in row {index}"
            )
    legend = _legend(class_names, colors)
    # The figure has 100 pixels per inch. Its size leaves room for the gaps, so that no
    # picture is made smaller.
    heights = [row[0].shape[0] / row[0].shape[1] for row in rows]  # of width 1
    width = 1.05 * max(240, *(row[0].shape[1] for row in rows)) / 100
    body, head = sum(heights) * width, 0.15 * width
    # Letters are about 0.6 of the font size wide. An entry of the legend has 9 points
    # and room for its color and a gap.
    entry = 0.6 + 0.08 * max((len(label) for label, _ in legend), default=0)
    columns = max(int(len(titles) * width / entry), 1)
    foot = 0.21 * math.ceil(len(legend) / columns) + 0.1 * bool(legend)
    total = body + head + foot
    figure = Figure((len(titles) * width, total), dpi=100)
    axes = figure.subplots(
        len(rows),
        len(titles),
        squeeze=False,
        height_ratios=heights,
        subplot_kw={"xticks": [], "yticks": [], "frame_on": False},
    )
    figure.subplots_adjust(
        0, foot / total, 1, (foot + body) / total, wspace=0.05, hspace=0.05
    )
    if legend:
        figure.legend(
            [Patch(facecolor=color, linewidth=0) for _, color in legend],
            [label for label, _ in legend],
            loc="lower center",
            ncols=min(columns, len(legend)),
            fontsize=9,
            frameon=False,
            borderaxespad=0,
        )
    for cells, row in zip(axes, rows, strict=True):
        for cell, image in zip(cells, row, strict=True):
            cell.imshow(image, interpolation="nearest")
    for cell, title in zip(axes[0], titles, strict=True):
        # Long titles get a small font.
        cell.set_title(title, fontsize=115 * width / max(24, *map(len, titles)))
    figure.savefig(path, format="png")
    return Path(path)


def _table(labels, num_classes, colors):
    """Return colors `(N, 3)`, the last one black, and the row of each id `(H, W)`.

    Raises:
        ValueError: If the ids or the colors are not as `colorize` takes them.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be integer class ids of shape (height, width), for example "
            "the argmax over the classes. Received: labels of shape "
            f"{labels.shape} and dtype {labels.dtype}"
        )
    known = labels >= 0
    if colors is None and num_classes is None:
        known &= labels != 255
        num_classes = min(int(labels.max(initial=0)) + 1, 65536)
    if colors is None:
        colors = palette(num_classes)
    colors = np.asarray(colors)
    if colors.dtype != "uint8" or colors.ndim != 2 or colors.shape[1] != 3:
        raise ValueError(
            "`colors` must be RGB, uint8 of shape (num_classes, 3), such as a "
            f"dataset's `.colors`. Received: colors of shape {colors.shape} and dtype "
            f"{colors.dtype}"
        )
    known &= labels < len(colors)
    rows = np.where(known, labels, 0).astype("int32")
    rows[~known] = len(colors)
    return np.concatenate([colors, np.zeros((1, 3), "uint8")]), rows


def _legend(class_names, colors):
    """Return a list of labels and their colors in 0..1, shortened if it is long.

    Raises:
        ValueError: If there is not one color per name.
    """
    if class_names is None:
        class_names = range(0 if colors is None else len(colors))
    names = [str(name) for name in class_names]
    if colors is None:
        colors = palette(len(names) or 1)[: len(names)]
    if np.shape(colors) != (len(names), 3):
        raise ValueError(
            "`colors` must hold one RGB color per name, uint8 of shape "
            f"({len(names)}, 3). Received: colors of shape {np.shape(colors)}, "
            f"class_names={class_names!r}"
        )
    legend = [
        (name, tuple(np.array(color) / 255))
        for name, color in zip(names[:LEGEND], colors, strict=False)
    ]
    if len(names) > LEGEND:
        legend.append((f"and {len(names) - LEGEND} more", "none"))
    return legend


def _rgb(image):
    """Return a picture as an array, checked to be RGB.

    Raises:
        ValueError: If it is not uint8 of shape `(H, W, 3)`.
    """
    image = np.asarray(image)
    if image.dtype != "uint8" or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            "Pictures must be RGB, uint8 of shape (height, width, 3). Received: shape "
            f"{image.shape} and dtype {image.dtype}"
        )
    return image
