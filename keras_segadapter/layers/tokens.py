"""TokensToMap, and the two layouts of a vision transformer's features.

They are tokens `(B, N, C)`, of which the last h * w are the patches of the image, row
by row. Class and register tokens, if any, come before the patches.
"""

import keras
from keras import layers, ops


def split_tokens(tokens, grid):
    """Split tokens `(B, N, C)` into leading tokens and the feature map of the patches.

    Args:
        tokens: Tokens `(B, N, C)`.
        grid: Feature map `(B, h, w, any)` of as many pixels as there are patches.

    Returns:
        Leading tokens `(B, N - h*w, C)` and the feature map `(B, h, w, C)`.
    """
    batch, count, channels = ops.shape(tokens)
    _, height, width, _ = ops.shape(grid)
    leading = count - height * width
    patches = tokens[:, leading:]  # (B, h*w, C)
    features = ops.reshape(patches, (batch, height, width, channels))
    return tokens[:, :leading], features


def join_tokens(leading, features):
    """Undo `split_tokens`."""
    batch, _, channels = ops.shape(leading)
    patches = ops.reshape(features, (batch, -1, channels))  # (B, h*w, C)
    return ops.concatenate([leading, patches], axis=1)  # (B, N, C)


def is_pair(input_shape):
    """Return whether a layer's input is a list or tuple of tensors, not one tensor."""
    return isinstance(input_shape, (list, tuple)) and isinstance(
        input_shape[0], (list, tuple)
    )


def map_shape(layer, input_shape):
    """Return the shape `(B, h, w, C)` of the map that a pair of tokens and grid makes.

    Raises:
        ValueError: If the pair is not tokens `(B, N, C)` with a known C and a map
            `(B, h, w, any)` of at most N pixels.
    """
    if [len(shape) for shape in input_shape] == [3, 4]:
        (batch, count, channels), (_, height, width, _) = input_shape
        sizes = (count, height, width)
        if channels and (None in sizes or height * width <= count):
            return (batch, height, width, channels)
    raise ValueError(
        f"{type(layer).__name__} '{layer.name}' takes a pair [tokens (batch, N, "
        "channels), grid (batch, height, width, any)] with a known number of channels. "
        "The patches are the last height * width tokens, so the grid must have at most "
        f"N pixels. Received: input_shape={input_shape}"
    )


@keras.saving.register_keras_serializable("keras_segadapter")
class TokensToMap(layers.Layer):
    """Lay out the patch tokens of a vision transformer as a feature map.

    Class and register tokens, which come before the patches, are left out. Decode heads
    such as `MLPHead` take the maps.

    Args:
        **kwargs: `name` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Pair of tokens `(B, N, C)` and any map `(B, h, w, any)` with as many
            pixels as the image has patches, such as the patch convolution's output.

    Returns:
        Feature map `(B, h, w, C)` of the last h * w tokens, row by row.

    Raises:
        ValueError: If the input is not such a pair.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    tokens = np.ones((2, 1 + 14 * 14, 64), "float32")  # a class token and the patches
    patches = np.ones((2, 14, 14, 64), "float32")
    print(ksa.TokensToMap()([tokens, patches]).shape)  # (2, 14, 14, 64)
    ```
    """

    def build(self, input_shape):
        if not is_pair(input_shape):
            input_shape = [input_shape]
        map_shape(self, input_shape)

    def call(self, inputs):
        return split_tokens(*inputs)[1]

    def compute_output_shape(self, input_shape):
        return map_shape(self, input_shape)
