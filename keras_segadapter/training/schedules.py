"""The paper's schedule: warm-up, then poly."""

import keras
from keras import ops

from keras_segadapter.validation import check_integer, check_positive

WARMUP_START = 1e-6  # of the rate


@keras.saving.register_keras_serializable("keras_segadapter")
class WarmupPoly(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises in a line, then falls in a line to 0.

    Args:
        learning_rate: Highest rate, reached at `warmup_steps`. The first step has a
            millionth of it.
        steps: Step at which the rate is 0.
        warmup_steps: Steps of the rise; 0 for none.

    Raises:
        ValueError: If the rate is not above 0 and finite, or `warmup_steps` is not in
            0 .. steps - 1.

    Example:

    ```python
    import keras_segadapter as ksa

    optimizer = ksa.AdamW(ksa.WarmupPoly(6e-5, steps=160_000, warmup_steps=1500))
    ```

    Source: paper, section 5: poly of power 1.
    """

    # Of Keras' own schedules only CosineDecay warms up, and it cannot fall in a line.

    def __init__(self, learning_rate, steps, warmup_steps=1500):
        self.learning_rate = check_positive("learning_rate", learning_rate)
        self.steps = check_integer("steps", steps)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, least=0)
        if warmup_steps >= steps:
            raise ValueError(
                "`warmup_steps` must be below `steps`, the batches of all epochs "
                f"together. Received: warmup_steps={warmup_steps}, steps={steps}. For "
                "a short training give fewer, such as a tenth of the steps, or 0."
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
