"""Lookup of the class of each pixel of a mask, which refuses unknown ids and colors."""

import cv2
import numpy as np

from keras_segadapter.data.labels import Labels
from keras_segadapter.validation import check_num_classes, ignored_ids, is_auto

BLACK_AND_WHITE = (
    "They look like black-and-white pictures: pass "
    "labels=keras_segadapter.data.BINARY (--labels binary on the command line)."
)
LIMIT = 2**24  # RGB colors; ids must be below it too


class LabelTable:
    """Table of the classes that the ids or colors in masks stand for.

    Args:
        num_classes: Integer of at least 2 if masks hold classes, else None.
        labels: `Labels`, or None if `num_classes` is given.
        ignore_class: `"auto"`, an integer, a list of integers, or None. Ids that are
            allowed besides the classes.

    Attributes:
        num_classes: Number of classes.
        ignored: Sorted list of the ignored ids.
        ignore_class: The ignored ids as passed; in place of `"auto"`, 255 or None.
        label_map: Dict from ids or RGB tuples to classes, or None.
        by_color: Whether masks hold colors only, in which gray is a color too.
        class_names: Tuple of names, or None.
        colors: RGB colors, uint8 `(num_classes, 3)`, or None.
        dtype: Dtype of masks of classes: "uint8", or "int32" if an id can be outside
            0 to 255.

    Raises:
        TypeError: If `labels` or `ignore_class` is of the wrong type.
        ValueError: If not exactly one of `num_classes` and `labels` is given, if the
            label map leads to something other than classes and ignored ids, or if an
            ignored id is also a class.
    """

    def __init__(self, num_classes, labels, ignore_class):
        if labels is not None and not isinstance(labels, Labels):
            raise TypeError(
                "`labels` must be keras_segadapter.data.Labels, or None if masks "
                f"already hold classes. Received: labels={labels!r}"
            )
        if (num_classes is None) == (labels is None):
            raise ValueError(
                "Pass either `num_classes`, if masks hold the classes 0 to num_classes "
                "- 1, or `labels`, which name the classes. Received: "
                f"num_classes={num_classes}, labels="
                + ("None" if labels is None else f"{labels.num_classes} classes")
            )
        pairs = {}
        if labels is None:
            self.num_classes = check_num_classes(num_classes)
            self.label_map = self.class_names = self.colors = None
        else:
            self.num_classes, self.label_map = labels.num_classes, labels.label_map
            self.class_names, self.colors = labels.class_names, labels.colors
            pairs = labels.keys
        self.ignored = ignored_ids(ignore_class, self.num_classes)
        if is_auto(ignore_class):
            ignore_class = self.ignored[0] if self.ignored else None
        self.ignore_class = ignore_class
        # All masks have one dtype, whichever ids they happen to hold.
        allowed = {*range(self.num_classes), *self.ignored}
        fits = min(allowed) >= 0 and max(allowed) < 256
        self.dtype = "uint8" if fits else "int32"
        for key, class_ in pairs.items():
            if class_ not in allowed:
                raise ValueError(
                    "`label_map` must lead to classes from 0 to "
                    f"{self.num_classes - 1} or to the ignored ids {self.ignored}. "
                    "Correct the map or `ignore_class`. Received: "
                    f"label_map[{key}]={class_!r}"
                )
        if self.label_map is None:
            pairs = pairs | {id_: id_ for id_ in allowed if id_ < LIMIT}
        ids = {key: c for key, c in pairs.items() if not isinstance(key, tuple)}
        colors = {key: c for key, c in pairs.items() if isinstance(key, tuple)}
        packed = pack(np.array([*colors], "uint8").reshape(-1, 3)).tolist()
        self._ids = _Lookup(ids, self.dtype)
        packed = dict(zip(packed, colors.values(), strict=True))
        self._colors = _Lookup(packed, self.dtype)
        self.by_color = not ids

    def look_up(self, mask, name, colors=None):
        """Return the classes of a mask.

        Args:
            mask: Integer ids `(H, W)`, or None for a mask that holds colors only.
            name: What the error calls the mask, such as its path.
            colors: RGB colors, uint8 `(H, W, 3)`, of a mask whose pixels may stand for
                colors; else None. Defaults to `None`.

        Returns:
            Classes and ignored ids `(H, W)`, of the table's dtype.

        Raises:
            ValueError: If the mask holds an id or a color that has no class, or if it
                can be read as ids and as colors, with different classes.
        """
        found = []
        if colors is not None and self._colors:
            found.append(self._colors.find(pack(colors)))
        if mask is not None and self._ids:
            found.append(self._ids.find(mask))
        whole = [classes for classes, known in found if known.all()]
        if not whole:
            self._raise_unknown(mask, colors, name)
        # Palettes often have no color of their own for an ignored id.
        if len(whole) == 2 and np.any(
            (whole[0] != whole[1]) & ~np.isin(whole[1], self.ignored)
        ):
            raise ValueError(
                "A mask must not be readable as ids and as colors with different "
                "meanings. Pass Labels with a `label_map` whose keys are only ids, or "
                f"only RGB tuples. Received: mask {name}"
            )
        return whole[-1]

    def _raise_unknown(self, mask, colors, name):
        """Raise the error about the ids or colors of a mask that have no class."""
        last, fix = self.num_classes - 1, "Correct the masks, or add them to the map."
        if self.label_map is not None:
            allowed = "the keys of the label map"
        else:
            allowed = f"the ids 0 to {last} and the ignored ids {self.ignored}"
            fix = "Correct the masks, `num_classes` or `ignore_class`."
            if self._colors:
                allowed += ", or the colors of `labels`"
        as_colors = colors is not None and (mask is None or self.by_color)
        if as_colors:
            found, counts = np.unique(pack(colors), return_counts=True)
            known = self._colors.find(found)[1]
            values = [*map(unpack, found.tolist())]
            if not self._colors:
                fix = (
                    "For color-coded masks, pass labels=keras_segadapter.data.Labels("
                    "names, {(r, g, b): class, ...}) or a file of classes with their "
                    "colors to Labels.from_file (--labels on the command line)."
                )
            elif all(len(set(value)) == 1 for value in values):
                fix += (
                    " The mask is gray: if it holds ids, put these into the map, or "
                    "into a column `id` of the file of classes."
                )
        else:
            found, counts = np.unique(mask, return_counts=True)
            known = self._ids.find(found)[1]
            values = found.tolist()
            if self.label_map is None and set(values) <= {0, 255}:
                fix = BLACK_AND_WHITE
        if str(name).lower().endswith((".jpg", ".jpeg")):
            fix += " JPEG files change their values: use PNG files, from the source."
        wrong = [
            f"{value} ({count:,} pixel{'s' * (count > 1)})"
            for value, count, is_known in zip(
                values, counts.tolist(), known, strict=True
            )
            if not is_known
        ]
        listed = ", ".join(wrong[:10]) + (", ..." if len(wrong) > 10 else "")
        raise ValueError(
            f"Masks must hold only {allowed}. {fix} Received: mask {name} with the "
            f"{'colors' if as_colors else 'ids'} {listed}"
        )


class _Lookup:
    """Classes of integers, found by their places in an array."""

    def __init__(self, classes, dtype):
        self.low = min([0, *classes]) - 1  # whose entry stays unknown
        size = max([254, *classes]) - self.low + 2  # as does the last
        self.known, self.classes = np.zeros(size, bool), np.zeros(size, dtype)
        for key, class_ in classes.items():
            self.known[key - self.low], self.classes[key - self.low] = True, class_
        self.count = len(classes)

    def __len__(self):
        return self.count

    def find(self, ids):
        """Return the classes of ids, and whether each has one."""
        if ids.dtype == "uint8":  # by far the fastest way to look them up
            first = slice(-self.low, 256 - self.low)
            known = self.known[first].view("uint8")
            return cv2.LUT(ids, self.classes[first]), cv2.LUT(ids, known).view(bool)
        ids = ids.astype(np.promote_types(ids.dtype, "int32"))
        places = np.clip(ids, self.low, self.low + len(self.known) - 1) - self.low
        return self.classes[places], self.known[places]


def pack(colors):
    """Return RGB colors, uint8 `(..., 3)`, as integers, int32 `(...)`."""
    r, g, b = (colors[..., i].astype("int32") for i in range(3))
    return (r << 16) | (g << 8) | b


def unpack(number):
    """Return the RGB color that was packed as an integer."""
    return number >> 16 & 255, number >> 8 & 255, number & 255
