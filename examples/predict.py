"""Segment a photograph with a saved model.

    python examples/predict.py MODEL.keras PHOTO

Writes PHOTO's class ids to *_mask.png and the colours over the photo to *_overlay.png,
beside the photo or in the folder --out.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageOps

import keras_segadapter as ksa


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--out", type=Path, help="folder to write to")
    args = parser.parse_args()

    model = keras.models.load_model(args.model)
    with Image.open(args.photo) as file:
        photo = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    labels = model.segment(photo)  # (H, W)
    folder = args.out or args.photo.parent
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"mask": labels, "overlay": ksa.pictures.overlay(photo, labels)}
    for kind, pixels in pictures.items():
        path = folder / f"{args.photo.stem}_{kind}.png"
        Image.fromarray(pixels).save(path)
        print(f"wrote {path}")
    ids, counts = np.unique(labels, return_counts=True)
    for class_id, share in zip(ids, counts / labels.size, strict=True):
        print(f"class {class_id}: {share:.1%} of the pixels")


if __name__ == "__main__":
    main()
