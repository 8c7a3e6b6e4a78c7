"""Find where a backbone's stages end, and splice layers in there."""

import dataclasses

import keras
from keras import layers

from keras_segadapter.graph import Graph, as_functional, replay


@dataclasses.dataclass(frozen=True)
class Stage:
    """A place in a backbone where a stage ends.

    Attributes:
        name: Name of the layer or operation there. Operations (`add_2`) are named anew
            in each process: `position` is what identifies the place.
        stride: Image pixels that a feature pixel covers, measured.
        channels: Channels of the features.
        position: Index of the call in the backbone's graph, in order of execution.

    Example:

    ```python
    import keras_segadapter as ksa

    print(ksa.Stage(name="conv2_block3_out", stride=4, channels=256, position=37))
    ```
    """

    name: str
    stride: int
    channels: int
    position: int


def find_stages(backbone):
    """Find the ends of a backbone's stages, shallow to deep.

    A stage ends at the last block output of a resolution. Only places that everything
    after them passes through qualify: never a residual branch, never the expanded
    tensor inside an inverted bottleneck. Strides below 4 are left out where there are
    coarser ones. If the backbone has several outputs, these are its stages.

    Args:
        backbone: A functional `keras.Model` or a built `keras.Sequential` with one
            image input, channels last. Models nested in it are looked into.

    Returns:
        List of `Stage`. Print it, edit it, hand it to `build_segmenter` as `taps`.

    Raises:
        TypeError: If `backbone` is neither a functional nor a Sequential model.
        ValueError: If it has not one image input, or no place qualifies.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.applications.ResNet50(include_top=False, weights=None)
    for stage in ksa.find_stages(backbone):
        print(stage.name, stage.stride, stage.channels)  # conv2_block3_out 4 256 ...
    ```
    """
    return _choose_stages(Graph(backbone))


def resolve_taps(backbone, taps=None):
    """Turn `taps` (None, or a list of stages, names or tensors) into sorted stages.

    Raises:
        TypeError: If a tap is none of these.
        ValueError: If a tap is not in the backbone, is ambiguous, is no feature map, is
            given twice, or lies on a branch that what follows does not pass through.
    """
    if taps is None:
        return find_stages(backbone)
    if isinstance(taps, (str, Stage, keras.KerasTensor)) or len(taps) == 0:
        raise ValueError(
            "`taps` must be a list of at least one stage, layer name or tensor; wrap a "
            f"single one in a list. Received: taps={taps!r}"
        )
    tensors = [tap for tap in taps if isinstance(tap, keras.KerasTensor)]
    try:
        graph = Graph(backbone, tensors)
    except ValueError as error:
        if not tensors:
            raise
        raise ValueError(
            f"A tensor in `taps` is not of the backbone '{backbone.name}'. Take it "
            "from that very model, as backbone.get_layer(name).output, or pass the "
            f"layer's name. Received: taps={taps!r}"
        ) from error
    watched = iter(graph.watched)
    positions = [
        next(watched) if isinstance(tap, keras.KerasTensor) else _position(graph, tap)
        for tap in taps
    ]
    for tap, position in zip(taps, positions, strict=True):
        if position not in graph.points:
            _refuse(graph, tap, position)
        if positions.count(position) > 1:
            raise ValueError(
                f"`taps` names {tap!r} more than once, but a place is adapted once. "
                "Remove the repeated tap."
            )
    return [_stage(graph, position) for position in sorted(positions)]


def splice(backbone, inputs, stages, insert):
    """Run a backbone again on `inputs`, with the features of each stage replaced.

    Layers are used again, not copied: their weights are the backbone's.

    Args:
        backbone: The model that `stages` come from.
        inputs: Symbolic image tensor `(B, H, W, C)`.
        stages: List of `Stage`.
        insert: Function `(index, features) -> features`: what the rest of the backbone
            receives in the place of the features of stage number `index`.
    """
    index_at = {stage.position: index for index, stage in enumerate(stages)}
    position = -1

    def visit(operation, *args, **kwargs):
        nonlocal position
        position += 1
        outputs = operation(*args, **kwargs)
        if position in index_at:
            outputs = insert(index_at[position], outputs)
        return outputs

    replay(as_functional(backbone), inputs, visit)


def _stage(graph, position):
    call = graph.calls[position]
    _, height, _, channels = call.shape
    return Stage(call.operation.name, round(graph.size[0] / height), channels, position)


def _position(graph, tap):
    """Position of a stage found before, or of a layer by name."""
    if isinstance(tap, Stage):
        known = tap.position < len(graph.calls)
        if not known or graph.calls[tap.position].shape[-1:] != (tap.channels,):
            raise ValueError(
                f"{tap} is not a stage of the backbone '{graph.name}': it was found in "
                "another graph. Call find_stages on this backbone."
            )
        return tap.position
    if not isinstance(tap, str):
        raise TypeError(
            "`taps` takes stages from find_stages, layer names or tensors of the "
            f"backbone. Received: {tap!r} of type {type(tap).__name__}"
        )
    found = [i for i, call in enumerate(graph.calls) if call.operation.name == tap]
    if not found:
        names = ", ".join(stage.name for stage in _choose_stages(graph))
        raise ValueError(
            f"There is no layer '{tap}' in the backbone '{graph.name}'. Its stages end "
            f"at: {names}."
        )
    if len(found) > 1:
        raise ValueError(
            f"The layer '{tap}' is called {len(found)} times in the backbone "
            f"'{graph.name}', so its name does not say which output is meant. Pass the "
            "tensor."
        )
    return found[0]


def _refuse(graph, tap, position):
    name = getattr(tap, "name", tap)
    if position is None or not graph.calls[position].is_feature_map:
        raise ValueError(
            f"The tap '{name}' is not a feature map (batch, height, width, channels) "
            f"that the backbone '{graph.name}' computes. Choose the output of a block."
        )
    later = [graph.calls[p].operation.name for p in graph.points if p > position]
    hint = f"The next place that qualifies is '{later[0]}'." if later else ""
    raise ValueError(
        f"The tap '{name}' lies on a branch: part of what follows in the backbone "
        f"'{graph.name}' does not pass through it, so adapted features would not reach "
        f"all of it. {hint}"
    )


def _choose_stages(graph):
    if len(graph.outputs) > 1:
        chosen = sorted(set(graph.outputs) & set(graph.points))
    else:
        chosen = [_block_output(graph, level) for level in _levels(graph)]
    stages = [_stage(graph, position) for position in chosen]
    coarse = [stage for stage in stages if stage.stride >= 4]
    stages = coarse or [stage for stage in stages if stage.stride >= 2] or stages
    if not stages:
        raise ValueError(
            f"No stage was found in the backbone '{graph.name}': it has no 4-D feature "
            "map that everything after it passes through. Put "
            "keras_segadapter.SegAdapter layers into the network's own code."
        )
    return stages


def _levels(graph):
    """Articulation points grouped by resolution, for as long as it falls."""
    levels, height = [], None
    for position in graph.points:
        new = graph.calls[position].shape[1]
        # Padding and valid convolutions change the size a little; a stage divides it.
        if height is None or height / new >= 1.5:
            levels.append([])
            height = new
        if new / height < 1.5:  # a decoder's upsampled maps are no stage
            levels[-1].append(position)
    return levels


def _block_output(graph, level):
    """The last point of a resolution that closes a block.

    Behind the last block of a stage there may stand a padding, or a pointwise
    convolution that belongs to what comes next: the expansion of an inverted bottleneck
    (EfficientNet, MobileNet), a transition (DenseNet), a classifier's wide layer.
    """
    calls = graph.calls
    while len(level) > 1 and isinstance(
        calls[level[-1]].operation, layers.ZeroPadding2D
    ):
        level = level[:-1]
    maker = calls[_maker(graph, level[-1])]
    if not _is_pointwise(maker.operation):
        return level[-1]
    before = graph.producer.get(id(maker.inputs[0]))
    if before not in level:
        return level[-1]
    maker_before = calls[_maker(graph, before)]
    closes_block = (
        _is_join(maker_before)
        or _is_pointwise(maker_before.operation)
        or _is_whole_block(maker_before.operation)
    )
    return before if closes_block else level[-1]


def _maker(graph, position):
    """Go back through what keeps the shape (norms, activations) to what made it."""
    call = graph.calls[position]
    while (
        len(call.inputs) == 1
        and call.inputs[0].shape == call.shape
        and not hasattr(call.operation, "kernel_size")
        and not _is_whole_block(call.operation)
        and id(call.inputs[0]) in graph.producer
    ):
        position = graph.producer[id(call.inputs[0])]
        call = graph.calls[position]
    return position


def _is_join(call):
    # A squeeze-and-excite gate has two inputs as well, but one of them is a pixel.
    return len(call.inputs) > 1 and len({t.shape[1:3] for t in call.inputs}) == 1


def _is_whole_block(operation):
    # Some libraries make a block one layer; no convolution or norm has five weights.
    return len(getattr(operation, "weights", ())) > 4


def _is_pointwise(operation):
    return isinstance(operation, layers.Conv2D) and (
        tuple(operation.kernel_size) == tuple(operation.strides) == (1, 1)
    )
