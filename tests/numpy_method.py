"""The paper's equations in plain NumPy float64, on the weights of built layers."""

import math

import keras
import numpy as np
from keras import ops

erf = np.vectorize(math.erf)


def maps(*shape, seed=0):
    """Feature maps, standard normal."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def dtypes(tensors):
    return [
        keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(tensors)
    ]


def set_random_weights(layer, seed=0):
    """Weights of order 1 in every place: starts of 0 and 1 would hide faults."""
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        shape = variable.shape
        if len(shape) < 2:  # biases, norms (variances are positive), mu
            variable.assign(rng.uniform(0.5, 1.5, shape))
        else:
            fan_in = math.prod(shape[: len(shape) // 2])
            variable.assign(rng.normal(0, fan_in**-0.5, shape))


def assert_close(actual, expected, tolerance):
    """`tolerance` is relative to the largest value."""
    actual = ops.convert_to_numpy(ops.cast(actual, "float32"))
    expected = np.asarray(ops.convert_to_numpy(expected), "float64")
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


def array(variable):
    return ops.convert_to_numpy(variable).astype("float64")


def resize(x, height, width):
    """Bilinear with half-pixel centres, without antialiasing."""
    for axis, size in ((1, height), (2, width)):
        last = x.shape[axis] - 1
        centers = (np.arange(size) + 0.5) * x.shape[axis] / size - 0.5
        centers = centers.clip(0, last)
        low = np.floor(centers).astype(int)
        share = (centers - low).reshape([-1 if i == axis else 1 for i in range(4)])
        above = x.take(np.minimum(low + 1, last), axis)
        x = x.take(low, axis) * (1 - share) + above * share
    return x


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def linear(layer, x):
    return x @ array(layer.kernel) + array(layer.bias)


def depthwise(layer, x):
    kernel = array(layer.kernel)[..., 0]  # (s, s, C)
    side, (_, height, width, _) = len(kernel), x.shape
    pad = ((side - 1) // 2, side // 2)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    return array(layer.bias) + sum(
        kernel[i, j] * padded[:, i : i + height, j : j + width]
        for i in range(side)
        for j in range(side)
    )


def layer_norm(layer, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * array(layer.gamma) + array(layer.beta)


def seg_attention(layer, x):
    """Equation 3."""
    gate = layer_norm(
        layer.norm, linear(layer.pointwise, depthwise(layer.depthwise, x))
    )
    return gate * linear(layer.value, x)


def high_order_attention(layer, x):
    """Equations 4 and 5."""
    scores = linear(layer.classifier, x)
    return seg_attention(layer.visual, x) * seg_attention(
        layer.semantic, scores
    ), scores


def seg_adapter(layer, x):
    """Equation 6, once a block; with `normalize` HSA sees the norm of X."""
    for norm, attention, expansion, contraction, scale in zip(
        layer.norms,
        layer.attentions,
        layer.expansions,
        layer.contractions,
        layer.scales,
        strict=True,
    ):
        seen = layer_norm(norm, x) if layer.normalize else x
        attended, scores = high_order_attention(attention, seen)
        x = x + array(scale) * linear(contraction, gelu(linear(expansion, attended)))
    return x, scores


def batch_norm(layer, x):
    x = (x - array(layer.moving_mean)) / np.sqrt(array(layer.moving_variance) + 1e-6)
    return x * array(layer.gamma) + array(layer.beta)


def mlp_head(layer, stages):
    """Decode head of section 2: resize, concatenate, then project."""
    _, height, width, _ = stages[0].shape
    hidden = [
        resize(gelu(batch_norm(norm, x @ array(dense.kernel))), height, width)
        for x, dense, norm in zip(stages, layer.linears, layer.norms, strict=True)
    ]
    fused = np.concatenate(hidden, axis=-1) @ array(layer.projection)
    return linear(layer.classifier, gelu(batch_norm(layer.projection_norm, fused)))
