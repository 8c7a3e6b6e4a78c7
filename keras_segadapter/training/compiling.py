"""What `Segmenter.compile` is given, checked and made ready before a step."""

import keras

from keras_segadapter.training.mask_loss import wants_one_hot


def check_names(argument, value, output_keys):
    """Refuse a dict by output that names others than the model's."""
    unknown = set(value) - set(output_keys)
    if unknown:
        raise ValueError(
            f"`{argument}` names outputs that the model has not: "
            f"{sorted(unknown)}. Its outputs are {list(output_keys)}."
        )


def check_loss(loss):
    """Refuse a loss that does not take ids and logits."""
    if wants_one_hot(loss):
        raise ValueError(
            "Masks hold one class id a pixel, but this loss takes one-hot "
            f"masks: {loss!r}. Give the loss itself, no name or function, to "
            "keras_segadapter.MaskLoss: compile(loss=keras_segadapter.MaskLoss("
            "keras.losses.Dice(axis=(0, 1, 2))))."
        )
    if _takes_probabilities(loss):
        raise ValueError(
            "The model gives logits, but this loss takes probabilities: "
            f"{loss!r}. Use keras.losses.SparseCategoricalCrossentropy("
            "from_logits=True), or leave `loss` out."
        )


def tile_of(losses):
    """Tile of losses that resize the scores themselves; None for others."""
    tiles = {getattr(loss, "tile", None) for loss in losses}
    if None in tiles and len(tiles) > 1:
        raise ValueError(
            "Either all losses take smaller scores or none does: give `tile` to every "
            "SegmentationCrossentropy, or to none. Received: losses with tile="
            f"{sorted(tiles, key=str)}"
        )
    return max(tiles, key=str)


def check_resize(metrics):
    """Refuse metrics that need logits at the size of the mask."""
    for metric in metrics:
        if getattr(metric, "tile", None) is None:
            raise ValueError(
                "The loss takes scores smaller than the mask, so the metrics must as "
                "well: use keras_segadapter.MeanIoU(num_classes, tile=64), or "
                f"metrics=[], or a loss without `tile`. Received: {metric!r}"
            )


def with_loss_scale(optimizer):
    """The optimizer, which keeps gradients in float16's range."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


def _takes_probabilities(loss):
    """Whether a loss by name or instance has `from_logits` and it is not set."""
    if isinstance(loss, str):
        return "crossentropy" in loss or loss == "ce"
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return config.get("from_logits") is False
