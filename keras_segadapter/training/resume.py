"""The state of a training on disk, so that one that was killed goes on."""

import json
import os
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_segadapter.data.epochs import ShuffledArrays, count_epochs


def prepare_fit(model, given, folder):
    """Make arguments of `Segmenter.fit` fit masks, epochs that count, and a backup.

    Args:
        model: The segmenter.
        given: Dict of the arguments of `keras.Model.fit`; changed in place.
        folder: Folder of the backup, or None.

    Returns:
        The `Backup`, or None without a folder.

    Raises:
        ValueError: If `class_weight` is given, or `validation_split` with a backup, or
            if the backup can't be loaded.
    """
    if given.get("class_weight") is not None:
        raise ValueError(
            "Keras' `class_weight` does not work with masks. Call "
            "compile(loss=keras_segadapter.SegmentationCrossentropy("
            "class_weight=[one weight per class])) instead. Received: "
            f"class_weight={given['class_weight']}"
        )
    if given["y"] is None:
        given.setdefault("shuffle", False)
    callbacks = keras.tree.flatten(given.get("callbacks") or [])
    backup = None if folder is None else Backup(folder)
    if backup is not None:
        if given["y"] is not None:
            _count_arrays(given)
        start = backup.restore(model) or given.get("initial_epoch", 0)
        given["initial_epoch"] = start
        if hasattr(given["x"], "epoch"):
            given["x"].epoch = start  # whatever it was in a fit that stopped
        callbacks.append(backup)  # last: what the others change counts
    if hasattr(given["x"], "epoch"):
        callbacks.insert(0, count_epochs(given["x"]))
    given["callbacks"] = callbacks
    return backup


def _count_arrays(given):
    """Replace arrays by a dataset with an `epoch`, which takes what it needs."""
    if given.get("validation_split"):
        raise ValueError(
            "`validation_split` does not go with `backup`. Divide the arrays and pass "
            "`validation_data`. Received: "
            f"validation_split={given['validation_split']}"
        )
    size = given.pop("batch_size", None) or 32
    given.setdefault("validation_batch_size", size)
    arrays = [given["x"], given.pop("y"), given.pop("sample_weight", None)]
    shuffle, given["shuffle"] = given.get("shuffle", True), False
    # The same in each process that sets the same seed.
    seed = np.random.randint(2**31)
    arrays = tuple(array for array in arrays if array is not None)
    given["x"] = ShuffledArrays(arrays, size, shuffle, seed)


class Backup(keras.callbacks.Callback):
    """Keeps the state of a model's training after each epoch, for `Segmenter.fit`.

    `epoch_0007.weights.h5` holds the weights and the optimizer after seven epochs;
    `state.json` its name, the history and the states of dropout's random numbers.

    Keras' BackupAndRestore writes the weights over the old ones and the epoch's number
    after them: a kill in between leaves a torn file, or trains an epoch twice.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.epochs, self.history = [], {}

    def restore(self, model):
        """Load the state, if there is one; return how many epochs it has behind it."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"`backup` must be a folder, but {self.folder} is a file. Pass the "
                "path of a folder for this training alone."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "state.json"
        if not path.exists():
            return 0
        try:
            state = json.loads(path.read_text())
            with warnings.catch_warnings():
                # Keras only warns where another optimizer's state does not fit.
                warnings.simplefilter("error")
                model.load_weights(self.folder / state["weights"])
            for variable, value in zip(_seeds(model), state["seeds"], strict=True):
                variable.assign(np.array(value, variable.dtype))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"The backup in {self.folder} cannot be loaded: {error}\nPass the "
                "model and optimizer of the training that wrote it, or another folder."
            ) from error
        self.epochs, self.history = state["epochs"], state["history"]
        return self.epochs[-1] + 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(float(value))
        weights = f"epoch_{epoch + 1:04}.weights.h5"
        self.model.save_weights(self.folder / weights)
        state = {
            "weights": weights,
            "epochs": self.epochs,
            "history": self.history,
            "seeds": [
                keras.ops.convert_to_numpy(variable).tolist()
                for variable in _seeds(self.model)
            ],
        }
        # Until the new file has its name, which takes no time, the old state holds.
        written = self.folder / "state.json.new"
        written.write_text(json.dumps(state))
        os.replace(written, self.folder / "state.json")
        for path in self.folder.glob("epoch_*.weights.h5"):
            if path.name != weights:
                path.unlink()


def _seeds(model):
    """States of the SeedGenerators, which Keras leaves out of a file of weights."""
    weights = {id(variable) for variable in model.weights}
    return list({id(v): v for v in model.variables if id(v) not in weights}.values())
