"""Lookup of the class of every id in a mask, which refuses unknown ids."""

import numpy as np

from keras_segadapter.data.labels import Labels
from keras_segadapter.validation import check_num_classes, ignored_ids

BLACK_AND_WHITE = (
    "They look like black-and-white pictures: save the masks again with 1 instead of "
    "255."
)


class LabelTable:
    """Table of the classes that the ids in masks stand for.

    Args:
        num_classes: Integer of at least 2 if masks hold classes, else None.
        labels: `Labels`, or None if `num_classes` is given.
        ignore_class: Integer, list of integers, or None. Ids that are allowed besides
            the classes.

    Attributes:
        num_classes: Number of classes.
        ignored: Sorted list of the ignored ids.
        label_map: Dict from ids to classes, or None.
        class_names: Tuple of names, or None.
        colors: RGB colors, uint8 `(num_classes, 3)`, or None.
        dtype: Dtype of masks of classes: "uint8", or "int32" if an id can be outside
            0 to 255.

    Raises:
        TypeError: If `labels` or `ignore_class` is of the wrong type.
        ValueError: If not exactly one of `num_classes` and `labels` is given, or if
            the label map leads to something other than classes and ignored ids.
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
        if labels is None:
            self.num_classes = check_num_classes(num_classes)
            self.label_map = self.class_names = self.colors = None
        else:
            self.num_classes, self.label_map = labels.num_classes, labels.label_map
            self.class_names, self.colors = labels.class_names, labels.colors
        self.ignored = ignored_ids(ignore_class)
        # All masks have one dtype, whichever ids they happen to hold.
        allowed = {*range(self.num_classes), *self.ignored}
        fits = min(allowed) >= 0 and max(allowed) < 256
        self.dtype = "uint8" if fits else "int32"
        pairs = self.label_map
        if pairs is None:
            # Picture files hold at most 16 bits, whichever id is ignored.
            pairs = {id_: id_ for id_ in allowed if 0 <= id_ < 65536}
        self._classes = np.zeros(max(pairs, default=0) + 2, "int32")
        self._known = np.zeros(len(self._classes), bool)
        for id_, class_ in pairs.items():
            if class_ not in allowed:
                raise ValueError(
                    "`label_map` must lead to classes from 0 to "
                    f"{self.num_classes - 1} or to the ignored ids {self.ignored}. "
                    "Correct the map or `ignore_class`. Received: "
                    f"label_map[{id_}]={class_!r}"
                )
            self._classes[id_] = class_
            self._known[id_] = True

    def look_up(self, mask, name):
        """Return the classes of a mask.

        Args:
            mask: Ids of at least 0, integers `(H, W)`.
            name: What the error calls the mask, such as its path.

        Returns:
            Classes and ignored ids, int32 `(H, W)`.

        Raises:
            ValueError: If the mask holds an id that has no class.
        """
        # All ids beyond the table share its last entry, which is unknown.
        ids = np.minimum(mask, np.int32(len(self._classes) - 1))
        if not self._known[ids].all():
            self._raise_unknown(np.unique(mask).tolist(), name)
        return self._classes[ids]

    def _raise_unknown(self, found, name):
        """Raise the error about those of the `found` ids that are unknown."""
        ids = range(len(self._known))
        wrong = [id_ for id_ in found if id_ not in ids or not self._known[id_]]
        listed = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
        if self.label_map is not None:
            allowed = "the ids of the label map"
            fix = "Correct the masks, or add the ids to the map."
        else:
            last = self.num_classes - 1
            allowed = f"the ids 0 to {last} and the ignored ids {self.ignored}"
            fix = "Correct the masks, `num_classes` or `ignore_class`."
            if set(found) <= {0, 255}:
                fix = BLACK_AND_WHITE
        raise ValueError(
            f"Masks must hold only {allowed}. {fix} Received: mask {name} with the ids "
            f"{listed}"
        )
