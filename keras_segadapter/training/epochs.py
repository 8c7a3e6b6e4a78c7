"""Tells a dataset the number of each epoch, for trainings that resume."""

import keras


def count_epochs(data):
    """Callback that sets `data.epoch` before each epoch of one `fit`.

    The number goes on from that of an earlier `fit`, or from `initial_epoch`, if
    higher. A dataset cannot count by itself: Keras starts passes to build a model, and
    reads ahead.
    """
    start, first = data.epoch, None

    def begin(epoch, logs=None):
        nonlocal first
        first = epoch if first is None else first
        data.epoch = max(start, first) + epoch - first

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin)
