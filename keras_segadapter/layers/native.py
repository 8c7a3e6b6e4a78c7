"""Backend-specific code, for what Keras' own layers lack or do slowly.

This is the only module that asks which backend runs.
"""

import contextlib
import contextvars
import math

import keras
from keras import layers, ops

from keras_segadapter.layers.shifted import shifted_convolution

# Whether to compute as the backend's own library does, and how many products its
# gradient of a depthwise convolution may take on JAX before another way is faster.
_library = contextvars.ContextVar("library", default=False)
FEW_PRODUCTS = 2**26


def on_tensorflow():
    """Return whether Keras runs on TensorFlow."""
    return keras.backend.backend() == "tensorflow"


def on_jax():
    """Return whether Keras runs on JAX."""
    return keras.backend.backend() == "jax"


def on_torch():
    """Return whether Keras runs on PyTorch."""
    return keras.backend.backend() == "torch"


def compile_on_jax(function):
    """Return a function compiled by JAX, which leaves its arguments as they are."""
    import jax

    return jax.jit(function)


def resize_bilinear(features, height, width):
    """Resize `(B, h, w, C)` to float32 `(B, height, width, C)`, half-pixel centers.

    `height` and `width` are integers or, in a TensorFlow graph whose image size is
    known at run time only, scalar tensors.
    """
    features = ops.cast(features, "float32")
    symbolic = isinstance(
        features, keras.KerasTensor
    )  # no input of TensorFlow's resize
    if on_tensorflow() and not symbolic:
        # keras.ops.image.resize compares the sizes as Python numbers (up to Keras
        # 3.15.1), which fails for scalar tensors. TensorFlow's own function takes them.
        import tensorflow as tf

        return tf.image.resize(features, (height, width))
    return ops.image.resize(features, (height, width), data_format="channels_last")


@contextlib.contextmanager
def library_convolutions():
    """Trace with the backend's own convolutions, which exported files keep as such."""
    token = _library.set(True)
    try:
        yield
    finally:
        _library.reset(token)


@keras.saving.register_keras_serializable("keras_segadapter")
class DepthwiseConv2D(layers.DepthwiseConv2D):
    """Keras' DepthwiseConv2D, channels last, faster on PyTorch and on JAX' CPU.

    On PyTorch, Keras (up to 3.15.1) copies the features to channels first and back,
    which takes longer than the convolution. Here a view takes the place of the copies.
    On CPUs, JAX takes tens of times as long as a sum of shifted products.
    """

    def call(self, inputs):
        if _many_products_on_jax(self, inputs):
            outputs = shifted_convolution(
                inputs, self.kernel, self.strides, self.padding, self.dilation_rate
            )
            return self.activation(outputs + self.bias if self.use_bias else outputs)
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
    """Keras' Conv2D, channels last; on PyTorch without copies where it does not pad."""

    def call(self, inputs):
        if not _on_torch(inputs) or self.padding != "valid" or self.groups > 1:
            return super().call(inputs)
        kernel = ops.convert_to_tensor(self.kernel)  # (k, k, C, filters)
        return _convolve(self, inputs, kernel.permute(3, 2, 0, 1), padding=0, groups=1)


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
    """Keras' Dense; on PyTorch the product adds the bias, not a second pass."""

    def call(self, inputs, training=None):
        if not _on_torch(inputs) or self.quantization_mode is not None:
            return super().call(inputs, training=training)
        import torch

        kernel = ops.convert_to_tensor(self.kernel)  # (C, units)
        bias = ops.convert_to_tensor(self.bias) if self.use_bias else None
        return self.activation(torch.nn.functional.linear(inputs, kernel.T, bias))


@keras.saving.register_keras_serializable("keras_segadapter")
class BatchNormalization(layers.BatchNormalization):
    """Keras' BatchNormalization; on PyTorch in one pass, with one map kept to train.

    Keras' keeps three: the features, and their difference from the mean twice.
    """

    def call(self, inputs, training=None, mask=None):
        last = self.axis in (-1, len(inputs.shape) - 1)
        plain = last and mask is None and not (self.renorm or self.synchronized)
        if not (training and self.trainable and plain and _on_torch(inputs)):
            return super().call(inputs, training=training, mask=mask)
        import torch

        gamma, beta = self.gamma, self.beta
        outputs, mean, rate = torch.native_batch_norm(
            inputs.movedim(-1, 1),  # (B, C, ...), a view
            None if gamma is None else ops.convert_to_tensor(gamma),
            None if beta is None else ops.convert_to_tensor(beta),
            running_mean=None,  # PyTorch's would hold the unbiased variance
            running_var=None,
            training=True,
            momentum=0.0,
            eps=self.epsilon,
        )
        variance = rate**-2 - self.epsilon
        for moving, now in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        return ops.cast(outputs.movedim(1, -1), self.compute_dtype)


def _many_products_on_jax(layer, inputs):
    """Return whether JAX' depthwise convolution of these inputs would be slow."""
    if not on_jax() or _library.get() or isinstance(inputs, keras.KerasTensor):
        return False
    import jax

    # Sides that are open while JAX exports are no integers.
    known = all(isinstance(side, int) for side in inputs.shape)
    if not known or jax.default_backend() != "cpu":
        return False
    # The gradient of the library's takes every channel times every other.
    pixels = math.prod(inputs.shape) * inputs.shape[-1]
    return pixels * math.prod(layer.kernel_size) > FEW_PRODUCTS


def _on_torch(inputs):
    """Return whether the inputs are PyTorch's own tensors, not symbolic ones."""
    symbolic = isinstance(inputs, keras.KerasTensor)
    return on_torch() and not symbolic


def _convolve(layer, inputs, weight, padding, groups):
    """Apply a layer's convolution to a channels-first view of its PyTorch inputs."""
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


def torch_states():
    """Return PyTorch's random states as strings, or None on another backend.

    Keras' `Dropout` without a `seed` draws from them, not from a SeedGenerator.
    """
    if not on_torch():
        return None
    import torch

    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]  # CPU, GPUs
    return [state.numpy().tobytes().hex() for state in states]


def set_torch_states(states):
    """Set PyTorch's random states, on as many GPUs as there were and are."""
    if not on_torch():
        return
    import torch

    cpu, *gpus = (torch.tensor([*bytes.fromhex(s)], dtype=torch.uint8) for s in states)
    torch.set_rng_state(cpu)
    for index, state in enumerate(gpus[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
