"""What the arguments of several commands have in common."""

import argparse
from pathlib import Path

from keras_segadapter.cli.sources import LABELS
from keras_segadapter.data.layouts import LAYOUTS

STYLE = {
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}
DATA = """\
DATA is one of:
  a folder      with images and masks in the usual places (images/ and masks/, train/
                and trainannot/, a_image.png and a_mask.png, ...), or ADE20K,
                Cityscapes, Pascal VOC or COCO-Stuff as unpacked
  a .txt file   with a pair of files, or the name of an image, per line
  a .json file  with annotations in COCO's format
  tfds:NAME     a dataset of tensorflow-datasets, such as tfds:oxford_iiit_pet
  scenes        small built-in scenes, to try things out
"""


def add_command(commands, run, follows, result, description, epilog=None):
    """Add a command that is named as the function that runs it.

    Args:
        commands: What `ArgumentParser.add_subparsers` returns.
        run: Function of the arguments.
        follows: String. What follows the name on the command line.
        result: String. What the command makes.
        description: String, with examples.
        epilog: String, or None. What stands below the flags.

    Returns:
        The function that adds an argument.
    """
    parser = commands.add_parser(
        run.__name__,
        usage=f"segadapter {run.__name__} {follows} [flags]",
        help=result,
        description=description,
        epilog=epilog,
        **STYLE,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser.add_argument


def add_model(add, also=""):
    text = f"a .keras file, {also}or SegFormerB0:ade20k"
    add("model", type=Path, metavar="MODEL", help=text)


def add_data(add, channels="3"):
    add("data", metavar="DATA", help="images and masks; see below")
    add(
        "--layout",
        choices=[*LAYOUTS, "plain"],
        metavar="NAME",
        help=f"the dataset in the folder: {', '.join(LAYOUTS)}, or plain for none of "
        "them (default: recognized by its folders)",
    )
    add(
        "--images",
        metavar="PLACE",
        help="sub-folder or glob pattern of the images, where they are not found or "
        "not the right ones; of a .json file the folder of its images",
    )
    add("--masks", metavar="PLACE", help="the same for the masks")
    add(
        "--labels",
        metavar="LABELS",
        help="the classes: a .csv or .json file of names and of colors or ids, a .txt "
        f"file of names, or one of {', '.join(LABELS)} (default: a classes.csv, "
        "class_dict.csv, classes.json or classes.txt in the folder)",
    )
    add(
        "--classes",
        type=integer(2),
        metavar="K",
        help="number of classes, where masks hold the ids 0 to K - 1 (default: by the "
        "labels, else by the highest id)",
    )
    add(
        "--ignore",
        type=integer(0),
        nargs="*",
        metavar="ID",
        help="ids of void pixels; none if no ID follows (default: 255, or none with "
        "more than 255 classes)",
    )
    add(
        "--channels",
        type=integer(1),
        metavar="C",
        help="channels of the images: 3 for RGB, 1 for gray, 4 for RGBA, others for "
        f"multi-band TIFF and .npy files (default: {channels})",
    )
    add(
        "--resize-masks",
        action="store_true",
        help="resize masks to the size of their images (default: another size is a "
        "fault)",
    )


def add_size(add, text):
    add("--size", type=integer(1), nargs=2, metavar=("H", "W"), help=text)


def integer(least):
    """Return a function that reads an integer of at least this value."""

    def integer(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    return integer


def positive(text):
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return float(text)
