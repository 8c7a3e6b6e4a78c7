"""Segment a photograph with a saved model.

    python examples/predict.py MODEL PHOTO

MODEL is a .keras file, or an .onnx file that examples/export.py wrote. The class ids
are written to PHOTO_mask.png, and the photo overlaid with the classes' colors to
PHOTO_overlay.png.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageOps

import keras_segadapter as ksa


def segment_onnx(path, photo):
    """Segment a photo (H, W, 3) into class ids (H, W), as `Segmenter.segment` does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (image,) = session.get_inputs()
    height, width, _ = photo.shape
    fixed = all(isinstance(side, int) for side in image.shape[1:3])
    if fixed:
        fitted = resize(photo, image.shape[1:3], "bilinear")
    else:
        stride = int(session.get_modelmeta().custom_metadata_map.get("stride", 32))
        below, right = -height % stride, -width % stride
        fitted = np.pad(photo, ((0, below), (0, right), (0, 0)), mode="edge")
    (output,) = session.run(None, {image.name: fitted[None].astype("float32")})
    output = output[0]  # logits (h, w, K) or class ids (h, w)
    if output.ndim == 2:
        output = output[..., None]
        labels = resize(output, (height, width), "nearest") if fixed else output
        return labels[:height, :width, 0].astype("uint8")
    logits = resize(output, (height, width), "bilinear") if fixed else output
    return logits[:height, :width].argmax(-1).astype("uint8")


def resize(pixels, size, interpolation):
    pixels = keras.ops.image.resize(
        pixels.astype("float32"), size, interpolation, data_format="channels_last"
    )
    return keras.ops.convert_to_numpy(pixels)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="the .keras or .onnx file to use")
    add("photo", type=Path, metavar="PHOTO", help="the image file to segment")
    add("--out", type=Path, help="folder to write to (default: that of the photo)")
    args = parser.parse_args()

    with Image.open(args.photo) as file:
        photo = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    if args.model.suffix == ".onnx":
        labels = segment_onnx(args.model, photo)  # (H, W)
    else:
        labels = keras.models.load_model(args.model).segment(photo)  # (H, W)
    folder = args.out or args.photo.parent
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"mask": labels, "overlay": ksa.visualization.overlay(photo, labels)}
    for kind, pixels in pictures.items():
        path = folder / f"{args.photo.stem}_{kind}.png"
        Image.fromarray(pixels).save(path)
        print(f"wrote {path}")
    ids, counts = np.unique(labels, return_counts=True)
    for class_id, share in zip(ids, counts / labels.size, strict=True):
        print(f"class {class_id}: {share:.1%} of the pixels")


if __name__ == "__main__":
    main()
