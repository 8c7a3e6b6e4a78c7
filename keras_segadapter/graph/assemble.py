"""The graph of a segmenter, from the image to the class scores."""

import keras
from keras import layers

from keras_segadapter.graph.splice import (
    free_name,
    layer_names,
    run_neck,
    splice_adapters,
)
from keras_segadapter.graph.stages import stage_keys
from keras_segadapter.layers.resize import ResizeLike


def assemble(backbone, stages, num_classes, adapters, neck, head, aux, preprocessing):
    """Run a backbone with adapters in it, and neck, head and auxiliary path behind it.

    Args:
        backbone: A functional model.
        stages: List of `Stage` of it.
        num_classes: Integer. Number of classes K.
        adapters: List of `SegAdapter`, one per stage, or an empty list.
        neck, head, aux, preprocessing: As in `Segmenter`, without defaults.

    Returns:
        The symbolic image; a dict of the outputs `(B, h, w, K)`; the logits at the size
        of the image, `(B, H, W, K)`; and what `splice_adapters` returns.

    Raises:
        TypeError: If a part is not a layer.
        ValueError: If two layers have one name, or if a part gives something else.
    """
    taken = layer_names(backbone)
    _check_layers(taken, adapters, aux, neck, head, preprocessing)
    (image,) = keras.tree.flatten(backbone.input)
    image = keras.Input(image.shape[1:], name=free_name("image", taken))
    features = splice_adapters(backbone, preprocessing(image), stages, adapters)
    maps = run_neck(neck, backbone, stages, features["outputs"])
    logits = head(maps)  # (B, H/4, W/4, K)
    _check_scores("head", head, logits, num_classes)
    outputs = {"logits": logits}
    if isinstance(aux, keras.Layer):
        outputs["aux"] = aux(maps)
        _check_scores("aux", aux, outputs["aux"], num_classes)
    elif adapters and aux == "sum":
        coarse = free_name("coarse", taken)
        outputs["aux"] = _add_at_finest(features["scores"], coarse)
    elif adapters and aux == "per_stage":
        scores = zip(stage_keys(stages), features["scores"], strict=True)
        outputs.update({f"aux_{key}": stage_scores for key, stage_scores in scores})
    outputs = {
        key: _Scores(dtype="float32", name=free_name(key, taken))(scores)
        for key, scores in outputs.items()
    }
    resize = ResizeLike(dtype="float32", name=free_name("resize", taken))
    return image, outputs, resize([logits, image]), features


class _Scores(layers.Identity):
    """An output of a segmenter, in float32."""

    def get_config(self):
        # keras.models.clone_model asks for it; it would give a bare functional model.
        raise ValueError(
            "keras.models.clone_model can't copy a Segmenter, only the layers of its "
            "graph. For a new one with new weights call "
            "keras_segadapter.Segmenter.from_config(model.get_config()). Received: a "
            f"model with the output '{self.name}'"
        )


def _add_at_finest(scores, name):
    """Resize the stages' scores to the first one's size and add them, in float32."""
    resized = [
        ResizeLike(dtype="float32")([stage_scores, scores[0]])
        for stage_scores in scores[1:]
    ]
    if not resized:
        return scores[0]
    return layers.Add(dtype="float32", name=name)([scores[0], *resized])


def _check_layers(taken, adapters, aux, neck, head, preprocessing):
    """Validate that the parts are layers, with names that no other layer has."""
    parts = {"neck": neck, "head": head, "preprocessing": preprocessing}
    parts = {name: layer for name, layer in parts.items() if layer is not None}
    for name, layer in parts.items():
        if not isinstance(layer, keras.Layer):
            raise TypeError(
                f"`{name}` must be a Keras layer. Received: {name}={layer!r}"
            )
    owners = dict.fromkeys(taken, "a layer of the backbone")
    parts = [("adapters", adapter) for adapter in adapters] + [*parts.items()]
    for owner, layer in parts + [("aux", aux)] * isinstance(aux, keras.Layer):
        if layer.name in owners:
            raise ValueError(
                "The layers of a model must have different names. Build one of the two "
                f"with another `name`. Received: `{owner}` and {owners[layer.name]}, "
                f"both named '{layer.name}'"
            )
        owners[layer.name] = f"`{owner}`"


def _check_scores(name, layer, scores, num_classes):
    if len(getattr(scores, "shape", ())) != 4 or scores.shape[-1] != num_classes:
        raise ValueError(
            f"`{name}` must turn a list of feature maps into class scores (batch, "
            f"height, width, {num_classes}). Received: {name}={layer!r}, which gave "
            f"{scores}"
        )
