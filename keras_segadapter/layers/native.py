"""Layers that run by the backend's own means, where Keras' fall short.

The one file of the package that knows which backend runs.
"""

import keras
from keras import layers, ops


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


@keras.saving.register_keras_serializable("keras_segadapter")
class DepthwiseConv2D(layers.DepthwiseConv2D):
    """Keras' layer, channels last; on PyTorch without its copies.

    There Keras (up to 3.15.1) copies the features to channels first, and back to
    channels last in memory, which takes longer than the convolution. A view does.
    """

    def call(self, inputs):
        odd = all(side % 2 for side in self.kernel_size)
        same = self.padding == "same" and {*self.strides, *self.dilation_rate} == {1}
        if not (_on_torch(inputs) and odd and same):
            return super().call(inputs)
        kernel = ops.convert_to_tensor(self.kernel)  # (k, k, C, m)
        weight = kernel.permute(2, 3, 0, 1).flatten(0, 1)[:, None]  # (C * m, 1, k, k)
        padding = [side // 2 for side in self.kernel_size]
        return _convolve(self, inputs, weight, padding, groups=kernel.shape[2])


@keras.saving.register_keras_serializable("keras_segadapter")
class PatchConv2D(layers.Conv2D):
    """Keras' Conv2D without padding, channels last; on PyTorch without its copies."""

    def call(self, inputs):
        if not _on_torch(inputs) or self.padding != "valid" or self.groups > 1:
            return super().call(inputs)
        kernel = ops.convert_to_tensor(self.kernel)  # (k, k, C, filters)
        return _convolve(self, inputs, kernel.permute(3, 2, 0, 1), padding=0, groups=1)


@keras.saving.register_keras_serializable("keras_segadapter")
class Dense(layers.Dense):
    """Keras' layer; on PyTorch the product adds the bias, not a pass after it."""

    def call(self, inputs, training=None):
        if not _on_torch(inputs) or self.quantization_mode is not None:
            return super().call(inputs, training=training)
        import torch

        kernel = ops.convert_to_tensor(self.kernel)  # (C, units)
        bias = ops.convert_to_tensor(self.bias) if self.use_bias else None
        return self.activation(torch.nn.functional.linear(inputs, kernel.T, bias))


def _on_torch(inputs):
    symbolic = isinstance(inputs, keras.KerasTensor)
    return keras.backend.backend() == "torch" and not symbolic


def _convolve(layer, inputs, weight, padding, groups):
    import torch

    outputs = torch.nn.functional.conv2d(
        inputs.permute(0, 3, 1, 2),  # (B, C, H, W), a view
        weight,
        ops.convert_to_tensor(layer.bias) if layer.use_bias else None,
        stride=layer.strides,
        padding=padding,
        dilation=layer.dilation_rate,
        groups=groups,
    )
    return layer.activation(outputs.permute(0, 2, 3, 1))  # (B, H', W', filters)
