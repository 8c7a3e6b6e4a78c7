"""The adapters of a backbone's stages: those passed in, or the paper's."""

import bisect
import math

import keras

from keras_segadapter.graph.replay import record
from keras_segadapter.graph.splice import free_name, layer_names
from keras_segadapter.graph.stages import stage_keys
from keras_segadapter.layers.adapter import SegAdapter


def resolve_adapters(adapters, backbone, stages, num_classes, aux):
    """Return the list of adapters, one per stage; empty for none.

    Args:
        adapters: True for `default_adapters`, False for none, or the list itself.
        backbone: A functional model, the one that `stages` come from.
        stages: List of `Stage`.
        num_classes: Integer. Number of classes K.
        aux: What the auxiliary loss supervises, as in `Segmenter`.

    Raises:
        TypeError: If `adapters` is neither a boolean nor a list of `SegAdapter`.
        ValueError: If they do not fit, or `aux` is unknown or asks for their scores
            where there are none.
    """
    known = aux is None or (isinstance(aux, str) and aux in ("sum", "per_stage"))
    if not known and not isinstance(aux, keras.Layer):
        raise ValueError(
            '`aux` must be "sum", "per_stage", None or a layer like `head`. Received: '
            f"aux={aux!r}"
        )
    if adapters is False:
        return []
    if adapters is True:
        scales = [1e-2 * 0.1**depth for depth in reversed(range(len(stages)))]
        options = [{"scale_init": scale} for scale in scales]
        return default_adapters(backbone, stages, num_classes, options)
    if not isinstance(adapters, (list, tuple)) or not all(
        isinstance(adapter, SegAdapter) for adapter in adapters
    ):
        raise TypeError(
            "`adapters` must be True, False or a list of SegAdapter. Received: "
            f"adapters={adapters!r}"
        )
    if len({id(adapter) for adapter in adapters}) != len(stages):
        raise ValueError(
            "`adapters` must hold one SegAdapter of its own for each of the "
            f"{len(stages)} taps. Received: {len(adapters)} adapters"
        )
    for adapter in adapters:
        if adapter.num_classes != num_classes:
            raise ValueError(
                "Adapters and model must score the same number of classes. Received: "
                f"num_classes={num_classes} and the adapter '{adapter.name}' with "
                f"num_classes={adapter.num_classes}"
            )
        if isinstance(aux, str) and not adapter.return_scores:
            raise ValueError(
                "The auxiliary loss needs the adapters' scores. Set return_scores=True "
                f"or aux=None. Received: aux={aux!r} and the adapter '{adapter.name}' "
                "with return_scores=False"
            )
    return list(adapters)


def default_adapters(backbone, stages, num_classes, options):
    """Return the paper's adapters, narrower where they would outweigh their stages.

    An adapter of the paper has about 8 C^2 weights, in the paper's backbones at most a
    third of those of its stage. Where it is more than two fifths, as on features that
    are wide between narrow convolutions, the adapter works on the most of C / 2, C / 4
    and C / 8 channels with which it is not, and a printed line says so. Adapters on up
    to 128 channels cost little and stay as they are.

    Adapters begin with a layer norm where a stage does not end in one or in a ReLU, as
    sums and projections do; a printed line says that too. Without it, adapters in a
    frozen EfficientNet-Lite0 lost 1.7 points of mIoU (1.3 to 2.1; see
    benchmarks/evidence.py); with it, behind ReLUs, adapters of a small network lost 2.1
    on drawn scenes (1.0 to 3.2; benchmarks/norms.py).

    Args:
        backbone: A functional model, the one that `stages` come from.
        stages: List of `Stage`.
        num_classes: Integer. Number of classes K.
        options: List of dicts, one per stage, of other arguments of `SegAdapter`.
    """
    calls = record(backbone).calls
    counts, keys = _weights_of(calls, stages), stage_keys(stages)
    taken = layer_names(backbone)
    adapters = [
        SegAdapter(
            num_classes,
            width=_width(stage.channels, count),
            normalize=_needs_norm(calls, stage.position),
            name=free_name(f"adapter_{key}", taken),
            **given,
        )
        for stage, key, count, given in zip(stages, keys, counts, options, strict=True)
    ]
    narrow = [
        f"{adapter.width} of {stage.channels} at {key}"
        for adapter, stage, key in zip(adapters, stages, keys, strict=True)
        if adapter.width is not None
    ]
    if narrow:
        print(
            f"Adapters in the backbone '{backbone.name}' work on fewer channels where "
            "the paper's would have more than two fifths of the weights of their "
            f"stage: {', '.join(narrow)}. For the paper's, pass a list of SegAdapter "
            "as `adapters`."
        )
    bare = [k for k, adapter in zip(keys, adapters, strict=True) if adapter.normalize]
    if bare:
        print(
            f"Stages of the backbone '{backbone.name}' that end in neither a layer "
            "norm nor a ReLU get adapters that begin with a layer norm "
            f"(normalize=True): {', '.join(bare)}."
        )
    return adapters


def _needs_norm(calls, position):
    """Return whether what a call returns ends in neither a layer norm nor a ReLU."""
    makers = {id(tensor): call for call in calls for tensor in call.outputs}

    def is_bounded(call):
        operation = getattr(call.operation, "activation", call.operation)
        name = getattr(operation, "__name__", type(operation).__name__).lower()
        if name in ("reshape", "concatenate", "maxpooling2d", "averagepooling2d"):
            found = [makers.get(id(tensor)) for tensor in call.inputs]
            return all(maker is not None and is_bounded(maker) for maker in found)
        return name in ("layernormalization", "relu", "relu6")

    # An encoder that can't be expanded has fewer calls; building with it raises later.
    return not is_bounded(calls[min(position, len(calls) - 1)])


def _weights_of(calls, stages):
    """Return how many weights each stage has, from the one before it to its end."""
    ends = sorted(stage.position for stage in stages)
    counts, seen = dict.fromkeys(ends, 0), set()
    for position, call in enumerate(calls[: ends[-1] + 1]):
        weights = getattr(call.operation, "weights", ())
        new = {id(w): math.prod(w.shape) for w in weights if id(w) not in seen}
        seen.update(new)
        counts[ends[bisect.bisect_left(ends, position)]] += sum(new.values())
    return [counts[stage.position] for stage in stages]


def _width(channels, count):
    """Return the width of an adapter for a stage of `count` weights."""
    most = 0.4 * count
    if channels <= 128 or 8 * channels**2 <= most:
        return None
    widths = [channels // divisor for divisor in (2, 4, 8)]
    fit = [w for w in widths if 5 * w**2 + 4 * w * channels <= most]
    return fit[0] if fit else widths[-1]
