"""Tensors from PyTorch's files, and their way into the weights of a model."""

import os
import re
import zipfile
from math import prod

import numpy as np

from keras_segadapter.backbones.weight_sources import locate
from keras_segadapter.extras import import_extra

# The largest backbone, ConvNeXt-XL, takes 1.6 GB in float32. The checkpoint of a
# training holds Adam's two averages too, and perhaps one of the weights.
MAX_BYTES = 8 * 2**30
FLOATS = (
    *("F16", "BF16", "F32", "F64"),
    *("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"),
)


def read_tensors(source, leave_out):
    """Read the tensors of a file; nothing else in it is loaded or executed.

    Args:
        source: Path of a `.safetensors` file, of a file that PyTorch wrote, or of a
            folder that transformers wrote; or "owner/name" or "owner/name@revision" on
            the Hugging Face Hub, if there is no such path.
        leave_out: String. Regular expression of the beginnings of names whose tensors
            are left out.

    Returns:
        Dict of NumPy arrays, float32, by their names in the file, with axes as in
        PyTorch.

    Raises:
        TypeError: If `source` is neither a path nor a name.
        ValueError: If there is no such file or repository, if the network fails, or if
            the file is damaged, too large, or holds Python objects or tensors of other
            kinds than dense floats.
        ImportError: If the package that fetches or reads the file is not installed.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "`weights` must be None, a file, a folder, a name on the Hugging Face Hub "
            "or, where the documentation of the model names one, a model of keras-hub. "
            f"Received: weights={source!r} of type {type(source).__name__}"
        )
    file = locate(source)
    _check_size(file, file.stat().st_size)
    read = _read_safetensors if file.suffix == ".safetensors" else _read_torch
    return read(file, leave_out)


def to_values(tensors, names):
    """Return a file's tensors by other names, with their axes in Keras' order.

    Args:
        tensors: Dict of arrays as in PyTorch, by their names in the file.
        names: Pairs of a pattern in a name and what replaces it, applied from top to
            bottom. Depthwise convolutions are then called `dwconv`.
    """
    values = {}
    for key, value in tensors.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        values[key] = _to_keras(key, value)
    return values


def _to_keras(name, value):
    """Return a PyTorch tensor as an array with its axes in Keras' order."""
    value = np.asarray(value, "float32")
    if value.shape[2:] == (1, 1):
        value = value[..., 0, 0]  # a 1 x 1 convolution in place of a linear layer
    if value.ndim == 2:
        return value.T  # linear: (out, in) -> (in, out)
    if value.ndim == 4:
        # Convolution: (out, in, h, w) -> (h, w, in, out), depthwise (h, w, in, 1).
        order = (2, 3, 0, 1) if ".dwconv." in name else (2, 3, 1, 0)
        return np.transpose(value, order)
    return value


def assign_tensors(model, variables, values):
    """Assign arrays to the variables of the same names: all of them, or none.

    Args:
        model: The model that the variables belong to, named in the error.
        variables: Dict of variables by name.
        values: Dict of arrays in Keras' axis order by name.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape. The message
            lists them.
    """
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    check_tensors(model, shapes, values)
    for name, variable in variables.items():
        variable.assign(values[name])


def check_tensors(model, expected, values):
    """Validate that arrays have the names and shapes that a model expects.

    Args:
        model: The model, named in the error.
        expected: Dict of shapes by name.
        values: Dict of arrays in Keras' axis order by name.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape. The message
            lists them.
    """
    missing = sorted(expected.keys() - values.keys())
    unknown = sorted(values.keys() - expected.keys())
    shapes = [
        f"{name} is {values[name].shape}, expected {expected[name]}"
        for name in sorted(expected.keys() & values.keys())
        if values[name].shape != expected[name]
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"The weights do not fit '{model.name}'. Build the size of the model that "
            "they belong to. Received: weights with missing tensors: "
            f"{missing or 'none'}, unknown tensors: {unknown or 'none'}, other shapes: "
            f"{shapes or 'none'}"
        )


def _read_safetensors(file, leave_out):
    """Read a file of the format safetensors."""
    safe_open = import_extra("safetensors", f"Reading {file}").safe_open
    try:
        with safe_open(file, framework="numpy") as content:
            names = [key for key in [*content.keys()] if not re.match(leave_out, key)]
            parts = {name: content.get_slice(name) for name in names}
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            _check_kinds(file, kinds)
            sizes = [prod(part.get_shape()) for part in parts.values()]
            _check_size(file, 4 * sum(sizes))
            return {name: content.get_tensor(name) for name in names}
    except ValueError:  # of the checks
        raise
    except Exception as error:  # of the format's own kinds
        raise ValueError(
            "The file of weights can't be read as safetensors: it is damaged or of "
            f"another format. Download it again. Received: weights={str(file)!r}"
        ) from error


def _read_torch(file, leave_out):
    """Read a file of PyTorch."""
    torch = import_extra("torch", f"Reading {file}")
    try:
        if zipfile.is_zipfile(file):  # its parts may be compressed
            with zipfile.ZipFile(file) as parts:
                size = sum(part.file_size for part in parts.infolist())
            _check_size(file, size)
        # Other Python objects raise, so no code in the file is executed.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except _TooLargeError:
        raise
    except Exception as error:  # a damaged file can raise nearly any kind
        raise ValueError(
            "The file of weights can't be read as tensors of PyTorch: it is damaged, "
            "of another format or holds Python objects, which are never loaded. If you "
            "trust the file, save its tensors alone with torch.save(torch.load(file, "
            "weights_only=False)['state_dict'], new_file). Received: "
            f"weights={str(file)!r}"
        ) from error
    for name in ("state_dict", "model"):  # checkpoints hold more than the model
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(
            "The file of weights must hold a dictionary of tensors, such as a model's "
            f"state_dict. Received: weights={str(file)!r} with a "
            f"{type(content).__name__}"
        )
    tensors = {
        str(key): value.detach()
        for key, value in content.items()
        if isinstance(value, torch.Tensor) and not re.match(leave_out, str(key))
    }
    kinds = {}
    for name, tensor in tensors.items():
        # Those of the device "meta" have no values.
        is_plain = tensor.layout == torch.strided and not tensor.is_nested
        kinds[name] = str(tensor.dtype if is_plain else tensor.layout)
        kinds[name] = "meta" if tensor.is_meta else kinds[name]
    _check_kinds(file, kinds)
    # A view that repeats one value takes its whole size as an array.
    _check_size(file, 4 * sum(tensor.numel() for tensor in tensors.values()))
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def _check_size(file, size):
    """Validate the bytes that a file or its tensors take, before memory is taken.

    Raises:
        _TooLargeError: If they are more than `MAX_BYTES`.
    """
    if size > MAX_BYTES:
        raise _TooLargeError(
            f"The weights of a backbone take less than {MAX_BYTES / 1e9:.1f} GB. "
            f"Replace the file. Received: weights={str(file)!r} of {size / 1e9:.1f} GB"
        )


class _TooLargeError(ValueError):
    """The error about weights of absurd size."""


def _check_kinds(file, kinds):
    """Validate the dtypes of tensors, in PyTorch's or safetensors' words.

    Raises:
        ValueError: If one is neither of floats nor dense.
    """
    for name, kind in kinds.items():
        if kind not in FLOATS:
            raise ValueError(
                "The weights must be dense tensors of floats with 16, 32 or 64 bits. "
                "Save the original model's state_dict. Received: "
                f"weights={str(file)!r} with {name!r} of the kind {kind}"
            )
