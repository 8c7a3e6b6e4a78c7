"""Where the pretrained weights of a model came from."""

from pathlib import Path

import keras


def name_origin(weights):
    """Return what stands for a source of weights in the record of a model.

    Args:
        weights: Path, name on the Hugging Face Hub or model, as in `weights` of
            `MiTB0`, or another description.

    Returns:
        The name of a file or folder without the folders above it, the name of a model,
        or the string as it is.
    """
    if isinstance(weights, keras.Model):
        return f"the Keras model '{weights.name}'"
    return Path(weights).name if Path(weights).exists() else str(weights)


def resolve_origin(origin, backbone):
    """Return the origin of a model's weights: as given, or that of its backbone.

    The backbone keeps it in an attribute, for the next model that is built on it.

    Args:
        origin: String, or None for the attribute `weights_origin` of the backbone.
        backbone: Model, with or without this attribute.

    Raises:
        TypeError: If `origin` is neither a string nor None.
    """
    if origin is None:
        return getattr(backbone, "weights_origin", None)
    if not isinstance(origin, str):
        raise TypeError(
            "`weights_origin` must be a string, such as 'nvidia/mit-b0', or None. "
            f"Received: weights_origin={origin!r} of type {type(origin).__name__}"
        )
    backbone.weights_origin = origin
    return origin
