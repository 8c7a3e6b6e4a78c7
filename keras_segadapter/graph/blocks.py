"""Choose the places in a backbone's graph where its stages end."""

from keras import layers

from keras_segadapter.graph.replay import blocks_inside, is_whole_block, kernels


def stage_positions(graph):
    """Return the positions of the calls that close the stages, shallow to deep.

    The several outputs of a backbone are its stages, or the pyramid that it declares
    (`pyramid_outputs` of keras-hub), where adapters can go there. Otherwise there is
    one per resolution, and four in a vision transformer, whose tokens keep theirs.
    """
    declared = _outputs(graph) if len(graph.outputs) > 1 else _pyramid(graph)
    if declared:
        return declared
    levels = _levels(graph)
    if len(levels) == 1 and graph.calls[levels[0][0]].is_tokens:
        return _spread(graph, levels[0])
    makers = _makers(graph)
    return [_block_output(graph, makers, level) for level in levels]


def _outputs(graph):
    """Return the positions of the outputs where adapters can go.

    Of maps of one resolution the last is taken: some families hand out their stem too.
    """
    last = {}
    for position in sorted(set(graph.outputs) & set(graph.points)):
        tokens = graph.calls[position].is_tokens
        last[position if tokens else graph.grids[position]] = position
    return [*last.values()]


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
    levels, height = [], None
    for position in graph.points:
        if graph.calls[position].is_tokens != graph.calls[graph.points[-1]].is_tokens:
            continue
        new = graph.grids[position][0]
        # Padding and valid convolutions change the size a little; a stage divides it.
        if height is None or height / new >= 1.5:
            levels.append([])
            height = new
        if new / height < 1.5:  # a decoder's upsampled maps are no stage
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
    convolution that belongs to what comes next: the expansion of an inverted bottleneck
    (EfficientNet, MobileNet), a transition (DenseNet), a classifier's wide layer.
    """
    calls = graph.calls
    while len(level) > 1 and isinstance(
        calls[level[-1]].operation, layers.ZeroPadding2D
    ):
        level = level[:-1]
    maker = makers[level[-1]]
    if not _is_pointwise(calls[maker].operation):
        return level[-1]
    before = graph.producer.get(id(calls[maker].inputs[0]))
    if before not in level:
        return level[-1]
    narrows = calls[maker].shape[-1] < calls[before].shape[-1]
    if narrows and maker != level[-1] and _is_join(calls[before]):
        return level[-1]  # it joins the branches, with a norm of its own (CSPNet)
    maker_before = calls[makers[before]]
    closes_block = (
        _is_join(maker_before)
        or _is_pointwise(maker_before.operation)
        or is_whole_block(maker_before.operation)
    )
    return before if closes_block else level[-1]


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


def _is_pointwise(operation):
    found = kernels(operation)
    return len(found) == 1 and found[0].shape[:-2] == (1, 1)
