"""`segadapter inspect`: what images and masks hold, before training."""

from keras_segadapter.cli.sources import inspect_source, kind_of
from keras_segadapter.data.pairing import find_splits


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
