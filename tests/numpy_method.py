"""The paper's equations in plain NumPy float64, on the weights of built layers."""

import math

import keras
import numpy as np
from keras import ops

erf = np.vectorize(math.erf)


def maps(*shape, seed=0):
    """Return standard normal feature maps."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def dtypes(tensors):
    """Return the names of the tensors' dtypes."""
    return [
        keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(tensors)
    ]


def set_random_weights(layer, seed=0):
    """Set every weight to order 1: the initial zeros and ones would hide faults."""
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        shape = variable.shape
        if len(shape) < 2:  # biases, norms (variances are positive), mu
            variable.assign(rng.uniform(0.5, 1.5, shape))
        else:
            fan_in = math.prod(shape[: len(shape) // 2])
            variable.assign(rng.normal(0, fan_in**-0.5, shape))


def assert_close(actual, expected, tolerance):
    """Check that shapes agree, and values to `tolerance` times the largest one."""
    actual = ops.convert_to_numpy(ops.cast(actual, "float32"))
    expected = np.asarray(ops.convert_to_numpy(expected), "float64")
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


def array(variable):
    """Return a variable or tensor as a float64 array."""
    return ops.convert_to_numpy(variable).astype("float64")


def resize_like(layer, x, reference):
    """Resize the first map to the size of the second."""
    return resize(x, *reference.shape[1:3])


def tokens_to_map(layer, tokens, grid):
    """Lay out the last tokens as a map of the grid's size."""
    batch, height, width, _ = grid.shape
    return tokens[:, -height * width :].reshape(batch, height, width, -1)


def resize(x, height, width):
    """Resize `(B, h, w, C)`, bilinear with half-pixel centers, not antialiased."""
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


def patch_convolution(layer, x):
    """Convolve without padding, with strides of the kernel's size."""
    side = layer.kernel_size[0]
    batch, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = x[:, : rows * side, : columns * side]
    x = x.reshape(batch, rows, side, columns, side, channels)
    return np.einsum("bhiwjc,ijcf->bhwf", x, array(layer.kernel)) + array(layer.bias)


def patch_transposed_convolution(layer, x):
    """Make a patch of each pixel: strides of the kernel's size."""
    kernel = array(layer.kernel)  # (k, l, filters, C)
    rows, columns, filters, _ = kernel.shape
    batch, height, width, _ = x.shape
    patches = np.einsum("bhwc,ijfc->bhiwjf", x, kernel) + array(layer.bias)
    return patches.reshape(batch, rows * height, columns * width, filters)


def layer_norm(layer, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.epsilon)
    return x * array(layer.gamma) + array(layer.beta)


def seg_attention(layer, x):
    """Compute equation 3."""
    gate = layer_norm(
        layer.norm, linear(layer.pointwise, depthwise(layer.depthwise, x))
    )
    return gate * linear(layer.value, x)


def high_order_attention(layer, x):
    """Compute equations 4 and 5; with a `width`, F1 sees a linear map of X."""
    scores = linear(layer.classifier, x)
    reduced = x if layer.width is None else linear(layer.reduction, x)
    visual, semantic = (
        seg_attention(*pair)
        for pair in ((layer.visual, reduced), (layer.semantic, scores))
    )
    return visual * semantic, scores


def seg_adapter(layer, x):
    """Compute equation 6, once per block; with `normalize` HSA sees the norm of X."""
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
    x = (x - array(layer.moving_mean)) / np.sqrt(
        array(layer.moving_variance) + layer.epsilon
    )
    return x * array(layer.gamma) + array(layer.beta)


def mlp_head(layer, stages):
    """Compute the head of section 2: resize, concatenate, then project."""
    _, height, width, _ = stages[0].shape
    hidden = [
        resize(gelu(batch_norm(norm, x @ array(dense.kernel))), height, width)
        for x, dense, norm in zip(stages, layer.linears, layer.norms, strict=True)
    ]
    fused = np.concatenate(hidden, axis=-1) @ array(layer.projection)
    return linear(layer.classifier, gelu(batch_norm(layer.projection_norm, fused)))


def segformer_head(layer, stages):
    """Compute SegFormer's head with one matrix per stage, after resizing."""
    _, height, width, _ = stages[0].shape
    fused = sum(
        resize(x, height, width) @ array(dense.kernel)
        for x, dense in zip(stages, layer.linears, strict=True)
    )
    return linear(layer.classifier, np.maximum(batch_norm(layer.norm, fused), 0))


def simple_feature_pyramid(layer, taps):
    """Enlarge maps by transposed convolutions, or take the largest of each square."""
    pyramid = []
    for factor, branch, x in zip(
        layer.scale_factors, layer.branches, taps, strict=True
    ):
        for index in range(round(math.log2(factor))):
            if index:
                x = gelu(layer_norm(branch.norms[index - 1], x))
            x = patch_transposed_convolution(branch.deconvolutions[index], x)
        side = max(1, round(1 / factor))
        batch, height, width, channels = x.shape
        below = ((0, 0), (0, -height % side), (0, -width % side), (0, 0))
        x = np.pad(x, below, constant_values=-np.inf)
        x = x.reshape(batch, x.shape[1] // side, side, -1, side, channels)
        pyramid.append(x.max((2, 4)))
    return pyramid


def efficient_self_attention(layer, x):
    """Compute SegFormer's attention, with keys and values from a smaller map."""
    source = x
    if layer.reduction > 1:
        source = layer_norm(layer.norm, patch_convolution(layer.reduce, x))

    def heads(dense, x):  # (B, H, W, C) -> (B, heads, H*W, C/heads)
        batch, _, _, channels = x.shape
        shape = (batch, -1, layer.num_heads, channels // layer.num_heads)
        return linear(dense, x).reshape(shape).swapaxes(1, 2)

    query, key = heads(layer.query, x), heads(layer.key, source)
    value = heads(layer.value, source)
    weights = np.exp(query @ key.swapaxes(2, 3) / math.sqrt(query.shape[-1]))
    weights /= weights.sum(-1, keepdims=True)
    attended = (weights @ value).swapaxes(1, 2).reshape(x.shape)
    return linear(layer.projection, attended)


def mix_ffn(layer, x):
    """Compute SegFormer's feed-forward network."""
    hidden = depthwise(layer.depthwise, linear(layer.expansion, x))
    return linear(layer.contraction, gelu(hidden))
