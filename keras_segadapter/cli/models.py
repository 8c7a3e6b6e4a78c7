"""Saved and published models, opened for the commands that use one."""

import re
from pathlib import Path

import keras

import keras_segadapter as ksa

_PUBLISHED = re.compile(r"(SegFormerB[0-5]):(.+)")


def is_segmenter_name(path):
    """Return whether MODEL is a .keras file or a published model, and not exported."""
    return path.suffix == ".keras" or _PUBLISHED.fullmatch(str(path)) is not None


def open_model(path):
    """Load a `Segmenter` or open an exported file, and say what licenses apply.

    Raises:
        ValueError: As `load_segmenter` and `open_exported` raise it.
    """
    model = (load_segmenter if is_segmenter_name(path) else ksa.open_exported)(path)
    if origin := getattr(model, "weights_origin", None):
        print(f"pretrained weights: {origin}; their license applies")
    return model


def load_segmenter(path):
    """Load a `Segmenter` from a .keras file, or by name as in SegFormerB0:ade20k.

    Raises:
        ValueError: If there is no such file, if it holds another model, or if the
            published weights can't be loaded.
    """
    if published := _PUBLISHED.fullmatch(str(path)):
        name, weights = published.groups()
        return getattr(ksa, name)(weights=weights)
    if not Path(path).is_file() or path.suffix != ".keras":
        raise ValueError(
            "MODEL must be a .keras file, such as the best.keras that `segadapter "
            "train` writes, or SegFormerB0:ade20k, where the size is B0 to B5 and the "
            f"weights are as in keras_segadapter.SegFormerB0. Received: {path}"
        )
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # of any kind, by what the file holds
        raise ValueError(
            f"The model can't be loaded: {error}. Received: {path}"
        ) from error
    if not hasattr(model, "stages"):
        raise ValueError(
            "MODEL must hold a keras_segadapter.Segmenter. Received: "
            f"{path} with a {type(model).__name__}"
        )
    return model
