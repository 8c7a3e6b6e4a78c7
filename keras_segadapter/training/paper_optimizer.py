"""The paper's optimizer: each part of a segmenter learns at a rate of its own."""

import math
import re
from numbers import Real

import keras

from keras_segadapter.backbones.mit import MixFFN
from keras_segadapter.validation import check_positive, check_segmenter
from keras_segadapter.training.optimizers import GroupedOptimizer
from keras_segadapter.training.schedules import WarmupPoly

# Of Keras' options, those that a group can have by itself.
OPTIONS = (
    "beta_1",
    "beta_2",
    "epsilon",
    "amsgrad",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
)


def paper_optimizer(
    model,
    steps,
    learning_rate=6e-5,
    weight_decay=0.01,
    adapter_multiplier=7.0,
    head_multiplier=10.0,
    multipliers=None,
    warmup_steps=1500,
    layer_decay=None,
    **kwargs,
):
    """AdamW as the paper trains: rates and weight decay by the role of each weight.

    Norms, biases, `mu` and all other vectors are not decayed, nor are the position
    convolutions of MiT. The rate rises in a line over `warmup_steps` and falls in a
    line to 0 at `steps`, in every group. The defaults are those for MiT; for ConvNeXt
    the settings are `paper_optimizer(model, steps, 1e-4, 0.05, adapter_multiplier=1,
    head_multiplier=1, layer_decay=0.9)`.

    Which weight is in which group is settled here and goes by the order of the model's
    trainable weights, so freeze what is to be frozen first. It is saved with the model.

    PyTorch's AdamW takes the same steps where gradients are not tiny. Keras adds
    epsilon without PyTorch's bias correction: for gradients of 1e-7 the first step is
    3.8 times smaller than PyTorch's at epsilon 1e-8, our default, and 30 times at
    Keras' 1e-7. On a new MiT-B0's first adapter (median 5e-8, `mu` left out) the first
    20 steps came to 2.1 and 7.3 times less.

    Args:
        model: A `Segmenter`.
        steps: Batches to train on, all epochs together.
        learning_rate: Highest rate, the backbone's.
        weight_decay: Decay of kernels and matrices; times the rate of their group.
        adapter_multiplier: Factor on the rate of the adapters.
        head_multiplier: Factor on the rate of the decode head.
        multipliers: Dict from a regular expression to a factor on the rate, in place of
            the factor of the role. It is searched for in the name of the layer and in
            the path of the weight.
        warmup_steps: Batches until the highest rate.
        layer_decay: For a ConvNeXt of `keras.applications`: factor on the rate from one
            stage to the one before, such as 0.9.
        **kwargs: Options of `keras.optimizers.AdamW` that each group is given: betas,
            epsilon, clipping, moving averages, accumulation of gradients. With
            `global_clipnorm` each group is clipped by its own norm. With
            `gradient_accumulation_steps` the schedule still counts batches.

    Returns:
        A `keras.optimizers.MultiOptimizer`, for `model.compile`. It has no
        `learning_rate`: each of its `optimizers`, one a group, has.

    Raises:
        TypeError: If `model` is no `Segmenter`, or an option is none of these.
        ValueError: If an argument is out of range, nothing is trainable, a pattern of
            `multipliers` fits no weight or two of them fit one, or `layer_decay` is
            given and the backbone is no ConvNeXt.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=3)
    optimizer = ksa.paper_optimizer(model, steps=160_000, multipliers={"/mu$": 1.0})
    model.compile(optimizer)
    print([group.name for group in optimizer.optimizers])
    ```

    Source: paper, section 5.
    """
    _check_arguments(
        model,
        kwargs,
        weight_decay=weight_decay,
        learning_rate=learning_rate,
        adapter_multiplier=adapter_multiplier,
        head_multiplier=head_multiplier,
    )
    factors = _factors_by_role(model, adapter_multiplier, head_multiplier, layer_decay)
    factors.update(_factors_by_pattern(model, multipliers or {}))
    spared = _spared_from_decay(model)
    kinds = [
        (factors[id(v)], weight_decay > 0 and id(v) not in spared)
        for v in model.trainable_variables
    ]
    distinct = list(dict.fromkeys(kinds))

    def group(factor, decays):
        return keras.optimizers.Adam(  # AdamW is this with a decay that is never None
            WarmupPoly(factor * learning_rate, steps, warmup_steps),
            # An exclusion for each weight instead of None fails on PyTorch.
            weight_decay=weight_decay if decays else None,
            name=f"rate_x{factor:g}" + ("" if decays else "_no_decay"),
            **{"epsilon": 1e-8, **kwargs},
        )

    return GroupedOptimizer(
        [group(*kind) for kind in distinct], [distinct.index(kind) for kind in kinds]
    )


def _check_arguments(model, options, weight_decay, **rates):
    check_segmenter(model, "paper_optimizer")
    if not model.trainable_variables:
        raise ValueError(
            f"'{model.name}' has no trainable weights. Set `trainable = True` on what "
            "is to learn before calling paper_optimizer."
        )
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(
            f"paper_optimizer has no argument {unknown}. Beside its own it takes these "
            f"of Keras: {', '.join(OPTIONS)}."
        )
    if not isinstance(weight_decay, Real) or not 0 <= weight_decay < math.inf:
        raise ValueError(
            "`weight_decay` must be a number of at least 0 and finite. Received: "
            f"weight_decay={weight_decay!r}"
        )
    for name, value in rates.items():
        check_positive(name, value)


def _factors_by_role(model, adapter_multiplier, head_multiplier, layer_decay):
    """Factor on the rate by the id of each weight."""
    of_layer = {} if layer_decay is None else _stage_decay(model, layer_decay)
    of_layer.update({id(adapter): adapter_multiplier for adapter in model.adapters})
    of_layer[id(model.head)] = head_multiplier
    return {
        id(v): float(of_layer.get(id(layer), 1.0))
        for layer, v in _trainable_weights(model)
    }


def _trainable_weights(model):
    """Pairs of a layer and a trainable weight in it."""
    return [(layer, v) for layer in model.layers for v in layer.weights if v.trainable]


def _stage_decay(model, layer_decay):
    """Factor on the rate by the id of each layer of a ConvNeXt's stages."""
    if not isinstance(layer_decay, Real) or not 0 < layer_decay < 1:
        raise ValueError(
            f"`layer_decay` must be in (0, 1). Received: layer_decay={layer_decay!r}"
        )
    stage_of, blocks_of_third = {}, set()
    for layer in model.layers:
        block = re.search(r"_stage_([0-3])_block_(\d+)_", layer.name)
        if block:
            stage_of[id(layer)] = 1 + int(block[1])
            if block[1] == "2":
                blocks_of_third.add(block[2])
        elif re.search(r"_stem$|_downsampling_block_\d$", layer.name):
            stage_of[id(layer)] = 0
    if set(stage_of.values()) != {0, 1, 2, 3, 4}:
        raise ValueError(
            "`layer_decay` is for a ConvNeXt of keras.applications with its own names "
            "of layers, '..._stem', '..._stage_0_block_0_...' and so on. The backbone "
            f"'{model.backbone.name}' has no such layers: leave `layer_decay` out, or "
            "give factors by name with `multipliers`."
        )
    # Three blocks of stage 3 count as one layer: 9 blocks give 7, 27 give 13.
    depth = len(blocks_of_third) // 3 + 4
    return {layer: layer_decay ** (depth - stage) for layer, stage in stage_of.items()}


def _factors_by_pattern(model, multipliers):
    """The user's factors by the id of each weight that a pattern fits."""
    factors, fitted = {}, {}
    for pattern, factor in multipliers.items():
        check_positive(f"multipliers[{pattern!r}]", factor)
        fits = _weights_that_fit(model, pattern)
        for path, variable in fits:
            if variable in fitted:
                raise ValueError(
                    f"Two patterns of `multipliers` fit the weight '{path}': "
                    f"{fitted[variable]!r} and {pattern!r}. Make one of them narrower."
                )
            fitted[variable] = pattern
            factors[variable] = float(factor)
    return factors


def _weights_that_fit(model, pattern):
    """Path and id of the weights that a regular expression fits."""
    try:
        search = re.compile(pattern).search
    except (re.error, TypeError) as error:
        raise ValueError(
            "The keys of `multipliers` must be regular expressions. Received: "
            f"{pattern!r} ({error})"
        ) from error
    fits = [
        (v.path, id(v))
        for layer, v in _trainable_weights(model)
        if search(layer.name) or search(v.path)
    ]
    if not fits:
        raise ValueError(
            f"The pattern {pattern!r} of `multipliers` fits no layer's name and no "
            "trainable weight's path. See [v.path for v in model.trainable_variables]."
        )
    return fits


def _spared_from_decay(model):
    """Ids of all vectors and of MiT's position convolutions."""
    spared = {id(v) for v in model.trainable_variables if len(v.shape) < 2}
    for layer in model.layers:
        if isinstance(layer, MixFFN):
            spared.update(id(v) for v in layer.depthwise.weights)
    return spared
