"""Backend-specific code, for what Keras' own layers lack or do slowly.

This is the only module that asks which backend runs.
"""

import contextlib
import contextvars
import math
import types

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
        if not _fits_a_view(self, inputs) and not _many_products_on_jax(self, inputs):
            return layers.DepthwiseConv2D.call(self, inputs)
        return self.activation(_depthwise(self, inputs, self.kernel, self.bias))


@keras.saving.register_keras_serializable("keras_segadapter")
class PatchConv2D(layers.Conv2D):
    """Keras' Conv2D, channels last, faster on PyTorch, in 1 x 1 kernels and in groups.

    PyTorch gets a view in the place of copies, as in `DepthwiseConv2D`. A kernel of one
    pixel is a matrix product. On TensorFlow Keras compiles grouped convolutions by XLA,
    which is slow where each channel is a group.
    """

    def call(self, inputs):
        if _is_symbolic(inputs) or self.data_format != "channels_last":
            return layers.Conv2D.call(self, inputs)
        pointwise = self.kernel_size == (1, 1) and self.groups == 1
        if pointwise and not on_tensorflow() and not _library.get():
            down, across = self.strides
            kernel = ops.convert_to_tensor(self.kernel)[0, 0]  # (C, filters)
            outputs = _linear(inputs[:, ::down, ::across], kernel, self.bias)
            return self.activation(outputs)
        if 1 < self.groups == inputs.shape[-1]:
            kernel = ops.convert_to_tensor(self.kernel)  # (k, k, 1, C * m)
            shape = (*self.kernel_size, self.groups, self.filters // self.groups)
            kernel = ops.reshape(kernel, shape)  # (k, k, C, m)
            return self.activation(_depthwise(self, inputs, kernel, self.bias))
        if not _fits_a_view(self, inputs):
            return layers.Conv2D.call(self, inputs)
        weight = ops.convert_to_tensor(self.kernel).permute(3, 2, 0, 1)
        return self.activation(_convolve(self, inputs, weight, self.bias, self.groups))


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
        return self.activation(_linear(inputs, self.kernel, self.bias))


@keras.saving.register_keras_serializable("keras_segadapter")
class BatchNormalization(layers.BatchNormalization):
    """Keras' BatchNormalization; on PyTorch in one pass, with one map kept to train.

    Keras' keeps three: the features, and their difference from the mean twice.
    """

    def call(self, inputs, training=None, mask=None):
        last = self.axis in (-1, len(inputs.shape) - 1)
        plain = last and mask is None and not (self.renorm or self.synchronized)
        if not (training and self.trainable and plain and _on_torch(inputs)):
            return layers.BatchNormalization.call(self, inputs, training, mask)
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


def _max_pool(layer, inputs):
    """Do what `MaxPooling2D` does; on PyTorch on a view, where it does not pad."""
    if not _on_torch(inputs) or layer.padding != "valid":
        return layers.MaxPooling2D.call(layer, inputs)
    import torch

    outputs = torch.nn.functional.max_pool2d(
        inputs.permute(0, 3, 1, 2),  # (B, C, H, W), a view
        layer.pool_size,
        layer.strides,
    )
    return outputs.permute(0, 2, 3, 1)  # (B, H', W', C)


def _separable(layer, inputs):
    """Do what `SeparableConv2D` does, by a depthwise and a matrix product."""
    fits = _fits_a_view(layer, inputs) or _many_products_on_jax(layer, inputs)
    if not fits or _library.get():
        return layers.SeparableConv2D.call(layer, inputs)
    hidden = _depthwise(layer, inputs, layer.depthwise_kernel)  # (B, H', W', C * m)
    kernel = ops.convert_to_tensor(layer.pointwise_kernel)[0, 0]  # (C * m, filters)
    return layer.activation(_linear(hidden, kernel, layer.bias))


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


def _many_products_on_jax(layer, inputs):
    """Return whether JAX' depthwise convolution of these inputs would be slow."""
    if not on_jax() or _library.get() or _is_symbolic(inputs):
        return False
    import jax

    # Sides that are open while JAX exports are no integers.
    known = all(isinstance(side, int) for side in inputs.shape)
    if not known or jax.default_backend() != "cpu":
        return False
    # The gradient of the library's takes every channel times every other.
    pixels = math.prod(inputs.shape) * inputs.shape[-1]
    return pixels * math.prod(layer.kernel_size) > FEW_PRODUCTS


def _is_symbolic(inputs):
    return isinstance(inputs, keras.KerasTensor)


def _on_torch(inputs):
    """Return whether the inputs are PyTorch's own tensors, not symbolic ones."""
    return on_torch() and not _is_symbolic(inputs)


def _fits_a_view(layer, inputs):
    """Return whether PyTorch can pad as a layer does, on both sides alike."""
    alike = all(
        side == 1 or (side % 2 and stride == 1)
        for side, stride in zip(layer.kernel_size, layer.strides, strict=True)
    )
    return _on_torch(inputs) and (layer.padding == "valid" or alike)


def _linear(inputs, kernel, bias=None):
    """Multiply features `(..., C)` by a kernel `(C, units)` and add a bias."""
    if not _on_torch(inputs):
        outputs = ops.matmul(inputs, kernel)
        return outputs if bias is None else outputs + bias
    import torch

    bias = None if bias is None else ops.convert_to_tensor(bias)
    return torch.nn.functional.linear(inputs, ops.convert_to_tensor(kernel).T, bias)


def _depthwise(layer, inputs, kernel, bias=None):
    """Convolve each channel by its own part of a kernel `(k, k, C, m)`; add a bias."""
    if _fits_a_view(layer, inputs):
        weight = ops.convert_to_tensor(kernel).permute(2, 3, 0, 1)
        weight = weight.flatten(0, 1)[:, None]  # (C * m, 1, k, k)
        return _convolve(layer, inputs, weight, bias, groups=kernel.shape[2])
    strides, padding, dilation = layer.strides, layer.padding, layer.dilation_rate
    if _many_products_on_jax(layer, inputs):
        outputs = shifted_convolution(inputs, kernel, strides, padding, dilation)
    else:
        outputs = ops.depthwise_conv(
            inputs, kernel, strides, padding, "channels_last", dilation
        )
    return outputs if bias is None else outputs + bias


def _convolve(layer, inputs, weight, bias, groups):
    """Convolve a channels-first view of a layer's PyTorch inputs."""
    import torch

    same = layer.padding == "same"
    reach = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    outputs = torch.nn.functional.conv2d(
        inputs.permute(0, 3, 1, 2),  # (B, C, H, W), a view
        weight,
        None if bias is None else ops.convert_to_tensor(bias),
        stride=layer.strides,
        padding=[(side - 1) * rate // 2 * same for side, rate in reach],
        dilation=layer.dilation_rate,
        groups=groups,
    )
    return outputs.permute(0, 2, 3, 1)  # (B, H', W', filters)


def adam_on_torch(variables, gradients, means, squares, rate, betas, epsilon):
    """Make a step of Adam by PyTorch's own function, in one pass over the weights.

    `rate` holds the correction of the moments' bias, as in Keras: PyTorch's function
    would add epsilon behind it. The variables' gradients are let go.
    """
    import torch
    from torch.optim.adamw import adamw

    no_bias = torch.full_like(rate, 1e9)  # steps, after which none is left to correct
    weights, means, squares = (
        [v.value for v in group] for group in (variables, means, squares)
    )
    with torch.no_grad():
        adamw(
            weights,
            [gradient.contiguous() for gradient in gradients],
            means,
            squares,
            max_exp_avg_sqs=[],
            state_steps=[no_bias] * len(weights),
            fused=True,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=rate,
            weight_decay=0.0,
            eps=epsilon,
            maximize=False,
        )
    for weight in weights:
        weight.grad = None  # Keras would keep it through the next forward pass


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
