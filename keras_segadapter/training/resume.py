"""Backups of a training on disk, so that it can resume after a kill."""

import json
import os
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_segadapter.data.epochs import ShuffledArrays, count_epochs
from keras_segadapter.training.watch import StopOnNonsense


def prepare_fit(model, given, folder):
    """Prepare the arguments of `Segmenter.fit`, and restore the model from a backup.

    Args:
        model: A `Segmenter`.
        given: Dict of the arguments of `keras.Model.fit`, which is changed in place.
        folder: Path of the backup's folder, or None for no backup.

    Returns:
        The `Backup`, or None without a folder.

    Raises:
        ValueError: If `class_weight` is given, if `validation_split` is given with a
            backup, or if the backup can't be loaded.
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
    callbacks = [StopOnNonsense(), *keras.tree.flatten(given.get("callbacks") or [])]
    backup = None if folder is None else Backup(folder)
    if backup is not None:
        if given["y"] is not None:
            _count_arrays(given)
        start = backup.restore(model) or given.get("initial_epoch", 0)
        if backup.epochs and start >= given.get("epochs", 1):
            print(
                f"The backup in {folder} holds all {start} epochs: nothing is left to "
                "train. Pass more `epochs`, or another folder to train from the start."
            )
        given["initial_epoch"] = start
        if hasattr(given["x"], "epoch"):
            given["x"].epoch = start  # A fit that stopped may have left another.
        callbacks.append(backup)  # It is last, to save what the others change.
    if hasattr(given["x"], "epoch"):
        callbacks.insert(0, count_epochs(given["x"]))
    given["callbacks"] = callbacks
    return backup


def _count_arrays(given):
    """Replace arrays by a dataset with an `epoch`, and the arguments that it takes."""
    if given.get("validation_split"):
        raise ValueError(
            "`validation_split` can't be used with `backup`. Split the arrays and pass "
            "`validation_data` instead. Received: "
            f"validation_split={given['validation_split']}"
        )
    size = given.pop("batch_size", None) or 32
    given.setdefault("validation_batch_size", size)
    arrays = [given["x"], given.pop("y"), given.pop("sample_weight", None)]
    shuffle, given["shuffle"] = given.get("shuffle", True), False
    # Every process that sets the same seed draws the same number.
    seed = np.random.randint(2**31)
    arrays = tuple(array for array in arrays if array is not None)
    given["x"] = ShuffledArrays(arrays, size, shuffle, seed)


class Backup(keras.callbacks.Callback):
    """Callback that writes the state of a training after each epoch.

    `epoch_0007.weights.h5` holds the weights and the optimizer after seven epochs, and
    `state.json` the name of that file, the history and the random states of dropout.

    Keras' `BackupAndRestore` overwrites the weights and then the epoch's number: a kill
    in between leaves a damaged file, or an epoch is trained twice.

    Args:
        folder: Path of a folder that belongs to this training.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.epochs, self.history = [], {}

    def restore(self, model):
        """Load the state, if there is one, and return its number of epochs.

        Raises:
            ValueError: If the folder is a file, or if the state can't be loaded.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                "`backup` must be the path of a folder that belongs to this training. "
                f"Received: backup={self.folder}, which is a file"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "state.json"
        if not path.exists():
            return 0
        rate = model.optimizer.get_config().get("learning_rate")
        try:
            state = json.loads(path.read_text())
            with warnings.catch_warnings():
                # Keras only warns if the optimizer's state does not fit.
                warnings.simplefilter("error")
                model.load_weights(self.folder / state["weights"])
            for variable, value in zip(_seeds(model), state["seeds"], strict=True):
                variable.assign(np.array(value, variable.dtype))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"The backup can't be loaded: {error}\nPass another folder, or the "
                "model and optimizer of the training that wrote it. Received: "
                f"backup={self.folder}"
            ) from error
        self.epochs, self.history = state["epochs"], state["history"]
        start = self.epochs[-1] + 1
        print(f"Resuming after epoch {start}, from the backup in {self.folder}.")
        restored = model.optimizer.get_config().get("learning_rate")
        if restored != rate:  # of a schedule, its config: that stays the new one
            print(
                f"The learning rate is {restored:.3g}, that of the backup, and not "
                f"{rate:.3g}. To change it, assign model.optimizer.learning_rate in a "
                "callback."
            )
        return start

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
        # The old state stays valid until the new file takes its name, in one step.
        written = self.folder / "state.json.new"
        written.write_text(json.dumps(state))
        os.replace(written, self.folder / "state.json")
        for path in self.folder.glob("epoch_*.weights.h5"):
            if path.name != weights:
                path.unlink()


def _seeds(model):
    """Return the states of SeedGenerators, which a file of weights does not hold."""
    weights = {id(variable) for variable in model.weights}
    return list({id(v): v for v in model.variables if id(v) not in weights}.values())
