"""What the arguments of `Segmenter.compile` come to, and what must stay as it was."""

import keras

from keras_segadapter.losses.resized import fit_loss
from keras_segadapter.metrics import fit_metric
from keras_segadapter.validation import check_number, ignored_ids, is_auto


def check_arguments(names, loss_weights, **arguments):
    """Validate those arguments of `compile` that may be dicts by output.

    Args:
        names: List of the names of the outputs.
        loss_weights: As in `compile`.
        **arguments: The others, by name.

    Raises:
        TypeError: If `loss_weights` is neither a dict, a list nor None.
        ValueError: If it holds something other than finite numbers, or if a dict names
            another output.
    """
    if loss_weights is not None and not isinstance(loss_weights, (dict, list, tuple)):
        raise TypeError(
            '`loss_weights` must be a dict of numbers by output, such as {"logits": '
            f'1.0, "aux": 0.4}}. Received: loss_weights={loss_weights!r}'
        )
    by_name = isinstance(loss_weights, dict)
    for key, weight in (
        loss_weights.items() if by_name else enumerate(loss_weights or ())
    ):
        check_number(f"loss_weights[{key!r}]", weight)
    for argument, value in {**arguments, "loss_weights": loss_weights}.items():
        unknown = sorted(set(value) - set(names)) if isinstance(value, dict) else []
        if unknown:
            raise ValueError(
                f"`{argument}` must name outputs of the model, which are {names}. "
                f"Received: {argument}={value!r} with {unknown}"
            )


def losses_by_output(names, num_classes, loss, loss_weights, aux_weight, ignored):
    """Return the loss of each output, or None without losses, and their weights.

    Args:
        names: List of the names of the outputs.
        num_classes: Integer. Number of classes K.
        loss, loss_weights, aux_weight: As in `compile`.
        ignored: List of the ids of void pixels, for losses by name.

    Raises:
        ValueError: If a loss does not take ids and logits.
    """
    if loss is None:
        return None, loss_weights
    if not isinstance(loss, dict):
        loss = dict.fromkeys(names, "crossentropy" if is_auto(loss) else loss)
        if loss_weights is None:
            loss_weights = {**dict.fromkeys(names, aux_weight), "logits": 1.0}
    loss = {key: fit_loss(each, num_classes, ignored) for key, each in loss.items()}
    if isinstance(loss_weights, dict):
        loss_weights = {key: loss_weights.get(key, 1.0) for key in loss}
    return loss, loss_weights


def ignored_by(losses, num_classes):
    """Return a sorted list of the ids that the losses of a dict, or None, ignore."""
    ids = set()
    for loss in (losses or {}).values():
        loss = getattr(loss, "loss", loss)  # inside a ResizedLoss
        ids.update(ignored_ids(getattr(loss, "ignore_class", None), num_classes))
    return sorted(ids)


def fit_metrics(metrics, num_classes, ignored):
    """Return metrics, in the structure that `compile` takes, that fit a segmenter.

    Raises:
        ValueError: If one of Keras' metrics does not take ids and logits.
    """
    if not isinstance(metrics, (list, tuple, dict, type(None))):
        metrics = [metrics]
    return keras.tree.map_structure(
        lambda metric: fit_metric(metric, num_classes, ignored),
        metrics or None,
        none_is_leaf=False,
    )


def learning(model):
    """Return what identifies the weights of a model that learn."""
    return [id(variable) for variable in model.trainable_variables]


def check_learning(model, before):
    """Validate that the weights that learn are those that did at `compile`.

    Raises:
        ValueError: If they are not: Keras would go on with a mix of both.
    """
    if learning(model) != before:
        raise ValueError(
            "Layers were frozen or unfrozen after compile, which Keras does not heed "
            "before the next compile. Call model.compile(...) again, with a new "
            f"optimizer. Received: {len(model.trainable_variables)} trainable weights, "
            f"and {len(before)} at compile"
        )
