"""Choose the places in a backbone's graph where its stages end."""

import keras
from keras import layers

from keras_segadapter.graph.probe import times
from keras_segadapter.graph.replay import blocks_inside, is_whole_block, kernels

_LINEAR = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.Dropout,
    layers.Identity,
)


def stage_positions(graph):
    """Return the positions of the calls that close the stages, shallow to deep.

    The several outputs of a backbone are its stages, or the pyramid that it declares
    (`pyramid_outputs` of keras-hub), where adapters can go there. Otherwise there is
    one per resolution, and four in a vision transformer, whose tokens keep theirs.
    """
    several = len(set(graph.outputs)) > 1
    declared = _outputs(graph) if several else _pyramid(graph)
    if declared:
        return declared
    levels = _levels(graph)
    if len(levels) == 1 and graph.calls[levels[0][0]].is_tokens:
        return _spread(graph, levels[0])
    makers = _makers(graph)
    ends = [_block_output(graph, makers, level) for level in levels]
    return _without_the_classifiers_norm(graph, ends)


def _outputs(graph):
    """Return the positions of the outputs where adapters can go, shallow to deep.

    These are on the path to the deepest one, or nothing reads them but the head. Of
    maps of one resolution the last is taken: some families hand out their stem too.
    """
    last = {}
    for position in sorted(set(graph.outputs) & {*graph.points, *graph.ends}):
        tokens = graph.calls[position].is_tokens
        last[position if tokens else graph.grids[position]] = position
    left = sorted({p for p in graph.outputs if p is not None} - {*last.values()})
    if left:
        names = ", ".join(f"'{graph.calls[p].operation.name}'" for p in left)
        print(
            f"Outputs of the backbone '{graph.name}' that are no stages: {names}. They "
            "are not feature maps, a later one has the same size, or adapters there "
            "would be on a branch. To choose other places, pass `taps`."
        )
    return sorted(last.values(), key=lambda p: (graph.strides[p], p))


def _pyramid(graph):
    """Return the positions of a declared pyramid, or nothing if it does not qualify.

    It does if its maps differ in stride, as those of vision transformers, one for each
    block, do not, and if adapters can go there. The wide layer of a classifier, which
    EfficientNet declares as its last, makes way for the block in front of it.
    """
    declared = {p for p in graph.watched if (graph.strides[p] or 1) >= 4}
    strides = {graph.strides[position] for position in declared}
    if len(strides) < len(declared) or not declared <= set(graph.points):
        return []
    makers, ends = _makers(graph), []
    for position in sorted(declared):
        grid = graph.grids[position]
        level = [p for p in graph.points if p <= position and graph.grids[p] == grid]
        end = _block_output(graph, makers, level)
        wider = graph.calls[position].shape[-1] > graph.calls[end].shape[-1]
        ends.append(end if wider else position)
    return ends


def _levels(graph):
    """Group the articulation points by resolution, for as long as it falls.

    All are maps or all are tokens, whatever the backbone ends in.
    """
    levels, grid = [], None
    for position in graph.points:
        if graph.calls[position].is_tokens != graph.calls[graph.points[-1]].is_tokens:
            continue
        new = graph.grids[position]
        # Padding and valid convolutions change the size a little; a stage divides it.
        if grid is None or times(grid, new) >= 1.5:
            levels.append([])
            grid = new
        if times(new, grid) < 1.5:  # a decoder's upsampled maps are no stage
            levels[-1].append(position)
    return levels


def _spread(graph, level):
    """Return four block outputs, a fourth of the depth apart.

    The last is taken with the norm behind it, if there is one.
    """
    for call in graph.calls:
        if blocks_inside(call.operation):
            raise ValueError(
                "The blocks of a backbone must be calls of its graph, or of layers "
                "that run on symbolic tensors. Put keras_segadapter.SegAdapter layers "
                "between its blocks in the network's own code, or name `taps` outside "
                f"that layer. Received: backbone='{graph.name}' with its blocks inside "
                f"the layer '{call.operation.name}'"
            )
    ends = [p for p in level if _closes_block(graph, p)] or level
    quarter = len(ends) / 4
    chosen = {ends[max(0, round(i * quarter) - 1)] for i in (1, 2, 3)}
    return sorted({*chosen, level[-1]})


def _closes_block(graph, position):
    call = graph.calls[position]
    keeps_shape = any(tensor.shape == call.shape for tensor in call.inputs)
    return keeps_shape and (_is_join(call) or is_whole_block(call.operation))


def _block_output(graph, makers, level):
    """Return the last point of a resolution that closes a block.

    The last block of a stage may be followed by a padding, or by a pointwise
    convolution that belongs to what comes next.
    """
    calls = graph.calls
    while len(level) > 1 and _is_padding(calls[level[-1]]):
        level = level[:-1]
    end = level[-1]
    maker = makers[end]
    before = graph.producer.get(id(calls[maker].inputs[0]))
    if before not in level or not _is_pointwise(calls[maker]):
        return end
    narrow, wide = calls[before].shape[-1], calls[maker].shape[-1]
    made_before = calls[makers[before]]
    later = [calls[p] for p in graph.points if p > end and not _is_padding(calls[p])]
    if not later:  # the wide layer of a classifier (EfficientNet, MobileNet)
        return before if wide > narrow and _closes(graph, before, makers) else end
    if _is_depthwise(later[0]):  # the expansion of an inverted bottleneck
        projection = next(filter(_is_pointwise, later), None)
        if projection is None or projection.inputs[0].shape[-1] != wide:
            return end
        return before if projection.shape[-1] < wide else end
    if wide >= narrow:
        return end
    # The reduction of a plain bottleneck; or, in front of a pooling, DenseNet's
    # transition. A convolution behind a concatenation joins its branches (CSPNet).
    begins = _adds if kernels(later[0].operation) else _is_join
    return before if begins(made_before) else end


def _without_the_classifiers_norm(graph, ends):
    """Return the ends, the last one in front of a layer norm that the others lack.

    Where the stage before it ends in a sum, the norm is a classifier's (ConvNeXt).
    """
    calls = [graph.calls[end] for end in ends[-2:]]
    if len(ends) > 1 and isinstance(calls[1].operation, layers.LayerNormalization):
        before = graph.producer.get(id(calls[1].inputs[0]))
        if before in graph.points and _adds(graph.calls[before]) and _adds(calls[0]):
            return [*ends[:-1], before]
    return ends


def _closes(graph, position, makers):
    """Return whether a block ends at a position: a sum, or a linear projection."""
    maker = graph.calls[makers[position]]
    if _adds(maker) or is_whole_block(maker.operation):
        return True
    narrows = _is_pointwise(maker) and maker.shape[-1] < maker.inputs[0].shape[-1]
    while narrows and position != makers[position]:
        call = graph.calls[position]
        if not isinstance(call.operation, _LINEAR):
            return False
        position = graph.producer[id(call.inputs[0])]
    activation = getattr(maker.operation, "activation", keras.activations.linear)
    return narrows and activation is keras.activations.linear


def _makers(graph):
    """Return for each call the position of the one that made its features.

    That is itself, or the one in front of all that keeps the shape, such as norms and
    activations.
    """
    makers = []
    for position, call in enumerate(graph.calls):
        before = {graph.producer.get(id(tensor)) for tensor in call.inputs}
        # Several inputs of one maker: an activation made of operations, x * sigmoid(x).
        before = {p if p is None else makers[p] for p in before}
        keeps = {t.shape for t in call.inputs} == {call.shape}
        if keeps and len(before) == 1 and None not in before:
            makers.append(position if kernels(call.operation) else before.pop())
        else:
            makers.append(position)
    return makers


def _is_join(call):
    # A squeeze-and-excite gate has two inputs as well, but one of them is a pixel.
    return len(call.inputs) > 1 and len({t.shape[1:3] for t in call.inputs}) == 1


def _adds(call):
    return _is_join(call) and {t.shape for t in call.inputs} == {call.shape}


def _is_padding(call):
    return isinstance(call.operation, layers.ZeroPadding2D)


def _is_pointwise(call):
    found = kernels(call.operation)
    return len(found) == 1 and found[0].shape[:-2] == (1, 1)


def _is_depthwise(call):
    found = [tuple(kernel.shape) for kernel in kernels(call.operation)]
    return len(found) == 1 and found[0][:-2] > (1, 1) and 1 in found[0][-2:]
