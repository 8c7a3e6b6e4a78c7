"""Losses with their gradients: as a training step computes them, and in NumPy."""

import keras
import numpy as np
from keras import ops
from numpy_method import resize


def value_and_gradient(loss, labels, scores, xla=False, **kwargs):
    """Return a loss and its gradient by the scores, compiled as a training step is."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=xla)
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(labels, x, **kwargs)
            return value, tape.gradient(value, x)

        found = step(tf.constant(scores))
    elif backend == "jax":
        import jax

        step = jax.jit(jax.value_and_grad(lambda x: loss(labels, x, **kwargs)))
        found = step(scores)
    else:
        x = ops.convert_to_tensor(scores).requires_grad_()
        value = loss(labels, x, **kwargs)
        value.backward()
        found = value, x.grad
    return tuple(map(ops.convert_to_numpy, found))


def check_gradient(loss, equation, labels, scores, **kwargs):
    """Check a loss and its gradient against an equation of labels and logits.

    The equation gets float64 logits at the labels' size; its gradient is that of
    central differences.
    """
    value, gradient = value_and_gradient(loss, labels, scores, **kwargs)

    def compute(scores):
        return equation(labels, resize(scores, *labels.shape[1:3]))

    scores, step = scores.astype("float64"), 1e-6
    expected = np.zeros_like(scores)
    for place in np.ndindex(scores.shape):
        change = np.zeros_like(scores)
        change[place] = step
        difference = compute(scores + change) - compute(scores - change)
        expected[place] = difference / (2 * step)
    np.testing.assert_allclose(value, compute(scores), rtol=1e-5)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
