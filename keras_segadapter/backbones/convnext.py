"""ConvNeXt of keras.applications, with the stochastic depth that it lacks."""

import os

import keras
import numpy as np
from keras import layers

from keras_segadapter.validation import check_input_shape, check_rate

BLOCKS = {"Tiny": 18, "Small": 36, "Base": 36, "Large": 36, "XLarge": 36}


def convnext(size, weights=None, input_shape=(None, None, 3), drop_path=0.1):
    """Build a ConvNeXt with stochastic depth, for RGB images in 0..255.

    Args:
        size: String. "Tiny", "Small", "Base", "Large" or "XLarge".
        weights: None for random weights, "imagenet", or the path of a weights file, as
            in keras.applications. Defaults to `None`.
        input_shape: Tuple `(height, width, channels)`, with None for an open height or
            width. Defaults to `(None, None, 3)`.
        drop_path: Number in [0, 1). Stochastic depth: the rate at which the last
            block's residual is dropped in training. It rises linearly from 0 at the
            first block. Defaults to `0.1`.

    Returns:
        A functional `keras.Model` from images to the last stage's features
        `(B, H/32, W/32, C)`; `find_stages` gives the four stages.

    Raises:
        TypeError: If `weights` is neither a string nor a path.
        ValueError: If `drop_path` is not in [0, 1), if there is no such weights file,
            or if this version of Keras builds its blocks in another way.

    Example: see `AdaptConvNeXtTiny`.

    Source: Z. Liu et al., A ConvNet for the 2020s, CVPR 2022; paper, section 5.
    """
    check_rate("drop_path", drop_path)
    input_shape = check_input_shape(input_shape)
    if weights is not None and not isinstance(weights, (str, os.PathLike)):
        raise TypeError(
            '`weights` must be None, "imagenet", or the path of a weights file. '
            f"Received: weights={weights!r} of type {type(weights).__name__}"
        )
    if weights not in (None, "imagenet") and not os.path.exists(weights):
        raise ValueError(
            f"There is no such file of weights. Received: weights={str(weights)!r}"
        )
    build = getattr(keras.applications, f"ConvNeXt{size}")
    plain = build(include_top=False, weights=weights, input_shape=input_shape)
    return _with_stochastic_depth(plain, BLOCKS[size], drop_path)


def _with_stochastic_depth(plain, num_blocks, drop_path):
    """Return a copy of `plain` that drops residuals of its blocks in training."""
    # Each block's residual passes a layer that does nothing: dropout takes its place.
    names = [layer.name for layer in plain.layers]
    branches = [name for name in names if name.endswith("_identity")]
    if len(branches) != num_blocks:
        raise ValueError(
            "Stochastic depth takes the place of one layer '..._identity' in each of "
            f"the {num_blocks} blocks. Use the version of Keras that this package was "
            "tested with, or pass the model of keras.applications to build_segmenter. "
            f"Received: '{plain.name}' of Keras {keras.__version__} with "
            f"{len(branches)} such layers"
        )
    rates = np.linspace(0, drop_path, num_blocks).tolist()
    rate_of = dict(zip(branches, rates, strict=True))

    def copy(layer):
        if layer.name not in rate_of:
            return type(layer).from_config(layer.get_config())
        return layers.Dropout(  # of whole images
            rate_of[layer.name],
            noise_shape=(None, 1, 1, 1),
            name=layer.name.replace("_identity", "_drop_path"),
        )

    # Layers shared with `plain` would keep its tensors as their `output`.
    model = keras.models.clone_model(plain, clone_function=copy)
    model.set_weights(plain.get_weights())
    return model
