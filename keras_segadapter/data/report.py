"""The report of what a folder of images and masks holds: table, notes, picture."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from keras_segadapter.data.contents import in_color, key_of, read_contents
from keras_segadapter.data.disk import show_progress
from keras_segadapter.data.label_table import BLACK_AND_WHITE, LIMIT, unpack
from keras_segadapter.data.notes import counted, note_classes, note_files, percent
from keras_segadapter.visualization import as_rgb, overlay, palette, panels

_SIDE = 480  # pixels of the longer side of an image in a picture, at most
_LISTED = 20  # colors or faults that are printed


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
            found = pool.map(partial(read_contents, data._read_whole), range(count))
            found = list(show_progress(found, count, "pair"))
        self.images = len(found)
        self.faults = [file.fault for file in found if file.fault]
        sound = {i: file for i, file in enumerate(found) if not file.fault}
        self._sound, found = [*sound], [*sound.values()]
        self.sizes = dict(sorted(Counter(file.size for file in found).items()))
        pixels, occurrences = Counter(), Counter()
        for file in found:
            pixels.update(file.pixels)
            occurrences.update(file.pixels.keys())
        self._in_color = max(pixels, default=0) >= LIMIT
        if self._in_color:  # in which masks in gray hold colors too
            pixels, occurrences = in_color(pixels), in_color(occurrences)
        self._ids = sorted(pixels)
        self.pixels = {key_of(id_): pixels[id_] for id_ in self._ids}
        self.occurrences = {key_of(id_): occurrences[id_] for id_ in self._ids}
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
        absent = [i for i in range(self.num_classes or 0) if i not in pixels]
        absent = [*map(self._name, absent)]
        self.notes = [
            *note_files(data, sound),
            *note_classes(data, sound, self.ignored, absent, self._in_color),
        ]

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
                f"{counted(self.faults, 'fault was', 'faults were')} found in "
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
            colors = np.stack(unpack(ids), axis=-1).astype("uint8")
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
            ids = sorted(ids, key=lambda id_: -self.pixels[key_of(id_)])[:_LISTED]
        kind = "color" if self._in_color else "id"
        if self._data.num_classes is not None:
            kind = "class"
        rows = [(kind, "pixels", "images")]
        for id_ in ids:
            name, key = self._name(id_), key_of(id_)
            name = name if name == str(key) else f"{id_:3} {name}"
            share = percent(self.pixels[key] / total)
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

    def _name(self, id_):
        """Return what a table or a legend calls an id."""
        if id_ in self.ignored:
            return "void"
        return str(key_of(id_)) if self.class_names is None else self.class_names[id_]

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
