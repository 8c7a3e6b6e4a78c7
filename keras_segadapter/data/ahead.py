"""Samples read ahead of the training, by threads or by processes."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
from PIL import Image


# Keras' own workers don't serve here: their queue keeps the batches that it reads ahead
# to build the model and gives them to the first epoch, and its processes start anew in
# each epoch, as forks of a process with threads. Grain's want the program to parse
# absl's flags, and leave shared memory behind after an error; tf.data would need
# TensorFlow. Here a sample is asked for by its key, so that reading ahead can't change
# what is given.
class Readers:
    """Threads or processes that read samples before they are asked for.

    Args:
        read: Function from a key to a sample. For processes it must be picklable.
        threads: Integer of at least 1. Number of threads.
        processes: Integer of at least 0. Number of processes in place of the threads.
    """

    def __init__(self, read, threads, processes):
        self.read, self.futures, self.lock = read, {}, threading.Lock()
        # Pillow would give the memory of each picture back to the system and take it
        # anew, which can cost more time than decoding.
        blocks = max(threads, Image.core.get_blocks_max())
        Image.core.set_blocks_max(blocks)
        if processes:
            # Forked, they could wait for locks that other threads held.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(processes, context, _begin, (read,))
            self.read = _read_here
        else:
            self.pool = ThreadPoolExecutor(threads, "read")

    def get(self, keys, later=()):
        """Return the samples of some keys, and start to read those of later ones.

        Raises:
            RuntimeError: If a process ended.
            Exception: What `read` raises.
        """
        with self.lock:
            kept = self.futures
            taken, self.futures = (
                {key: kept.pop(key, None) or self._submit(key) for key in each}
                for each in (keys, later)
            )
            for future in kept.values():
                future.cancel()
        try:
            return [future.result() for future in taken.values()]
        except BrokenProcessPool as error:
            raise _broken() from error

    def close(self):
        """End the threads or processes."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, key):
        try:
            return self.pool.submit(self.read, key)
        except BrokenProcessPool as error:
            raise _broken() from error


def _broken():
    return RuntimeError(
        "A process that reads files has ended. In a script, training with `processes` "
        'must stand under `if __name__ == "__main__":`, since each process imports the '
        "script; else the memory may be too small for so many. Leave `processes` out "
        "to read with threads."
    )


# In a process of its own


def _begin(read):
    """Prepare a process for reading."""
    global _read
    _read = read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    cv2.setNumThreads(1)
    Image.core.set_blocks_max(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)  # The main process was killed.


def _read_here(key):
    return _read(key)
