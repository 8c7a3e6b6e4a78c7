"""Tally: the multiply-adds of a graph, counted call by call."""

import collections
import math

import keras
from keras import layers

from keras_segadapter.graph.replay import graph_inside, record, replay


class Tally:
    """The multiply-adds of a functional model whose inputs have known shapes.

    Attributes:
        counts: Counter of "products" and of "resizes".
        not_counted: List of the names of layers whose multiply-adds are not known.
    """

    def __init__(self, model):
        self.counts, self.not_counted = collections.Counter(), []
        self._count_model(model)

    def _count_model(self, model):
        """Count the calls of a model and return its outputs as a flat list."""
        recording = record(model)
        return replay(recording, recording.inputs, self._count)

    def _count(self, operation, *args, **kwargs):
        """Count one call and return its symbolic outputs."""
        kind = _LAYERS.get(type(operation))
        if isinstance(operation, keras.Layer) and kind is None:
            return self._count_layer(operation, args, kwargs)
        kind = kind or type(operation).__name__
        outputs = operation.compute_output_spec(*args, **kwargs)
        if kind in _FORMULAS:
            kernel = getattr(operation, "kernel", ())
            values = keras.tree.flatten((args, kwargs, kernel))
            tensors = [value for value in values if hasattr(value, "shape")]
            if any(None in tensor.shape for tensor in (outputs, *tensors)):
                self.not_counted.append(operation.name)
            else:
                column = "resizes" if kind == "Resize" else "products"
                self.counts[column] += _FORMULAS[kind](operation, outputs, *tensors)
        return outputs

    def _count_layer(self, layer, args, kwargs):
        """Count the calls inside a layer and return its symbolic outputs."""
        free = isinstance(layer, _FREE)
        inside = None if free else graph_inside(layer, args, kwargs)
        if inside is not None:
            # The outputs' sizes are those inside: some layers, EinsumDense among them,
            # leave sizes open that are known.
            model, structure = inside
            return keras.tree.pack_sequence_as(structure, self._count_model(model))
        if not free:
            self.not_counted.append(layer.name)
        return layer.compute_output_spec(*args, **kwargs)


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
    # The sizes are a * k, k * b and a * b; their product is (a * k * b) squared.
    return math.isqrt(_size(x) * _size(y) * _size(output))


def _resize(operation, output, *_):
    taps = {"nearest": 0, "bilinear": 2, "bicubic": 4, "lanczos3": 6, "lanczos5": 10}
    return taps[operation.interpolation] ** 2 * _size(output)


# Keyed by the name of the operation's class, since Keras' classes are not public.
_FORMULAS = {
    # A kernel has shape (height, width, channels / groups, filters).
    "Conv": lambda _, output, x, kernel: _size(output) * math.prod(kernel.shape[:-1]),
    "ConvTranspose": lambda _, output, x, kernel: (
        _size(x) * math.prod(kernel.shape[:-1])
    ),
    "DepthwiseConv": lambda _, output, x, kernel: (
        _size(output) * math.prod(kernel.shape[:-2])
    ),
    "Dot": _contraction,
    # Queries (B, N, heads, d) and keys (B, M, heads, d) give N * M weights per head,
    # which then multiply the values.
    "DotProductAttention": lambda _, output, query, key, *rest: (
        2 * _size(query) * key.shape[1]
    ),
    "Einsum": _einsum,
    "Matmul": lambda _, output, x, y: _size(output) * x.shape[-1],
    "Resize": _resize,
    "SeparableConv": _separable,
    "Tensordot": _contraction,
}
# Layers that are one operation. A grouped Conv2D can't run on symbolic tensors (Keras
# 3.15).
_LAYERS = {
    layers.Conv2D: "Conv",
    layers.Dense: "Matmul",
    layers.DepthwiseConv2D: "DepthwiseConv",
}
# Layers that count as nothing; some of them can't run on symbolic tensors.
_FREE = (
    layers.Activation,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.Rescaling,
)
