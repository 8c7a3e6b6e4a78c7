"""The paper's optimizer: each part of a segmenter learns at its own rate."""

import re

import keras

from keras_segadapter.backbones.mit import MixFFN
from keras_segadapter.training.optimizers import GroupedOptimizer
from keras_segadapter.training.schedules import WarmupPoly
from keras_segadapter.validation import (
    check_number,
    check_positive,
    check_rate,
    check_segmenter,
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
    ema=None,
    **kwargs,
):
    """Return AdamW as the paper trains: rates and decay by the role of each weight.

    Norms, biases, `mu` and all other vectors are not decayed, nor are the position
    convolutions of MiT. In every group, the rate rises linearly over `warmup_steps` and
    falls linearly to 0 at `steps`. The defaults are those for MiT; the paper's settings
    for ConvNeXt are `paper_optimizer(model, steps, 1e-4, 0.05, adapter_multiplier=1,
    head_multiplier=1, layer_decay=0.9)`.

    Groups are formed when this function is called and follow the order of the model's
    trainable weights, so freeze layers first. They are saved with the model.

    The steps are those of PyTorch's AdamW except where gradients are tiny, since Keras
    adds epsilon without PyTorch's bias correction: for gradients of 1e-7 the first step
    is 3.8 times smaller than PyTorch's at our default epsilon, 1e-8, and 30 times at
    Keras' 1e-7. On the first adapter of a new MiT-B0 (median gradient 5e-8, without
    `mu`) the first 20 steps were 2.1 and 7.3 times smaller in total.

    Args:
        model: A `Segmenter`.
        steps: Integer. Batches to train on, over all epochs.
        learning_rate: Number above 0. Highest rate of the backbone. Defaults to `6e-5`.
        weight_decay: Number of at least 0. Decay of kernels and matrices; it is
            multiplied by the rate of the group. Defaults to `0.01`.
        adapter_multiplier: Number above 0. Factor on the rate of the adapters. Defaults
            to `7.0`.
        head_multiplier: Number above 0. Factor on the rate of the decode head and the
            neck. Defaults to `10.0`.
        multipliers: Dict from regular expressions to factors on the rate, which replace
            the factor of the role. An expression is searched for in the name of the
            layer and in the path of the weight. Defaults to `None`.
        warmup_steps: Integer. Batches until the highest rate. Defaults to `1500`.
        layer_decay: Number in (0, 1), for a ConvNeXt only. Factor on the rate from one
            stage to the one before. Defaults to `None`.
        ema: Number in [0, 1). Momentum of an exponential moving average of each weight,
            updated after each batch; `Segmenter.fit` validates with the averages, saves
            them and ends with them. `0.999` averages over about 1,000 batches, which
            should be far fewer than `steps`. Defaults to `None`: no averages.
        **kwargs: Options of `keras.optimizers.Adam` for each group: betas, epsilon,
            clipping, accumulation of gradients. With `global_clipnorm` each group is
            clipped by the norm of its gradients. With `gradient_accumulation_steps` the
            schedule and averages still count batches.

    Returns:
        A `keras.optimizers.MultiOptimizer` for `model.compile`. It has `optimizers`,
        one per group, and these have a `learning_rate`; it has none itself.

    Raises:
        TypeError: If `model` is not a `Segmenter`, if `multipliers` is not a dict, if
            `name` or `loss_scale_factor` is given, or if `ema` is given with Keras'
            `use_ema` or `ema_momentum`.
        ValueError: If an argument is out of range, if nothing is trainable, if a
            pattern of `multipliers` matches no weight or two of them match one, if
            `layer_decay` is given and the backbone is not a ConvNeXt, or if Keras does
            not know an option.

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
    check_segmenter(model, "paper_optimizer")
    if not model.trainable_variables:
        raise ValueError(
            "`model` must have trainable weights. Set `trainable = True` on what is to "
            f"learn before calling paper_optimizer. Received: model='{model.name}'"
        )
    check_number("weight_decay", weight_decay, least=0)
    check_positive("learning_rate", learning_rate)
    check_positive("adapter_multiplier", adapter_multiplier)
    check_positive("head_multiplier", head_multiplier)
    if "loss_scale_factor" in kwargs:  # MultiOptimizer would drop it.
        raise TypeError(
            "`loss_scale_factor` can't be set for a group. Put the result into a "
            "keras.optimizers.LossScaleOptimizer. Received: "
            f"loss_scale_factor={kwargs['loss_scale_factor']}"
        )
    if ema is not None:
        given = {"use_ema", "ema_momentum"} & kwargs.keys()
        if given:
            raise TypeError(
                "`ema` sets Keras' `use_ema` and `ema_momentum`. Leave these out. "
                f"Received: ema={ema} and {', '.join(sorted(given))}"
            )
        kwargs.update(use_ema=True, ema_momentum=check_rate("ema", ema))
    factors = _factors_by_role(model, adapter_multiplier, head_multiplier, layer_decay)
    factors.update(_factors_by_pattern(model, multipliers or {}))
    spared = _spared_from_decay(model)
    kinds = [
        (factors[id(v)], weight_decay > 0 and id(v) not in spared)
        for v in model.trainable_variables
    ]
    distinct = list(dict.fromkeys(kinds))

    def group(factor, decays):
        # This is AdamW; Keras' class of that name does not take a decay of None.
        return keras.optimizers.Adam(
            WarmupPoly(factor * learning_rate, steps, warmup_steps),
            # Excluding each weight from the decay instead would fail on PyTorch.
            weight_decay=weight_decay if decays else None,
            name=f"rate_x{factor:g}" + ("" if decays else "_no_decay"),
            **{"epsilon": 1e-8, **kwargs},
        )

    return GroupedOptimizer(
        [group(*kind) for kind in distinct], [distinct.index(kind) for kind in kinds]
    )


def _factors_by_role(model, adapter_multiplier, head_multiplier, layer_decay):
    """Return the factor on the rate by the id of each trainable weight."""
    of_layer = {} if layer_decay is None else _stage_decay(model, layer_decay)
    of_layer.update({id(adapter): adapter_multiplier for adapter in model.adapters})
    of_layer.update({id(part): head_multiplier for part in (model.neck, model.head)})
    return {
        id(v): float(of_layer.get(id(layer), 1.0))
        for layer, v in _trainable_weights(model)
    }


def _trainable_weights(model):
    """Return pairs of a layer and a trainable weight in it."""
    return [(layer, v) for layer in model.layers for v in layer.weights if v.trainable]


def _stage_decay(model, layer_decay):
    """Return the factor on the rate by the id of each layer of a ConvNeXt's stages."""
    check_number("layer_decay", layer_decay, above=0, below=1)
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
            "`layer_decay` needs a ConvNeXt of this package or of keras.applications, "
            "whose layers are named '..._stage_0_block_0_...' and so on. For other "
            "backbones pass factors by name as `multipliers`. Received: "
            f"layer_decay={layer_decay} for the backbone '{model.backbone.name}'"
        )
    # Three blocks of stage 3 count as one layer: 9 blocks give depth 7, 27 give 13.
    depth = len(blocks_of_third) // 3 + 4
    return {layer: layer_decay ** (depth - stage) for layer, stage in stage_of.items()}


def _factors_by_pattern(model, multipliers):
    """Return the user's factors by the id of each weight that a pattern matches."""
    if not isinstance(multipliers, dict):
        raise TypeError(
            "`multipliers` must be a dict from regular expressions to numbers. "
            f"Received: multipliers={multipliers!r}"
        )
    matched = {}
    for pattern, factor in multipliers.items():
        check_positive(f"multipliers[{pattern!r}]", factor)
        for v in _matching_weights(model, pattern):
            if id(v) in matched:
                raise ValueError(
                    "Each weight must match at most one pattern of `multipliers`. Make "
                    f"one of them narrower. Received: {matched[id(v)]!r} and "
                    f"{pattern!r}, which both match the weight '{v.path}'"
                )
            matched[id(v)] = pattern
    return {key: float(multipliers[pattern]) for key, pattern in matched.items()}


def _matching_weights(model, pattern):
    """Return the trainable weights that a regular expression matches."""
    try:
        search = re.compile(pattern).search
    except (re.error, TypeError) as error:
        raise ValueError(
            "The keys of `multipliers` must be regular expressions. Received: "
            f"{pattern!r} ({error})"
        ) from error
    weights = [
        v
        for layer, v in _trainable_weights(model)
        if search(layer.name) or search(v.path)
    ]
    if not weights:
        raise ValueError(
            "Each pattern of `multipliers` must match the name of a layer or the path "
            "of a trainable weight. See [v.path for v in model.trainable_variables]. "
            f"Received: {pattern!r}"
        )
    return weights


def _spared_from_decay(model):
    """Return the ids of all vectors and of MiT's position convolutions."""
    spared = {id(v) for v in model.trainable_variables if len(v.shape) < 2}
    for layer in model.layers:
        if isinstance(layer, MixFFN):
            spared.update(id(v) for v in layer.depthwise.weights)
    return spared
