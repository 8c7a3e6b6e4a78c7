"""Find where a backbone's stages end, and splice layers in there."""

import dataclasses

import keras

from keras_segadapter.blocks import stage_positions
from keras_segadapter.graph import Graph
from keras_segadapter.replay import as_functional, replay


@dataclasses.dataclass(frozen=True)
class Stage:
    """A place in a backbone where a stage ends.

    Attributes:
        name: Name of the layer or operation there. Operations (`add_2`) are named anew
            in each process: `position` is what identifies the place.
        stride: Image pixels that a feature pixel (or a token) covers, measured.
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
    coarser ones. If the backbone has several outputs, these are its stages. Where a
    vision transformer's tokens keep one resolution, four block outputs are taken, a
    fourth of the depth apart; an encoder layer that holds its blocks is looked into.

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

    Raises:
        ValueError: If the graph at this size is not the one that was probed.
    """
    backbone = as_functional(backbone)
    index_at = {stage.position: index for index, stage in enumerate(stages)}
    position = -1

    def visit(operation, *args, **kwargs):
        nonlocal position
        position += 1
        outputs = operation(*args, **kwargs)
        if position in index_at:
            index = index_at.pop(position)
            if getattr(outputs, "shape", (None,))[-1] != stages[index].channels:
                _refuse_size(backbone)
            outputs = insert(index, outputs)
        return outputs

    replay(backbone, inputs, visit)
    if index_at:
        _refuse_size(backbone)


def _refuse_size(backbone):
    raise ValueError(
        f"The backbone '{backbone.name}' runs other layers where its height and width "
        "are open than at a known size, so its stages can't be found again. Build it "
        "with a fixed input_shape."
    )


def _stage(graph, position):
    call = graph.calls[position]
    return Stage(call.operation.name, graph.strides[position], call.shape[-1], position)


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
    if position is None or graph.grids[position] is None:
        raise ValueError(
            f"The tap '{name}' is not a feature map (batch, height, width, channels), "
            "nor a token for each patch (batch, tokens, channels), that the backbone "
            f"'{graph.name}' computes. Choose the output of a block."
        )
    later = [graph.calls[p].operation.name for p in graph.points if p > position]
    hint = f"The next place that qualifies is '{later[0]}'." if later else ""
    raise ValueError(
        f"The tap '{name}' lies on a branch: part of what follows in the backbone "
        f"'{graph.name}' does not pass through it, so adapted features would not reach "
        f"all of it. {hint}"
    )


def _choose_stages(graph):
    stages = [_stage(graph, position) for position in stage_positions(graph)]
    coarse = [stage for stage in stages if stage.stride >= 4]
    stages = coarse or [stage for stage in stages if stage.stride >= 2] or stages
    if not stages:
        raise ValueError(
            f"No stage was found in the backbone '{graph.name}': it has no feature map "
            "or patch tokens that everything after them passes through. Put "
            "keras_segadapter.SegAdapter layers into the network's own code."
        )
    return stages
