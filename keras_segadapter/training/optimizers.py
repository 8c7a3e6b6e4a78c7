"""AdamW as the method uses it, and an optimizer for groups of weights."""

import keras
from keras import ops

from keras_segadapter.layers.native import adam_on_torch, on_torch


@keras.saving.register_keras_serializable("keras_segadapter")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW without decay on vectors: norms, biases, the `mu` of `SegAdapter`.

    Keras has `exclude_from_weight_decay` for this, but loses it when a model is saved
    and loaded; here vectors are excluded whenever the optimizer is built, besides what
    you exclude yourself. Epsilon is 1e-8,
    since the gradients of an adapter's weights are near 1e-7 while `mu` is small, and
    Keras adds epsilon without PyTorch's bias correction.

    Args:
        learning_rate: Number or schedule. Learning rate. Defaults to `6e-5`.
        weight_decay: Number. Decay of matrices and kernels. Defaults to `0.01`.
        epsilon: Number. It is added to the root of the second moment. Defaults to
            `1e-8`.
        name: String. Name of the optimizer. Defaults to `"adamw"`.
        **kwargs: As in `keras.optimizers.AdamW`.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    schedule = keras.optimizers.schedules.PolynomialDecay(6e-5, 160_000, 0.0)
    optimizer = ksa.AdamW(schedule, clipnorm=1.0)
    ```

    Source: paper, section 5.
    """

    def __init__(
        self,
        learning_rate=6e-5,
        weight_decay=0.01,
        epsilon=1e-8,
        name="adamw",
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )
        self._excluded = (), None

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Exclude weights from decay, besides the vectors; call it before `build`.

        Args:
            var_list: List of weights.
            var_names: List of texts; weights with one of them in their name.
        """
        # Keras would forget them when the vectors are excluded.
        self._excluded = tuple(var_list or ()), var_names
        super().exclude_from_weight_decay(var_list, var_names)

    def build(self, variables):
        if not self.built:
            own, names = self._excluded
            vectors = [v for v in variables if len(v.shape) < 2]
            super().exclude_from_weight_decay([*own, *vectors], names)
        super().build(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Keras' AdamW updates all weights in one go on PyTorch, classes derived from it
        # one by one, in 15 passes each. PyTorch's own step is one pass.
        plain = on_torch() and not self.amsgrad
        if not plain or not all(
            v.dtype == "float32" and v.value.is_contiguous()
            for v in trainable_variables
        ):
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        places = [self._get_variable_index(v) for v in trainable_variables]
        step = ops.cast(self.iterations + 1, "float32")
        rate = ops.cast(learning_rate, "float32") / (1 - self.beta_1**step)
        adam_on_torch(
            trainable_variables,
            [ops.cast(gradient, "float32") for gradient in grads],
            [self._momentums[place] for place in places],
            [self._velocities[place] for place in places],
            rate * ops.sqrt(1 - self.beta_2**step),
            (self.beta_1, self.beta_2),
            self.epsilon,
        )


def with_loss_scale(optimizer, layers):
    """Return the optimizer, with a loss scale around it where a layer needs one.

    Keras looks at the precision of the model as a whole, which may differ from that of
    its backbone.

    Args:
        optimizer: A Keras optimizer.
        layers: List of the model's layers.
    """
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scaled or all(layer.compute_dtype != "float16" for layer in layers):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


@keras.saving.register_keras_serializable("keras_segadapter")
class GroupedOptimizer(keras.optimizers.MultiOptimizer):
    """A MultiOptimizer that finds a weight's group by its index among the weights.

    Keras' own goes by the paths of the weights, which change when a model is built from
    its config, as in loading. Their order stays the same, and an optimizer's state is
    saved in that order too.

    Args:
        optimizers: List of optimizers, one per group.
        groups: List of integers. Index of the optimizer of each trainable weight of the
            model, in order.
        name: String. Name of the optimizer. Defaults to `"grouped_optimizer"`.

    Raises:
        ValueError: If it is built with other trainable weights than it was made for.

    Example: see `paper_optimizer`.
    """

    def __init__(self, optimizers, groups, name="grouped_optimizer"):
        super().__init__(self._optimizer_of, name=name)
        self._by_group = list(optimizers)
        self._groups = list(groups)
        self._places = {}

    def build(self, variables):
        places = {id(v): place for place, v in enumerate(variables)}
        if len(places) != len(self._groups) or (self.built and places != self._places):
            raise ValueError(
                f"This optimizer was made for {len(self._groups)} trainable weights of "
                "one model. Freeze and unfreeze layers first, then call "
                "paper_optimizer and compile. Load a model that was frozen after "
                "compile with load_model(..., compile=False). Received: "
                f"{len(places)} trainable weights, or those of another model"
            )
        self._places = places
        super().build(variables)

    def _optimizer_of(self, variable):
        return self._by_group[self._groups[self._places[id(variable)]]]

    def save_own_variables(self, store):
        # The groups' optimizers save their own variables, and Keras' method would save
        # all of them again.
        store["iterations"] = ops.convert_to_numpy(self.iterations)

    def load_own_variables(self, store):
        self.iterations.assign(store["iterations"])

    def get_config(self):
        return {
            "optimizers": [
                keras.optimizers.serialize(optimizer) for optimizer in self._by_group
            ],
            "groups": list(self._groups),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        revived = [
            keras.optimizers.deserialize(optimizer, custom_objects)
            for optimizer in config["optimizers"]
        ]
        return cls(revived, config["groups"], config["name"])
