"""Backbone, adapters, head and auxiliary path wired into one graph."""

import keras
from keras import layers

from keras_segadapter.adapter import SegAdapter
from keras_segadapter.native import ResizeLike
from keras_segadapter.replay import as_functional
from keras_segadapter.stages import splice
from keras_segadapter.tokens import TokensToMap


def wire(backbone, num_classes, stages, adapters, head, aux, preprocessing):
    """Symbolic inputs and outputs of a segmenter.

    Args:
        backbone: A functional model or a Sequential.
        num_classes: Number of classes K.
        stages: List of `Stage`.
        adapters: List of `SegAdapter`, one a stage, or an empty one.
        head: Layer from the list of stage features to scores at the finest stride.
        aux: "sum", "per_stage" or None.
        preprocessing: Layer between the image and the backbone.

    Returns:
        The image tensor; a dict of outputs at its size: "logits" and, where there are
        adapters, "aux" ("sum") or "aux_s4", "aux_s8" and so on ("per_stage"); the same
        before they are resized to it; and a dict of views `(B, h, w, any)`, a list over
        the stages each: the features "X" and, where there are adapters, the adapted "Y"
        and the scores "S".
    """
    (image,) = keras.tree.flatten(as_functional(backbone).input)
    inputs = keras.Input(image.shape[1:], name="image")  # (B, H, W, C)
    prepared = preprocessing(inputs)
    features, scores = [], []
    views = {"X": [], "Y": [], "S": scores}

    def as_map(stage_features, grid):
        if grid is None:
            return stage_features
        return TokensToMap(dtype=stage_features.dtype)([stage_features, grid])

    def insert(index, stage_features):
        is_tokens = len(stage_features.shape) == 3
        grid = _grid(prepared, stages[index].stride) if is_tokens else None
        views["X"].append(as_map(stage_features, grid))
        if adapters:
            pair = [stage_features, grid]
            stage_features = adapters[index](pair if is_tokens else stage_features)
            if adapters[index].return_scores:
                stage_features, stage_scores = stage_features
                scores.append(stage_scores)
            views["Y"].append(as_map(stage_features, grid))
        features.append(views["Y" if adapters else "X"][-1])
        return stage_features

    splice(backbone, prepared, stages, insert)
    main = head(features)  # (B, H/4, W/4, K)
    if len(getattr(main, "shape", ())) != 4 or main.shape[-1] != num_classes:
        raise ValueError(
            "`head` must turn a list of feature maps into class scores (batch, height, "
            f"width, {num_classes}). Received: head={head!r}, which gave {main}"
        )
    at_stride = {"logits": main}
    if adapters and aux == "sum":
        at_stride["aux"] = _add_at_finest(scores)  # (B, H/4, W/4, K)
    elif adapters and aux == "per_stage":
        for key, stage_scores in zip(stage_keys(stages), scores, strict=True):
            at_stride[f"aux_{key}"] = stage_scores
    outputs = {
        key: ResizeLike(dtype="float32", name=key)([small, inputs])
        for key, small in at_stride.items()
    }
    return inputs, outputs, at_stride, views


def resolve_adapters(adapters, stages, num_classes, aux):
    """The list of adapters, one a stage; empty for none."""
    if adapters is False:
        return []
    if adapters is True:
        deepest = len(stages) - 1
        return [
            SegAdapter(
                num_classes,
                scale_init=1e-2 * 0.1 ** (deepest - index),
                name=f"adapter_{key}",
            )
            for index, key in enumerate(stage_keys(stages))
        ]
    if not isinstance(adapters, (list, tuple)) or not all(
        isinstance(adapter, SegAdapter) for adapter in adapters
    ):
        raise TypeError(
            "`adapters` must be True, False or a list of SegAdapter. Received: "
            f"adapters={adapters!r}"
        )
    if len({id(adapter) for adapter in adapters}) != len(stages):
        raise ValueError(
            f"`adapters` must hold one SegAdapter of its own for each of the "
            f"{len(stages)} taps. Received: {len(adapters)} adapters"
        )
    for adapter in adapters:
        if adapter.num_classes != num_classes:
            raise ValueError(
                f"The adapter '{adapter.name}' scores {adapter.num_classes} classes, "
                f"but num_classes={num_classes}. Give both the same number."
            )
        if aux and not adapter.return_scores:
            raise ValueError(
                f"The adapter '{adapter.name}' has return_scores=False, so there is "
                "nothing for the auxiliary loss. Set return_scores=True or aux=None."
            )
    return list(adapters)


def _grid(image, stride):
    """A map with one pixel for each patch: the last pixel of every whole patch."""
    return image[:, stride - 1 :: stride, stride - 1 :: stride]


def stage_keys(stages):
    """A short unique name a stage, made of its stride: s4, s8, s16, s16_2."""
    keys, strides = [], []
    for stage in stages:
        strides.append(stage.stride)
        count = strides.count(stage.stride)
        keys.append(f"s{stage.stride}" + (f"_{count}" if count > 1 else ""))
    return keys


def _add_at_finest(scores):
    """The stages' scores, resized to the first one's size and added, in float32."""
    resized = [
        ResizeLike(dtype="float32")([stage_scores, scores[0]])
        for stage_scores in scores[1:]
    ]
    if not resized:
        return scores[0]
    return layers.Add(dtype="float32", name="coarse")([scores[0], *resized])
