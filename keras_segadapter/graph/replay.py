"""Record the calls of a functional model, and make them again elsewhere.

Everything rests on one public tool: `keras.models.clone_model` runs a functional model
again through a function of ours, which sees every call of a layer or an operation.
"""

import dataclasses
import inspect

import keras

from keras_segadapter.validation import check_channels_last, is_segmenter


def as_functional(backbone):
    """Return the backbone as a functional model with one image input.

    Raises:
        TypeError: If `backbone` is neither a functional nor a Sequential model, or if
            it is a Segmenter.
        ValueError: If it does not take one batch of channels-last images.
    """
    check_channels_last()
    if is_segmenter(backbone):
        raise TypeError(
            "A Segmenter can't be a backbone. For adapters in it call keras_segadapter."
            "add_adapters(model), for other classes keras_segadapter.change_classes("
            "model, class_names); for anything else pass its backbone, model.backbone. "
            f"Received: backbone='{backbone.name}', a Segmenter"
        )
    if isinstance(backbone, keras.Sequential):
        if not backbone.built:
            raise ValueError(
                "A Sequential backbone must know its input shape. Put "
                "keras.Input((None, None, 3)) first in its list of layers. Received: "
                f"backbone='{backbone.name}', which is not built"
            )
        (inputs,), (outputs,) = backbone.inputs, backbone.outputs
        backbone = keras.Model(inputs, outputs, name=backbone.name)
    if not _is_functional(backbone):
        raise TypeError(
            "`backbone` must be a functional keras.Model or a keras.Sequential, whose "
            "graph can be run again with adapters inside. In a subclassed model, call "
            "keras_segadapter.SegAdapter layers in its own code. Received: "
            f"backbone={backbone!r} of type {type(backbone).__name__}"
        )
    shapes = [tensor.shape for tensor in keras.tree.flatten(backbone.input)]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] is None:
        raise ValueError(
            "`backbone` must take one batch of images (batch, height, width, channels) "
            "with a known number of channels. Received: "
            f"backbone='{backbone.name}' with input shapes {shapes}"
        )
    return backbone


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: The layer or operation.
        args: Positional arguments, symbolic tensors and others.
        kwargs: Keyword arguments.
        result: What the call returns: symbolic tensors, in any structure.
    """

    operation: object
    args: tuple
    kwargs: dict
    result: object

    @property
    def inputs(self):
        return _symbolic_tensors((self.args, self.kwargs))

    @property
    def outputs(self):
        return _symbolic_tensors(self.result)

    @property
    def shape(self):
        """Shape of the only output; () where there are several."""
        return self.outputs[0].shape if len(self.outputs) == 1 else ()

    @property
    def is_tokens(self):
        return len(self.shape) == 3


@dataclasses.dataclass(frozen=True)
class Recording:
    """The calls of a model in order of execution, and its tensors, all flat lists."""

    inputs: list
    calls: list
    outputs: list
    watched: list


def record(model, inputs=None, watched=(), training=None):
    """Record the calls of a functional model; its layers are not called for it.

    Nested functional models are expanded into their calls, nested Sequentials where
    they hold a model themselves, and layers that are a whole encoder into the calls of
    the blocks inside them.

    Args:
        model: A functional model.
        inputs: List of new inputs, such as `keras.Input` of another size. Defaults to
            inputs of the shapes that the model has.
        watched: Tensors of the model's graph.
        training: What the model was called with, if with anything.

    Returns:
        A `Recording`; its `watched` are the tensors in the place of those given.
    """
    names = [block.name for op in model.operations for block in blocks_inside(op)]
    unique = len(set(names)) == len(names)  # as the layers of one graph must be
    calls = []

    def note(operation, *args, **kwargs):
        result = _StandIn(operation)(*args, **kwargs)
        calls.append(Call(operation, args, kwargs, result))
        return result

    def expand(inner, tensors, structure, training):
        outputs = replay(record(inner, training=training), [*tensors], note)
        return keras.tree.pack_sequence_as(structure, outputs)

    def see(operation, *args, **kwargs):
        passed = kwargs.get("training") if training is None else training
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        if passed is not None and _takes_training(operation):
            kwargs["training"] = passed
        if _is_functional(operation):
            tensors = keras.tree.flatten(args[0])
            return expand(operation, tensors, operation.output, passed)
        if _holds_models(operation):
            features = args[0]
            for layer in operation.layers:
                features = see(layer, features, training=passed)
            return features
        if unique and blocks_inside(operation):
            inside = graph_inside(operation, args, kwargs)
            if inside:
                model, structure = inside
                tensors = _once((args, kwargs)).values()
                return expand(model, tensors, structure, passed)
        return note(operation, *args, **kwargs)

    outputs = keras.tree.flatten(model.output)
    # One tensor or a list: a dict would have to name its tensors as the model does.
    start = _single(keras.tree.flatten(model.input))
    copy = keras.models.clone_model(
        keras.Model(start, [*outputs, *watched]),
        input_tensors=None if inputs is None else _single(inputs),
        clone_function=lambda layer: layer,
        call_function=see,
    )
    found, count = copy.outputs, len(outputs)
    return Recording(copy.inputs, calls, found[:count], found[count:])


def replay(recording, inputs, visit):
    """Make recorded calls again, each through `visit(operation, *args, **kwargs)`.

    Args:
        recording: A `Recording`.
        inputs: Symbolic tensors, as many as were recorded.
        visit: Function that makes the call and returns its outputs, changed or not.

    Returns:
        List of the new outputs.
    """
    new = {id(t): n for t, n in zip(recording.inputs, inputs, strict=True)}
    for call in recording.calls:
        args, kwargs = keras.tree.map_structure(
            lambda value: new.get(id(value), value), (call.args, call.kwargs)
        )
        outputs = keras.tree.flatten(visit(call.operation, *args, **kwargs))
        old = keras.tree.flatten(call.result)
        new.update({id(t): n for t, n in zip(old, outputs, strict=True)})
    return [new[id(tensor)] for tensor in recording.outputs]


def graph_inside(layer, args, kwargs):
    """Return what a layer does with its arguments, as a graph of the layers inside it.

    Returns:
        A functional model of the tensors among the arguments, each once, and the
        structure of the layer's outputs; or None where the layer can't run on symbolic
        tensors.
    """
    given = _once((args, kwargs))
    inputs = {
        key: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        for key, tensor in given.items()
    }
    args, kwargs = keras.tree.map_structure(
        lambda value: inputs.get(id(value), value), (args, kwargs)
    )
    try:
        # On symbolic tensors `call` leaves the calls that it makes as a graph.
        outputs = layer.call(*args, **kwargs)
        return keras.Model([*inputs.values()], keras.tree.flatten(outputs)), outputs
    except Exception:  # of any kind: a foreign `call` that needs real tensors
        return None


def blocks_inside(operation):
    """Return the blocks in a layer's own public lists.

    Nothing is returned for a layer with weights besides those of the layers inside it:
    these would belong to no layer of the new graph.
    """
    if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
        return []
    # Its own attributes; `vars` would not do, PyTorch keeps layers in another place.
    names = [name for name in dir(operation) if not hasattr(type(operation), name)]
    parts = [getattr(operation, name) for name in names if not name.startswith("_")]
    lists = [part for part in parts if isinstance(part, (list, tuple))]
    inside = [x for x in keras.tree.flatten(parts) if isinstance(x, keras.Layer)]
    held = {id(weight) for layer in inside for weight in layer.weights}
    if held != {id(weight) for weight in operation.weights}:
        return []
    return [x for x in keras.tree.flatten(lists) if is_whole_block(x)]


def is_whole_block(operation):
    """Return whether a layer is a block: more than a convolution and a norm."""
    return len(getattr(operation, "weights", ())) > 4 and len(kernels(operation)) > 1


def kernels(operation):
    """Return the weights of linear layers and convolutions in a layer."""
    weights = getattr(operation, "weights", ())
    return [weight for weight in weights if len(weight.shape) in (2, 4)]


class _StandIn(keras.Operation):
    """Stands for a layer in a graph that is only looked at.

    A call of the layer itself would leave a node on it for as long as it lives.
    """

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def compute_output_spec(self, *args, **kwargs):
        return self.operation.compute_output_spec(*args, **kwargs)


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


def _takes_training(operation):
    return isinstance(operation, keras.Layer) and (
        "training" in inspect.signature(operation.call).parameters
    )


def _single(tensors):
    return tensors[0] if len(tensors) == 1 else tensors


def _symbolic_tensors(structure):
    return [
        t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)
    ]


def _once(structure):
    """Return the symbolic tensors of a structure by their ids, each once."""
    return {id(tensor): tensor for tensor in _symbolic_tensors(structure)}
