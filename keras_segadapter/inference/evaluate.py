"""evaluate_images: how good a segmenter's masks are, class by class."""

import dataclasses
import os
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_segadapter.validation import ignored_ids
from keras_segadapter.data.reading import read_image, read_mask
from keras_segadapter.inference.predict import check_view, predict_logits
from keras_segadapter.metrics import figures

WHITE, GREY, BLUE = np.array([[255] * 3, [225] * 3, [8, 48, 107]])


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """What `evaluate_images` found; printed, it is a table by class.

    All figures are shares from 0 to 1, in float64 from the exact counts. A class that
    does not occur has NaN and is left out of the means.

    Attributes:
        miou: Mean of `iou` (mIoU).
        mean_accuracy: Mean of `class_accuracy` (mAcc).
        accuracy: Share of all pixels that are right (aAcc).
        iou: Intersection over union by class, `(K,)`.
        class_accuracy: Share of a class' pixels that are right, `(K,)`.
        confusion: Counts of pixels, int64 `(K, K)`: rows are true classes, columns
            predicted.
        class_names: Tuple of K names.
        images: Number of images.

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
            f"{_percent(self.accuracy)} % of them right",
            f"{'class':<{width}}{'IoU, %':>10}{'accuracy, %':>14}{'pixels, %':>12}",
        ]
        lines += [
            f"{name:<{width}}{_percent(iou):>10}{_percent(accuracy):>14}"
            f"{_percent(share):>12}"
            for name, iou, accuracy, share in (*rows, mean)
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def picture(self, path):
        """Draw the confusion matrix as a PNG file.

        A row is a true class, a column a predicted one. The darker a cell, the larger
        its share of the row's pixels; up to 40 classes it is printed, in percent. Rows
        of classes that do not occur are grey.

        Args:
            path: Where to write the file.

        Returns:
            The `pathlib.Path` of the file.

        Example: see `evaluate_images`.
        """
        pixels = self.confusion.sum(axis=1, keepdims=True)  # (K, 1)
        shares = self.confusion / np.maximum(pixels, 1)  # (K, K)
        count = len(shares)
        cell = min(max(960 // count, 12), 40)
        sheet, margin = _names_on_two_sides(self.class_names, cell)
        colors = WHITE + shares[..., None] * (BLUE - WHITE)  # (K, K, 3)
        colors = np.where(pixels[..., None], np.round(colors), GREY).astype("uint8")
        cells = colors.repeat(cell, axis=0).repeat(cell, axis=1)
        sheet.paste(Image.fromarray(cells), (margin, margin))
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(0.4 * cell)
        for row, column in np.argwhere(shares >= 0.005) if count <= 40 else ():
            share = shares[row, column]
            x, y = margin + cell * (column + 0.5), margin + cell * (row + 0.5)
            ink = "white" if share > 0.5 else "black"
            draw.text((x, y), f"{100 * share:.0f}", ink, font, anchor="mm")
        sheet.save(path, "PNG")
        return Path(path)


def evaluate_images(
    model,
    pairs,
    *,
    ignore_class=255,
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
        pairs: Iterable of pairs (image, mask), `(H, W, C)` and `(H, W)` of class ids,
            as arrays or as two paths of files; or of batches `(B, H, W, C)` and
            `(B, H, W)`. A `FolderDataset` serves, with `batch_size=1` for images of
            mixed sizes; without `image_size`, which would resize the masks.
        ignore_class: Id of void pixels, several ids, or None. They are never counted.
        class_names: K names for the table and the picture. By default those
            of the dataset, or the ids.
        short_side: Pixels that the shorter side is resized to; None keeps the size.
        crop: Side of sliding windows; None for the whole image at once.
        stride: Pixels from a window to the next. By default two thirds of `crop`.
        scales: Factors on the size, for a prediction each.
        flip: Whether to predict the mirrored images as well.

    Returns:
        An `Evaluation` to be printed. It has `.miou`, `.mean_accuracy`, `.accuracy`,
        by class `.iou` and `.class_accuracy`, the counts `.confusion`, and
        `.picture(path)`.

    Raises:
        TypeError: If `model` is no `Segmenter`, `ignore_class` is neither None, an
            integer nor a list of integers, or `pairs` gives something else than pairs.
        ValueError: If an argument is not as described, there are no pairs, or one of
            them is faulty: a mask of another size than its image, or ids that are
            neither classes nor ignored. The sentence names the file or its number.

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

    Source: the tests in the paper's settings files; MMSegmentation's IoU metric.
    """
    check_view(model, short_side, crop, stride, scales)
    if class_names is None:
        class_names = getattr(pairs, "class_names", None)
    classes = model.num_classes
    names = _checked_names(class_names, classes)
    ignored = ignored_ids(ignore_class)
    # NumPy counts: on JAX every size of mask would compile anew.
    confusion, images = np.zeros((classes, classes), "int64"), 0
    for name, image, mask in _read(pairs, classes, ignored):
        try:
            logits = predict_logits(
                model,
                image,
                short_side=short_side,
                crop=crop,
                stride=stride,
                scales=scales,
                flip=flip,
            )
        except ValueError as error:
            raise ValueError(f"The image of {name} failed. {error}") from error
        labels = logits.argmax(axis=-1)  # (H, W)
        valid = ~np.isin(mask, ignored)
        cells = mask[valid].astype("int64") * classes + labels[valid]
        counts = np.bincount(cells, minlength=classes**2)
        confusion += counts.reshape(classes, classes)
        images += 1
    if not images:
        raise ValueError(
            "`pairs` gave no images. Pass pairs (image, mask); a generator or zip that "
            "was read before is empty."
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


def _checked_names(class_names, num_classes):
    names = range(num_classes) if class_names is None else class_names
    names = tuple(map(str, names))
    if len(names) != num_classes:
        raise ValueError(
            f"`class_names` must hold {num_classes} names, one a class of the model. "
            f"Received: {len(names)} names"
        )
    return names


def _read(pairs, num_classes, ignored):
    """Images `(H, W, C)` and masks `(H, W)` one by one, with the name of the pair."""
    if isinstance(pairs, keras.utils.PyDataset):
        # By its length: not every PyDataset says when it is through.
        pairs = map(pairs.__getitem__, range(len(pairs)))
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                "`pairs` must give pairs (image, mask), such as zip(images, masks). "
                f"Received: number {index} is a {type(pair).__name__}"
            )
        name, (image, mask) = f"pair {index}", pair
        if isinstance(image, (str, os.PathLike)):
            name += f" ({image}, {mask})"
            image, mask = read_image(image), read_mask(mask)
        image, mask = np.asarray(image), np.asarray(mask)
        mask = _checked_mask(name, image, mask, num_classes, ignored)
        if mask.ndim == 2:
            image, mask = image[None], mask[None]
        for one_image, one_mask in zip(image, mask, strict=True):
            yield name, one_image, one_mask


def _checked_mask(name, image, mask, num_classes, ignored):
    """The mask, or masks of a batch, without a last axis of 1."""
    if mask.shape == (*image.shape[:-1], 1):
        mask = mask[..., 0]
    if mask.ndim not in (2, 3) or mask.shape != image.shape[:-1]:
        raise ValueError(
            f"The mask of {name} must hold one class id a pixel, (height, width), at "
            f"the size of its image. Received: a mask of shape {mask.shape} for an "
            f"image of shape {image.shape}"
        )
    if mask.dtype.kind not in "iu":
        raise ValueError(
            f"The mask of {name} must hold class ids, integers. Received: dtype "
            f"{mask.dtype}"
        )
    ids = np.unique(mask).tolist()
    wrong = [i for i in ids if not 0 <= i < num_classes and i not in ignored]
    if wrong:
        raise ValueError(
            f"The mask of {name} holds ids outside the {num_classes} classes "
            f"0..{num_classes - 1}: {wrong[:10]} (ignored: {ignored or 'none'}). Map "
            "them to class ids, or add them to `ignore_class`."
        )
    return mask


def _percent(share):
    return "-" if np.isnan(share) else f"{100 * share:.2f}"


def _names_on_two_sides(names, cell):
    """A square white sheet with the rows' and columns' names, and its margin."""
    font = ImageFont.load_default(min(cell - 1, 14))
    margin = 12 + round(max(map(font.getlength, (*names, "predicted"))))
    side = margin + len(names) * cell
    middles = margin + cell * (np.arange(len(names)) + 0.5)
    sheet = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(sheet)
    for name, middle in zip(names, middles, strict=True):
        draw.text((margin - 6, side - middle), name, "black", font, anchor="rm")
    sheet = sheet.transpose(Image.Transpose.ROTATE_270)  # columns, read downwards
    draw = ImageDraw.Draw(sheet)
    for name, middle in zip(names, middles, strict=True):
        draw.text((margin - 6, middle), name, "black", font, anchor="rm")
    draw.text((margin - 6, 6), "predicted", "gray", font, anchor="rt")
    draw.text((6, margin - 6), "true", "gray", font, anchor="lb")
    return sheet, margin
