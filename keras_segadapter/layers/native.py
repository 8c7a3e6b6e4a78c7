"""Backend-specific code, for what Keras lacks or does slowly.

This is the only module that asks which backend runs.
"""

import contextlib
import contextvars
import math

import keras
from keras import ops

from keras_segadapter.layers.shifted import shifted_convolution

_exporting = contextvars.ContextVar("exporting", default=False)
# How many products the gradient of JAX' own depthwise convolution may take before
# another way is faster.
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


def traces_for_export():
    """Return whether to compute as the backend's own library does."""
    return _exporting.get()


@contextlib.contextmanager
def library_convolutions():
    """Trace with the backend's own convolutions, which exported files keep as such."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def _many_products_on_jax(layer, inputs):
    """Return whether JAX' depthwise convolution of these inputs would be slow."""
    if not on_jax() or traces_for_export() or is_symbolic(inputs):
        return False
    import jax

    # Sides that are open while JAX exports are no integers.
    known = all(isinstance(side, int) for side in inputs.shape)
    if not known or jax.default_backend() != "cpu":
        return False
    # The gradient of the library's takes every channel times every other.
    pixels = math.prod(inputs.shape) * inputs.shape[-1]
    return pixels * math.prod(layer.kernel_size) > FEW_PRODUCTS


def is_symbolic(inputs):
    return isinstance(inputs, keras.KerasTensor)


def takes_torch(inputs):
    """Return whether the inputs are PyTorch's own tensors, not symbolic ones."""
    return on_torch() and not is_symbolic(inputs)


def fits_a_view(layer, inputs):
    """Return whether PyTorch can pad as a layer does, on both sides alike."""
    alike = all(
        side == 1 or (side % 2 and stride == 1)
        for side, stride in zip(layer.kernel_size, layer.strides, strict=True)
    )
    return takes_torch(inputs) and (layer.padding == "valid" or alike)


def has_fast_depthwise(layer, inputs):
    """Return whether `depthwise` is faster on these inputs than Keras is."""
    return fits_a_view(layer, inputs) or _many_products_on_jax(layer, inputs)


def linear(inputs, kernel, bias=None):
    """Multiply features `(..., C)` by a kernel `(C, units)` and add a bias."""
    if not takes_torch(inputs):
        *sides, channels = inputs.shape
        rows = ops.reshape(inputs, (-1, channels))  # (pixels, C)
        outputs = ops.matmul(rows, kernel)
        outputs = outputs if bias is None else outputs + bias
        return ops.reshape(outputs, (*sides, outputs.shape[-1]))  # (..., units)
    import torch

    bias = None if bias is None else ops.convert_to_tensor(bias)
    return torch.nn.functional.linear(inputs, ops.convert_to_tensor(kernel).T, bias)


def depthwise(layer, inputs, kernel, bias=None):
    """Convolve each channel by its own part of a kernel `(k, k, C, m)`; add a bias."""
    if fits_a_view(layer, inputs):
        weight = ops.convert_to_tensor(kernel).permute(2, 3, 0, 1)
        weight = weight.flatten(0, 1)[:, None]  # (C * m, 1, k, k)
        return convolve_on_torch(layer, inputs, weight, bias, groups=kernel.shape[2])
    strides, padding, dilation = layer.strides, layer.padding, layer.dilation_rate
    if _many_products_on_jax(layer, inputs):
        outputs = shifted_convolution(inputs, kernel, strides, padding, dilation)
    else:
        outputs = ops.depthwise_conv(
            inputs, kernel, strides, padding, "channels_last", dilation
        )
    return outputs if bias is None else outputs + bias


def convolve_on_torch(layer, inputs, weight, bias, groups):
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


def max_pool_on_torch(inputs, size, strides):
    """Take the largest values of a PyTorch tensor `(B, H, W, C)`, without padding."""
    import torch

    outputs = torch.nn.functional.max_pool2d(
        inputs.permute(0, 3, 1, 2),  # (B, C, H, W), a view
        size,
        strides,
    )
    return outputs.permute(0, 2, 3, 1)  # (B, H', W', C)


def batch_norm_on_torch(inputs, gamma, beta, epsilon, mean=None, variance=None):
    """Normalize a PyTorch tensor `(B, ..., C)` in one pass.

    Returns:
        The outputs and, unless `mean` and `variance` are given, those of the batch: the
        means `(C,)` and the reciprocal deviations `(C,)`.
    """
    import torch

    gamma, beta, mean, variance = (
        None if values is None else ops.convert_to_tensor(values)
        for values in (gamma, beta, mean, variance)
    )
    outputs, *found = torch.native_batch_norm(
        inputs.movedim(-1, 1),  # (B, C, ...), a view
        gamma,
        beta,
        mean,  # None in training: PyTorch would note the unbiased variance
        variance,
        training=mean is None,
        momentum=0.0,
        eps=epsilon,
    )
    return outputs.movedim(1, -1), *found


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
