"""Where datasets keep their images and masks: files found and paired."""

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
    """The folders of a dataset, with `{}` for the split, and the suffixes of its files.

    An image and its mask have the same path below these folders, up to the suffix.

    Attributes:
        images: Folder of the images.
        image_suffixes: Suffixes that the names of images may have.
        masks: Folder of the masks.
        mask_suffixes: Suffixes that the names of masks may have.
        labels: `Labels` of the masks, or None if they are unknown.
        splits: Dict from our names of the splits to those in the folders.
        files: Glob pattern of the files in a folder.
        class_suffix: Suffix of masks that already hold classes.
        names: File that lists the images of a split, where folders hold all splits.
    """

    images: str
    image_suffixes: tuple
    masks: str
    mask_suffixes: tuple
    labels: Labels | None
    splits: dict = TRAIN_VAL
    files: str = "*"
    class_suffix: str | None = None
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
        files="*/*",  # one folder per city
        class_suffix="_gtFine_labelTrainIds.png",
    ),
    "coco_stuff": Layout(
        "images/{}2017",
        (".jpg",),
        "annotations/{}2017",
        (".png",),
        COCO_STUFF,
        class_suffix="_labelTrainIds.png",
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
    """Find the images of a split and the mask of each.

    Args:
        folder: Path of the folder.
        split: "train" or "val"; None for the layout "plain", which has no splits.
        layout: Name in `LAYOUTS`. Defaults to `None`: the one that fits the folder.

    Returns:
        The sorted paths of the images, the paths of the masks in the same order, and
        the `Labels` of the masks, or None if they are unknown.

    Raises:
        ValueError: If the folder does not have the layout, or if a file is missing.
    """
    folder = Path(folder)
    layout, split = _layout_and_split(folder, layout, split)
    image_folder = folder / layout.images.format(split)
    mask_folder = folder / layout.masks.format(split)
    images = _find_files(image_folder, layout.files, layout.image_suffixes)
    masks, labels = _find_masks(mask_folder, layout)
    _check_found(images, image_folder, "images", layout.image_suffixes)
    _check_found(masks, mask_folder, "masks", layout.mask_suffixes)
    if layout.names:
        names = folder / layout.names.format(split)
        images, masks = _select(names, images, masks)
    _check_partners(images, masks, mask_folder, "image", "mask")
    _check_partners(masks, images, image_folder, "mask", "image")
    keys = sorted(images, key=images.get)
    return [images[key] for key in keys], [masks[key] for key in keys], labels


def _layout_and_split(folder, layout, split):
    """Return the `Layout` and its own name of the split.

    Raises:
        ValueError: If the folder, the layout or the split does not exist.
    """
    if not folder.is_dir():
        raise ValueError(
            "`folder` must be the path of an existing folder of images and masks. "
            f"Received: folder={folder}"
        )
    if layout is None:
        layout = _detect(folder)
    elif layout not in LAYOUTS:
        raise ValueError(
            f"`layout` must be one of {list(LAYOUTS)}, or None to detect it. Received: "
            f"layout={layout!r}"
        )
    splits = LAYOUTS[layout].splits
    if split not in splits:
        raise ValueError(
            f"`split` must be {' or '.join(map(repr, splits))} for the layout "
            f"{layout!r}. Received: split={split!r}"
        )
    return LAYOUTS[layout], splits[split]


def _detect(folder):
    """Return the name of the only layout with a split whose folders exist.

    Raises:
        ValueError: If there is no such layout, or more than one.
    """
    fitting = {
        name
        for name, layout in LAYOUTS.items()
        for split in layout.splits.values()
        if (folder / layout.images.format(split)).is_dir()
        and (folder / layout.masks.format(split)).is_dir()
    }
    if len(fitting) == 1:
        return fitting.pop()
    known = [
        f"{name} ({layout.images} and {layout.masks})"
        for name, layout in LAYOUTS.items()
    ]
    raise ValueError(
        "`folder` must have the folders of exactly one layout. Pass `layout`, or "
        f"another folder. The layouts, with {{}} for the split: {', '.join(known)}. "
        f"Received: folder={folder}, which fits {sorted(fitting) or 'none'}"
    )


def _find_masks(folder, layout):
    """Return the masks by their path without suffix, and their `Labels`."""
    masks = _find_files(folder, layout.files, layout.mask_suffixes)
    if layout.class_suffix is None:
        return masks, layout.labels
    # Tools write these masks beside the original ones, which take precedence.
    ready = _find_files(folder, layout.files, (layout.class_suffix,))
    original = set(masks.values()) - set(ready.values())
    masks = {key: path for key, path in masks.items() if path in original}
    if masks or not ready:
        return masks, layout.labels
    return ready, dataclasses.replace(layout.labels, label_map=None)


def _find_files(folder, pattern, suffixes):
    """Return the files with these suffixes by their path without suffix.

    Raises:
        ValueError: If two files have the same name up to the suffix.
    """
    files = {}
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        suffix = next((s for s in suffixes if name.lower().endswith(s.lower())), None)
        # Some systems write hidden companions of the files, such as `._a.jpg`.
        if suffix is None or path.name.startswith("."):
            continue
        key = name[: -len(suffix)]
        if key in files:
            raise ValueError(
                "The names of two files must differ before the suffix, or images and "
                "masks cannot be paired. Rename or remove one of them. Received: "
                f"{files[key]} and {path}"
            )
        files[key] = path
    return files


def _check_found(files, folder, kind, suffixes):
    """Validate that a folder holds files.

    Raises:
        ValueError: If it does not.
    """
    if not files:
        fault = "holds none" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"No {kind} were found. Put them into files that end in "
            f"{' or '.join(suffixes)}. Received: folder {folder}, which {fault}"
        )


def _check_partners(files, others, folder, kind, partner):
    """Validate that each file has a partner of the same name.

    Raises:
        ValueError: If one does not.
    """
    lonely = [path for key, path in files.items() if key not in others]
    if lonely:
        raise ValueError(
            f"For each {kind}, {folder} must hold a {partner} of the same name. Add "
            f"the {partner} or remove the {kind}. Received: {min(lonely)} without its "
            f"{partner} ({len(lonely)} in total)"
        )


def _select(list_path, *kinds):
    """Return the files that a list names, for each kind of files.

    Raises:
        ValueError: If the list is missing or empty, or if it names a missing file.
    """
    if not list_path.is_file():
        raise ValueError(
            "The file that lists the images of the split does not exist. Put it there, "
            f"with one name per line. Received: {list_path}"
        )
    names = list_path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(
            "The file that lists the images of the split is empty. Write one name per "
            f"line. Received: {list_path}"
        )
    for files in kinds:
        missing = [name for name in names if name not in files]
        if missing:
            folder = next(iter(files.values())).parent
            raise ValueError(
                f"Each name in {list_path} must have a file in {folder}. Add the file "
                f"or remove the name. Received: {missing[0]} without a file "
                f"({len(missing)} in total)"
            )
    return [{name: files[name] for name in names} for files in kinds]
