"""From the ids in a mask to classes, unknown ids refused."""

import numpy as np

from keras_segadapter.validation import check_num_classes, ignored_ids
from keras_segadapter.data.labels import Labels

BLACK_AND_WHITE = (
    "This looks like a black and white picture: write the masks anew with 1 in place "
    "of 255."
)


class LabelTable:
    """Looks up the class of every id in a mask.

    Args:
        num_classes: Number of classes, where masks hold classes; else `None`.
        labels: `Labels`; `None` if `num_classes` is given.
        ignore_class: Id, or list of ids, besides the classes; `None` for none.

    Attributes:
        num_classes: Number of classes.
        ignored: Sorted list of the ignored ids.
        label_map: The dictionary from ids to classes, or `None`.
        class_names: Tuple of names, or `None`.
        colors: RGB colors, uint8 of shape `(num_classes, 3)`, or `None`.
        dtype: Of masks of classes: uint8, or int32 if one can be outside 0 to 255.

    Raises:
        TypeError: If `labels` or `ignore_class` is of the wrong type.
        ValueError: If not exactly one of `num_classes` and `labels` is given, or the
            label map leads to something else than classes and ignored ids.
    """

    def __init__(self, num_classes, labels, ignore_class):
        if labels is not None and not isinstance(labels, Labels):
            raise TypeError(
                "`labels` must be keras_segadapter.data.Labels, or None if masks hold "
                f"classes already. Received: labels={labels!r}"
            )
        if (num_classes is None) == (labels is None):
            raise ValueError(
                "Pass either `num_classes`, if masks hold the classes 0..num_classes "
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
        # One type for all masks, whichever ids they happen to hold.
        allowed = {*range(self.num_classes), *self.ignored}
        fits = min(allowed) >= 0 and max(allowed) < 256
        self.dtype = "uint8" if fits else "int32"
        pairs = self.label_map
        if pairs is None:
            # Picture files hold 16 bits at most, whatever id is ignored.
            pairs = {id_: id_ for id_ in allowed if 0 <= id_ < 65536}
        self._classes = np.zeros(max(pairs, default=0) + 2, "int32")
        self._known = np.zeros(len(self._classes), bool)
        for id_, class_ in pairs.items():
            if class_ not in allowed:
                raise ValueError(
                    f"The label map sends the id {id_} to {class_!r}, which is neither "
                    f"a class from 0 to {self.num_classes - 1} nor one of the ignored "
                    f"ids {self.ignored}. Correct the map or `ignore_class`."
                )
            self._classes[id_] = class_
            self._known[id_] = True

    def look_up(self, mask, name):
        """Return the classes of a mask.

        Args:
            mask: Ids, never negative, of shape `(height, width)`.
            name: Words for the mask in the error, such as its path.

        Returns:
            Classes and ignored ids, int32 of shape `(height, width)`.

        Raises:
            ValueError: If the mask holds an id that has no class.
        """
        # All ids beyond the table meet in its last entry, which is not known.
        ids = np.minimum(mask, np.int32(len(self._classes) - 1))
        if not self._known[ids].all():
            self._refuse(np.unique(mask).tolist(), name)
        return self._classes[ids]

    def _refuse(self, found, name):
        ids = range(len(self._known))
        wrong = [id_ for id_ in found if id_ not in ids or not self._known[id_]]
        listed = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
        if self.label_map is not None:
            raise ValueError(
                f"The mask {name} holds the ids {listed}, which the label map does not "
                "have. Correct the mask, or add the ids to the map."
            )
        fix = "Correct the mask, `num_classes` or `ignore_class`."
        raise ValueError(
            f"The mask {name} holds the ids {listed}, but only ids from 0 to "
            f"{self.num_classes - 1} and the ignored ids {self.ignored} are allowed. "
            + (BLACK_AND_WHITE if set(found) <= {0, 255} else fix)
        )
