"""Pairs of images and masks, found in folders and lists as people have them."""

import os
import re
from collections import defaultdict

from keras_segadapter.data.disk import as_path, read_text
from keras_segadapter.data.files import (
    PICTURE_SUFFIX,
    SPLIT,
    composed,
    describe,
    find_files,
    list_places,
    split_of,
    walk,
)
from keras_segadapter.data.matching import match_splits

_PAIR = re.compile(
    rf"(.+?{PICTURE_SUFFIX})[\"']?\s*[\s,;]\s*[\"']?(.+{PICTURE_SUFFIX})", re.I
)
_LISTS = ("", "ImageSets/Segmentation", "ImageSets", "splits", "lists")
_SETTLE = (
    "If other files are meant, name them with `images` and `masks` (--images and "
    "--masks on the command line), each a sub-folder or a glob pattern."
)


def find_pairs(folder, split=None, images=None, masks=None):
    """Find the images of a split and the mask of each.

    Files belong together if they have the same name up to the suffix and to endings
    such as `_image`, `_mask` or `_L`. Which are images and which are masks is known
    from their folders (`images`, `masks`, `trainannot`, ...), else from these endings,
    else from the kind of file (JPEG images, masks of another kind).

    Args:
        folder: Path of a folder, or of a text file that holds a pair of files, or the
            name of an image, per line.
        split: `"train"`, `"val"`, `"test"`, or None for all pairs. Without folders or
            lists of splits, "train" is the first 80 % of the sorted names, and "val"
            the rest. Defaults to `None`.
        images: String, or None. Sub-folder or glob pattern of the images, relative to
            the folder. Defaults to `None`, for the usual places.
        masks: The same for the masks. Defaults to `None`.

    Returns:
        The sorted list of the images' paths, and the masks' paths in the same order.

    Raises:
        ValueError: If a file is missing, or if it is unclear what belongs together.
    """
    folder = as_path("folder", folder)
    if split is not None and not re.fullmatch(SPLIT, str(split)):
        raise ValueError(
            "`split` must be 'train', 'val', 'test', or None for all pairs. Received: "
            f"split={split!r}"
        )
    wanted = split_of(split)
    if folder.suffix.lower() in (".txt", ".csv", ".tsv", ".lst") and folder.is_file():
        above = list(folder.parents)[:3]
        root = next((place for place in above if any(walk(place))), above[0])
        pairs = _read_list(folder, root, images, masks)
        own = re.fullmatch(SPLIT, folder.stem.lower())
        if wanted and own:
            _choose(wanted, [split_of(own[0])], folder)
        elif wanted:
            pairs = divide(pairs, wanted, folder)
    elif folder.is_dir():
        pairs = _search(folder, wanted, images, masks)
    else:
        raise ValueError(
            "`folder` must be the path of an existing folder of images and masks, or "
            f"of a text file that lists them. Received: folder={folder}"
        )
    pairs = sorted(set(pairs))
    return [image for image, _ in pairs], [mask for _, mask in pairs]


def find_splits(folder, images=None, masks=None):
    """Return the splits that the pairs in a folder are divided into, [] without any.

    Args:
        folder: As in `find_pairs`.
        images: As in `find_pairs`. Defaults to `None`.
        masks: As in `find_pairs`. Defaults to `None`.
    """
    folder = as_path("folder", folder)
    if not folder.is_dir():
        return []
    matches = match_splits(find_files(folder, images, masks), images or masks)
    found = {*matches} - {None} or _find_lists(folder)
    return [split for split in ("train", "val", "test") if split in found]


def _search(folder, wanted, images, masks):
    """Return the pairs of a split, from a folder's sub-folders or its lists."""
    files = find_files(folder, images, masks)
    matches = match_splits(files, images or masks)
    if not matches:
        raise ValueError(
            "No images with masks were found. Put the images into a folder `images`, "
            f"and masks of the same names into a folder `masks`. {_SETTLE} Found "
            f"pictures in: {list_places(files, folder)}. Received: folder={folder}"
        )
    undivided = set(matches) == {None}
    lists = _find_lists(folder) if undivided else {}
    if lists and (wanted or matches[None].fault):
        chosen = [_choose(wanted, lists, folder)] if wanted else list(lists)
        names = [lists[split].name for split in chosen]
        print(f"{folder}: the pairs are those of {' and '.join(names)}.")
        listed = (_read_list(lists[split], folder, images, masks) for split in chosen)
        return [pair for pairs in listed for pair in pairs]
    if wanted and not undivided:
        matches = {wanted: matches[_choose(wanted, matches, folder)]}
    for match in matches.values():
        if match.fault:
            reason, received = match.fault
            raise ValueError(
                f"{reason} {_SETTLE} Found pictures in: {list_places(files, folder)}. "
                f"Received: {received}"
            )
    pairs = [pair for match in matches.values() for pair in match.pairs]
    return divide(pairs, wanted, folder) if wanted and undivided else pairs


def _choose(wanted, splits, folder):
    """Return `wanted` if it is one of the splits that were found, or what replaces it.

    Raises:
        ValueError: If there is nothing for it.
    """
    if wanted in splits:
        return wanted
    if wanted == "val" and "test" in splits:
        print(f"{folder}: there is no split 'val'; 'test' is used in its place.")
        return "test"
    listed = ", ".join(repr(split) for split in splits if split)
    raise ValueError(
        f"The data has no split {wanted!r} with masks, only {listed}. Pass one of "
        "these, or the folder of one split alone, whose sorted names are then divided "
        f"into 'train' and 'val'. Received: split={wanted!r}, folder={folder}"
    )


def divide(pairs, split, folder):
    """Return the first 80 % of the sorted pairs for "train", the rest for "val".

    Neighboring names are often frames of one film, so the parts are not random.
    """
    pairs = sorted(set(pairs))
    count = len(pairs)
    if split == "test" or count < 2:
        raise ValueError(
            "Without folders or lists of splits, two pairs or more can be divided into "
            "'train' and 'val'. Pass split=None for all pairs. Received: "
            f"split={split!r}, folder={folder} with {count} pairs"
        )
    cut = count - max(1, count // 5)
    first = split == "train"
    part, share = (pairs[:cut], "first 80 %") if first else (pairs[cut:], "last 20 %")
    print(
        f"{folder}: not divided into splits, so '{split}' is the {share} of the sorted "
        f"names ({len(part)} of {count} pairs)."
    )
    return part


def _find_lists(folder):
    """Return a dict from splits to the text files in a folder that list them."""
    lists = {}
    for path in [path for place in _LISTS for path in (folder / place).glob("*.txt")]:
        if re.fullmatch(SPLIT, path.stem.lower()) and not os.path.isdir(path):
            lists.setdefault(split_of(path.stem.lower()), path)
    return lists


def _read_list(path, root, images=None, masks=None):
    """Return the pairs that a list of pairs or of names gives, below a folder.

    Raises:
        ValueError: If the list cannot be read, is empty, or names a file that does
            not exist.
    """
    try:
        lines = map(str.strip, read_text(path).splitlines())
    except OSError as error:
        raise ValueError(
            f"The file that lists the images cannot be read: {error}. Received: {path}"
        ) from error
    lines = [composed(line.strip("\"'")) for line in lines if line]
    rows = [_PAIR.fullmatch(line) for line in lines]
    if not lines:
        raise ValueError(
            "The file that lists the images is empty. Write one name, or one pair of "
            f"an image and its mask, per line. Received: {path}"
        )
    if any(rows):
        start = 0 if rows[0] else 1  # after the titles of the columns
        lines, rows = lines[start:], rows[start:]
        files = {composed(p.relative_to(root).as_posix()): p for p in walk(root)}
        names = [row.groups() if row else () for row in rows]
        pairs = [tuple(_resolve(name, root, files) for name in two) for two in names]
        pairs = [two if len({*two} - {None}) == 2 else None for two in pairs]
    else:
        matches = match_splits(find_files(root, images, masks), images or masks)
        by_name, by_end = defaultdict(list), defaultdict(list)
        for pair in [pair for match in matches.values() for pair in match.pairs]:
            file = describe(pair[0], pair[0].parent)
            for name in {file.stem, file.name}:
                by_name[name].append(pair)
        for pair in {pair for found in by_name.values() if found[1:] for pair in found}:
            end = composed(pair[0].with_suffix("").as_posix())
            while end:
                by_end[end].append(pair)
                end = end.partition("/")[2]
        pairs = [_look_up(line, by_name, by_end) for line in lines]
    missing = [line for line, pair in zip(lines, pairs, strict=True) if not pair]
    if missing:
        raise ValueError(
            f"Each line of {path} must name an image in {root} that has one mask, or "
            "hold the paths of an image and its mask. Add the files, remove the line, "
            "or settle with `images` and `masks` which files are meant. Received: the "
            f"line {missing[0]!r} ({len(missing)} such lines in total)"
        )
    return pairs


def _resolve(name, root, files):
    """Return the path of a listed file by as many of its last parts as exist."""
    if name in files:
        return files[name]
    if (root / name).is_file():
        return root / name
    parts = name.replace("\\", "/").split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((files[tail] for tail in tails if tail in files), None)


def _look_up(name, by_name, by_end):
    """Return the pair of an image by its name, with or without folders and suffix.

    Args:
        name: String.
        by_name: Dict from names without folders to lists of pairs.
        by_end: Dict from the ends of paths without suffixes to lists of pairs, of those
            that share a name.
    """
    name = re.sub(f"{PICTURE_SUFFIX}$", "", name, flags=re.I)
    found = by_name.get(name.split("/")[-1], [])
    if len(found) > 1:
        found = by_end.get(name, [])
    return found[0] if len(found) == 1 else None
