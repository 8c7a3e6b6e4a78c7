"""The arguments of the command `segadapter`."""

import argparse
import platform
import sys
from pathlib import Path

import keras

from keras_segadapter.cli.sources import LABELS, check_sources, is_tfds
from keras_segadapter.cli.texts import COMMANDS, DATA, DESCRIPTIONS, PROGRAM
from keras_segadapter.data.layouts import LAYOUTS
from keras_segadapter.losses.named import LOSSES, is_loss_name
from keras_segadapter.version import __version__


def parse(argv):
    """Return the arguments of a command line; exit if they don't fit together."""
    args = _build_parser().parse_args(argv)
    if "data" in args:
        check_sources(args)
    if args.command == "train":
        _check_train(args)
    return args


def _build_parser():
    """Return the parser, with a parser of its own for each command."""
    style = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = argparse.ArgumentParser("segadapter", description=PROGRAM, **style)
    parser.add_argument(
        "--version",
        action="version",
        version=_versions(),
        help="show what to name when you report a bug",
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show where in the program an error arose; goes before COMMAND",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    adders = {
        "inspect": _add_inspect,
        "train": _add_train,
        "predict": _add_predict,
        "evaluate": _add_evaluate,
        "export": _add_export,
    }
    for name, add_arguments in adders.items():
        follows, result = COMMANDS[name]
        command = commands.add_parser(
            name,
            usage=f"segadapter {name} {follows} [flags]",
            help=result,
            description=DESCRIPTIONS[name],
            epilog=DATA if name in ("inspect", "train", "evaluate") else None,
            **style,
        )
        add_arguments(command.add_argument)
        command.set_defaults(parser=command)
    return parser


def _versions():
    """Return the versions of the package, Keras, its backend and Python."""
    backend = keras.config.backend()
    version = sys.modules[backend].__version__  # imported by Keras
    return (
        f"keras_segadapter {__version__}, Keras {keras.__version__} on {backend} "
        f"{version}, Python {platform.python_version()}"
    )


def _add_inspect(add):
    _add_data(add)
    add("--split", help="train, val or test (default: each that is found)")
    add("--out", type=Path, metavar="PNG", help="write overlays of images and masks")


def _add_train(add):
    _add_data(add)
    add(
        "--split",
        nargs=2,
        metavar=("TRAIN", "VAL"),
        help="the splits to train and to validate on (default: train and val, which "
        "are the first 80 %% and the last 20 %% of the names where a folder is not "
        "divided; of tfds:NAME train and test)",
    )
    add(
        "--val",
        metavar="DATA",
        help="validate on this data and, without --split, train on all of DATA "
        "(default: on a split of DATA)",
    )
    _add_size(add, "resize images to this height and width (default: as they are)")
    add(
        "--crop",
        type=_integer(1),
        nargs=2,
        metavar=("H", "W"),
        help="train on random crops of this size, augmented as by --augment; images "
        "are fitted into --size first, if it is given (default: no crops)",
    )
    add(
        "--augment",
        action="store_true",
        help="flip training images and change their scale (by 0.5 to 2) and colors at "
        "random (default: no augmentation)",
    )
    add(
        "--backbone",
        default="small",
        metavar="NAME",
        help="small (default), to be trained from scratch; MiTB0 to MiTB5; "
        "ConvNeXtAtto, Femto, Pico, Nano, Tiny, Small, Base, Large or XLarge; a model "
        "of keras.applications, such as MobileNetV3Small; or keras_hub:PRESET or "
        "keras_cv:PRESET, where PRESET is a name or a folder",
    )
    add(
        "--weights",
        metavar="WEIGHTS",
        help="weights of the backbone: imagenet (default), none, a file or, for MiT "
        "and ConvNeXt, a name on the Hugging Face Hub",
    )
    add(
        "--no-adapters",
        dest="adapters",
        action="store_false",
        help="build the same model without adapters, for comparison (default: with)",
    )
    add(
        "--neck",
        action="store_true",
        help="make strides 4 to 32 of the one stride of a vision transformer (default: "
        "masks at its stride, which are coarse)",
    )
    add(
        "--freeze",
        action="store_true",
        help="leave the backbone's weights as they are (default: they are trained)",
    )
    count = {"type": _integer(1), "metavar": "N"}
    add("--epochs", **count, default=16, help="number of epochs (default: 16)")
    add("--batch", **count, default=8, help="images per batch (default: 8)")
    add(
        "--processes",
        **count,
        help="read files with this many processes, where threads are too slow for the "
        "accelerator (default: with four threads)",
    )
    add(
        "--lr",
        type=_positive,
        default=2e-3,
        metavar="RATE",
        help="highest learning rate; it rises for a tenth of the steps and then falls "
        "to 0 (default: 0.002)",
    )
    add(
        "--ema",
        type=_momentum,
        default=0.0,
        metavar="MOMENTUM",
        help="validate and save moving averages of the weights, such as of 0.99, which "
        "reach back about 100 batches (default: 0, the weights themselves)",
    )
    add(
        "--loss",
        type=_loss,
        default="crossentropy",
        metavar="NAME",
        help="crossentropy (default); ohem, that of hard pixels; lovasz; dice; or a "
        "sum, such as crossentropy+dice",
    )
    add(
        "--class-weights",
        choices=("balanced",),
        help="balanced: weight classes in the loss by how rare their pixels are, at "
        "most 35 times as much as others (default: all pixels count the same)",
    )
    add(
        "--rare-classes",
        type=_integer(0),
        nargs="+",
        metavar="ID",
        help="place half of the crops of images with these classes on one of them, "
        "with --crop or --augment (default: at random)",
    )
    add(
        "--early-stopping",
        **count,
        help="stop after this many epochs without a better validation mIoU (default: "
        "train for all epochs)",
    )
    add(
        "--jit",
        choices=("on", "off", "auto"),
        default="auto",
        help="compile with XLA, or torch.compile on torch (default: auto, by Keras)",
    )
    add(
        "--seed",
        type=_integer(0),
        default=0,
        metavar="N",
        help="seed of the weights, orders and augmentation (default: 0)",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write to this folder (default: runs/ and the name of DATA)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on after the last epoch that was completed in --out",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the training in --out (default: that is an error)",
    )
    add(
        "--tensorboard",
        type=Path,
        metavar="FOLDER",
        help="write scalars and pictures to this folder of logs (default: none)",
    )


def _add_predict(add):
    add(
        "model",
        type=Path,
        metavar="MODEL",
        help="a .keras file, an exported model, or SegFormerB0:ade20k",
    )
    add(
        "inputs",
        type=Path,
        nargs="+",
        metavar="INPUT",
        help="a photo, or a folder of photos",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write to this folder (default: that of each photo)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace files that exist (default: that is an error)",
    )
    add(
        "--tile",
        type=_integer(1),
        metavar="PIXELS",
        help="side of tiles (default: 1024 for photos of more than 1280 x 1280 pixels, "
        "no tiles for smaller ones)",
    )
    add(
        "--overlap",
        type=_integer(0),
        metavar="PIXELS",
        help="surroundings of a tile that the model sees on each side (default: 128)",
    )


def _add_evaluate(add):
    add(
        "model", type=Path, metavar="MODEL", help="a .keras file, or SegFormerB0:ade20k"
    )
    _add_data(add, channels="those of the model")
    add("--split", help="the split to measure on (default: val; of tfds:NAME test)")
    _add_size(
        add,
        "resize images and masks to this height and width, as tfds:NAME needs "
        "(default: as they are)",
    )
    add(
        "--short-side",
        type=_integer(1),
        metavar="PIXELS",
        help="resize images to this shorter side to predict them (default: as they "
        "are); the masks keep their size",
    )
    add(
        "--crop",
        type=_integer(1),
        metavar="PIXELS",
        help="predict square windows of this side (default: whole images)",
    )
    add(
        "--stride",
        type=_integer(1),
        metavar="PIXELS",
        help="step from window to window (default: two thirds of --crop)",
    )
    add(
        "--scales",
        type=_positive,
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


def _add_export(add):
    add(
        "model", type=Path, metavar="MODEL", help="a .keras file, or SegFormerB0:ade20k"
    )
    add("out", type=Path, metavar="OUT", help="the file or folder to write")
    _add_size(add, "take images of this height and width only (default: any)")
    add(
        "--ids",
        action="store_true",
        help="return class ids (B, H, W) instead of logits (B, H, W, K)",
    )
    add(
        "--int8",
        type=Path,
        metavar="FOLDER",
        help="compute in 8 bits, with the ranges of values that the photos in this "
        "folder lead to; a hundred are plenty (default: in float32)",
    )


def _add_data(add, channels="3"):
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
        type=_integer(2),
        metavar="K",
        help="number of classes, where masks hold the ids 0 to K - 1 (default: by the "
        "labels, else by the highest id)",
    )
    add(
        "--ignore",
        type=_integer(0),
        nargs="*",
        metavar="ID",
        help="ids of void pixels; none if no ID follows (default: 255, or none with "
        "more than 255 classes)",
    )
    add(
        "--channels",
        type=_integer(1),
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


def _add_size(add, text):
    add("--size", type=_integer(1), nargs=2, metavar=("H", "W"), help=text)


def _check_train(args):
    """Exit with an error if flags of `train` contradict each other."""
    error = args.parser.error
    if args.crop and args.augment:
        error("--crop augments by itself. Leave --augment out.")
    if args.rare_classes and not (args.crop or args.augment):
        error("--rare-classes places crops. Pass --crop or --augment too.")
    if args.resume and args.overwrite:
        error("--resume goes on with a training, --overwrite replaces it. Pass one.")
    if args.backbone == "small" and args.weights not in (None, "none"):
        error(
            "--backbone small has no pretrained weights. Choose another backbone, or "
            "leave --weights out."
        )
    if is_tfds(args.data) and not (args.size or args.crop):
        error("The images of tfds:NAME may differ in size. Pass --size or --crop.")


def _integer(least):
    def integer(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    return integer


def _loss(text):
    if not is_loss_name(text):
        raise argparse.ArgumentTypeError(
            f"must be {', '.join(LOSSES)}, or a sum such as crossentropy+dice, not "
            f"{text}"
        )
    return text


def _positive(text):
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return float(text)


def _momentum(text):
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return float(text)
