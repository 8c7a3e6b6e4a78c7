"""Where files of weights are: on disk or on the Hugging Face Hub."""

import json
import re
from pathlib import Path

from keras_segadapter.extras import import_extra

# Files that transformers writes, the safer one first.
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
# Of NVIDIA's repositories, those whose license is known to forbid commercial use.
NON_COMMERCIAL = ("nvidia/mit-", "nvidia/segformer-")


def locate(source):
    """Return the path of a file of weights, downloaded if it is on the Hub.

    Args:
        source: Path of a file, or of a folder that transformers wrote; or "owner/name"
            or "owner/name@revision" on the Hub, if there is no such path.

    Raises:
        ValueError: If there is no such file or repository, or if the network fails.
        ImportError: If the package that fetches the file is not installed.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir() and source != "":
        for name in FILES:
            if (path / name).is_file():
                return path / name
        raise ValueError(
            f"The folder of weights must hold {' or '.join(FILES)}. Pass the folder "
            "that save_pretrained wrote, or the file itself. Received: "
            f"weights={str(source)!r}"
        )
    file = _download(source, FILES)
    if source.startswith(NON_COMMERCIAL):
        print(
            f"NVIDIA licenses the weights of {source} for research and evaluation "
            "only, not for commercial use."
        )
    return file


def _download(source, files, required=True):
    """Return the path of a repository's first file of these, in the Hub's cache.

    Returns:
        Path, or None if the repository lacks the files and they are not `required`.
    """
    name, revision = _hub_name(source)
    purpose = f"Reading weights={name!r}"
    hub = import_extra("huggingface_hub", purpose)
    absent = import_extra("huggingface_hub.errors", purpose).EntryNotFoundError
    for file in files:
        try:
            return Path(hub.hf_hub_download(name, file, revision=revision))
        except absent as error:  # the other file may be there, or in the cache
            cause = error
        except Exception as error:  # of the client's own kinds or the network's
            cause = error
            break
    if not required and isinstance(cause, absent):
        return None
    raise ValueError(
        "There is no such file or folder of weights, and fetching "
        f"{' or '.join(files)} from the Hugging Face Hub failed with "
        f"{type(cause).__name__}. Check the name, the revision, the network and, for a "
        f"private repository, the token. Received: weights={source!r}"
    ) from cause


def _hub_name(source):
    """Return the name of a repository on the Hub and its revision, if any.

    Raises:
        ValueError: If `source` is rather a mistyped path.
    """
    path = Path(source)
    found = isinstance(source, str) and HUB_NAME.fullmatch(source)
    if found and path.suffix not in SUFFIXES:
        name, revision = found.groups()
        # A suffix of letters, unlike one of a version or of timm, as in
        # timm/convnext_tiny.in12k, or a folder of this name: it is rather a mistyped
        # path.
        suffix = re.search(r"\.[A-Za-z]\w*$", name) and not name.startswith("timm/")
        if revision or not (suffix or path.parent.exists()):
            return name, revision
    raise ValueError(
        "There is no such file of weights. Pass a file, a folder, or a name on the "
        "Hugging Face Hub such as nvidia/mit-b0, or nvidia/mit-b0@main with a branch, "
        "tag or commit, which is never taken for a path. Received: "
        f"weights={str(source)!r}"
    )


def read_json(source, file):
    """Read a JSON file that lies beside weights: in their folder or repository.

    Args:
        source: Path or name on the Hub, as in `weights` of `MiTB0`.
        file: String. Name of the JSON file.

    Returns:
        The dict that it holds; an empty one if there is no such file.

    Raises:
        ValueError: If there is no such repository, if the network fails, or if the file
            can't be read as JSON.
        ImportError: If the package that fetches the file is not installed.
    """
    path = Path(source)
    if path.exists():
        path = (path if path.is_dir() else path.parent) / file
    else:
        path = _download(source, [file], required=False)
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"The file {file} beside the weights can't be read as JSON. Download it "
            f"again. Received: weights={str(source)!r} with {str(path)!r}"
        ) from error
    return content if isinstance(content, dict) else {}
