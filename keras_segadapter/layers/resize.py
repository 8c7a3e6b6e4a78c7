"""ResizeLike: bilinear resizing to the size of another map."""

import keras
from keras import layers, ops

from keras_segadapter.layers.native import resize_bilinear


@keras.saving.register_keras_serializable("keras_segadapter")
class ResizeLike(layers.Layer):
    """Resize the first of two feature maps to the height and width of the second.

    Interpolation is bilinear with half-pixel centers and without antialiasing. It is
    computed in float32 and cast to the layer's compute dtype.

    Args:
        **kwargs: `name` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Pair of features `(B, h, w, C)` and a reference `(B, H, W, any)`, such
            as the image; only the reference's height and width matter.

    Returns:
        Resized features `(B, H, W, C)`.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    scores, image = np.ones((1, 8, 8, 5)), np.ones((1, 32, 30, 3))
    print(ksa.ResizeLike()([scores, image]).shape)  # (1, 32, 30, 5)
    ```
    """

    def call(self, inputs):
        features, reference = inputs
        _, height, width, _ = ops.shape(reference)
        resized = resize_bilinear(features, height, width)  # (B, H, W, C)
        return ops.cast(resized, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        features, reference = input_shape
        return (features[0], reference[1], reference[2], features[3])
