"""Picture files in a folder, and what their folders and names tell of them."""

import functools
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from keras_segadapter.data.reading import PICTURES

SPLIT = "train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?"
_IMAGE = "(?:jpe?g)?(?:image|img|photo|picture|input|original|rgb)s?"
_MASK = (
    "(?:mask|label|annotation|annot|ann|target|gt|ground[ _-]?truth|"
    "seg(?:mentation)?(?:class|mask|map)?)s?"
)
# A folder's name without separators: a role, a split or both, such as trainannot.
_FOLDER = re.compile(
    rf"(?P<above>{SPLIT})?(?:(?P<image>{_IMAGE})|(?P<mask>\w*?annot|{_MASK}))(?:dir)?"
    rf"(?P<below>{SPLIT})?\d*|(?P<split>{SPLIT})\d*"
)
_MASK_WORD = f"(?:{_MASK}|(?:gtfine_)?label(?:train)?ids|(?-i:L))"
_WORD = f"(?:{_MASK_WORD}|{_IMAGE}|sat|leftimg8bit)"
_STEM = re.compile(
    rf"(?P<only>{_WORD})|"
    rf"(?:(?P<before>{_WORD})[ _.-]+)?(?P<name>.+?)(?:[ _.-]+(?P<after>{_WORD}))?",
    re.I,
)
PICTURE_SUFFIX = rf"\.(?:{'|'.join(suffix[1:] for suffix in PICTURES)})"


class PictureFile(NamedTuple):
    """A picture file and what its path tells."""

    path: Path
    role: str | None  # "image" or "mask", by its folders
    split: str | None
    below: tuple  # its folders that name neither a role nor a split
    stem: str

    @property
    def name(self):
        """The stem without endings such as `_mask`."""
        return _split_stem(self.stem)[0]

    @property
    def ending(self):
        """Whether such an ending means an "image" or a "mask"; None without one."""
        return _split_stem(self.stem)[1]


def find_files(folder, images=None, masks=None):
    """Return the pictures in a folder; `images` and `masks` decide on their roles."""
    files = [describe(path, folder) for path in walk(folder)]
    for role, pattern in (("image", images), ("mask", masks)):
        if pattern is None:
            continue
        given = folder / pattern
        places = [given] if given.is_dir() else sorted(folder.glob(str(pattern)))
        named = {}
        for place in places:
            whole, inside = place.is_dir(), os.path.relpath(place, folder)
            for path in walk(place) if whole else [place]:
                if _is_picture(path.name):
                    root = place if whole else folder
                    named[path] = describe(path, root, role, inside)
        if not named:
            raise ValueError(
                f"`{role}s` must be a sub-folder or a glob pattern that leads to "
                f"pictures. Found pictures in: {list_places(files, folder)}. Received: "
                f"{role}s={str(pattern)!r}, folder={folder}"
            )
        files = [f for f in files if f.path not in named and f.role != role]
        files += named.values()
    return files


def walk(folder):
    """Yield the paths of the pictures in a folder and below, without hidden ones."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if f[0] != "." and f != "__MACOSX")
        yield from (Path(place, name) for name in sorted(names) if _is_picture(name))


def _is_picture(name):
    """Return whether a file can be read and is not hidden, as macOS' `._a.jpg` is."""
    return name[0] != "." and os.path.splitext(name)[1].lower() in PICTURES


def describe(path, root, role=None, place=""):
    """Return a picture as a `PictureFile`; `place` may tell its split too."""
    by_folder, split, below = _read_folders(path.relative_to(root).parts[:-1])
    if place and split is None:
        split = _read_folders(Path(place).parts)[1]
    return PictureFile(path, role or by_folder, split, below, composed(path.stem))


@functools.cache
def _split_stem(stem):
    """Return a stem without its ending or beginning, and the role that this means."""
    found = _STEM.fullmatch(stem)
    word = found["after"] or found["before"] or found["only"]
    role = word and ("mask" if re.fullmatch(_MASK_WORD, word, re.I) else "image")
    return found["name"] or "", role


@functools.cache
def _read_folders(names):
    """Return the role and the split that folders' names tell, and the other names."""
    role, split, others = None, None, []
    for name in map(composed, names):
        found = _FOLDER.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
        if found is None:
            others.append(name)
            continue
        if found["image"] or found["mask"]:
            role = "image" if found["image"] else "mask"
        split = split or split_of(found["above"] or found["below"] or found["split"])
    return role, split, tuple(others)


def composed(name):
    """Return a name whose accents are part of their letters, as most systems write."""
    return unicodedata.normalize("NFC", name)


def split_of(word):
    """Return "train", "val" or "test" for a word such as "validation", or None."""
    return {"tr": "train", "va": "val", "te": "test"}[word[:2]] if word else None


def list_places(files, folder):
    """Return which folders hold how many pictures, for a message."""
    counts = Counter(file.path.parent for file in files)
    listed = [
        f"{os.path.relpath(place, folder)} ({count})"
        for place, count in sorted(counts.items())[:9]
    ]
    return ", ".join(listed + ["..."] * (len(counts) > 9)) or "nowhere"
