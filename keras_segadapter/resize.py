"""Bilinear resize of a feature map to the size of another tensor.

The one file of the package that knows which backend runs.
"""

import keras
from keras import ops


def resize_bilinear(features, height, width):
    """Resize `(B, h, w, C)` to `(B, height, width, C)`, half-pixel centres, float32.

    `height` and `width` may be integers or, inside a TensorFlow graph whose image
    size is only known at run time, scalar tensors.
    """
    features = ops.cast(features, "float32")
    symbolic = isinstance(features, keras.KerasTensor)  # TensorFlow's takes none
    if keras.backend.backend() == "tensorflow" and not symbolic:
        # keras.ops.image.resize compares the sizes as Python numbers (up to Keras
        # 3.15.1), which a size that is a tensor refuses. TensorFlow's own does not.
        import tensorflow as tf

        return tf.image.resize(features, (height, width))
    return ops.image.resize(features, (height, width), data_format="channels_last")


@keras.saving.register_keras_serializable("keras_segadapter")
class ResizeLike(keras.layers.Layer):
    """Resize the first of two tensors to the height and width of the second.

    Args:
        **kwargs: Keras' layer arguments (`name`, `dtype`).

    Call arguments:
        inputs: A pair: features `(B, h, w, C)` and a reference `(B, H, W, any)`.

    Returns:
        `(B, H, W, C)`, bilinear with half-pixel centres.

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
