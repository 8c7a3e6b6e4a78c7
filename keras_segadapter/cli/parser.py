"""The command line of `segadapter`."""

import argparse
import platform
import sys

import keras

from keras_segadapter.cli.arguments import STYLE
from keras_segadapter.cli.demo import add_demo
from keras_segadapter.cli.evaluate import add_evaluate
from keras_segadapter.cli.export import add_export
from keras_segadapter.cli.inspect import add_inspect
from keras_segadapter.cli.predict import add_predict
from keras_segadapter.cli.sources import check_sources
from keras_segadapter.cli.train import add_train
from keras_segadapter.cli.train_arguments import check_training
from keras_segadapter.version import __version__

PROGRAM = """\
Segment images with models that have adapters in their backbone.

  segadapter predict SegFormerB0:ade20k photo.jpg
  segadapter inspect FOLDER
  segadapter train FOLDER --backbone MobileNetV3Small --freeze --size 256 256
  segadapter predict runs/FOLDER/best.keras photo.jpg
  segadapter demo runs/FOLDER/best.keras

The environment chooses Keras' backend: KERAS_BACKEND=torch segadapter train FOLDER.
"""


def parse(argv):
    """Return the arguments of a command line; exit if they don't fit together."""
    parser = argparse.ArgumentParser("segadapter", description=PROGRAM, **STYLE)
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
    adders = (add_inspect, add_train, add_predict, add_evaluate, add_export, add_demo)
    for add in adders:
        add(commands)
    args = parser.parse_args(argv)
    if "data" in args:
        check_sources(args)
    if args.command == "train":
        check_training(args)
    return args


def _versions():
    """Return the versions of the package, Keras, its backend and Python."""
    backend = keras.config.backend()
    version = sys.modules[backend].__version__  # imported by Keras
    return (
        f"keras_segadapter {__version__}, Keras {keras.__version__} on {backend} "
        f"{version}, Python {platform.python_version()}"
    )
