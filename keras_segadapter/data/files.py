"""Picture files in a folder, and what their folders and names tell of them."""

import functools
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from keras_segadapter.data.disk import show_progress
from keras_segadapter.data.reading import PICTURES

SPLIT = "train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?"
_IMAGE = "(?:jpe?g)?(?:image|img|photo|picture|input|original|rgb)s?"
_MASK = (
    "(?:mask|label|annotation|annot|ann|target|gt|ground[ _-]?truth|"
    "seg(?:mentation)?(?:class|mask|map)?)s?"
)
# A folder's name without separators: a role, a split or both, such as trainannot.
_FOLDER = re.compile(
    rf"(?P<above>{SPLIT})?(?:(?P<image>{_IMAGE})|(?P<mask>\w*?annot|{_MASK}))"
    rf"(?:dir|png|jpe?g|tiff?)?"
    rf"(?P<below>{SPLIT})?(?P<number>\d*)|(?P<split>{SPLIT})\d*"
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
    is_plain: bool  # whether the role is all that the name of the folder says

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
    files = [describe(path, folder) for path in show_progress(walk(folder))]
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
    # Folders such as `binary_masks` count only where there is no `masks`, and not if a
    # word such as "seg" in the name of a dataset makes masks of all pictures.
    plain = {file.role for file in files if file.is_plain}
    if all(file.role == "mask" for file in files):
        plain.add("mask")
    return [
        file if file.is_plain or file.role not in plain else file._replace(role=None)
        for file in files
    ]


def walk(folder):
    """Yield the paths of the pictures in a folder and below, without hidden ones.

    Links to folders are followed, but not into a folder that the link itself lies in.
    """
    above = {os.fspath(folder): ()}  # the folders around each, by device and inode
    for place, folders, names in os.walk(folder, followlinks=True):
        found, around = os.stat(place), above.pop(place)
        identity = found.st_dev, found.st_ino
        if identity in around:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if f[0] != "." and f != "__MACOSX")
        above |= {os.path.join(place, f): (*around, identity) for f in folders}
        yield from (Path(place, name) for name in sorted(names) if _is_picture(name))


def _is_picture(name):
    """Return whether a file can be read and is not hidden, as macOS' `._a.jpg` is."""
    return name[0] != "." and os.path.splitext(name)[1].lower() in PICTURES


def describe(path, root, role=None, place=""):
    """Return a picture as a `PictureFile`; `place` may tell its split too."""
    names = path.relative_to(root).parts[:-1]
    by_folder, is_plain, split, below = _read_folders(names)
    if place and split is None:
        split = _read_folders(Path(place).parts)[2]
    stem = composed(path.stem)
    is_plain = is_plain or role is not None
    return PictureFile(path, role or by_folder, split, below, stem, is_plain)


@functools.cache
def _split_stem(stem):
    """Return a stem without its ending or beginning, and the role that this means."""
    found = _STEM.fullmatch(stem)
    word = found["after"] or found["before"] or found["only"]
    return found["name"] or "", word and _role_of(word)


@functools.cache
def _read_folders(names):
    """Return what folders' names tell of the files in them.

    Args:
        names: Tuple of strings.

    Returns:
        The role or None, whether a folder's name says nothing else, the split or None,
        and the names that tell neither.
    """
    role, is_plain, split, others = None, False, None, []
    for name in map(composed, names):
        found = _FOLDER.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
        if found:
            if found["image"] or found["mask"]:
                role, is_plain = "image" if found["image"] else "mask", True
            word = found["above"] or found["below"] or found["split"]
            rest = found["number"]
        else:
            words = re.findall(r"[^\W_\d]+|\d+", name.lower())
            roles = {_role_of(word) for word in words}
            if roles > {None}:
                role, is_plain = "mask" if "mask" in roles else "image", False
            # The first or last word of a name such as `stage1_train` is its split.
            ends = [w for w in words[-1:] + words[:1] if re.fullmatch(SPLIT, w)]
            word = ends[0] if ends else None
            rest = "_".join(w for w in words if w != word and not _role_of(w))
        others += [rest] if rest else []
        split = split or split_of(word)
    return role, is_plain, split, tuple(others)


def _role_of(word):
    """Return "image" or "mask" for a word that means it, or None."""
    if re.fullmatch(_MASK_WORD, word, re.I):
        return "mask"
    return "image" if re.fullmatch(_WORD, word, re.I) else None


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
