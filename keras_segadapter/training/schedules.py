"""The paper's schedule: warm-up, then poly."""

import keras
from keras import ops

from keras_segadapter.validation import check_integer, check_positive

WARMUP_START = 1e-6  # As a share of the highest rate.


@keras.saving.register_keras_serializable("keras_segadapter")
class WarmupPoly(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, then falls linearly to 0.

    Args:
        learning_rate: Number above 0. Highest rate, reached at `warmup_steps`. The
            first step has a millionth of it.
        steps: Integer of at least 1. Step at which the rate is 0.
        warmup_steps: Integer of at least 0 and below `steps`. Number of steps of the
            rise. Defaults to `1500`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    import keras_segadapter as ksa

    optimizer = ksa.AdamW(ksa.WarmupPoly(6e-5, steps=160_000, warmup_steps=1500))
    ```

    Source: paper, section 5: poly of power 1.
    """

    # Of Keras' schedules, only CosineDecay warms up, and it does not fall linearly.

    def __init__(self, learning_rate, steps, warmup_steps=1500):
        self.learning_rate = check_positive("learning_rate", learning_rate)
        self.steps = check_integer("steps", steps)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, least=0)
        if warmup_steps >= steps:
            raise ValueError(
                "`warmup_steps` must be below `steps`, the batches of all epochs "
                "together. For a short training pass a tenth of the steps, or 0. "
                f"Received: warmup_steps={warmup_steps}, steps={steps}"
            )

    def __call__(self, step):
        step = ops.cast(step, "float32")
        risen = step / max(self.warmup_steps, 1)
        rise = WARMUP_START + (1 - WARMUP_START) * risen
        fall = (self.steps - step) / (self.steps - self.warmup_steps)
        factor = ops.where(step < self.warmup_steps, rise, ops.maximum(fall, 0.0))
        return self.learning_rate * factor

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
        }
