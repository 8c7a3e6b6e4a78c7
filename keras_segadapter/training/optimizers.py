"""AdamW as the method uses it, and one optimizer for groups of weights."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_segadapter")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW without decay on vectors: norms, biases, SegAdapter's mu.

    Keras has `exclude_from_weight_decay` for that, but forgets it when a model is saved
    and loaded; here it is made anew whenever the optimizer is built. Epsilon is 1e-8:
    an adapter's weights see gradients near 1e-7 while mu is small, and Keras adds
    epsilon without the bias correction that PyTorch's has.

    Args:
        learning_rate: Rate or schedule.
        weight_decay: Decay of matrices and kernels.
        epsilon: Added to the root of the second moment.
        name: Name of the optimizer.
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

    def build(self, variables):
        if not self.built:
            vectors = [v for v in variables if len(v.shape) < 2]
            self.exclude_from_weight_decay(var_list=vectors)
        super().build(variables)


def with_loss_scale(optimizer, layers):
    """Return the optimizer, with a loss scale around it where a layer needs one.

    Keras looks at the model's own precision only, which a backbone's may differ from.

    Args:
        optimizer: A Keras optimizer.
        layers: Layers of the model.
    """
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scaled or all(layer.compute_dtype != "float16" for layer in layers):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)


@keras.saving.register_keras_serializable("keras_segadapter")
class GroupedOptimizer(keras.optimizers.MultiOptimizer):
    """A MultiOptimizer that knows a weight's group by its place among the weights.

    Keras' own goes by the paths of the weights; these change when a model is made anew
    from its config, as loading does. The order stays, and an optimizer's state is saved
    in that order too.

    Args:
        optimizers: List of optimizers, one a group.
        groups: For each trainable weight of the model, in order, the index of its
            optimizer.
        name: Name of the optimizer.

    Raises:
        ValueError: If the model has other trainable weights than those it was made for.

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
                f"This optimizer was made for {len(self._groups)} trainable weights, "
                f"and the model has {len(places)}, or it is another model. Freeze "
                "and unfreeze first, then call paper_optimizer and compile. Load a "
                "file frozen after compile with load_model(..., compile=False)."
            )
        self._places = places
        super().build(variables)

    def _optimizer_of(self, variable):
        return self._by_group[self._groups[self._places[id(variable)]]]

    def save_own_variables(self, store):
        # The groups' optimizers save theirs; Keras' own would save all of them twice.
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
