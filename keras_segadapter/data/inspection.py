"""What a folder of images and masks holds, before a model trains on it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from keras_segadapter.data.counting import count_ids
from keras_segadapter.data.disk import show_progress
from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.label_table import BLACK_AND_WHITE
from keras_segadapter.data.opening import find_source
from keras_segadapter.validation import ignored_ids, is_auto
from keras_segadapter.visualization import as_rgb, overlay, palette, panels

_JPEG = (".jpg", ".jpeg")
_ODD = 0.005  # share of odd pixels above which a mask was hardly drawn like that
_COLOR = 2**24  # above all ids
_SIDE = 480  # pixels of the longer side of an image in a picture, at most
_LISTED = 20  # colors, names or faults that are printed


def inspect_folder(
    source,
    split=None,
    *,
    num_classes=None,
    labels=None,
    ignore_class="auto",
    layout=None,
    images=None,
    masks=None,
    channels=3,
    resize_masks=False,
):
    """Read every image and mask of a folder, and report what they hold.

    Call it once before training, which would otherwise stop at a faulty file much later
    or, worse, learn from a wrong mask. Files are read at their own size, and none of
    them stops the inspection.

    Args:
        source: Path of a folder or a list, as in `open_folder`, or a `FolderDataset`,
            whose options then apply.
        split: `"train"`, `"val"`, `"test"`, or None for all pairs. Defaults to `None`.
        num_classes: Integer of at least 2, or None. Number of classes. Defaults to
            `None`: that of `labels` or of the dataset; else the ids are reported as
            they are.
        labels: As in `open_folder`. Defaults to `None`.
        ignore_class: As in `FolderDataset`. Defaults to `"auto"`.
        layout: As in `open_folder`. Defaults to `None`.
        images: As in `open_folder`. Defaults to `None`.
        masks: As in `open_folder`. Defaults to `None`.
        channels: As in `FolderDataset`. Defaults to `3`.
        resize_masks: As in `FolderDataset`. Defaults to `False`.

    Returns:
        A `FolderReport`.

    Raises:
        TypeError: As in `open_folder`.
        ValueError: As in `open_folder`; faults of files are in the report.

    Example:

    ```python
    from pathlib import Path
    from PIL import Image
    from keras_segadapter.data import inspect_folder, make_scenes

    Path("scenes/images").mkdir(parents=True, exist_ok=True)
    Path("scenes/masks").mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(*make_scenes(5))):
        Image.fromarray(image).save(f"scenes/images/{i}.png")
        Image.fromarray(mask).save(f"scenes/masks/{i}.png")

    report = inspect_folder("scenes", num_classes=8).check()
    print(report)
    print(report.images, report.sizes)  # 5 {(96, 96): 5}
    report.picture("scenes.png")
    ```
    """
    if not isinstance(source, FolderDataset):
        *pairs, labels = find_source(
            source, split, layout, labels, num_classes, images, masks
        )
        known = labels is not None or num_classes is not None
        source = FolderDataset(
            tuple(pairs),
            num_classes if known else 2,
            labels=labels,
            ignore_class=ignore_class if known else None,
            channels=channels,
            resize_masks=resize_masks,
        )
        if not known:
            source.num_classes, source._table = None, _AnyIds(ignore_class)
        return FolderReport(source)
    given = [split, num_classes, labels, layout, images, masks, resize_masks or None]
    if any(value is not None for value in given) or ignore_class != "auto":
        raise ValueError(
            "A FolderDataset is inspected with its own options. Leave out all others. "
            f"Received: split={split!r}, num_classes={num_classes}, layout={layout!r}, "
            f"ignore_class={ignore_class!r}, ... for a dataset of {source.num_classes} "
            "classes"
        )
    return FolderReport(source)


class FolderReport:
    """What `inspect_folder` finds; printed, it is a table with notes and faults.

    Example: see `inspect_folder`.

    Attributes:
        images: Number of images.
        sizes: Dict from the sizes `(height, width)` of the masks, sorted, to the number
            of images.
        pixels: Dict from the classes and ignored ids that occur to the number of their
            pixels. Where classes are not known, from the ids in the masks, or from
            their colors `(r, g, b)`.
        occurrences: Dict from the same keys to the number of masks that hold them.
        class_pixels: Number of pixels per class, int64 `(num_classes,)`, as
            `keras_segadapter.balanced_class_weight` takes it.
        num_classes: Number of classes. Where it is not known, it is inferred: the
            highest id that is not ignored, plus 1; None for colors.
        class_names: Tuple of the names, or None.
        colors: RGB colors of the classes, uint8 `(num_classes, 3)`, or None.
        ignored: Sorted list of the ignored ids.
        faults: List of sentences, one per pair of files that can't be used as it is.
            Such pairs are not counted above, except in `images`.
        notes: List of sentences about what may not be as it was meant.
    """

    def __init__(self, data):
        self._data = data
        count = len(data.image_paths)
        with ThreadPoolExecutor(data.threads) as pool:
            found = pool.map(self._inspect, range(count))
            found = list(show_progress(found, count, "pair"))
        self.images = len(found)
        self.faults = [file.fault for file in found if file.fault]
        self._sound = [i for i, file in enumerate(found) if not file.fault]
        found = [found[i] for i in self._sound]
        self.sizes = dict(sorted(Counter(file.size for file in found).items()))
        pixels, occurrences = Counter(), Counter()
        for file in found:
            pixels.update(file.pixels)
            occurrences.update(file.pixels.keys())
        self._in_color = max(pixels, default=0) >= _COLOR
        if self._in_color:  # in which masks in gray hold colors too
            pixels, occurrences = _in_color(pixels), _in_color(occurrences)
        self._ids = sorted(pixels)
        self.pixels = {_key(id_): pixels[id_] for id_ in self._ids}
        self.occurrences = {_key(id_): occurrences[id_] for id_ in self._ids}
        self.class_names, self.colors = data.class_names, data.colors
        self.num_classes = data.num_classes
        self.ignored = data._table.ignored
        if self.ignored == "auto":
            self.ignored = [255] if max(self._ids, default=0) <= 255 else []
        if data.num_classes is None and not self._in_color:
            # There are at least two classes, even if only one occurs.
            self.num_classes = max({1, *self._ids} - {*self.ignored}, default=1) + 1
        is_mapped = data._table.label_map is not None
        if self._ids == [0, 255] and 255 in self.ignored and not is_mapped:
            folder = getattr(data.mask_paths[0], "parent", data.mask_paths[0])
            self.faults.insert(
                0,
                "The masks hold nothing but class 0 and the ignored id 255. "
                f"{BLACK_AND_WHITE} Received: masks in {folder}",
            )
        self.notes = [*self._note_files(found), *self._note_classes(found)]

    @property
    def class_pixels(self):
        classes = range(self.num_classes or 0)
        return np.array([self.pixels.get(i, 0) for i in classes], "int64")

    def check(self):
        """Raise an error if there are faults.

        Returns:
            The report itself.

        Raises:
            ValueError: If there are faults. It holds their number and the first.
        """
        if self.faults:
            raise ValueError(
                f"{_number(self.faults, 'fault was', 'faults were')} found in "
                f"{self.images} images and their masks. Mend them before training; "
                "the report of inspect_folder lists them. The first: "
                f"{self.faults[0]}"
            )
        return self

    def picture(self, path, count=8):
        """Write images, and their masks over them, with a legend to a PNG file.

        Args:
            path: Path of the PNG file.
            count: Integer of at least 1. Number of images at most, spread over the
                folder. Defaults to `8`.

        Returns:
            The `pathlib.Path` of the file.

        Raises:
            ValueError: If no pair of files is without a fault.
        """
        if not self._sound:
            raise ValueError(
                "A picture needs an image and a mask without a fault. Received: "
                f"{self.images} pairs with the faults {self.faults[:1]}"
            )
        places = np.linspace(0, len(self._sound) - 1, min(count, len(self._sound)))
        ids = np.array([id_ for id_ in self._ids if id_ not in self.ignored], "int64")
        if self._in_color:
            colors = np.stack([ids >> 16, ids >> 8, ids], axis=-1).astype("uint8")
        else:
            known = palette(self.num_classes) if self.colors is None else self.colors
            colors = known[ids]
        rows, shown = [], np.zeros(len(ids) + 1, bool)
        for place in places.astype(int):
            image, mask = self._data._read_whole(self._sound[place])
            step = -(-max(mask.shape) // _SIDE)  # rounded up
            image = np.asarray(Image.fromarray(as_rgb(image)).reduce(step))
            mask = mask[::step, ::step]
            ranks = np.searchsorted(ids, mask)
            ranks[~np.isin(mask, ids)] = len(ids)
            shown[ranks] = True
            rows.append([image, overlay(image, ranks, colors=colors)])
        legend = np.flatnonzero(shown[:-1])
        names = [self._name(id_) for id_ in ids[legend].tolist()]
        return panels(rows, ["image", "mask"], path, names, colors[legend])

    def __str__(self):
        lines = [f"{self.images} images and masks, {self._list_sizes()}"]
        if self.num_classes:
            number = f"{self.num_classes} classes"
            if self._data.num_classes is None:
                number += ", inferred from the highest id"
            lines.append(number)
        total = sum(self.pixels.values())
        ids = self._ids
        if self._in_color:
            ids = sorted(ids, key=lambda id_: -self.pixels[_key(id_)])[:_LISTED]
        kind = "color" if self._in_color else "id"
        if self._data.num_classes is not None:
            kind = "class"
        rows = [(kind, "pixels", "images")]
        for id_ in ids:
            name, key = self._name(id_), _key(id_)
            name = name if name == str(key) else f"{id_:3} {name}"
            share = _percent(self.pixels[key] / total)
            rows.append((name, share, f"{self.occurrences[key]}"))
        width = max(len(name) for name, *_ in rows)
        lines += [f"{name:{width}}  {share:>8}  {n:>7}" for name, share, n in rows]
        if len(ids) < len(self._ids):
            lines.append(f"and {len(self._ids) - len(ids)} more colors")
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Fault: {fault}" for fault in self.faults[:_LISTED]]
        if len(self.faults) > _LISTED:
            lines.append(f"and {len(self.faults) - _LISTED} more faults")
        return "\n".join(lines)

    __repr__ = __str__

    def _inspect(self, i):
        """Read pair i and return what it holds, as `_Found`."""
        try:
            image, mask = self._data._read_whole(i)
        except ValueError as error:
            return _Found(fault=str(error))
        highest = int(image.max()) if image.dtype == "uint8" else None
        return _Found(mask.shape, count_ids(mask), _count_odd(mask), highest)

    def _name(self, id_):
        """Return what a table or a legend calls an id."""
        if id_ in self.ignored:
            return "void"
        return str(_key(id_)) if self.class_names is None else self.class_names[id_]

    def _list_sizes(self):
        """Return the sizes of the images, or the smallest, median and largest."""
        names = [f"{height} x {width}" for height, width in self.sizes]
        if len(names) <= 3:
            return ", ".join(names)
        sizes = sorted(Counter(self.sizes).elements(), key=np.prod)
        least, median, most = sizes[0], sizes[len(sizes) // 2], sizes[-1]
        return (
            f"{len(names)} sizes from {least[0]} x {least[1]} to {most[0]} x {most[1]} "
            f"(median {median[0]} x {median[1]})"
        )

    def _note_files(self, found):
        """Yield the notes on how images and masks are stored."""
        masks = [self._data.mask_paths[i] for i in self._sound]
        odd = [file.odd / np.prod(file.size) for file in found]
        is_jpeg = [Path(str(path)).suffix.lower() in _JPEG for path in masks]
        jpeg = [i for i, is_one in enumerate(is_jpeg) if is_one]
        if jpeg:
            pixels = sum(np.prod(found[i].size) for i in jpeg)
            share = _percent(sum(found[i].odd for i in jpeg) / pixels)
            count = _number(jpeg, "mask is a JPEG file", "masks are JPEG files")
            yield (
                f"{count}. JPEG does not keep ids: {share} of the pixels differ from "
                "all four neighbors. Save masks as PNG. The first is "
                f"{masks[jpeg[0]]}."
            )
        noisy = [i for i, share in enumerate(odd) if share > _ODD and not is_jpeg[i]]
        if noisy:
            worst = max(noisy, key=odd.__getitem__)
            yield (
                f"{_number(noisy, 'mask has', 'masks have')} many single pixels, as "
                "after resizing by interpolation, which makes ids between the true "
                f"ones. Resize masks by the nearest pixel. In {masks[worst]}, "
                f"{_percent(odd[worst])} of the pixels differ from all four neighbors."
            )
        images = [self._data.image_paths[i] for i in self._sound]
        values = [file.highest for file in found]
        dark = [i for i, value in enumerate(values) if value is not None and value < 64]
        deep = [i for i in dark if _has_16_bits(images[i])]
        # Files are opened again only where there is something to note.
        others = (i for i, value in enumerate(values) if value and value >= 64)
        if deep and not any(_has_16_bits(images[i]) for i in others):
            highest = 256 * max(values[i] for i in deep) + 255
            yield (
                f"{_number(deep, 'image has', 'images have')} 16 bits, but no value "
                f"above {highest} of 65535. Their upper 8 bits, which are used, are "
                "nearly black: scale the values up."
            )
        resized = self._data.image_size or self._data.augmentation
        if len(self.sizes) > 1 and resized is None:
            yield (
                "The images differ in size. To train on batches of them, pass "
                "`image_size` or `augmentation` (--size or --crop on the command line)."
            )

    def _note_classes(self, found):
        """Yield the notes on what the masks hold."""
        if self._in_color:
            yield (
                "The masks hold colors. To train, pass `labels` with the class of each "
                "(--labels on the command line), or put a classes.csv with the columns "
                "name,r,g,b into the folder."
            )
        void = [i for i, file in enumerate(found) if {*file.pixels} <= {*self.ignored}]
        if void:
            first = self._data.mask_paths[self._sound[void[0]]]
            count = _number(void, "mask is", "masks are")
            yield f"{count} void everywhere. The first is {first}."
        absent = [i for i in range(self.num_classes or 0) if i not in self.pixels]
        if absent and found:
            names = [self._name(i) for i in absent[:_LISTED]]
            names += ["..."] * (len(absent) > _LISTED)
            count = _number(absent, "class never occurs", "classes never occur")
            yield f"{count}: {', '.join(names)}."


class _Found(NamedTuple):
    """What one pair of files holds."""

    size: tuple | None = None
    pixels: dict | None = None
    odd: int = 0  # number of pixels that differ from all four neighbors
    highest: int | None = None  # value of an image of 8 bits, or of its upper 8 bits
    fault: str | None = None


class _AnyIds:
    """Table in place of a `LabelTable` where classes are not known."""

    label_map, by_color = None, False

    def __init__(self, ignore_class):
        self.ignored = "auto" if is_auto(ignore_class) else ignored_ids(ignore_class)

    def look_up(self, mask, name, colors=None):
        """Return the ids of a mask, or its colors as numbers from `_COLOR` on."""
        if mask is not None:
            return mask
        return _COLOR + colors.astype("int32") @ np.array([65536, 256, 1], "int32")


def _in_color(counts):
    """Return counts whose keys are ids of gray or colors with colors as all keys."""
    summed = Counter()
    for id_, count in counts.items():
        summed[id_ if id_ >= _COLOR else _COLOR + id_ * 0x010101] += count
    return summed


def _key(id_):
    """Return an id, or the color that a number from `_COLOR` on stands for."""
    color = (id_ >> 16 & 255, id_ >> 8 & 255, id_ & 255)
    return color if id_ >= _COLOR else id_


def _count_odd(mask):
    """Return how many pixels of a mask `(H, W)` differ from all four neighbors."""
    alike = np.zeros(mask.shape, bool)
    rows, columns = mask[1:] == mask[:-1], mask[:, 1:] == mask[:, :-1]
    alike[1:] |= rows
    alike[:-1] |= rows
    alike[:, 1:] |= columns
    alike[:, :-1] |= columns
    return int(np.count_nonzero(~alike)) if mask.size > 1 else 0


def _has_16_bits(path):
    """Return whether a picture file is known to have one channel of 16 bits."""
    try:
        with Image.open(path) as picture:
            return picture.mode.startswith("I")
    except OSError:  # Pillow knows not all kinds of files
        return False


def _number(items, one, several):
    """Return how many items there are, with the words for one or several."""
    return f"{len(items)} {one if len(items) == 1 else several}"


def _percent(share):
    """Return a share as a percentage that is 0 only where there is nothing."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
