"""evaluate_images: how good a segmenter's masks are, class by class."""

import dataclasses
import os
from pathlib import Path

import keras
import numpy as np

from keras_segadapter.data.folders import reading
from keras_segadapter.data.reading import read_image, read_mask
from keras_segadapter.inference.predict import (
    as_array,
    check_view,
    checked_image,
    view_rows,
)
from keras_segadapter.metrics import figures
from keras_segadapter.validation import (
    check_names_and_colors,
    check_segmenter,
    ignored_ids,
)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """The result of `evaluate_images`, which prints as a table by class.

    Figures are shares from 0 to 1, in float64 from exact counts. A class that does not
    occur has NaN and is left out of the means.

    Attributes:
        miou: Float. Mean of `iou` (mIoU).
        mean_accuracy: Float. Mean of `class_accuracy` (mAcc).
        accuracy: Float. Share of all pixels that are right (aAcc).
        iou: Array `(K,)`. Intersection over union by class.
        class_accuracy: Array `(K,)`. Share of the class's pixels that are right.
        confusion: int64 array `(K, K)`. Counts of pixels: rows are true classes,
            columns predicted.
        class_names: Tuple of K names.
        images: Integer. Number of images.

    Example: see `evaluate_images`.
    """

    miou: float
    mean_accuracy: float
    accuracy: float
    iou: np.ndarray
    class_accuracy: np.ndarray
    confusion: np.ndarray
    class_names: tuple
    images: int

    def __str__(self):
        width = max(map(len, (*self.class_names, "mean"))) + 2
        pixels = self.confusion.sum(axis=1)
        shares = pixels / max(pixels.sum(), 1)
        rows = zip(self.class_names, self.iou, self.class_accuracy, shares, strict=True)
        mean = ("mean", self.miou, self.mean_accuracy, shares.sum())
        lines = [
            f"{self.images} images, {pixels.sum():,} pixels, "
            f"{percent(self.accuracy)} % of them right",
            f"{'class':<{width}}{'IoU, %':>10}{'accuracy, %':>14}{'pixels, %':>12}",
        ]
        lines += [
            f"{name:<{width}}{percent(iou):>10}{percent(accuracy):>14}"
            f"{percent(share):>12}"
            for name, iou, accuracy, share in (*rows, mean)
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def picture(self, path):
        """Draw the confusion matrix as a PNG file.

        Rows are true classes, columns predicted ones. The darker a cell, the larger its
        share of the row's pixels; up to 40 classes the share is printed, in percent.
        Rows of classes that do not occur are gray.

        Args:
            path: Path of the file to write.

        Returns:
            The `pathlib.Path` of the file.

        Example: see `evaluate_images`.
        """
        _confusion_figure(self.confusion, self.class_names).savefig(path, format="png")
        return Path(path)


def evaluate_images(
    model,
    pairs,
    *,
    ignore_class="auto",
    class_names=None,
    short_side=None,
    crop=None,
    stride=None,
    scales=(1.0,),
    flip=False,
):
    """Measure a segmenter on images and masks of any sizes, class by class.

    Images are predicted one by one, as `predict_logits` does, and counted at the size
    of their masks: the figures are MMSegmentation's mIoU, mAcc and aAcc. The paper's
    tests are `short_side=512` (ADE20K), with `crop=512, stride=341` for ConvNeXt-S and
    -B, and `crop=1024, stride=768` (Cityscapes).

    Args:
        model: A `Segmenter`.
        pairs: Iterable of pairs of an image `(H, W, C)` and a mask `(H, W)` of class
            ids, as arrays, Pillow images or paths of files; or of pairs of batches
            `(B, H, W, C)` and `(B, H, W)`. A `FolderDataset` works too, without
            `image_size`, which would resize the masks, and with `batch_size=1` if sizes
            differ.
        ignore_class: Integer, list of integers, or None. Ids of void pixels, which are
            not counted. Defaults to `"auto"`: 255 where there are at most 255 classes,
            none above.
        class_names: List of K strings. Names for the table and the picture. Defaults to
            the `class_names` of `pairs`, else of the model, else to the ids.
        short_side: As in `predict_logits`. Defaults to `None`.
        crop: As in `predict_logits`. Defaults to `None`.
        stride: As in `predict_logits`. Defaults to `None`.
        scales: As in `predict_logits`. Defaults to `(1.0,)`.
        flip: As in `predict_logits`. Defaults to `False`.

    Returns:
        An `Evaluation` to print, with `.miou`, `.mean_accuracy`, `.accuracy`, by class
        `.iou` and `.class_accuracy`, the counts `.confusion`, and `.picture(path)`.

    Raises:
        TypeError: If `model` is not a `Segmenter`, if `ignore_class` is neither None,
            "auto", an integer nor a list of integers, or if `pairs` yields anything but
            pairs.
        ValueError: If an argument is not as described, if there are no pairs, or if a
            pair is faulty: its mask differs in size from the image, or holds ids that
            are neither classes nor ignored. The message names the pair.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=8)
    images, masks = ksa.data.make_scenes(4)
    evaluation = ksa.evaluate_images(model, zip(images, masks))
    print(evaluation)  # a table by class
    evaluation.picture("confusion.png")
    ```

    Source: the tests in the paper's configuration files; MMSegmentation's IoU metric.
    """
    check_segmenter(model, "evaluate_images")
    stride = check_view(model, short_side, crop, stride, scales)
    if class_names is None:
        class_names = getattr(pairs, "class_names", None) or model.class_names
    classes = model.num_classes
    check_names_and_colors(classes, class_names)
    names = tuple(class_names or map(str, range(classes)))
    ignored = ignored_ids(ignore_class, classes)
    # Counted in NumPy: JAX would compile again for each size of mask.
    confusion, images = np.zeros((classes, classes), "int64"), 0
    with reading(pairs):
        for name, image, mask in _read(model, pairs, ignored):
            try:
                image = checked_image(model, image, "evaluate_images")
            except ValueError as error:
                words = f"The image of {name} can't be used. {error}"
                raise ValueError(words) from error
            rows = view_rows(model, image, short_side, crop, stride, scales, flip)
            labels = np.stack([row.argmax(axis=-1) for row in rows])  # (H, W)
            valid = ~np.isin(mask, ignored)
            cells = mask[valid].astype("int64") * classes + labels[valid]
            counts = np.bincount(cells, minlength=classes**2)
            confusion += counts.reshape(classes, classes)
            images += 1
    if not images:
        raise ValueError(
            "`pairs` must yield at least one pair (image, mask). A generator or zip "
            "that was read before is empty. Received: no pairs"
        )
    report = figures(confusion)
    return Evaluation(
        miou=report["mIoU"],
        mean_accuracy=report["mAcc"],
        accuracy=report["aAcc"],
        iou=report["IoU"],
        class_accuracy=report["Acc"],
        confusion=confusion,
        class_names=names,
        images=images,
    )


def _read(model, pairs, ignored):
    """Yield a name for errors, an image `(H, W, C)` and a mask `(H, W)` at a time."""
    if isinstance(pairs, keras.utils.PyDataset):
        # By its length, since iteration need not end with the epoch.
        pairs = map(pairs.__getitem__, range(len(pairs)))
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                "`pairs` must yield pairs (image, mask), as zip(images, masks) does. "
                f"Received: item {index} of type {type(pair).__name__}"
            )
        name, (image, mask) = f"pair {index}", pair
        if isinstance(image, (str, os.PathLike)):
            name += f" ({image}, {mask})"
            image, mask = read_image(image, model.input_shape[-1]), read_mask(mask)
        image, mask = as_array(model, image), np.asarray(mask)
        mask = _checked_mask(name, image, mask, model.num_classes, ignored)
        if mask.ndim == 2:
            image, mask = image[None], mask[None]
        for one_image, one_mask in zip(image, mask, strict=True):
            yield name, one_image, one_mask


def _checked_mask(name, image, mask, num_classes, ignored):
    """Return a mask, or a batch of masks, without a last axis of length 1."""
    if mask.shape == (*image.shape[:-1], 1):
        mask = mask[..., 0]
    if mask.ndim not in (2, 3) or mask.shape != image.shape[:-1]:
        raise ValueError(
            f"The mask of {name} must hold one class id per pixel, (height, width), at "
            "the size of its image. For masks of colors pass a FolderDataset with "
            f"`labels`. Received: mask of shape {mask.shape} for an image of shape "
            f"{image.shape}"
        )
    if mask.dtype.kind not in "iu":
        raise ValueError(
            f"The mask of {name} must hold integer class ids. Received: mask of dtype "
            f"{mask.dtype}"
        )
    ids = np.unique(mask).tolist()
    wrong = [i for i in ids if not 0 <= i < num_classes and i not in ignored]
    if wrong:
        raise ValueError(
            f"The mask of {name} must hold ids of the {num_classes} classes, 0.."
            f"{num_classes - 1}, or ignored ones. Map others to classes, or add them "
            f"to `ignore_class`. Received: ids {wrong[:10]}, ignore_class={ignored}"
        )
    return mask


def _confusion_figure(confusion, class_names):
    """Draw the shares of each row's pixels and return the figure."""
    # The import takes half a second, which only those who draw should wait for.
    from matplotlib.figure import Figure

    pixels = confusion.sum(axis=1, keepdims=True)  # (K, 1)
    shares = np.ma.array(confusion / np.maximum(pixels, 1))  # (K, K)
    shares[pixels[:, 0] == 0] = np.ma.masked
    count = len(shares)
    cell, font_size = (0.4, 9) if count <= 40 else (0.15, 6)  # inches and points
    figure = Figure([2 + cell * count] * 2, layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true", facecolor="0.88")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), class_names, rotation=90, fontsize=font_size)
    axes.set_yticks(range(count), class_names, fontsize=font_size)
    for row, column in np.argwhere(shares.filled(0) >= 0.005) if count <= 40 else ():
        share = shares[row, column]
        ink = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{100 * share:.0f}", c=ink, ha="center", va="center")
    return figure


def percent(share):
    """Return a share in percent, or "-" for NaN."""
    return "-" if np.isnan(share) else f"{100 * share:.2f}"
