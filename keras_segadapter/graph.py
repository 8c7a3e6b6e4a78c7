"""Re-run a functional backbone's graph and read its structure. No weights here.

Everything rests on one public tool: `keras.models.clone_model` runs a functional model
again through a function of ours, which sees every call of a layer or an operation.
"""

import dataclasses

import keras
from keras import layers

from keras_segadapter.checks import check_channels_last

PROBE_SIZE = 256  # pixels a side at which strides are measured where size is open


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation: the symbolic tensors in and out."""

    operation: object
    inputs: list
    outputs: list

    @property
    def shape(self):
        return self.outputs[0].shape if len(self.outputs) == 1 else ()

    @property
    def is_feature_map(self):
        # One pixel is a pooled vector, not a map.
        return len(self.shape) == 4 and min(self.shape[1:3]) > 1


class Graph:
    """A backbone's calls at a probe size, in order of execution.

    Attributes:
        name: The backbone's name.
        size: Height and width of the probe image.
        calls: List of `Call`.
        producer: Position of the call that made a tensor, by the tensor's id.
        outputs: Positions of the calls that make the backbone's outputs.
        watched: Positions that make the tensors given as `watched`, in their order.
        points: Positions of the feature maps that all that comes after passes through
            (the graph's articulation points).
    """

    def __init__(self, backbone, watched=()):
        model = as_functional(backbone)
        (image,) = keras.tree.flatten(model.input)
        _, height, width, channels = image.shape
        self.name = model.name
        self.size = (height or PROBE_SIZE, width or PROBE_SIZE)
        self.calls = []

        def visit(operation, *args, **kwargs):
            outputs = operation(*args, **kwargs)
            self.calls.append(
                Call(operation, _tensors((args, kwargs)), _tensors(outputs))
            )
            return outputs

        probe = keras.Input((*self.size, channels), dtype=image.dtype)
        outputs, watched = replay(model, probe, visit, watched)
        self.producer = {
            id(tensor): position
            for position, call in enumerate(self.calls)
            for tensor in call.outputs
        }
        self.outputs = [self.producer.get(id(tensor)) for tensor in outputs]
        self.watched = [self.producer.get(id(tensor)) for tensor in watched]
        self.points = self._articulation_points(probe, outputs)

    def _articulation_points(self, probe, outputs):
        # What comes after ends at the deepest output: the one with the fewest pixels.
        end = min(outputs, key=lambda t: t.shape[1] if len(t.shape) == 4 else 0)
        needed, stack = set(), [self.producer.get(id(end))]
        while stack:
            position = stack.pop()
            if position is not None and position not in needed:
                needed.add(position)
                stack += [self.producer.get(id(t)) for t in self.calls[position].inputs]
        last_read = {}
        for position in sorted(needed):
            for tensor in self.calls[position].inputs:
                last_read[id(tensor)] = position
        points, earlier_read_until = [], last_read.get(id(probe), -1)
        for position in sorted(needed):
            call = self.calls[position]
            if earlier_read_until <= position and call.is_feature_map:
                points.append(position)
            for tensor in call.outputs:
                earlier_read_until = max(
                    earlier_read_until, last_read.get(id(tensor), -1)
                )
        return points


def as_functional(backbone):
    """The backbone as a functional model, or the sentence that says why it is none."""
    check_channels_last()
    if isinstance(backbone, keras.Sequential):
        if not backbone.built:
            raise ValueError(
                f"The Sequential backbone '{backbone.name}' has no input shape yet. "
                "Put keras.Input((None, None, 3)) first in its list of layers."
            )
        inputs = keras.Input(backbone.input_shape[1:])
        features = inputs
        for layer in backbone.layers:
            features = layer(features)
        backbone = keras.Model(inputs, features, name=backbone.name)
    if not _is_functional(backbone):
        raise TypeError(
            "`backbone` must be a functional keras.Model or a keras.Sequential, whose "
            "graph can be run again with adapters inside. Received: "
            f"{backbone!r} of type {type(backbone).__name__}. For a subclassed model, "
            "put keras_segadapter.SegAdapter layers into its own code."
        )
    shapes = [tensor.shape for tensor in keras.tree.flatten(backbone.input)]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] is None:
        raise ValueError(
            "`backbone` must take one batch of images (batch, height, width, channels) "
            f"with a known number of channels. Received: '{backbone.name}' with input "
            f"shapes {shapes}"
        )
    return backbone


def replay(model, inputs, visit, watched=()):
    """Run a functional model again, each call through `visit(operation, *args, **kw)`.

    Nested functional models are gone into, so `visit` sees the layers inside; nested
    Sequentials only where they hold a model themselves.

    Args:
        model: A functional model.
        inputs: Symbolic tensors, as many as the model has inputs.
        visit: Function that makes the call and returns its outputs, changed or not.
        watched: Tensors of the model's graph.

    Returns:
        The model's new outputs, flat, and the tensors now in the place of `watched`.
    """
    asked = (*keras.tree.flatten(model.output), *watched)
    # clone_model may give back copies of the tensors that `visit` returned; an identity
    # behind each tensor asked for tells which one arrived there.
    marks = [layers.Identity() for _ in asked]
    index_of = {id(mark): index for index, mark in enumerate(marks)}
    arrived = [None] * len(asked)
    marked = keras.Model(
        model.input, [mark(t) for mark, t in zip(marks, asked, strict=True)]
    )

    def call(operation, *args, **kwargs):
        if id(operation) in index_of:
            arrived[index_of[id(operation)]] = args[0]
            return args[0]
        if _is_functional(operation):
            outputs, _ = replay(operation, args[0], visit)
            return keras.tree.pack_sequence_as(operation.output, outputs)
        if _holds_models(operation):
            features = args[0]
            for layer in operation.layers:
                features = call(layer, features)
            return features
        return visit(operation, *args, **kwargs)

    keras.models.clone_model(
        marked,
        input_tensors=keras.tree.pack_sequence_as(
            model.input, keras.tree.flatten(inputs)
        ),
        clone_function=lambda layer: layer,
        call_function=call,
    )
    number_of_outputs = len(asked) - len(watched)
    return arrived[:number_of_outputs], arrived[number_of_outputs:]


def _is_functional(model):
    return (
        isinstance(model, keras.Model)
        and not isinstance(model, keras.Sequential)
        and hasattr(model, "operations")
    )


def _holds_models(operation):
    return isinstance(operation, keras.Sequential) and any(
        isinstance(layer, keras.Model) for layer in operation.layers
    )


def _tensors(structure):
    return [
        t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)
    ]
