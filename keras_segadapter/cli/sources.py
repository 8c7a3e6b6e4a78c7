"""What DATA on the command line stands for, and how it is opened."""

import contextlib
import io
from pathlib import Path

import keras_segadapter as ksa
from keras_segadapter.data.opening import find_source
from keras_segadapter.data.pairing import divide
from keras_segadapter.data.tfds import KNOWN

LABELS = {
    name.lower(): value
    for name, value in vars(ksa.data).items()
    if isinstance(value, ksa.data.Labels)
}
_TRAINING = 400  # of 480 built-in scenes

# Flags without effect on a kind of DATA.
_FILES = ("layout", "images", "masks", "channels", "resize_masks", "processes")
_WITHOUT_EFFECT = {
    "scenes": ("split", "val", "labels", "classes", "crop", "augment", *_FILES),
    "tfds": _FILES,
    "list": ("layout",),
    "coco": ("layout", "masks", "labels", "classes"),
    "folder": (),
}


def kind_of(data):
    """Return what DATA is: "scenes", "tfds", "list", "coco" or "folder"."""
    if data == "scenes" or data.startswith("tfds:"):
        return data.partition(":")[0]
    suffix = Path(data).suffix.lower()
    lists = dict.fromkeys((".txt", ".csv", ".tsv", ".lst"), "list")
    return (lists | {".json": "coco"}).get(suffix, "folder")


def is_tfds(data):
    return kind_of(data) == "tfds"


def check_sources(args):
    """Exit with an error if DATA does not exist, or if a flag has no effect on it."""
    error, kind = args.parser.error, kind_of(args.data)
    for data in filter(None, (args.data, getattr(args, "val", None))):
        if kind_of(data) not in ("scenes", "tfds") and not Path(data).exists():
            error(f"There is no file or folder '{data}'.")
    if kind == "scenes" and Path(args.data).is_dir():
        error("'scenes' are built in. For the folder of this name, write ./scenes.")
    for flag in _WITHOUT_EFFECT[kind]:
        # `evaluate` has a --crop of its own, the side of windows.
        windows = flag == "crop" and args.command == "evaluate"
        if getattr(args, flag, None) not in (None, False) and not windows:
            written = flag.replace("_", "-")
            error(f"--{written} has no effect on {args.data}. Leave it out.")
    if getattr(args, "val", None) == "scenes":
        error("--val can't be the built-in scenes. Pass a folder or a file.")
    if args.labels is not None and args.classes is not None:
        error("--labels says how many classes there are. Leave --classes out.")
    if args.labels not in (None, *LABELS) and not Path(args.labels).is_file():
        error(
            f"--labels must be a file or one of {', '.join(LABELS)}. Received: "
            f"--labels {args.labels}"
        )


def inspect_source(args, data, split):
    """Return the report of what one split of a folder, list or COCO file holds."""
    if kind_of(data) == "coco":
        return ksa.data.inspect_folder(open_source(args, data, split))
    return ksa.data.inspect_folder(data, split, **_places(args), **_options(args))


def has_classes(args, data, split):
    """Return whether flags or the data say what the classes are.

    What is found in a folder is printed, as by `open_folder`.
    """
    kind = kind_of(data)
    if kind == "tfds":
        known = data.removeprefix("tfds:").split("/")[0].split(":")[0] in KNOWN
    elif kind == "coco":
        known = True
    else:
        given = {"labels": args.labels, "num_classes": args.classes}
        known = find_source(data, split, **given, **_places(args))[-1] is not None
    return known or args.labels is not None or args.classes is not None


def open_source(args, data, split, **options):
    """Open one split of DATA as batches of images and masks.

    Args:
        args: The arguments of the command.
        data: String. A folder, a file or `tfds:NAME`.
        split: String, or None for all of it.
        **options: As in `FolderDataset`.

    Returns:
        A `FolderDataset` or `tf.data.Dataset`.
    """
    options, kind = {**_options(args), **options}, kind_of(data)
    if kind == "tfds":
        del options["channels"], options["resize_masks"]
        return ksa.data.open_tfds(data.removeprefix("tfds:"), split, **options)
    if kind == "coco":
        del options["num_classes"], options["labels"]
        whole = ksa.data.open_coco(data, args.images, **options)
        if split is None:
            return whole
        pairs = zip(whole.image_paths, whole.mask_paths, strict=True)
        source = tuple(zip(*divide(pairs, split, data), strict=True))
        return ksa.data.FolderDataset(source, labels=whole.labels, **options)
    # The inspection has said what was found.
    with contextlib.redirect_stdout(io.StringIO()):
        return ksa.data.open_folder(data, split, **_places(args), **options)


def scenes(size=None, seed=0):
    """Return built-in images and masks for training, and those for validation."""
    images, masks = ksa.data.make_scenes(480, size=size or (96, 96), seed=seed)
    parts = slice(_TRAINING), slice(_TRAINING, None)
    return [(images[part], masks[part]) for part in parts]


def _places(args):
    """Return the arguments of `open_folder` that say where files are."""
    return {"layout": args.layout, "images": args.images, "masks": args.masks}


def _options(args):
    """Return the arguments of `FolderDataset` that say how files are read."""
    labels = args.labels
    if labels is not None:
        labels = LABELS.get(labels) or ksa.data.Labels.from_file(labels)
    return {
        "num_classes": args.classes,
        "labels": labels,
        "ignore_class": "auto" if args.ignore is None else args.ignore,
        "channels": args.channels or 3,
        "resize_masks": args.resize_masks,
    }
