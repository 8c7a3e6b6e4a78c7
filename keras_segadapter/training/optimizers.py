"""AdamW as the method uses it."""

import keras


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
