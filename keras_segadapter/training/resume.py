"""Backups of a training on disk, so that it can resume after a kill."""

import contextlib
import hashlib
import json
import os
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_segadapter.data.epochs import ShuffledArrays, count_epochs
from keras_segadapter.layers.native import set_torch_states, torch_states
from keras_segadapter.saving import WeightsInMemory, write
from keras_segadapter.training.averages import start_averages, with_averages
from keras_segadapter.training.watch import StopOnNonsense

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None

_FORMAT = "keras_segadapter backup 1"
_LOCK = ".segmenter_backup.lock"
# The state names one of them, and the next epoch writes the other.
_WEIGHTS = ["segmenter_backup_0.weights.h5", "segmenter_backup_1.weights.h5"]


@contextlib.contextmanager
def locked(folder):
    """Make the folder of a backup, and keep other processes out of it.

    Args:
        folder: Path of the folder, or None for no backup.

    Raises:
        TypeError: If `folder` is not a path.
        ValueError: If `folder` is empty or a file, or if another process uses it.
    """
    if folder is None:
        yield
        return
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            "`backup` must be the path of a folder, or None. Received: "
            f"backup={folder!r} of type {type(folder).__name__}"
        )
    try:
        if not str(folder):
            raise FileNotFoundError("the path is empty")
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            "`backup` must be the path of a folder that belongs to this training, and "
            f"no file. Received: backup={str(folder)!r}, {error}"
        ) from error
    with open(Path(folder) / _LOCK, "a+") as file:
        # This lock ends with its process, even if worker processes are still running.
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise ValueError(
                "Another process trains with this backup. Wait until it ends, or pass "
                f"another folder. Received: backup={str(folder)!r}, in use by process "
                f"{file.read() or '(unknown)'}"
            ) from error
        except OSError:  # by a file system without locks
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def prepare_fit(model, given, folder):
    """Prepare the arguments of `Segmenter.fit`, and restore the model from a backup.

    Args:
        model: A `Segmenter`.
        given: Dict of the arguments of `keras.Model.fit`, which is changed in place.
        folder: Path of the backup's folder, or None for no backup.

    Returns:
        The `Backup`, or None without a folder.

    Raises:
        ValueError: If `validation_split` is given with a backup, or if the backup can't
            be loaded.
    """
    if given["y"] is None:
        given.setdefault("shuffle", False)
    callbacks = [StopOnNonsense(), *keras.tree.flatten(given.get("callbacks") or [])]
    callbacks = with_averages(model, callbacks)
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
    if backup is None or not backup.epochs:
        start_averages(model)
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

    One of two files holds the weights and the state of the optimizer. `state.json`
    holds that file's name and checksum, the history, the settings of the optimizer, the
    random states of dropout, and a checksum of itself. Other files in the folder are
    never read or deleted.

    Keras' `BackupAndRestore` overwrites the weights and then the epoch's number: a kill
    in between leaves a damaged file, or an epoch is trained twice.

    Args:
        folder: Path of a folder that belongs to this training, as `locked` made it.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.epochs, self.history = [], {}
        self._weights, self._torch = _WEIGHTS[1], None  # to be set in the first epoch

    def restore(self, model):
        """Load the state, if there is one, and return its number of epochs.

        Raises:
            ValueError: If the state can't be loaded.
        """
        path = self.folder / "state.json"
        if not path.exists():
            return 0
        settings = _settings(getattr(model, "optimizer", None))
        try:
            state = _read(path)
            _check_optimizer(state["optimizer"], settings)
            weights = self.folder / _WEIGHTS[_WEIGHTS.index(state["weights"])]
            content = weights.read_bytes()
            if hashlib.sha256(content).hexdigest() != state["sha256"]:
                raise ValueError(f"{weights.name} is damaged: its checksum differs.")
            with warnings.catch_warnings():
                # Keras only warns if the optimizer's state does not fit.
                warnings.simplefilter("error")
                model.load_weights(WeightsInMemory(content))
            for variable, value in zip(_seeds(model), state["seeds"], strict=True):
                variable.assign(np.array(value, variable.dtype))
            self.epochs, self.history = state["epochs"], state["history"]
            self._weights, self._torch = state["weights"], state["torch"]
            start = self.epochs[-1] + 1
        except (
            *(ArithmeticError, AttributeError, LookupError, OSError),
            *(RecursionError, TypeError, ValueError, Warning),
        ) as error:
            raise ValueError(
                f"The backup can't be loaded: {error}\nPass another folder, or the "
                "model and optimizer of the training that wrote it. Received: "
                f"backup={self.folder}"
            ) from error
        print(f"Resuming after epoch {start}, from the backup in {self.folder}.")
        _print_changes(state["optimizer"], settings)
        return start

    def on_epoch_begin(self, epoch, logs=None):
        # Only now, as `fit` draws numbers when it starts.
        if self._torch is not None:
            set_torch_states(self._torch)
        self._torch = None

    def on_epoch_end(self, epoch, logs=None):
        epochs = [*self.epochs, epoch]
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(float(value))
        weights = WeightsInMemory()
        self.model.save_weights(weights)
        name = _WEIGHTS[1 - _WEIGHTS.index(self._weights)]
        state = {
            "format": _FORMAT,
            "weights": name,
            "sha256": hashlib.sha256(weights.getbuffer()).hexdigest(),
            "epochs": epochs,
            "history": self.history,
            "optimizer": _settings(self.model.optimizer),
            "seeds": [
                keras.ops.convert_to_numpy(variable).tolist()
                for variable in _seeds(self.model)
            ],
            "torch": torch_states(),
        }
        state["checksum"] = _checksum(state)
        # The old state stays valid until the new file takes its name, in one step.
        write(self.folder / name, weights.getbuffer())
        write(self.folder / "state.json", json.dumps(state).encode())
        (self.folder / self._weights).unlink(missing_ok=True)
        self.epochs, self._weights = epochs, name


def _read(path):
    """Read a state, validated to be one that this version wrote."""
    try:
        state = json.loads(path.read_bytes())
        found = state.pop("format")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged, or of another program.") from error
    if found != _FORMAT:
        raise ValueError(f"{path.name} is of another version, {found!r}.")
    checksum = state.pop("checksum", None)
    if _checksum({"format": found, **state}) != checksum:
        raise ValueError(f"{path.name} is damaged: its checksum differs.")
    return state


def _checksum(state):
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _settings(optimizer):
    """Return the classes and settings of an optimizer, flat, as JSON keeps them."""
    config = keras.saving.serialize_keras_object(optimizer)
    flat, left = {}, [("", json.loads(json.dumps(config, skipkeys=True, default=str)))]
    while left:
        path, node = left.pop()
        if isinstance(node, (dict, list)):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            left += [(f"{path}/{key}", value) for key, value in items]
        elif path.endswith("/class_name") or "/config/" in path:
            flat[path.replace("/config/", "/").strip("/")] = node
    return flat


def _check_optimizer(old, new):
    """Validate that a model's optimizer is of the class that wrote the backup."""
    classes = [
        {key: value for key, value in settings.items() if key.endswith("class_name")}
        for settings in (old, new)
    ]
    # Schedules have no state.
    written, compiled = (
        {key: value for key, value in each.items() if "learning_rate" not in key}
        for each in classes
    )
    if written != compiled:
        raise ValueError(
            f"it was written with the optimizer {' of '.join(written.values())}, and "
            f"the model is compiled with {' of '.join(compiled.values())}."
        )


def _print_changes(old, new):
    """Print which settings of the optimizer have changed, and which of them count."""
    rates, others = [], []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        name = key.rsplit("/", 1)[-1]
        if before == now or name in ("name", "module", "registered_name"):
            continue
        numbers = all(isinstance(value, (int, float)) for value in (before, now))
        if name == "learning_rate" and numbers:
            rates.append((before, now))
        else:
            others.append(f"{key}={now!r} (was {before!r})")
    for before, now in rates:
        print(
            f"The learning rate is {before:.3g}, that of the backup, and not "
            f"{now:.3g}. To change it, assign model.optimizer.learning_rate in a "
            "callback."
        )
    if others:
        print(f"The optimizer has changed since the backup: {', '.join(others)}.")


def _seeds(model):
    """Return the states of SeedGenerators, which a file of weights does not hold."""
    weights = {id(variable) for variable in model.weights}
    return list({id(v): v for v in model.variables if id(v) not in weights}.values())
