"""ConvNeXt of keras.applications, with the stochastic depth that it leaves out."""

import keras
import numpy as np
from keras import layers

from keras_segadapter.validation import check_rate

DEPTHS = {  # blocks a stage
    "Tiny": (3, 3, 9, 3),
    "Small": (3, 3, 27, 3),
    "Base": (3, 3, 27, 3),
    "Large": (3, 3, 27, 3),
    "XLarge": (3, 3, 27, 3),
}


def convnext(size, weights=None, input_shape=(None, None, 3), drop_path=0.1):
    """ConvNeXt with stochastic depth, from an RGB image in 0..255.

    Args:
        size: "Tiny", "Small", "Base", "Large" or "XLarge".
        weights: None, "imagenet" or a weights file, as keras.applications takes them.
        input_shape: `(height, width, channels)`; None for an open height or width.
        drop_path: Stochastic depth: rate at which the last block's residual is dropped
            in training, rising linearly from 0 at the first.

    Returns:
        A functional `keras.Model` from images to the last stage's features
        `(B, H/32, W/32, C)`; `find_stages` gives the four stages.

    Raises:
        ValueError: If `drop_path` is not in [0, 1), there is no such weights file, or
            this version of Keras builds its blocks in another way.

    Example: see `AdaptConvNeXtTiny`.

    Source: Z. Liu et al., A ConvNet for the 2020s, CVPR 2022; paper, section 5.
    """
    check_rate("drop_path", drop_path)
    build = getattr(keras.applications, f"ConvNeXt{size}")
    plain = build(include_top=False, weights=weights, input_shape=input_shape)
    return _with_stochastic_depth(plain, sum(DEPTHS[size]), drop_path)


def _with_stochastic_depth(plain, num_blocks, drop_path):
    """A copy of `plain` that drops what each block adds to its input."""
    # Each block hands its residual through a layer that does nothing; it makes way.
    branches = [
        layer.name for layer in plain.layers if layer.name.endswith("_identity")
    ]
    if len(branches) != num_blocks:
        raise ValueError(
            f"'{plain.name}' has {num_blocks} blocks, but keras.applications of Keras "
            f"{keras.__version__} named {len(branches)} layers '..._identity', where "
            "stochastic depth goes. Use the Keras version that this package was tested "
            "with, or hand the model of keras.applications to build_segmenter."
        )
    rates = np.linspace(0, drop_path, num_blocks).tolist()
    rate_of = dict(zip(branches, rates, strict=True))

    def copy(layer):
        if layer.name not in rate_of:
            return type(layer).from_config(layer.get_config())
        return layers.Dropout(  # one coin an image
            rate_of[layer.name],
            noise_shape=(None, 1, 1, 1),
            name=layer.name.replace("_identity", "_drop_path"),
        )

    # Layers used again would keep the old graph's tensors as their `output`.
    model = keras.models.clone_model(plain, clone_function=copy)
    model.set_weights(plain.get_weights())
    return model
