"""Epoch numbers and the orders they give, so that training can resume."""

import keras
import numpy as np


def count_epochs(data):
    """Return a callback that sets `data.epoch` before each epoch of one `fit`.

    The number continues that of an earlier `fit`, or `initial_epoch` if that is higher.
    A dataset cannot count by itself, since Keras also starts a pass to build a model,
    and reads ahead.
    """
    start, first = data.epoch, None

    def begin(epoch, logs=None):
        nonlocal first
        first = epoch if first is None else first
        data.epoch = max(start, first) + epoch - first

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin)


def epoch_order(count, shuffle, seed, epoch):
    """Return the indices of an epoch's samples, the same in every process.

    Keras' own order comes from a random state that a new process does not have.
    """
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng([seed, epoch]).permutation(count)


class ShuffledArrays(keras.utils.PyDataset):
    """Batches of arrays, in an order that depends on `seed` and `epoch` only.

    Args:
        arrays: Tuple or dict of arrays of one length, nested in any way.
        batch_size: Integer. Number of samples per batch. The last batch may be smaller.
        shuffle: Boolean. Whether each epoch has an order of its own.
        seed: Integer of at least 0.
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
