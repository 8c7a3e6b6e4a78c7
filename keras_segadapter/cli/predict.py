"""`segadapter predict`: masks and overlays of photos."""

import functools
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.cli.arguments import add_command, add_model, integer
from keras_segadapter.cli.models import is_segmenter_name, open_model
from keras_segadapter.data.reading import PICTURES, read_image, write_mask

_ENDINGS = ("_mask.png", "_overlay.png")
_SMALL = 0.001  # share of a photo below which classes are only counted

DESCRIPTION = """\
Segment photos of any size. NAME_mask.png holds the class ids (in 16 bits if there are
more than 256 classes), NAME_overlay.png the photo in the colors of the classes.

  segadapter predict SegFormerB0:ade20k photo.jpg
  segadapter predict runs/FOLDER/best.keras photo.jpg
  segadapter predict model.onnx PHOTOS --out masks

With a .keras file, large photos are predicted in tiles, which bounds the memory.
"""


def add_predict(commands):
    """Add the command `predict`."""
    usage, result = "MODEL INPUT...", "masks and overlays of photos"
    add = add_command(commands, predict, usage, result, DESCRIPTION)
    add_model(add, "an exported model, ")
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
        type=integer(1),
        metavar="PIXELS",
        help="side of tiles (default: 1024 for photos of more than 1280 x 1280 pixels, "
        "no tiles for smaller ones)",
    )
    add(
        "--overlap",
        type=integer(0),
        metavar="PIXELS",
        help="surroundings of a tile that the model sees on each side (default: 128)",
    )


def predict(args):
    """Write the mask and the overlay of each photo, and print the classes' shares."""
    photos = list_photos(args.inputs)
    outputs = _name_outputs(photos, args.out)
    _check_outputs(photos, outputs, args.overwrite)
    model, segment, channels = _open(args)
    loaded = _peak_memory()
    for photo, written in zip(photos, outputs, strict=True):
        shares = _predict_one(photo, written, segment, channels, model.colors)
        print(f"{photo}: {_list_shares(shares, model.class_names)}")
    folders = sorted({str(mask.parent) for mask, _ in outputs})
    print(f"masks and overlays written to {', '.join(folders)}: {len(outputs)} each")
    if loaded is not None:
        peak = _peak_memory()
        print(
            f"peak memory: {peak / 1e9:.2f} GB, {(peak - loaded) / 1e9:.2f} GB above "
            "the loaded model"
        )


def list_photos(inputs):
    """Return the files among the inputs, and the pictures in the folders among them.

    What this command has written beside a photo of a folder is left out.

    Raises:
        ValueError: If an input does not exist, or if a folder holds no pictures.
    """
    photos = []
    for place in inputs:
        if place.is_file():
            photos.append(place)
            continue
        if not place.is_dir():
            raise ValueError(f"There is no file or folder '{place}'. Correct the path.")
        files = [path for path in sorted(place.iterdir()) if is_picture(path)]
        stems = {stem for path in files for stem in (path.stem, _long_stem(path))}
        own = {f"{stem}{ending}" for stem in stems for ending in _ENDINGS}
        found = [path for path in files if path.name not in own]
        if not found:
            raise ValueError(
                f"The folder must hold pictures ({', '.join(PICTURES)}). Received: "
                f"'{place}'"
            )
        photos += found
    return [*{path.resolve(): path for path in photos}.values()]


def is_picture(path):
    """Return whether a path is that of a picture that can be read."""
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def _name_outputs(photos, out):
    """Return the paths of the mask and the overlay of each photo.

    Raises:
        ValueError: If two photos would have the same ones.
    """
    for name in (lambda path: path.stem, _long_stem):
        places = [(out or path.parent) / name(path) for path in photos]
        if len(set(places)) == len(places):
            break
    else:
        twice = next(place for place in places if places.count(place) > 1)
        raise ValueError(
            "Photos of one name can't be written to one folder. Segment them one after "
            "the other, each with an --out of its own. Received: "
            + " and ".join(
                str(path)
                for path, place in zip(photos, places, strict=True)
                if place == twice
            )
        )
    return [
        tuple(place.with_name(place.name + ending) for ending in _ENDINGS)
        for place in places
    ]


def _long_stem(path):
    """Return the name of a file with its suffix, for those that share a stem."""
    return path.name.replace(".", "_")


def _check_outputs(photos, outputs, overwrite):
    """Validate that no file is lost.

    Raises:
        ValueError: If one to be written exists and is not to be overwritten, or if it
            is one of the photos.
    """
    existing = [path for pair in outputs for path in pair if path.exists()]
    photos = {path.resolve() for path in photos}
    inputs = [path for path in existing if path.resolve() in photos]
    if inputs or (existing and not overwrite):
        fix = "Pass --out FOLDER to write elsewhere"
        if not inputs:
            fix += ", or --overwrite to replace what is there"
        raise ValueError(
            "What this command writes must not replace other files unasked. "
            f"{fix}. Received: {(inputs or existing)[0]}, which exists"
        )


def _open(args):
    """Return the model, a function that segments a photo with it, and its channels."""
    tiles = {"tile": args.tile, "overlap": args.overlap}
    exported = not is_segmenter_name(args.model)
    if exported and tiles != {"tile": None, "overlap": None}:
        args.parser.error("--tile and --overlap have no effect on exported models.")
    model = open_model(args.model)
    if exported:
        return model, model, model.channels
    segment = functools.partial(ksa.predict_labels, model, **tiles)
    return model, segment, model.input_shape[-1]


def _predict_one(photo, written, segment, channels, colors):
    """Segment a photo, write mask and overlay, and return each class' share of it."""
    image = read_image(photo, channels)  # (H, W, C)
    labels = segment(image)  # (H, W)
    written[0].parent.mkdir(parents=True, exist_ok=True)
    write_mask(written[0], labels)
    overlay = ksa.visualization.overlay(image, labels, colors=colors)
    Image.fromarray(overlay).save(written[1])
    return class_shares(labels)


def class_shares(labels):
    """Return the share of each class id, from 0 to the largest one, in a mask."""
    # Row by row: counting takes 8 bytes per pixel.
    counts = [np.bincount(row, minlength=int(labels.max()) + 1) for row in labels]
    return np.sum(counts, axis=0) / labels.size


def _list_shares(shares, class_names):
    """Return the classes that occur and their shares, the largest first."""
    names = class_names or [f"class {i}" for i in range(len(shares))]
    order = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    listed = [f"{names[i]} {shares[i]:.1%}" for i in order if shares[i] >= _SMALL]
    if len(listed) < len(order):
        listed.append(f"{len(order) - len(listed)} more below {_SMALL:.1%}")
    return ", ".join(listed)


def _peak_memory():
    """Return the largest memory that this process has had, in bytes, or None."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
