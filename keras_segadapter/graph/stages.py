"""Find where a backbone's stages end."""

import dataclasses
import re

import keras

from keras_segadapter.graph.blocks import stage_positions
from keras_segadapter.graph.probe import Graph
from keras_segadapter.graph.replay import as_functional


@dataclasses.dataclass(frozen=True)
class Stage:
    """A place in a backbone where a stage ends.

    A model's file keeps its stages. When it is loaded, the place at `position` must
    have the same name, stride and channels. If it does not, because another version
    counts positions differently, the only place with that name, stride and channels is
    taken; if there is none, or several, loading stops with an error.

    Attributes:
        name: Name of the layer or operation there. Operations without a name of their
            own (`add_2`) are numbered in each process, so the number is not compared.
        stride: Image pixels that a feature pixel (or a token) covers, measured.
        channels: Channels of the features.
        position: Index of the call among those of the backbone in order of execution,
            with nested models and encoder layers expanded into the calls inside them.

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
    coarser ones. If the backbone has several outputs or declares a pyramid
    (`pyramid_outputs` of keras-hub), these are its stages where adapters can go there:
    on the path, or where nothing but the head reads them. Outputs that are left out are
    printed. Where a vision transformer's tokens keep one resolution, four block outputs
    are taken, a fourth of the depth apart; an encoder layer that holds its blocks is
    expanded into them. The backbone itself is left as it is.

    Args:
        backbone: A functional `keras.Model` or a built `keras.Sequential` with one
            image input, channels last. Models nested in it are looked into.

    Returns:
        List of `Stage`. Print it, edit it, hand it to `build_segmenter` as `taps`.

    Raises:
        TypeError: If `backbone` is neither a functional nor a Sequential model.
        ValueError: If it does not take one batch of images, or if no place qualifies.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.applications.ResNet50(include_top=False, weights=None)
    for stage in ksa.find_stages(backbone):
        print(stage.name, stage.stride, stage.channels)  # conv2_block3_out 4 256 ...
    ```
    """
    return _choose_stages(_graph(as_functional(backbone)))


def resolve_taps(backbone, taps=None):
    """Turn `taps` into stages.

    Args:
        backbone: A functional model with one image input.
        taps: List of stages, names or tensors, or None for `find_stages(backbone)`.

    Returns:
        List of `Stage`, shallow to deep, and the number of pixels that the sides of
        images must be a multiple of.

    Raises:
        TypeError: If a tap is none of these.
        ValueError: If a tap is not in the backbone, is ambiguous, is no feature map, is
            given twice, or lies on a branch that what follows does not pass through.
    """
    if taps is None:
        graph = _graph(backbone)
        stages = _choose_stages(graph)
        return stages, graph.size_divisor([stage.position for stage in stages])
    if not isinstance(taps, (list, tuple)) or not taps:
        raise ValueError(
            "`taps` must be a list of at least one stage, layer name or tensor. Wrap a "
            f"single one in a list. Received: taps={taps!r}"
        )
    tensors = [tap for tap in taps if isinstance(tap, keras.KerasTensor)]
    try:
        graph = Graph(backbone, tensors)
    except ValueError as error:
        if not tensors:
            raise
        raise ValueError(
            f"A tensor in `taps` must belong to the backbone '{backbone.name}'. Take "
            "it from that very model, as backbone.get_layer(name).output, or pass the "
            f"layer's name. Received: taps={taps!r}"
        ) from error
    watched = iter(graph.watched)
    positions = [
        next(watched) if isinstance(tap, keras.KerasTensor) else _position(graph, tap)
        for tap in taps
    ]
    for tap, position in zip(taps, positions, strict=True):
        _check_point(graph, tap, position)
        if positions.count(position) > 1:
            raise ValueError(
                "A place can be adapted only once. Remove the repeated tap. Received: "
                f"taps={taps!r}, which names {tap!r} more than once"
            )
    stages = sorted(
        (_stage(graph, position) for position in positions),
        key=lambda stage: (stage.stride, stage.position),
    )
    return stages, graph.size_divisor(positions)


def stage_keys(stages):
    """Return a short unique name for each stage, made of its stride.

    Names are s4, s8, s16 and so on; a second stage of stride 16 is s16_2.
    """
    keys, strides = [], []
    for stage in stages:
        strides.append(stage.stride)
        count = strides.count(stage.stride)
        keys.append(f"s{stage.stride}" + (f"_{count}" if count > 1 else ""))
    return keys


def _graph(backbone):
    declared = getattr(backbone, "pyramid_outputs", {})  # keras-hub's
    return Graph(backbone, [*declared.values()])


def _stage(graph, position):
    call = graph.calls[position]
    return Stage(call.operation.name, graph.strides[position], call.shape[-1], position)


def _position(graph, tap):
    """Return the position of a stage found before, or of a layer by name."""
    if isinstance(tap, Stage):
        return _position_of_stage(graph, tap)
    if not isinstance(tap, str):
        raise TypeError(
            "`taps` takes stages from find_stages, layer names or tensors of the "
            f"backbone. Received: taps=[..., {tap!r}, ...] of type {type(tap).__name__}"
        )
    found = [i for i, call in enumerate(graph.calls) if call.operation.name == tap]
    if not found:
        names = ", ".join(stage.name for stage in _choose_stages(graph))
        raise ValueError(
            f"`taps` must name layers of the backbone '{graph.name}', whose stages end "
            f"at: {names}. Received: taps=[..., '{tap}', ...]"
        )
    if len(found) > 1:
        raise ValueError(
            "The name of a layer that is called several times does not say which "
            "output is meant. Pass the tensor instead. Received: "
            f"taps=[..., '{tap}', ...], called {len(found)} times in '{graph.name}'"
        )
    return found[0]


def _position_of_stage(graph, stage):
    """Return the position of a stage found before, in this process or another."""

    def fits(place):
        # Keras numbers what has no name; keras-hub puts a model's in front of its own.
        one, other = (re.sub(r"_\d+$", "", p.name) for p in (place, stage))
        same = (place.stride, place.channels) == (stage.stride, stage.channels)
        return same and (one.endswith(other) or other.endswith(one))

    places = [_stage(graph, p) for p, grid in enumerate(graph.grids) if grid]
    found = {place.position for place in places if fits(place)}
    exact = {p for p in found if graph.calls[p].operation.name == stage.name}
    if stage.position in exact:
        return stage.position
    # Files keep names, of operations too; other processes keep positions.
    found = (found & {stage.position}) | (exact if len(exact) == 1 else set())
    if len(found) != 1:
        raise ValueError(
            "The stage was found in another graph than that of the backbone "
            f"'{graph.name}', where no place, or more than one, fits it. Call "
            "keras_segadapter.find_stages on this backbone. Received: "
            f"taps=[..., {stage}, ...]"
        )
    return found.pop()


def _check_point(graph, tap, position):
    """Validate that all of what follows in the backbone passes through a place.

    Nothing follows an output that no call reads.
    """
    if position in graph.points or position in graph.ends:
        return
    name = getattr(tap, "name", tap)
    if position is None or graph.grids[position] is None:
        raise ValueError(
            "A tap must be a feature map (batch, height, width, channels), or have a "
            "token for each patch (batch, tokens, channels). Choose the output of a "
            f"block. Received: taps=[..., '{name}', ...] of '{graph.name}'"
        )
    later = [graph.calls[p].operation.name for p in graph.points if p > position]
    hint = f" The next place that qualifies is '{later[0]}'." if later else ""
    raise ValueError(
        "All of what follows in the backbone must pass through a tap, or adapted "
        f"features would not reach it. '{name}' lies on a branch.{hint} Received: "
        f"taps=[..., '{name}', ...] of '{graph.name}'"
    )


def _choose_stages(graph):
    stages = [_stage(graph, position) for position in stage_positions(graph)]
    coarse = [stage for stage in stages if stage.stride >= 4]
    stages = coarse or [stage for stage in stages if stage.stride >= 2] or stages
    if not stages:
        raise ValueError(
            "A backbone must have feature maps or patch tokens that everything after "
            "them passes through. In other networks, call keras_segadapter.SegAdapter "
            f"layers in their own code. Received: backbone='{graph.name}' without one"
        )
    return stages
