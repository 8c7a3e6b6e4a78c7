"""Where well-known datasets keep their images and masks, and their labels."""

import dataclasses
from typing import NamedTuple

from keras_segadapter.data.disk import as_path
from keras_segadapter.data.labels import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    PASCAL_VOC,
    Labels,
)
from keras_segadapter.data.pairing import find_pairs


class Layout(NamedTuple):
    """The folders of a dataset, with `{}` for the split, and its labels.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        labels: `Labels` of the masks.
        splits: Dict from our names of the splits to those in the folders.
        originals: Glob pattern of the original masks in a folder that holds other
            pictures too, or None.
        ready: Glob pattern of masks that already hold classes, or None.
        names: File that lists the images of a split, where folders hold all splits.
    """

    images: str
    masks: str
    labels: Labels
    splits: dict
    originals: str | None = None
    ready: str | None = None
    names: str | None = None


LAYOUTS = {
    "ade20k": Layout(
        "images/{}",
        "annotations/{}",
        ADE20K,
        {"train": "training", "val": "validation"},
    ),
    "cityscapes": Layout(
        "leftImg8bit/{}",
        "gtFine/{}",
        CITYSCAPES,
        {"train": "train", "val": "val"},
        originals="*/*_gtFine_labelIds.png",  # one folder per city
        ready="*/*_gtFine_labelTrainIds.png",
    ),
    "coco_stuff": Layout(
        "images/{}",
        "annotations/{}",
        COCO_STUFF,
        {"train": "train2017", "val": "val2017"},
        originals="*[0-9].png",
        ready="*_labelTrainIds.png",
    ),
    "pascal_voc": Layout(
        "JPEGImages",
        "SegmentationClass",
        PASCAL_VOC,
        {"train": "train", "val": "val"},
        names="ImageSets/Segmentation/{}.txt",
    ),
}


def find_in_layout(folder, split, layout, images=None, masks=None):
    """Find the images of a split in a dataset's layout, the masks and their labels.

    Args:
        folder: Path of the folder.
        split: As in `find_pairs`.
        layout: Name in `LAYOUTS`.
        images: As in `find_pairs`. Defaults to `None`: where the layout has them.
        masks: As in `find_pairs`. Defaults to `None`: where the layout has them.

    Returns:
        The paths of the images, the paths of the masks in the same order, and the
        `Labels`.

    Raises:
        ValueError: As in `find_pairs`.
    """
    folder, known = as_path("folder", folder), LAYOUTS[layout]
    labels = known.labels
    if masks is None:
        masks = known.masks.removesuffix("/{}")
        if known.originals:
            # Tools write ready masks beside the original ones, which take precedence.
            place = known.masks.format(known.splits.get(split, "*"))
            masks, ready = f"{place}/{known.originals}", f"{place}/{known.ready}"
            if not any(folder.glob(masks)) and any(folder.glob(ready)):
                masks, labels = ready, dataclasses.replace(labels, label_map=None)
    images = images or known.images.removesuffix("/{}")
    return *find_pairs(folder, split, images, masks), labels


def detect_layout(folder):
    """Return the name of the layout whose folders exist for a split, or "plain".

    Raises:
        ValueError: If more than one fits.
    """
    folder = as_path("folder", folder)
    fitting = {
        name
        for name, layout in LAYOUTS.items()
        for split in layout.splits.values()
        if (folder / layout.images.format(split)).is_dir()
        and (folder / layout.masks.format(split)).is_dir()
        and (not layout.names or (folder / layout.names.format(split)).is_file())
    }
    if len(fitting) > 1:
        raise ValueError(
            "`folder` must not fit several datasets. Pass `layout`, or another folder. "
            f"Received: folder={folder}, which fits {sorted(fitting)}"
        )
    return fitting.pop() if fitting else "plain"
