"""One split of a dataset, from the folders that it is unpacked into."""

import os
from pathlib import Path

from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.labels import Labels
from keras_segadapter.data.layouts import LAYOUTS, detect_layout, find_in_layout
from keras_segadapter.data.pairing import find_pairs

_CLASS_FILES = (
    *("classes.csv", "class_dict.csv", "classes.json", "classes.txt"),
    "label_colors.txt",  # of CamVid
)


def open_folder(
    folder,
    split="train",
    *,
    layout=None,
    labels=None,
    images=None,
    masks=None,
    **options,
):
    """Open one split of the images and masks in a folder.

    Images and masks are found in the usual places: folders such as `images` and
    `masks`, `imgs` and `labels`, `JPEGImages` and `SegmentationClass`, `train` and
    `trainannot`; with or without folders `train`, `val` and `test` above or below; or
    all in one folder, with names such as `a.png` and `a_mask.png`. An image and its
    mask have the same name up to the suffix and to such endings.

    These datasets are recognized, and their labels are known:

    | layout | images | masks |
    |---|---|---|
    | `"ade20k"` | `images/training/*.jpg` | `annotations/training/*.png` |
    | `"cityscapes"` | `leftImg8bit/train/CITY/*_leftImg8bit.png` | \
`gtFine/train/CITY/*_gtFine_labelIds.png` |
    | `"coco_stuff"` | `images/train2017/*.jpg` | `annotations/train2017/*.png` |
    | `"pascal_voc"` | `JPEGImages/*.jpg` | `SegmentationClass/*.png` |

    Unpack COCO-Stuff's `stuffthingmaps` into `annotations/`, one folder per split.
    The splits of Pascal VOC are lists, such as `ImageSets/Segmentation/train.txt`.
    Masks of Cityscapes and COCO-Stuff that already hold classes,
    `*_labelTrainIds.png`, are used where the original ones are missing.

    A folder without splits is divided by names, and what is not obvious is printed in
    one line.

    Args:
        folder: Path of the folder, or of a text file with a pair of files, or the name
            of an image, per line. The first folders of such paths may be those of
            another machine.
        split: `"train"`, `"val"`, `"test"`, or None for all pairs. Without folders or
            lists of splits, `"train"` is the first 80 % of the sorted names and `"val"`
            the rest. Where there is no `"val"`, `"test"` replaces it. Defaults to
            `"train"`.
        layout: String, or None. One of the layouts above, or `"plain"` for the usual
            places and no labels. Defaults to `None`: the dataset is recognized by its
            folders.
        labels: `Labels`, or None. Defaults to `None`: `num_classes` if it is given,
            else a `classes.csv`, `class_dict.csv`, `classes.json`, `classes.txt` or
            `label_colors.txt` in the folder (see `Labels.from_file`), else the labels
            of the layout.
        images: String, or None. Sub-folder or glob pattern relative to the folder,
            where images are not found or not the right ones. Defaults to `None`.
        masks: The same for masks. Defaults to `None`.
        **options: As in `FolderDataset`.

    Returns:
        A `FolderDataset`.

    Raises:
        TypeError: As in `FolderDataset`.
        ValueError: As in `FolderDataset`; also if an image or a mask is missing, or if
            it is unclear what belongs together.

    Example:

    ```python
    from pathlib import Path
    import numpy as np
    from PIL import Image
    from keras_segadapter.data import open_folder

    for kind in ("images", "annotations"):
        Path(f"ade/{kind}/training").mkdir(parents=True, exist_ok=True)
    ids = np.array([[0, 1], [1, 150]], "uint8")  # other, wall, wall, flag
    Image.new("RGB", (2, 2)).save("ade/images/training/a.jpg")
    Image.fromarray(ids).save("ade/annotations/training/a.png")

    data = open_folder("ade", "train", batch_size=1)
    print(data.num_classes, data.class_names[149], data[0][1][0].tolist())
    # 150 flag [[255, 0], [0, 149]]
    ```
    """
    *pairs, labels = find_source(
        folder, split, layout, labels, options.get("num_classes"), images, masks
    )
    return FolderDataset(tuple(pairs), labels=labels, **options)


def find_source(folder, split, layout, labels, num_classes, images, masks):
    """Return images, masks and `Labels` as `open_folder` finds them.

    Raises:
        ValueError: As in `open_folder`.
    """
    if layout not in (None, "plain", *LAYOUTS):
        raise ValueError(
            f"`layout` must be one of {[*LAYOUTS, 'plain']}, or None to recognize it. "
            f"Received: layout={layout!r}"
        )
    detected, known = layout or "plain", None
    if layout is None and images is None and masks is None:
        detected = detect_layout(folder)
    if detected == "plain":
        paths = find_pairs(folder, split, images, masks)
    else:
        *paths, known = find_in_layout(folder, split, detected, images, masks)
    if labels is None and num_classes is None:
        labels = None if layout in LAYOUTS else _read_labels(Path(folder))
        if labels is None and layout is None and known is not None:
            print(f"{folder}: uses the {known.num_classes} classes of {detected}.")
        labels = labels or known
    return *paths, labels


def _read_labels(folder):
    """Return the `Labels` of a file of classes in a folder, or None without one."""
    folder = folder if folder.is_dir() else folder.parent
    for path in (folder / name for name in _CLASS_FILES):
        if os.path.lexists(path) and not os.path.isdir(path):
            labels = Labels.from_file(path)
            print(f"{folder}: uses the {labels.num_classes} classes of {path.name}.")
            return labels
    return None
