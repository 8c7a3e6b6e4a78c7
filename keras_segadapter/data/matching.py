"""Images and masks that belong together by their folders and names."""

from collections import defaultdict
from operator import attrgetter
from typing import NamedTuple


class Match(NamedTuple):
    """What one rule finds: pairs, and why it is not the right rule, or None."""

    pairs: list
    score: int
    fault: tuple | None


# What an image and its mask may have in common, the strictest first.
_COMMON = (
    attrgetter("below", "stem"),
    attrgetter("below", "name"),
    attrgetter("stem"),
    attrgetter("name"),
)


def match_splits(files, settled):
    """Return a dict from the splits that have masks to their `Match`."""
    splits = defaultdict(list)
    for file in files:
        splits[file.split].append(file)
    matches = {split: _match(group, settled) for split, group in splits.items()}
    # A split without masks holds pictures to predict.
    return {split: match for split, match in matches.items() if match.score >= 0}


def _match(files, settled):
    """Return the first `Match` that leaves nothing over, else the one with most."""
    best = Match([], -1, None)
    for images, masks, keys in _rules(files, settled):
        for key in keys if masks else ():
            match = _pair_by(key, images, masks)
            if match.fault is None:
                return match
            # Without a mask by its folder, names that differ are no fault.
            if match.score > best.score and (match.score or masks[0].role == "mask"):
                best = match
    return best


def _rules(files, settled):
    """Yield possible images and masks, and what they may have in common."""
    images, masks = ([f for f in files if f.role == role] for role in ("image", "mask"))
    # Folders such as SegNet's `train`, beside `trainannot`, do not tell a role.
    yield images or [f for f in files if f.role is None], masks, _COMMON
    if not settled:
        masks = [f for f in files if f.ending == "mask"]
        yield [f for f in files if f.ending != "mask"], masks, _COMMON[1::2]
        jpegs = [f.path.suffix.lower() in (".jpg", ".jpeg") for f in files]
        images = [f for f, jpeg in zip(files, jpegs, strict=True) if jpeg]
        masks = [f for f, jpeg in zip(files, jpegs, strict=True) if not jpeg]
        yield images, masks, _COMMON[::2]


def _pair_by(key, images, masks):
    """Return the `Match` of images and masks that have a key in common."""
    found = defaultdict(lambda: ([], []))
    for side, files in enumerate((images, masks)):
        for file in files:
            found[key(file)][side].append(file.path)
    both = [sides for sides in found.values() if all(sides)]
    pairs = [(a[0], b[0]) for a, b in both if len(a) == len(b) == 1]
    twins = [max(sides, key=len)[:2] for sides in both if max(map(len, sides)) > 1]
    fault = None
    if twins:
        fault = (
            "Each image must have exactly one mask, and each mask one image. Rename or "
            "remove one of the files.",
            f"{twins[0][0]} and {twins[0][1]}, whose names are alike "
            f"({len(twins)} such names in total)",
        )
    for side, kind, partner in ((1, "mask", "image"), (0, "image", "mask")):
        lonely = [p for sides in found.values() if not all(sides) for p in sides[side]]
        if lonely and not twins:
            fault = (
                f"Each {kind} must have {'an' if side else 'a'} {partner} of the same "
                f"name. Add the {partner} or remove the {kind}.",
                f"{min(lonely)} without its {partner} ({len(lonely)} in total)",
            )
    return Match(pairs, len(both), fault)
