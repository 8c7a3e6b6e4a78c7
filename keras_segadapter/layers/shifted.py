"""Depthwise convolution as a sum of shifted products.

XLA has no fast depthwise convolution for CPUs. It does make one loop of many slices,
products and sums, which takes a tenth of the time and less. On TensorFlow's CPU the
library's convolution without XLA takes half of that again, and `jit_compile="auto"`
leaves XLA off there.
"""

from keras import ops


def shifted_convolution(inputs, kernel, strides, padding, dilation):
    """Convolve each channel with kernels of its own, as `ops.depthwise_conv` does.

    It computes in float32.

    Args:
        inputs: Features `(B, H, W, C)` of a known height and width, channels last.
        kernel: `(k, l, C, m)`.
        strides: Pair of integers.
        padding: "same" or "valid".
        dilation: Pair of integers.

    Returns:
        Features `(B, H', W', C * m)` in the dtype of the inputs.
    """
    *reach, channels, multiplier = kernel.shape
    kernel = ops.reshape(kernel, (*reach, channels * multiplier))
    features = ops.cast(inputs, "float32")
    if multiplier > 1:
        features = ops.repeat(features, multiplier, axis=-1)
    if padding == "same":
        sides = zip(inputs.shape[1:3], reach, strides, dilation, strict=True)
        edges = [_edges(*side) for side in sides]
        features = ops.pad(features, [(0, 0), *edges, (0, 0)])
    outputs = _convolve(strides, dilation)(features, ops.cast(kernel, "float32"))
    return ops.cast(outputs, inputs.dtype)


def _edges(length, taps, stride, dilation):
    """Return how many zeros stand before and behind a side of the features."""
    steps = -(-length // stride) - 1
    zeros = max(steps * stride + (taps - 1) * dilation + 1 - length, 0)
    return zeros // 2, zeros - zeros // 2


def _convolve(strides, dilation):
    """Return a function of padded features and a kernel `(k, l, C)`."""

    @ops.custom_gradient
    def convolve(features, kernel):
        outputs = _products(features, kernel, strides, dilation)

        def backward(*args, upstream=None):
            change = args[0] if upstream is None else upstream  # (B, H', W', C)
            kernel_change = _kernel_gradient(
                features, change, kernel.shape, strides, dilation
            )
            # The features' gradient is the same sum, with the kernel turned around.
            change = _spread(change, features.shape, kernel.shape, strides, dilation)
            turned = ops.flip(kernel, (0, 1))
            return _products(change, turned, (1, 1), dilation), kernel_change

        return outputs, backward

    return convolve


def _products(features, kernel, strides, dilation):
    """Return the sum of the shifted features, each times its row of the kernel."""
    rows, columns, _ = kernel.shape
    down = _shifts(features.shape[1], rows, strides[0], dilation[0])
    across = _shifts(features.shape[2], columns, strides[1], dilation[1])
    return sum(
        features[:, vertical, horizontal] * kernel[row, column]
        for row, vertical in enumerate(down)
        for column, horizontal in enumerate(across)
    )


def _shifts(length, taps, stride, dilation):
    """Return the slice of a side that each tap of the kernel sees."""
    last = length - (taps - 1) * dilation  # of the slice of the first tap
    return [slice(t * dilation, t * dilation + last, stride) for t in range(taps)]


def _kernel_gradient(features, change, shape, strides, dilation):
    """Return the gradient of the kernel `(k, l, C)`, gathered row by row of the map."""
    rows, columns, channels = shape
    batch, _, width, _ = ops.shape(features)
    height = (rows - 1) * dilation[0] + 1  # of what a row of the outputs saw
    across = _shifts(width, columns, strides[1], dilation[1])

    def add_row(total, row):
        start = (0, row * strides[0], 0, 0)
        seen = ops.slice(features, start, (batch, height, width, channels))
        seen = seen[:, :: dilation[0]]  # (B, k, W, C)
        start, size = (0, row, 0, 0), (batch, 1, change.shape[2], channels)
        row_change = ops.slice(change, start, size)  # (B, 1, W', C)
        parts = [ops.sum(seen[:, :, part] * row_change, (0, 2)) for part in across]
        return total + ops.stack(parts, axis=1), None

    return ops.scan(add_row, ops.zeros(shape), ops.arange(change.shape[1]))[0]


def _spread(change, seen, shape, strides, dilation):
    """Put the outputs' gradient where each output saw the features' first pixel.

    Zeros stand between, and around as far as the kernel reaches.
    """
    batch, height, width, channels = ops.shape(change)
    down, across = (d * (taps - 1) for d, taps in zip(dilation, shape[:2], strict=True))
    change = ops.reshape(change, (batch, height, 1, width, 1, channels))
    gaps = (0, strides[0] - 1), (0, strides[1] - 1)
    change = ops.pad(change, [(0, 0), (0, 0), gaps[0], (0, 0), gaps[1], (0, 0)])
    size = height * strides[0], width * strides[1]
    change = ops.reshape(change, (batch, *size, channels))
    change = ops.pad(change, [(0, 0), (down, down), (across, across), (0, 0)])
    return change[:, : seen[1] + down, : seen[2] + across]
