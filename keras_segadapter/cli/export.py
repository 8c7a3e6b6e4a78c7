"""`segadapter export`: a file that runs without Keras."""

import keras_segadapter as ksa
from keras_segadapter.cli.models import load_segmenter
from keras_segadapter.cli.predict import list_photos
from keras_segadapter.data.reading import read_image


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
