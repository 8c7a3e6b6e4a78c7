"""What reading from a disk needs: regular files, text of any encoding, progress."""

import codecs
import os
import stat
import sys
import time
from pathlib import Path

import keras

_PATIENCE = 3  # seconds after which progress is shown
_MARKS = (  # that of UTF-32 begins with that of UTF-16
    ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
)


def as_path(name, value):
    """Return the argument `name` as a `Path`.

    Raises:
        TypeError: If it is neither a string nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"`{name}` must be a path. Received: {name}={value!r} of type "
            f"{type(value).__name__}"
        )
    return Path(value)


def check_file(path):
    """Validate that a path leads to a regular file, without opening it.

    Links may lead anywhere: datasets are often made of links to another disk.

    Raises:
        OSError: If there is no such file, or if it is a folder, a pipe or a device,
            which may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not os.path.islink(path):
            raise OSError(error.strerror) from error
        raise OSError(
            f"it is a link to {os.readlink(path)}, which can't be reached "
            f"({error.strerror})"
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise OSError(f"it is {kind} and not a regular file")


def read_text(path):
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with its mark.

    Raises:
        OSError: If the file can't be read, is in another encoding or holds no text.
    """
    check_file(path)
    with open(path, "rb") as file:
        content = file.read()
    found = [encoding for marks, encoding in _MARKS if content.startswith(marks)]
    try:
        text = content.decode(found[0] if found else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(f"it must be saved as text in UTF-8 ({error})") from error
    if "\0" in text:
        raise OSError(
            "it must be saved as text in UTF-8 (it holds zero bytes, as UTF-16 does)"
        )
    return text


def show_progress(items, count=None, unit="file"):
    """Yield items and, where these take more than a few seconds, show how many came.

    Args:
        items: Iterable.
        count: Integer, or None if it is not known. Number of items. Defaults to `None`.
        unit: String. What an item is called. Defaults to `"file"`.
    """
    start, bar, number = time.monotonic(), None, 0
    # In a log, there is one line at the end.
    is_live = sys.stdout.isatty() or "ipykernel" in sys.modules
    for number, item in enumerate(items, 1):
        if bar is not None:
            bar.update(number, finalize=False)
        elif time.monotonic() - start > _PATIENCE:
            verbose = 1 if is_live else 2
            bar = keras.utils.Progbar(count, verbose=verbose, unit_name=unit)
        yield item
    if bar is not None:
        bar.update(number, finalize=True)
