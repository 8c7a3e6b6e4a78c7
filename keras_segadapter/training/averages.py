"""Moving averages of weights: they are measured and saved, the raw weights learn on."""

import contextlib

import keras
from keras import ops


class Averages(keras.callbacks.Callback):
    """Callback that puts the moving averages in the place of weights between epochs.

    They are there in validation and, where this callback comes first and `restore_raw`
    last, for what other callbacks do at the end of an epoch.

    Keras' `SwapEMAWeights` exchanges both: a training that stops before its last epoch
    ends with raw weights in place of averages, a file saved meanwhile holds them as its
    averages, and on TensorFlow each exchange rounds the weights.
    """

    def __init__(self):
        super().__init__()
        self._raw = None

    def on_train_begin(self, logs=None):
        momentum = max(part.ema_momentum for part in _averaging(self.model))
        batches = self.params["epochs"] * (self.params["steps"] or 0)
        held = momentum**batches
        if batches and held > 0.1:
            print(
                f"After {batches} batches, averages with a momentum of {momentum:g} "
                f"still hold {held:.0%} of the weights at the start. To leave 1%, set "
                f"it to {10 ** (-2 / batches):.4g}."
            )

    def on_test_begin(self, logs=None):
        self._use_averages()

    def on_epoch_end(self, epoch, logs=None):
        self._use_averages()  # where there was no validation

    def restore_raw(self):
        """Put the raw weights back."""
        pairs = _pairs(self.model)
        for (weight, _), value in zip(pairs, self._raw, strict=True):
            weight.assign(value)
        self._raw = None

    def _use_averages(self):
        if self._raw is None:
            # In NumPy arrays, which take no memory of an accelerator.
            self._raw = [ops.convert_to_numpy(w) for w, _ in _pairs(self.model)]
            use_averages(self.model)


def with_averages(model, callbacks):
    """Return a list of callbacks that see the averages, if the optimizer keeps any."""
    if not _averaging(model):
        return callbacks
    kept = [c for c in callbacks if not isinstance(c, keras.callbacks.SwapEMAWeights)]
    if len(kept) < len(callbacks):
        print("SwapEMAWeights is left out: fit itself puts averages for the weights.")
    averages = Averages()
    last = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: averages.restore_raw()
    )
    return [averages, *kept, last]


def start_averages(model):
    """Set the averages to the weights.

    Keras starts them at 0, which would become the weights if no batch was trained, and
    ends with arrays that both share, which its trainer on JAX deletes in the next
    `evaluate`, and refuses in the next `fit`.
    """
    for weight, average in _pairs(model):
        average.assign(ops.copy(weight))


def use_averages(model):
    """Set the weights to their averages."""
    for weight, average in _pairs(model):
        weight.assign(ops.copy(average))


@contextlib.contextmanager
def ending_with_averages(model):
    """Let a training end with the averages, also one that an error ends."""
    try:
        yield  # Keras sets them, and callbacks may set others, such as the best.
    except BaseException:
        use_averages(model)
        raise
    finally:
        start_averages(model)


def _averaging(model):
    """Return the optimizers with averages in the optimizer of a model."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss scale
    parts = getattr(optimizer, "optimizers", [optimizer])
    return [part for part in parts if getattr(part, "use_ema", False) and part.built]


def _pairs(model):
    """Return pairs of a weight and its average."""
    return [
        (weight, average)
        for part in _averaging(model)
        for weight, average in zip(
            part._trainable_variables, part._model_variables_moving_average, strict=True
        )
        if average is not None
    ]
