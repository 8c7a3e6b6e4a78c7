"""Count the multiply-adds of a graph, call by call."""

import collections
import math

import keras
from keras import layers

from keras_segadapter.graph.replay import graph_inside, record


class Tally:
    """Multiply-adds of a model's calls.

    Attributes:
        counts: Counter of "products" and of "resizes".
        not_counted: List of the names of layers whose multiply-adds are not known.
    """

    def __init__(self, model):
        self.counts, self.not_counted = collections.Counter(), []
        self._add_model(model)

    def _add_model(self, model):
        for call in record(model).calls:
            self._add_call(call)

    def _add_call(self, call):
        operation, (output, *_) = call.operation, call.outputs
        kind = _LAYERS.get(type(operation))
        if kind:
            self._add(kind, operation, output, call.args[0], operation.kernel)
        elif isinstance(operation, _FREE):
            return
        elif isinstance(operation, keras.Layer):
            inside = graph_inside(operation, call.args, call.kwargs)
            if inside is None:
                self.not_counted.append(operation.name)
            else:
                self._add_model(inside[0])
        else:
            values = keras.tree.flatten((call.args, call.kwargs))
            tensors = [value for value in values if hasattr(value, "shape")]
            self._add(type(operation).__name__, operation, output, *tensors)

    def _add(self, kind, operation, output, *tensors):
        if kind not in _FORMULAS:
            return
        if any(None in tensor.shape for tensor in (output, *tensors)):
            self.not_counted.append(operation.name)
            return
        column = "resizes" if kind == "Resize" else "products"
        self.counts[column] += _FORMULAS[kind](operation, output, *tensors)


def _size(tensor):
    return math.prod(tensor.shape)


def _einsum(operation, output, *factors):
    terms, arrow, result = operation.subscripts.partition("->")
    if not arrow:
        result = [letter for letter in terms if terms.count(letter) == 1]
    sides = {}
    for term, factor in zip(terms.split(","), factors, strict=True):
        before, _, after = term.partition("...")
        sides.update(zip(before, factor.shape, strict=False))
        sides.update(zip(after[::-1], factor.shape[::-1], strict=False))
    summed = [side for letter, side in sides.items() if letter not in result]
    return _size(output) * math.prod(summed) if summed and len(factors) > 1 else 0


def _separable(_, output, x, depthwise, pointwise):
    hidden = _size(output) // output.shape[-1] * pointwise.shape[-2]
    return hidden * (math.prod(depthwise.shape[:-2]) + output.shape[-1])


def _contraction(_, output, x, y):
    # Sizes a * k, k * b and a * b.
    return math.isqrt(_size(x) * _size(y) * _size(output))


def _resize(operation, output, *_):
    taps = {"nearest": 0, "bilinear": 2, "bicubic": 4, "lanczos3": 6, "lanczos5": 10}
    return taps[operation.interpolation] ** 2 * _size(output)


# By the name of an operation's class: Keras' own are not public.
_FORMULAS = {
    # A group's kernel is (height, width, channels / groups, filters).
    "Conv": lambda _, output, x, kernel: _size(output) * math.prod(kernel.shape[:-1]),
    "ConvTranspose": lambda _, output, x, kernel: (
        _size(x) * math.prod(kernel.shape[:-1])
    ),
    "DepthwiseConv": lambda _, output, x, kernel: (
        _size(output) * math.prod(kernel.shape[:-2])
    ),
    "Dot": _contraction,
    # (B, N, heads, d) by (B, M, heads, d) gives N * M weights, these times values.
    "DotProductAttention": lambda _, output, query, key, *rest: (
        2 * _size(query) * key.shape[1]
    ),
    "Einsum": _einsum,
    "Matmul": lambda _, output, x, y: _size(output) * x.shape[-1],
    "Resize": _resize,
    "SeparableConv": _separable,
    "Tensordot": _contraction,
}
# They need not be looked into, and grouped convolutions can't be (Keras 3.15).
_LAYERS = {
    layers.Conv2D: "Conv",
    layers.Dense: "Matmul",
    layers.DepthwiseConv2D: "DepthwiseConv",
}
# They count nothing, and some can't run on symbolic tensors.
_FREE = (
    layers.Activation,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.Rescaling,
)
