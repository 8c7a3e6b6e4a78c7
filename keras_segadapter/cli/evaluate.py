"""`segadapter evaluate`: how good a model's masks are, class by class."""

from pathlib import Path

import keras_segadapter as ksa
from keras_segadapter.cli.arguments import (
    DATA,
    add_command,
    add_data,
    add_model,
    add_size,
    integer,
    positive,
)
from keras_segadapter.cli.models import load_segmenter
from keras_segadapter.cli.sources import (
    has_classes,
    is_tfds,
    open_source,
    scenes,
)

DESCRIPTION = """\
Measure a model on images and masks of any sizes: IoU and accuracy of each class and
their means, counted as MMSegmentation does.

  segadapter evaluate runs/FOLDER/best.keras FOLDER
  segadapter evaluate best.keras CITYSCAPES --crop 1024 --stride 768 --flip
"""


def add_evaluate(commands):
    """Add the command `evaluate`."""
    usage, result = "MODEL DATA", "how good a model's masks are, class by class"
    add = add_command(commands, evaluate, usage, result, DESCRIPTION, DATA)
    add_model(add)
    add_data(add, channels="those of the model")
    add("--split", help="the split to measure on (default: val; of tfds:NAME test)")
    add_size(
        add,
        "resize images and masks to this height and width, as tfds:NAME needs "
        "(default: as they are)",
    )
    add(
        "--short-side",
        type=integer(1),
        metavar="PIXELS",
        help="resize images to this shorter side to predict them (default: as they "
        "are); the masks keep their size",
    )
    add(
        "--crop",
        type=integer(1),
        metavar="PIXELS",
        help="predict square windows of this side (default: whole images)",
    )
    add(
        "--stride",
        type=integer(1),
        metavar="PIXELS",
        help="step from window to window (default: two thirds of --crop)",
    )
    add(
        "--scales",
        type=positive,
        nargs="+",
        default=[1.0],
        metavar="FACTOR",
        help="average predictions at these factors on the size (default: 1)",
    )
    add(
        "--flip",
        action="store_true",
        help="average with predictions of the mirrored image (default: no)",
    )
    add("--out", type=Path, metavar="PNG", help="draw the confusion matrix")


def evaluate(args):
    """Print the figures of a model on images and masks, class by class."""
    model = load_segmenter(args.model)
    ignored = "auto" if args.ignore is None else args.ignore
    names = None
    if args.data == "scenes":
        pairs, names = [scenes(args.size)[1]], ksa.data.SCENE_CLASSES
    else:
        split = args.split or ("test" if is_tfds(args.data) else "val")
        options = {"batch_size": 1, "image_size": args.size}
        if not has_classes(args, args.data, split):
            options["num_classes"] = model.num_classes
        args.channels = model.input_shape[-1]
        pairs = open_source(args, args.data, split, **options)
    evaluation = ksa.evaluate_images(
        model,
        pairs,
        ignore_class=ignored,
        class_names=names,
        short_side=args.short_side,
        crop=args.crop,
        stride=args.stride,
        scales=args.scales,
        flip=args.flip,
    )
    print(evaluation)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"wrote {evaluation.picture(args.out)}")
