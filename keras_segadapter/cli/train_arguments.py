"""The arguments of `segadapter train`."""

import argparse
from pathlib import Path

from keras_segadapter.cli.arguments import add_size, integer, positive
from keras_segadapter.cli.sources import is_tfds
from keras_segadapter.losses.named import LOSSES, is_loss_name


def add_training(add):
    """Add what is trained, how and on what."""
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
    add_size(add, "resize images to this height and width (default: as they are)")
    add(
        "--crop",
        type=integer(1),
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
    count = {"type": integer(1), "metavar": "N"}
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
        type=positive,
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
        type=integer(0),
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
        type=integer(0),
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


def check_training(args):
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
    if args.freeze and (args.backbone == "small" or args.weights == "none"):
        error(
            "--freeze leaves the backbone as it is, and this one would never learn "
            "anything. Choose a pretrained one, or leave --freeze out."
        )
    if is_tfds(args.data) and not (args.size or args.crop):
        error("The images of tfds:NAME may differ in size. Pass --size or --crop.")


def _loss(text):
    if not is_loss_name(text):
        raise argparse.ArgumentTypeError(
            f"must be {', '.join(LOSSES)}, or a sum such as crossentropy+dice, not "
            f"{text}"
        )
    return text


def _momentum(text):
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return float(text)
