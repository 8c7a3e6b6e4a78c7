"""Run a backbone again with adapters at the ends of its stages, and a neck behind."""

import itertools
import math

import keras
from keras import layers

from keras_segadapter.graph.inside import layers_inside
from keras_segadapter.graph.probe import Graph
from keras_segadapter.graph.replay import record, replay
from keras_segadapter.layers.faster import call_by_own_means
from keras_segadapter.layers.tokens import TokensToMap


def splice(backbone, inputs, stages, insert):
    """Run a backbone again on `inputs`, with the features of each stage replaced.

    Layers are used again, not copied: their weights are the backbone's. Convolutions,
    batch norms and pooling of Keras compute by our own means from here on.

    Args:
        backbone: A functional model, the one that `stages` come from.
        inputs: Symbolic image tensor `(B, H, W, C)`.
        stages: List of `Stage`.
        insert: Function `(index, features) -> features`: what the rest of the backbone
            receives in the place of the features of stage number `index`.

    Raises:
        ValueError: If the graph at this size is not the one that was probed.
    """
    recording = record(backbone)
    for _, layer in layers_inside(backbone):
        call_by_own_means(layer)
    index_at = {stage.position: index for index, stage in enumerate(stages)}
    for stage in stages:
        known = stage.position < len(recording.calls)
        if not known or recording.calls[stage.position].shape[-1:] != (stage.channels,):
            raise ValueError(
                f"The backbone '{backbone.name}' runs other layers where its height "
                "and width are open than at a known size, so its stages can't be found "
                f"again. Build it with a fixed input_shape. Received: stage={stage}"
            )
    position = -1

    def visit(operation, *args, **kwargs):
        nonlocal position
        position += 1
        features = operation(*args, **kwargs)
        if position in index_at:
            features = insert(index_at[position], features)
        return features

    replay(recording, [inputs], visit)


def layer_names(model):
    """Return the names of the layers of a model and of the models nested in it."""
    inner = [layer_names(op) for op in model.operations if hasattr(op, "operations")]
    return {operation.name for operation in model.operations}.union(*inner)


def free_name(name, taken):
    """Return `name`, with a number behind it where it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    candidates = itertools.chain([name], numbered)
    return next(candidate for candidate in candidates if candidate not in taken)


def splice_adapters(backbone, image, stages, adapters):
    """Run the backbone with an adapter at each stage.

    Returns:
        Dict of lists over the stages: "inputs" and "outputs" of the adapters as feature
        maps `(B, h, w, C)`, and the "scores" `(B, h, w, K)` of those that return them.
    """
    found = {"inputs": {}, "outputs": {}, "scores": {}}

    def insert(index, features):
        tokens = len(features.shape) == 3
        grid = _grid(image, stages[index].stride) if tokens else None

        def as_map(features):
            return TokensToMap(dtype=features.dtype)([features, grid])

        found["inputs"][index] = as_map(features) if tokens else features
        if not adapters:
            found["outputs"][index] = found["inputs"][index]
            return features
        adapted = adapters[index]([features, grid] if tokens else features)
        if adapters[index].return_scores:
            adapted, found["scores"][index] = adapted
        found["outputs"][index] = as_map(adapted) if tokens else adapted
        return adapted

    splice(backbone, image, stages, insert)
    # The outputs of a backbone may come from deep to shallow, as in a pyramid.
    return {name: [maps[i] for i in sorted(maps)] for name, maps in found.items()}


def note_coarse_stages(backbone, stages):
    """Print a line if all stages of a backbone have one coarse resolution."""
    (stride, *others), count = sorted({s.stride for s in stages}), len(stages)
    if others or stride <= 8 or count > 4:
        return
    factors = "" if count == 4 else [4, 2, 1][:count]
    print(
        f"All stages of the backbone '{backbone.name}' have stride {stride}, at which "
        "masks are coarse. For finer ones pass a neck, as in "
        f"neck=keras_segadapter.SimpleFeaturePyramid({factors})."
    )


def run_neck(neck, backbone, stages, features):
    """Run the neck on the features of all stages.

    Where a vision transformer ends in a layer norm, features of taps in front of that
    norm go through it first, as those of DINOv3 do in its authors' evaluations.

    Args:
        neck: Layer from a list of feature maps to another one, or None.
        backbone: A functional model, the one that `stages` come from.
        stages: List of `Stage`.
        features: List of symbolic feature maps `(B, h, w, C)`, one per stage.

    Returns:
        List of symbolic feature maps; `features` where there is no neck.

    Raises:
        ValueError: If the neck gives something else.
    """
    if neck is None:
        return features
    position, norm = _final_norm(backbone, stages)
    maps = neck(
        [
            norm(x) if stage.position < position else x
            for stage, x in zip(stages, features, strict=True)
        ]
    )
    shapes = [getattr(x, "shape", ()) for x in keras.tree.flatten(maps)]
    fit = all(len(shape) == 4 and shape[-1] for shape in shapes)
    if not isinstance(maps, (list, tuple)) or not maps or not fit:
        raise ValueError(
            "`neck` must turn a list of feature maps into another list of them, each "
            "(batch, height, width, channels). Received: "
            f"neck={neck!r}, which gave {maps}"
        )
    return list(maps)


def _final_norm(backbone, stages):
    """Return the position of a vision transformer's final norm, and the norm.

    The position is -1 where all tokens pass through no layer norm at or behind the last
    of the stages, or where these differ in channels.
    """
    graph = Graph(backbone)
    last = max(stage.position for stage in stages)
    channels = {stage.channels for stage in stages}
    for position in reversed(graph.points):
        call = graph.calls[position]
        norm = isinstance(call.operation, layers.LayerNormalization)
        fits = call.is_tokens and channels == {call.shape[-1]}
        if norm and fits and position >= last:
            return position, call.operation
    return -1, None


def neck_divisor(neck, stages, features):
    """Return what the sides of images must be a multiple of for a neck, in pixels.

    Args:
        neck: Layer from a list of feature maps to another one, or None.
        stages: List of `Stage`.
        features: List of symbolic feature maps, the inputs of the neck.
    """
    if neck is None or None not in features[0].shape[1:3]:
        return 1  # Images for a model of fixed size are not padded.
    side = 64 * math.lcm(*(stage.stride for stage in stages))  # of an image, in pixels
    maps = [
        keras.KerasTensor((1, *[side // stage.stride] * 2, stage.channels), x.dtype)
        for stage, x in zip(stages, features, strict=True)
    ]
    sides = [x.shape[1] or 0 for x in neck.compute_output_spec(maps)]
    # Maps of a few pixels were pooled to a fixed size.
    return math.lcm(*(side // new for new in sides if new >= 8 and side % new == 0))


def _grid(image, stride):
    """Return a map with one pixel per patch: the last pixel of each whole patch."""
    return image[:, stride - 1 :: stride, stride - 1 :: stride]
