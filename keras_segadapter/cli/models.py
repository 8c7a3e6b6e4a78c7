"""Saved models, opened for the commands that use one."""

from pathlib import Path

import keras


def load_segmenter(path):
    """Load a `Segmenter` from a .keras file.

    Raises:
        ValueError: If there is no such file, or if it holds another model.
    """
    if not Path(path).is_file() or path.suffix != ".keras":
        raise ValueError(
            "MODEL must be a .keras file, such as the best.keras that `segadapter "
            f"train` writes. Received: {path}"
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
