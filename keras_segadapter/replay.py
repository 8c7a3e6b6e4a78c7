"""Run a functional backbone's graph again, with a say in every call. No weights here.

Everything rests on one public tool: `keras.models.clone_model` runs a functional model
again through a function of ours, which sees every call of a layer or an operation.
"""

import keras
from keras import layers

from keras_segadapter.checks import check_channels_last


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
    Sequentials only where they hold a model themselves; layers that are a
    whole encoder too, so that it sees the blocks.

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
    names = [block.name for op in model.operations for block in blocks_inside(op)]
    unique = len(set(names)) == len(names)  # as the layers of one graph must be
    arrived = [None] * len(asked)
    # One tensor or a list: a dict would have to name its tensors as the model does.
    start, new_start = (
        tensors[0] if len(tensors) == 1 else tensors
        for tensors in map(keras.tree.flatten, (model.input, inputs))
    )
    marked = keras.Model(start, [mark(t) for mark, t in zip(marks, asked, strict=True)])

    def call(operation, *args, **kwargs):
        if id(operation) in index_of:
            arrived[index_of[id(operation)]] = args[0]
            # The copy itself is thrown away. Its outputs must differ, and depend on no
            # tensor but its inputs.
            return operation(keras.tree.flatten(new_start)[0])
        if _is_functional(operation):
            outputs, _ = replay(operation, args[0], visit)
            return keras.tree.pack_sequence_as(operation.output, outputs)
        if _holds_models(operation):
            features = args[0]
            for layer in operation.layers:
                features = call(layer, features)
            return features
        if unique and blocks_inside(operation):
            inside = graph_inside(operation, args, kwargs)
            if inside:
                return replay_inside(inside, visit, args, kwargs)
        return visit(operation, *args, **kwargs)

    keras.models.clone_model(
        marked,
        input_tensors=new_start,
        clone_function=lambda layer: layer,
        call_function=call,
    )
    number_of_outputs = len(asked) - len(watched)
    return arrived[:number_of_outputs], arrived[number_of_outputs:]


def graph_inside(layer, args, kwargs):
    """What a layer does with its arguments, as a graph of the layers inside it.

    Returns:
        A pair to be handed to `replay_inside`, or None where the layer can't run on
        symbolic tensors.
    """
    given = _tensors_once((args, kwargs))
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


def replay_inside(inside, visit, args, kwargs):
    """`replay` what `graph_inside` found; returns outputs as the layer would."""
    model, structure = inside
    outputs, _ = replay(model, [*_tensors_once((args, kwargs)).values()], visit)
    return keras.tree.pack_sequence_as(structure, outputs)


def blocks_inside(operation):
    """The blocks in a layer's own public lists.

    None where it has weights besides those of the layers inside: these would be in no
    layer of the new graph.
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
    """Whether a layer does a block's work: more than a convolution and a norm."""
    return len(getattr(operation, "weights", ())) > 4 and len(kernels(operation)) > 1


def kernels(operation):
    """The weights of linear layers and convolutions in a layer."""
    weights = getattr(operation, "weights", ())
    return [weight for weight in weights if len(weight.shape) in (2, 4)]


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


def symbolic_tensors(structure):
    return [
        t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)
    ]


def _tensors_once(structure):
    return {id(tensor): tensor for tensor in symbolic_tensors(structure)}
