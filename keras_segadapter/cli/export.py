"""`segadapter export`: a file that runs without Keras."""

from pathlib import Path

import keras_segadapter as ksa
from keras_segadapter.cli.arguments import add_command, add_model, add_size
from keras_segadapter.cli.models import load_segmenter
from keras_segadapter.cli.predict import list_photos
from keras_segadapter.data.reading import read_image

DESCRIPTION = """\
Write a model to a file that runs without Keras, and compare the two. The ending of OUT
chooses the format: .onnx, .tflite (LiteRT), .xml (OpenVINO), or none for a folder with
a TensorFlow SavedModel.

  segadapter export runs/FOLDER/best.keras model.onnx
  segadapter export best.keras model.tflite --size 512 512 --int8 PHOTOS
"""


def add_export(commands):
    """Add the command `export`."""
    usage, result = "MODEL OUT", "a file that runs without Keras"
    add = add_command(commands, export, usage, result, DESCRIPTION)
    add_model(add)
    add("out", type=Path, metavar="OUT", help="the file or folder to write")
    add_size(add, "take images of this height and width only (default: any)")
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


def export(args):
    """Write a model to a file, and print how it compares with Keras."""
    model = load_segmenter(args.model)
    photos = None
    if args.int8:
        photos = [
            read_image(path, model.input_shape[-1]) for path in list_photos([args.int8])
        ]
    path = ksa.export_model(
        model, args.out, size=args.size, labels=args.ids, calibration=photos
    )
    print(f"wrote {path}")
    print(ksa.compare_exported(model, path, photos[0] if photos else None))
