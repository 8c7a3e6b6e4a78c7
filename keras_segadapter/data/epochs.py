"""The number of each epoch and the order that it makes, for trainings that resume."""

import keras
import numpy as np


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


def epoch_order(count, shuffle, seed, epoch):
    """Indices of an epoch's samples. Keras' own order comes from a random state that a
    new process has not."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng([seed, epoch]).permutation(count)


class ShuffledArrays(keras.utils.PyDataset):
    """Batches of arrays, in an order made of `seed` and `epoch`.

    Args:
        arrays: Tuple or dict of arrays of one length, nested at will.
        batch_size: Number of samples in a batch. The last batch may be smaller.
        shuffle: Whether to give each epoch an order of its own.
        seed: Non-negative integer.
    """

    def __init__(self, arrays, batch_size, shuffle, seed):
        super().__init__()
        self.arrays = keras.tree.map_structure(keras.ops.convert_to_numpy, arrays)
        self.count = len(keras.tree.flatten(self.arrays)[0])
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self):
        return -(-self.count // self.batch_size)  # rounded up

    def __getitem__(self, index):
        indices = epoch_order(self.count, self.shuffle, self.seed, self.epoch)
        chosen = indices[index * self.batch_size : (index + 1) * self.batch_size]
        return keras.tree.map_structure(lambda array: array[chosen], self.arrays)
