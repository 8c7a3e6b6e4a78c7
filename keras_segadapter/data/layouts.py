"""Where datasets keep their images and masks: the files in pairs."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from keras_segadapter.data.labels import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    PASCAL_VOC,
    Labels,
)

PICTURES = (".jpg", ".jpeg", ".png")
TRAIN_VAL = {"train": "train", "val": "val"}


class Layout(NamedTuple):
    """Folders of a dataset, `{}` in place of the split, and endings of its files.

    An image and its mask have the same path below these folders, up to the ending.

    Attributes:
        images: Folder of the images.
        image_endings: What the names of images may end in.
        masks: Folder of the masks.
        mask_endings: What the names of masks may end in.
        labels: `Labels` of the masks; `None` if they are not known.
        splits: Dictionary from our names of the splits to those in the folders.
        files: Pattern of the files in a folder.
        class_ending: What names of masks that already hold classes end in.
        names: File with the names of a split's images, where folders hold all.
    """

    images: str
    image_endings: tuple
    masks: str
    mask_endings: tuple
    labels: Labels | None
    splits: dict = TRAIN_VAL
    files: str = "*"
    class_ending: str | None = None
    names: str | None = None


LAYOUTS = {
    "ade20k": Layout(
        "images/{}",
        (".jpg",),
        "annotations/{}",
        (".png",),
        ADE20K,
        splits={"train": "training", "val": "validation"},
    ),
    "cityscapes": Layout(
        "leftImg8bit/{}",
        ("_leftImg8bit.png",),
        "gtFine/{}",
        ("_gtFine_labelIds.png",),
        CITYSCAPES,
        files="*/*",  # a folder for each city
        class_ending="_gtFine_labelTrainIds.png",
    ),
    "coco_stuff": Layout(
        "images/{}2017",
        (".jpg",),
        "annotations/{}2017",
        (".png",),
        COCO_STUFF,
        class_ending="_labelTrainIds.png",
    ),
    "pascal_voc": Layout(
        "JPEGImages",
        (".jpg",),
        "SegmentationClass",
        (".png",),
        PASCAL_VOC,
        names="ImageSets/Segmentation/{}.txt",
    ),
    "plain": Layout("images", PICTURES, "masks", PICTURES, None, splits={None: None}),
    "plain_splits": Layout("{}/images", PICTURES, "{}/masks", PICTURES, None),
}


def find_pairs(folder, split, layout=None):
    """Find the images of a split, and the mask of each.

    Args:
        folder: Path of the folder.
        split: "train" or "val"; `None` for the layout "plain", which has no splits.
        layout: Name in `LAYOUTS`; by default the one that fits the folder.

    Returns:
        The image paths, sorted, the mask paths in the same order, and the `Labels`
        of the masks, `None` if they are not known.

    Raises:
        ValueError: If the folder has not the layout, or a file is missing.
    """
    folder = Path(folder)
    layout, split = _layout_and_split(folder, layout, split)
    image_folder = folder / layout.images.format(split)
    mask_folder = folder / layout.masks.format(split)
    images = _find_files(image_folder, layout.files, layout.image_endings)
    masks, labels = _find_masks(mask_folder, layout)
    _check_found(images, image_folder, "images", layout.image_endings)
    _check_found(masks, mask_folder, "masks", layout.mask_endings)
    if layout.names:
        names = folder / layout.names.format(split)
        images, masks = _choose(names, images, masks)
    _check_partners(images, masks, mask_folder, "image", "mask")
    _check_partners(masks, images, image_folder, "mask", "image")
    keys = sorted(images, key=images.get)
    return [images[key] for key in keys], [masks[key] for key in keys], labels


def _layout_and_split(folder, layout, split):
    """Return the `Layout` and its own name of the split."""
    if not folder.is_dir():
        raise ValueError(
            f"The folder {folder} does not exist or is not a folder. Pass the path "
            "of a folder that holds images and masks."
        )
    if layout is None:
        layout = _recognise(folder)
    elif layout not in LAYOUTS:
        raise ValueError(
            f"`layout` must be one of {list(LAYOUTS)}, or None to look. Received: "
            f"layout={layout!r}"
        )
    splits = LAYOUTS[layout].splits
    if split not in splits:
        raise ValueError(
            f"`split` must be {' or '.join(map(repr, splits))} for the layout "
            f"{layout}. Received: split={split!r}"
        )
    return LAYOUTS[layout], splits[split]


def _recognise(folder):
    """Return the name of the only layout whose folders are there for a split."""
    fitting = {
        name
        for name, layout in LAYOUTS.items()
        for split in layout.splits.values()
        if (folder / layout.images.format(split)).is_dir()
        and (folder / layout.masks.format(split)).is_dir()
    }
    if len(fitting) == 1:
        return fitting.pop()
    found = f"fits several: {sorted(fitting)}" if fitting else "fits none"
    known = [
        f"{name} ({layout.images} and {layout.masks})"
        for name, layout in LAYOUTS.items()
    ]
    raise ValueError(
        f"The layout of {folder} cannot be told, it {found}. Pass `layout`, or another "
        f"folder. Known, with {{}} for the split: {', '.join(known)}."
    )


def _find_masks(folder, layout):
    """Return the masks by their path, less the ending, and their `Labels`."""
    masks = _find_files(folder, layout.files, layout.mask_endings)
    if layout.class_ending is None:
        return masks, layout.labels
    # Tools write these masks beside the original ones, which go first.
    ready = _find_files(folder, layout.files, (layout.class_ending,))
    original = set(masks.values()) - set(ready.values())
    masks = {key: path for key, path in masks.items() if path in original}
    if masks or not ready:
        return masks, layout.labels
    return ready, dataclasses.replace(layout.labels, label_map=None)


def _find_files(folder, pattern, endings):
    """Return the files with these endings by their path, less the ending."""
    files = {}
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        ending = next((e for e in endings if name.lower().endswith(e.lower())), None)
        # Some systems write hidden companions of the files, such as `._a.jpg`.
        if ending is None or path.name.startswith("."):
            continue
        key = name[: -len(ending)]
        if key in files:
            raise ValueError(
                f"The files {files[key]} and {path} have the same name up to the "
                "suffix, so images and masks cannot be paired. Rename or remove one "
                "of them."
            )
        files[key] = path
    return files


def _check_found(files, folder, kind, endings):
    if not files:
        fault = f"holds no {kind}" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"The folder {folder} {fault}. Put the {kind} there, in files that end in "
            f"{' or '.join(endings)}."
        )


def _check_partners(files, others, folder, kind, wanted):
    lonely = [path for key, path in files.items() if key not in others]
    if lonely:
        raise ValueError(
            f"The {kind} {min(lonely)} has no {wanted} of the same name in {folder} "
            f"({len(lonely)} such files in all). Add the {wanted} or remove the "
            f"{kind}."
        )


def _choose(list_path, *kinds):
    """Keep the files that a list names, of each kind."""
    if not list_path.is_file():
        raise ValueError(
            f"The file {list_path} does not exist. Put it there: it names the images "
            "of the split, one a line."
        )
    names = list_path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"The file {list_path} names no images. Put the names there.")
    for files in kinds:
        missing = [name for name in names if name not in files]
        if missing:
            folder = next(iter(files.values())).parent
            raise ValueError(
                f"The file {list_path} names {missing[0]}, but {folder} has no such "
                f"file ({len(missing)} such names in all). Add the file or take the "
                "name out."
            )
    return [{name: files[name] for name in names} for files in kinds]
