"""Tensors from PyTorch's files, on disk or on the Hugging Face Hub."""

import re
from importlib import import_module
from pathlib import Path

# Files that transformers writes, the safer one first.
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"


def read_tensors(source):
    """Read the tensors of a file; nothing else in it is loaded or executed.

    Args:
        source: Path of a `.safetensors` file, of a file that PyTorch wrote, or of a
            folder that transformers wrote; or "owner/name" on the Hugging Face Hub, if
            there is no such path.

    Returns:
        Dict of NumPy arrays by their names in the file, with axes as in PyTorch.

    Raises:
        ValueError: If there is no such file or repository, if the network fails, or if
            the file is damaged or holds Python objects.
        ImportError: If the package that fetches or reads the file is not installed.
    """
    file = _locate(source)
    read = _read_safetensors if file.suffix == ".safetensors" else _read_torch
    return read(file)


def _locate(source):
    """Return the path of the file to read, downloaded if it is on the Hub."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return path / name
        raise ValueError(
            f"The folder of weights must hold {' or '.join(FILES)}. Pass the folder "
            "that save_pretrained wrote, or the file itself. Received: "
            f"weights={str(source)!r}"
        )
    named = isinstance(source, str) and re.fullmatch(HUB_NAME, source)
    if named and path.suffix not in SUFFIXES:
        return _download(source)
    raise ValueError(
        "There is no such file of weights. Pass a file, a folder, or a name on the "
        f"Hugging Face Hub such as nvidia/mit-b0. Received: weights={str(source)!r}"
    )


def _download(name):
    """Return the path of a repository's file in the Hub's cache."""
    hub = _import("huggingface_hub", name)
    absent = _import("huggingface_hub.errors", name).EntryNotFoundError
    for file in FILES:
        try:
            return Path(hub.hf_hub_download(name, file))
        except absent as error:  # the other file may be there, or in the cache
            cause = error
        except Exception as error:  # of the client's own kinds or the network's
            cause = error
            break
    raise ValueError(
        "There is no such file or folder of weights, and fetching "
        f"{' or '.join(FILES)} from the Hugging Face Hub failed with "
        f"{type(cause).__name__}. Check the name, the network and, for a private "
        f"repository, the token. Received: weights={name!r}"
    ) from cause


def _read_safetensors(file):
    """Read a file of the format safetensors."""
    load_file = _import("safetensors.numpy", file).load_file
    try:
        return load_file(file)
    except Exception as error:  # of the format's own kinds, or NumPy's for odd types
        raise ValueError(
            "The file of weights can't be read as safetensors: it is damaged or of "
            f"another format. Download it again. Received: weights={str(file)!r}"
        ) from error


def _read_torch(file):
    """Read a file of PyTorch."""
    torch = _import("torch", file)
    try:
        # Other Python objects raise, so no code in the file is executed.
        content = torch.load(file, map_location="cpu", weights_only=True)
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
    return {
        str(key): value.detach().float().numpy()
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _import(module, source):
    """Import an optional package that reads `source`."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"Reading these weights needs the package {package}. Install it with `pip "
            f"install {package}`. Received: weights={str(source)!r}"
        ) from error
