"""Pictures of segmentation masks: colors, overlays and panels."""

import colorsys
from pathlib import Path

import numpy as np

from keras_segadapter.validation import check_integer


def palette(num_classes):
    """Return well-separated colors for class ids.

    A class has the same color however many classes there are. Black is left for void
    pixels.

    Args:
        num_classes: Integer from 1 to 256. Number of colors.

    Returns:
        RGB colors, uint8 `(num_classes, 3)`.

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
            "`num_classes` must be at most 256, the number of colors. Received: "
            f"num_classes={num_classes}"
        )
    colors = [
        # Steps of the golden ratio never come back to a hue. Saturation and brightness
        # separate the hues that come close.
        colorsys.hsv_to_rgb(
            (0.58 + i * 0.618034) % 1,
            (0.7, 0.9, 0.5)[i % 3],
            (0.95, 0.7, 0.85, 0.5, 0.75)[i % 5],
        )
        for i in range(num_classes)
    ]
    return np.round(np.array(colors) * 255).astype("uint8")


def colorize(labels, num_classes=None, colors=None):
    """Paint class ids in the colors of `palette` or of a dataset.

    Args:
        labels: Integer class ids `(H, W)`.
        num_classes: Integer from 1 to 256, or None. Number of classes with a color; all
            other ids are black. Defaults to `None`: every id but 255, the usual id of
            void pixels, has a color.
        colors: RGB colors, uint8 `(num_classes, 3)`, such as a dataset's `.colors`, or
            None for those of `palette`. Defaults to `None`.

    Returns:
        An RGB image, uint8 `(H, W, 3)`.

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
    return _paint(labels, num_classes, colors)[0]


def overlay(image, labels, alpha=0.5, colors=None):
    """Blend an image with the colors of its class ids.

    Pixels with an id that has no color, such as 255, show the image itself.

    Args:
        image: RGB image, uint8 `(H, W, 3)`.
        labels: Integer class ids `(H, W)`.
        alpha: Number from 0 (only the image) to 1 (only the colors). Weight of the
            colors. Defaults to `0.5`.
        colors: As in `colorize`. Defaults to `None`.

    Returns:
        An RGB image, uint8 `(H, W, 3)`.

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
    image = _rgb(image)
    painted, known = _paint(labels, None, colors)
    if image.shape != painted.shape:
        raise ValueError(
            "`image` and `labels` must have one height and width. Resize one of them. "
            f"Received: image of shape {image.shape}, labels of shape {known.shape}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"`alpha` must be a number from 0 to 1. Received: alpha={alpha!r}"
        )
    mixed = np.round((1 - alpha) * image + alpha * painted).astype("uint8")
    return np.where(known[..., None], mixed, image)


def panels(rows, titles, path):
    """Write rows of pictures with column titles to one PNG file.

    Each column is at least 240 pixels wide. Small pictures are enlarged with their
    pixels kept sharp, and none loses pixels.

    Args:
        rows: List of rows. A row is a list of RGB images, uint8 `(H, W, 3)`, of one
            size.
        titles: List of strings. One title per column.
        path: Path of the PNG file.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        ValueError: If there are no rows or titles, a row does not have one picture
            per title, or the pictures of a row are not uint8 RGB of one size.

    Example:

    ```python
    from keras_segadapter.data import make_scenes
    from keras_segadapter.visualization import colorize, overlay, panels

    images, masks = make_scenes(2)
    rows = [[x, colorize(y), overlay(x, y)] for x, y in zip(images, masks)]
    panels(rows, ["image", "mask", "both"], "scenes.png")
    ```
    """
    # The import takes half a second, which only those who draw should wait for. Without
    # pyplot, no backend is chosen and no figure is kept.
    from matplotlib.figure import Figure

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
    # The figure has 100 pixels per inch. Its size leaves room for the gaps, so that no
    # picture is made smaller.
    heights = [row[0].shape[0] / row[0].shape[1] for row in rows]  # of width 1
    width = 1.05 * max(240, *(row[0].shape[1] for row in rows)) / 100
    body, head = sum(heights) * width, 0.15 * width
    figure = Figure((len(titles) * width, body + head), dpi=100)
    axes = figure.subplots(
        len(rows),
        len(titles),
        squeeze=False,
        height_ratios=heights,
        subplot_kw={"xticks": [], "yticks": [], "frame_on": False},
    )
    figure.subplots_adjust(0, 0, 1, body / (body + head), wspace=0.05, hspace=0.05)
    for cells, row in zip(axes, rows, strict=True):
        for cell, image in zip(cells, row, strict=True):
            cell.imshow(image, interpolation="nearest")
    for cell, title in zip(axes[0], titles, strict=True):
        # Letters are about 0.6 of the font size wide, so long titles get a small one.
        cell.set_title(title, fontsize=115 * width / max(24, *map(len, titles)))
    figure.savefig(path, format="png")
    return Path(path)


def _paint(labels, num_classes, colors):
    """Return class ids in their colors `(H, W, 3)`, and where they have one `(H, W)`.

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
    if colors is None:
        colors = palette(255 if num_classes is None else num_classes)
    colors = np.asarray(colors)
    if colors.dtype != "uint8" or colors.ndim != 2 or colors.shape[1] != 3:
        raise ValueError(
            "`colors` must be RGB, uint8 of shape (num_classes, 3), such as a "
            f"dataset's `.colors`. Received: colors of shape {colors.shape} and dtype "
            f"{colors.dtype}"
        )
    known = (labels >= 0) & (labels < len(colors))
    painted = np.where(known[..., None], colors[np.where(known, labels, 0)], 0)
    return painted.astype("uint8"), known


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
