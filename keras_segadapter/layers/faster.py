"""Layers of Keras computed faster, with the same weights, numbers and config.

Our own layers are made of them. Those of other libraries' backbones stay what they are
and compute as these do.
"""

import types

import keras
from keras import layers, ops

from keras_segadapter.layers.native import (
    batch_norm_on_torch,
    convolve_on_torch,
    depthwise,
    fits_a_view,
    has_fast_depthwise,
    is_symbolic,
    linear,
    max_pool_on_torch,
    on_jax,
    on_tensorflow,
    takes_torch,
    traces_for_export,
)


@keras.saving.register_keras_serializable("keras_segadapter")
class DepthwiseConv2D(layers.DepthwiseConv2D):
    """Keras' DepthwiseConv2D, channels last, faster on PyTorch and on JAX' CPU.

    On PyTorch, Keras (up to 3.15.1) copies the features to channels first and back,
    which takes longer than the convolution. Here a view takes the place of the copies.
    On CPUs, JAX takes tens of times as long as a sum of shifted products.
    """

    def call(self, inputs):
        if not has_fast_depthwise(self, inputs):
            return layers.DepthwiseConv2D.call(self, inputs)
        return self.activation(depthwise(self, inputs, self.kernel, self.bias))


@keras.saving.register_keras_serializable("keras_segadapter")
class PatchConv2D(layers.Conv2D):
    """Keras' Conv2D, channels last, faster on PyTorch, in 1 x 1 kernels and in groups.

    PyTorch gets a view in the place of copies, as in `DepthwiseConv2D`. A kernel of one
    pixel is a matrix product. On TensorFlow Keras compiles grouped convolutions by XLA,
    which is slow where each channel is a group.
    """

    def call(self, inputs):
        if is_symbolic(inputs) or self.data_format != "channels_last":
            return layers.Conv2D.call(self, inputs)
        pointwise = self.kernel_size == (1, 1) and self.groups == 1
        if pointwise and not on_tensorflow() and not traces_for_export():
            down, across = self.strides
            kernel = ops.convert_to_tensor(self.kernel)[0, 0]  # (C, filters)
            outputs = linear(inputs[:, ::down, ::across], kernel, self.bias)
            return self.activation(outputs)
        if 1 < self.groups == inputs.shape[-1]:
            kernel = ops.convert_to_tensor(self.kernel)  # (k, k, 1, C * m)
            shape = (*self.kernel_size, self.groups, self.filters // self.groups)
            kernel = ops.reshape(kernel, shape)  # (k, k, C, m)
            return self.activation(depthwise(self, inputs, kernel, self.bias))
        if not fits_a_view(self, inputs):
            return layers.Conv2D.call(self, inputs)
        weight = ops.convert_to_tensor(self.kernel).permute(3, 2, 0, 1)
        return self.activation(
            convolve_on_torch(self, inputs, weight, self.bias, self.groups)
        )


@keras.saving.register_keras_serializable("keras_segadapter")
class PatchConv2DTranspose(layers.Conv2DTranspose):
    """Keras' Conv2DTranspose, channels last, for strides of the kernel's size.

    Each input pixel makes a patch of its own: matrix products, which JAX trains many
    times as fast as Keras' convolution and PyTorch needs no copies for.
    """

    def call(self, inputs):
        batch, height, width, channels = ops.shape(inputs)
        rows, columns = self.kernel_size
        kernel = ops.transpose(self.kernel, (0, 3, 1, 2))  # (k, C, k, filters)
        kernel = ops.reshape(kernel, (rows, channels, columns * self.filters))
        patches = [ops.matmul(inputs, kernel[row]) for row in range(rows)]
        outputs = ops.stack(patches, axis=2)  # (B, H, k, W, k * filters)
        size = (rows * height, columns * width)
        outputs = ops.reshape(outputs, (batch, *size, self.filters))
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("keras_segadapter")
class Dense(layers.Dense):
    """Keras' Dense, faster on PyTorch and on JAX.

    On PyTorch the product adds the bias, in the place of a second pass. XLA computes
    the kernel's gradient faster where the features are a matrix.
    """

    def call(self, inputs, training=None):
        own = takes_torch(inputs) or (on_jax() and not traces_for_export())
        if not own or is_symbolic(inputs) or self.quantization_mode is not None:
            return super().call(inputs, training=training)
        return self.activation(linear(inputs, self.kernel, self.bias))


@keras.saving.register_keras_serializable("keras_segadapter")
class BatchNormalization(layers.BatchNormalization):
    """Keras' BatchNormalization; on PyTorch in one pass, with one map kept to train.

    Keras' keeps three: the features, and their difference from the mean twice.
    """

    def call(self, inputs, training=None, mask=None):
        last = self.axis in (-1, len(inputs.shape) - 1)
        plain = last and mask is None and not (self.renorm or self.synchronized)
        by_batch = training and self.trainable
        full = keras.backend.standardize_dtype(inputs.dtype) == "float32"
        if not (plain and takes_torch(inputs) and (by_batch or full)):
            return layers.BatchNormalization.call(self, inputs, training, mask)
        statistics = self.moving_mean, self.moving_variance
        outputs, mean, rate = batch_norm_on_torch(
            *(inputs, self.gamma, self.beta, self.epsilon),
            *(() if by_batch else statistics),
        )
        if by_batch:
            now = mean, rate**-2 - self.epsilon
            for moving, value in zip(statistics, now, strict=True):
                moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)


def _max_pool(layer, inputs):
    """Do what `MaxPooling2D` does; on PyTorch on a view, where it does not pad."""
    if not takes_torch(inputs) or layer.padding != "valid":
        return layers.MaxPooling2D.call(layer, inputs)
    return max_pool_on_torch(inputs, layer.pool_size, layer.strides)


def _separable(layer, inputs):
    """Do what `SeparableConv2D` does, by a depthwise and a matrix product."""
    if not has_fast_depthwise(layer, inputs) or traces_for_export():
        return layers.SeparableConv2D.call(layer, inputs)
    hidden = depthwise(layer, inputs, layer.depthwise_kernel)  # (B, H', W', C * m)
    kernel = ops.convert_to_tensor(layer.pointwise_kernel)[0, 0]  # (C * m, filters)
    return layer.activation(linear(hidden, kernel, layer.bias))


# How layers of Keras are called by the means of our own.
_CALLS = {
    layers.BatchNormalization: BatchNormalization.call,
    layers.Conv2D: PatchConv2D.call,
    layers.DepthwiseConv2D: DepthwiseConv2D.call,
    layers.MaxPooling2D: _max_pool,
    layers.SeparableConv2D: _separable,
}


def call_by_own_means(layer):
    """Let a layer of Keras compute as ours do; it keeps class, weights and config."""
    call = _CALLS.get(type(layer))
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    if call is not None and last:
        layer.call = types.MethodType(call, layer)
