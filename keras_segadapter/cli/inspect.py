"""`segadapter inspect`: what images and masks hold, before training."""

from pathlib import Path

from keras_segadapter.cli.arguments import DATA, add_command, add_data
from keras_segadapter.cli.sources import inspect_source, kind_of
from keras_segadapter.data.pairing import find_splits

DESCRIPTION = """\
Look at images and masks before training: how many there are, their sizes, the share of
each class, and the files that are faulty (the exit code is then 1).

  segadapter inspect FOLDER
  segadapter inspect FOLDER --split train --out overlays.png
"""


def add_inspect(commands):
    """Add the command `inspect`."""
    usage, result = "DATA", "what a folder holds, before training"
    add = add_command(commands, inspect, usage, result, DESCRIPTION, DATA)
    add_data(add)
    add("--split", help="train, val or test (default: each that is found)")
    add("--out", type=Path, metavar="PNG", help="write overlays of images and masks")


def inspect(args):
    """Print a report of each split, and return 1 if one of them has faults, else 0."""
    kind = kind_of(args.data)
    if kind in ("scenes", "tfds"):
        args.parser.error(f"inspect takes folders and files. Received: {args.data}")
    splits = [args.split]
    if args.split is None and kind == "folder":
        splits = find_splits(args.data, args.images, args.masks) or splits
    faulty = False
    for split in splits:
        report = inspect_source(args, args.data, split)
        print(f"{split or 'all'}: {report}\n")
        faulty = faulty or bool(report.faults)
        if args.out:
            part = f"_{split}" if len(splits) > 1 else ""
            args.out.parent.mkdir(parents=True, exist_ok=True)
            path = args.out.with_name(f"{args.out.stem}{part}{args.out.suffix}")
            print(f"wrote {report.picture(path)}")
    return int(faulty)
