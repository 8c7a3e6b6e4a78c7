"""Files that are replaced in one step, and what Keras could not load from them."""

import contextlib
import glob
import io
import math
import os
import re
import shutil
import time
import uuid
import warnings
from pathlib import Path

import keras

try:
    import fcntl
except ImportError:  # on Windows, where files that are open can't be renamed
    fcntl = None

# As Keras tells remote paths from local ones.
_REMOTE = r"(/cns|/cfs|/gcs|/hdfs|/readahead|/placer|/tfhub|.*://)"
# Whose classes Keras imports by itself.
_KNOWN = {"keras", "keras_hub", "keras_cv", "keras_nlp"}


def is_local(path):
    """Return whether `path` names a local file, or none yet, that can be replaced."""
    if not isinstance(path, (str, os.PathLike)) or re.match(_REMOTE, str(path)):
        return False
    return os.path.isfile(path) or not os.path.exists(path)


def may_write(path, overwrite):
    """Return whether to write `path`; ask if it exists, as Keras does."""
    if overwrite or not os.path.exists(path):
        return True
    answer = input(f"[WARNING] {path} already exists - overwrite? [y/n] ")
    while answer.strip().lower() not in ("y", "n"):
        answer = input('Enter "y" (overwrite) or "n" (cancel). ')
    return answer.strip().lower() == "y"


@contextlib.contextmanager
def replacing(path, size):
    """Provide the path of a new file, which replaces `path` once it is whole.

    The new file lies in the same folder under a hidden name. After an error it is
    removed, and after a kill by the next call; the old file stays as it was.

    Args:
        path: Path of the file.
        size: Integer. Bytes that the file will take, for the error message.

    Raises:
        OSError: If the file can't be written.
    """
    target = Path(os.path.realpath(path))  # A link stays a link.
    prefix = f".{target.name[:100]}."
    name = f"{prefix}{uuid.uuid4().hex[:8]}.tmp{target.suffix}"
    new = target.with_name(name)
    try:
        _remove_leftovers(target.parent, prefix)
        with open(new, "xb") as file:
            _try_lock(file)
            with contextlib.suppress(OSError):
                shutil.copymode(target, new)
            yield new
            os.fsync(file.fileno())
            if fcntl:
                os.replace(new, target)
        if not fcntl:
            os.replace(new, target)
    except OSError as error:
        raise _failure(error, Path(path), target.parent, size) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def write(path, content):
    """Write bytes to a file, which replaces the old one once it is whole."""
    with replacing(path, len(content)) as new:
        new.write_bytes(content)


def size_of(model):
    """Return about how many bytes a model's weights and optimizer take in a file."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *getattr(optimizer, "variables", [])]
    return 4 * sum(math.prod(variable.shape) for variable in variables)


class WeightsInMemory(io.BytesIO):
    """The content of a weights file, which Keras writes and reads like the file.

    If a write to the disk fails, HDF5 can't close the file and may crash the process.
    """

    def __str__(self):
        return "memory.weights.h5"  # Keras takes no other ending.


def check_savable(model, filepath):
    """Validate where a model is to be saved, and warn if Keras could not load it.

    Raises:
        ValueError: If the file is an HDF5 file, which Keras could not load.
    """
    if str(filepath).lower().endswith((".h5", ".hdf5")):
        raise ValueError(
            "A Segmenter can't be loaded from an HDF5 file of the whole model. Use "
            'model.save("model.keras"), or model.save_weights("model.weights.h5") '
            f"for the weights alone. Received: filepath={filepath}"
        )
    unknown = unknown_objects(model)
    if unknown:
        warnings.warn(
            "Keras can't load the following from the file by itself: "
            f"{', '.join(unknown)}. Decorate the classes and functions with "
            "@keras.saving.register_keras_serializable(), or pass them to "
            "keras.models.load_model as `custom_objects`. A Python lambda can't "
            "be registered: use a layer of a class instead, or load a file that "
            "you trust with safe_mode=False.",
            stacklevel=3,
        )


def revive(config, custom_objects=None):
    """Return the config of a model with the objects that its values stand for.

    Raises:
        ValueError: If Keras does not know a class or function.
    """
    try:
        return {
            key: keras.saving.deserialize_keras_object(value, custom_objects)
            for key, value in config.items()
        }
    except TypeError as error:
        unknown = re.search(r"Could not locate (class|function) '(\w+)'", str(error))
        if unknown is None:
            raise
        kind, name = unknown.groups()
        # Without the error of Keras, which holds the config: pages of it.
        raise ValueError(
            f"Keras does not know the {kind} {name} of this model. Import the "
            "module that registers it, or pass custom_objects={"
            f"'{name}': {name}}} to keras.models.load_model. Received: a config "
            f"with the {kind} '{name}', which is not registered"
        ) from None


def unknown_objects(model):
    """Return descriptions of the layers and functions that Keras could not load.

    These are classes and functions that are not registered, and Python lambdas.
    """
    found = {}

    def walk(node, owner):
        if isinstance(node, (list, tuple)):
            for value in node:
                walk(value, owner)
        if not isinstance(node, dict):
            return
        kind, config = node.get("class_name"), node.get("config")
        if isinstance(config, dict) and config.get("name"):
            owner = config["name"]
        if kind == "__lambda__":
            found[f"a Python lambda in '{owner}'"] = None
        elif kind == "function" and not _is_known_function(node):
            found[f"the function {config} in '{owner}'"] = None
        elif kind and "registered_name" in node and not _is_known_class(node):
            found[f"'{owner}' of class {kind}"] = None
        for value in node.values():
            walk(value, owner)

    walk(keras.saving.serialize_keras_object(model), model.name)
    return [*found]


def _is_known_class(node):
    package = (node.get("module") or "builtins").split(".")[0]
    registered = keras.saving.get_registered_object(node["registered_name"])
    return package in _KNOWN | {"builtins"} or registered is not None


def _is_known_function(node):
    try:
        return keras.saving.deserialize_keras_object(node) is not None
    except (TypeError, ValueError):
        return False


def _remove_leftovers(folder, prefix):
    """Remove the files of processes that were killed while they wrote."""
    for path in folder.glob(f"{glob.escape(prefix)}*.tmp*"):
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            # One that was just created may not be locked yet.
            if time.time() - path.stat().st_mtime > 60 and _try_lock(file):
                path.unlink()


def _try_lock(file):
    """Lock an open file, until it is closed; return whether no one else has."""
    with contextlib.suppress(OSError):
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _failure(error, path, folder, size):
    """Return an error that says what was to be written, and how much space there is."""
    if folder.is_dir():
        free = shutil.disk_usage(folder).free
        advice = (
            f"About {size / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free "
            "in the folder, of which a quota may allow less. A file that was there "
            "before is unchanged"
        )
    else:
        advice = f"There is no folder {folder}. Create it first"
    message = f"The file can't be written: {error.strerror or error}. {advice}. "
    message += f"Received: filepath={path}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)
