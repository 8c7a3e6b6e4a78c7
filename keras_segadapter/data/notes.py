"""Sentences on what may not be as it was meant in a folder of images and masks."""

from pathlib import Path

import numpy as np

from keras_segadapter.data.contents import has_16_bits

_JPEG = (".jpg", ".jpeg")
_ODD = 0.005  # share of odd pixels above which a mask was hardly drawn like that
_LISTED = 20  # classes that are named


def note_files(data, sound):
    """Yield the notes on how images and masks are stored.

    Args:
        data: A `FolderDataset`.
        sound: Dict from the numbers of the pairs without a fault to their `Contents`.
    """
    found = [*sound.values()]
    masks = [data.mask_paths[i] for i in sound]
    odd = [file.odd / np.prod(file.size) for file in found]
    is_jpeg = [Path(str(path)).suffix.lower() in _JPEG for path in masks]
    jpeg = [i for i, is_one in enumerate(is_jpeg) if is_one]
    if jpeg:
        pixels = sum(np.prod(found[i].size) for i in jpeg)
        share = percent(sum(found[i].odd for i in jpeg) / pixels)
        count = counted(jpeg, "mask is a JPEG file", "masks are JPEG files")
        yield (
            f"{count}. JPEG does not keep ids: {share} of the pixels differ from "
            "all four neighbors. Save masks as PNG. The first is "
            f"{masks[jpeg[0]]}."
        )
    noisy = [i for i, share in enumerate(odd) if share > _ODD and not is_jpeg[i]]
    if noisy:
        worst = max(noisy, key=odd.__getitem__)
        yield (
            f"{counted(noisy, 'mask has', 'masks have')} many single pixels, as "
            "after resizing by interpolation, which makes ids between the true "
            f"ones. Resize masks by the nearest pixel. In {masks[worst]}, "
            f"{percent(odd[worst])} of the pixels differ from all four neighbors."
        )
    images = [data.image_paths[i] for i in sound]
    values = [file.highest for file in found]
    dark = [i for i, value in enumerate(values) if value is not None and value < 64]
    deep = [i for i in dark if has_16_bits(images[i])]
    # Files are opened again only where there is something to note.
    others = (i for i, value in enumerate(values) if value and value >= 64)
    if deep and not any(has_16_bits(images[i]) for i in others):
        highest = 256 * max(values[i] for i in deep) + 255
        yield (
            f"{counted(deep, 'image has', 'images have')} 16 bits, but no value "
            f"above {highest} of 65535. Their upper 8 bits, which are used, are "
            "nearly black: scale the values up."
        )
    resized = data.image_size or data.augmentation
    if len({file.size for file in found}) > 1 and resized is None:
        yield (
            "The images differ in size. To train on batches of them, pass "
            "`image_size` or `augmentation` (--size or --crop on the command line)."
        )


def note_classes(data, sound, ignored, absent, by_color):
    """Yield the notes on what the masks hold.

    Args:
        data: A `FolderDataset`.
        sound: Dict from the numbers of the pairs without a fault to their `Contents`.
        ignored: List of the ids of void pixels.
        absent: List of the names of classes that do not occur.
        by_color: Boolean. Whether the masks hold colors.
    """
    if by_color:
        yield (
            "The masks hold colors. To train, pass `labels` with the class of each "
            "(--labels on the command line), or put a classes.csv with the columns "
            "name,r,g,b into the folder."
        )
    void = [i for i, file in sound.items() if {*file.pixels} <= {*ignored}]
    if void:
        count = counted(void, "mask is", "masks are")
        yield f"{count} void everywhere. The first is {data.mask_paths[void[0]]}."
    if absent and sound:
        names = absent[:_LISTED] + ["..."] * (len(absent) > _LISTED)
        count = counted(absent, "class never occurs", "classes never occur")
        yield f"{count}: {', '.join(names)}."


def counted(items, one, several):
    """Return how many items there are, with the words for one or several."""
    return f"{len(items)} {one if len(items) == 1 else several}"


def percent(share):
    """Return a share as a percentage that is 0 only where there is nothing."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
