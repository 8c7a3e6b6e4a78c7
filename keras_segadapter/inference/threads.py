"""Predictions that several threads may ask for at once, also beside a training.

TensorFlow and PyTorch serve threads as they are. Keras' trainer on JAX does not: each
of its calls, `predict_on_batch` included, donates the arrays of the weights to the
computation, and `fit`, `evaluate` and `predict` leave the variables empty meanwhile. So
here predictions on JAX donate nothing, and read copies of weights that a trainer has.
"""

import contextlib
import functools

import keras
from keras import ops

from keras_segadapter.layers.native import (
    compile_on_jax,
    library_convolutions,
    on_jax,
)
from keras_segadapter.lora import lora_merged

# Copies of the weights that a trainer has, by the ids of their variables.
_copies = {}
_version = object()  # another one after each change of the copies


@keras.saving.register_keras_serializable("keras_segadapter")
class InferenceModel(keras.Model):
    """A functional model whose `predict_on_batch` several threads may call at once."""

    def predict_on_batch(self, x):
        """Predict one batch; beside a training on JAX, with an epoch's first weights.

        Args:
            x: Images `(B, H, W, C)`, or whatever the model takes.

        Returns:
            NumPy arrays in the structure of the model's output.
        """
        if not on_jax():
            return super().predict_on_batch(x)
        while True:
            version = _version
            try:
                outputs = self._predict(x)
            except Exception:
                # A trainer that takes the weights meanwhile leaves deleted arrays.
                if version is _version:
                    raise
            else:
                if version is _version:
                    return outputs

    def predict(self, *args, **kwargs):
        """Predict batches; arguments as in `keras.Model.predict`."""
        with weights_kept(self):
            return super().predict(*args, **kwargs)

    def export(self, *args, **kwargs):
        """Export the model, with LoRA merged; arguments as in Keras."""
        with lora_merged(self), library_convolutions():
            return super().export(*args, **kwargs)

    def _predict(self, x):
        variables = self.variables
        values = [
            _copies[id(variable)] if id(variable) in _copies else variable.value
            for variable in variables
        ]
        outputs, updates = self._compiled(values, x)
        for index, value in updates.items():
            variables[index].assign(value)
        return keras.tree.map_structure(ops.convert_to_numpy, outputs)

    @functools.cached_property
    def _compiled(self):
        """Return a function of weights and inputs that has no side effects.

        It returns the outputs, and new values of variables by index: random states,
        where the backbone draws numbers at inference.
        """

        def outputs_and_updates(values, x):
            variables = self.variables
            mapping = zip(variables, values, strict=True)
            with keras.StatelessScope(mapping) as scope:
                before = [*map(scope.get_current_value, variables)]
                outputs = self(x, training=False)
                after = [*map(scope.get_current_value, variables)]
            pairs = enumerate(zip(before, after, strict=True))
            return outputs, {i: new for i, (old, new) in pairs if new is not old}

        return compile_on_jax(outputs_and_updates)


class KeepWeights(keras.callbacks.Callback):
    """Callback that lets other threads predict during the epochs of a training.

    It must come before callbacks that predict at the end of an epoch, which see the
    weights of that epoch then.
    """

    def on_epoch_begin(self, epoch, logs=None):
        keep_weights(self.model)

    def on_epoch_end(self, epoch, logs=None):
        release_weights(self.model)


def keep_weights(model):
    """Copy the weights of a model for predictions, where a trainer is to take them."""
    if on_jax():
        _change(lambda: _copies.update({id(v): ops.copy(v) for v in model.variables}))


def release_weights(model):
    """Let predictions read the weights of a model itself again."""
    if on_jax():
        _change(lambda: [_copies.pop(id(v), None) for v in model.variables])


@contextlib.contextmanager
def weights_kept(model):
    """Keep the weights of a model for predictions of other threads for a while."""
    keep_weights(model)
    try:
        yield
    finally:
        release_weights(model)


def _change(change):
    global _version
    change()
    _version = object()
