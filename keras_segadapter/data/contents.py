"""What the files of an image and its mask hold, as an inspection counts it."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from keras_segadapter.data.counting import count_ids
from keras_segadapter.data.label_table import LIMIT, pack, unpack
from keras_segadapter.validation import ignored_ids, is_auto


class Contents(NamedTuple):
    """What one pair of files holds."""

    size: tuple | None = None
    pixels: dict | None = None
    odd: int = 0  # number of pixels that differ from all four neighbors
    highest: int | None = None  # value of an image of 8 bits, or of its upper 8 bits
    fault: str | None = None


def read_contents(read, i):
    """Return what pair number `i` holds, which the function `read` reads."""
    try:
        image, mask = read(i)
    except ValueError as error:
        return Contents(fault=str(error))
    highest = int(image.max()) if image.dtype == "uint8" else None
    return Contents(mask.shape, count_ids(mask), _count_odd(mask), highest)


class AnyIds:
    """Table in place of a `LabelTable` where classes are not known.

    Args:
        ignore_class: As in `FolderDataset`.
    """

    label_map, by_color = None, False

    def __init__(self, ignore_class):
        self.ignored = "auto" if is_auto(ignore_class) else ignored_ids(ignore_class)

    def look_up(self, mask, name, colors=None):
        """Return the ids of a mask, or its colors as numbers from `LIMIT` on."""
        return LIMIT + pack(colors) if mask is None else mask


def in_color(counts):
    """Return counts whose keys are ids of gray or colors with colors as all keys."""
    summed = Counter()
    for id_, count in counts.items():
        summed[id_ if id_ >= LIMIT else LIMIT + id_ * 0x010101] += count
    return summed


def key_of(id_):
    """Return an id, or the color that a number from `LIMIT` on stands for."""
    return unpack(id_) if id_ >= LIMIT else id_


def _count_odd(mask):
    """Return how many pixels of a mask `(H, W)` differ from all four neighbors."""
    alike = np.zeros(mask.shape, bool)
    rows, columns = mask[1:] == mask[:-1], mask[:, 1:] == mask[:, :-1]
    alike[1:] |= rows
    alike[:-1] |= rows
    alike[:, 1:] |= columns
    alike[:, :-1] |= columns
    return int(np.count_nonzero(~alike)) if mask.size > 1 else 0


def has_16_bits(path):
    """Return whether a picture file is known to have one channel of 16 bits."""
    try:
        with Image.open(path) as picture:
            return picture.mode.startswith("I")
    except OSError:  # Pillow knows not all kinds of files
        return False
