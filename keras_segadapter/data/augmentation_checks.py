"""Checks of what an augmentation is given."""

import numpy as np

from keras_segadapter.validation import ignored_ids


def check_ignored(ignore_class, num_classes=None):
    """Return the sorted ids of `ignore_class`, the first of which pads masks.

    Raises:
        TypeError: If `ignore_class` is not as in `ignored_ids`.
        ValueError: If there is no id, or if one is also a class.
    """
    ignored = ignored_ids(ignore_class, num_classes)
    if not ignored:
        beyond = 255 if (num_classes or 0) <= 255 else 65535
        raise ValueError(
            "An augmentation pads masks with an ignored id, so there must be one. Pass "
            f"`ignore_class={beyond}` here and to `compile`. Received: "
            f"ignore_class={ignore_class!r}, num_classes={num_classes}"
        )
    return ignored


def check_rare(rare_classes, ignored, num_classes=None):
    """Validate that rare classes are classes.

    Raises:
        ValueError: If one is an ignored id, or not below `num_classes`.
    """
    below = np.inf if num_classes is None else num_classes
    wrong = [c for c in rare_classes if c in ignored or c >= below]
    if wrong:
        raise ValueError(
            "`rare_classes` of an augmentation must be classes, and no ignored ids. "
            f"Received: rare_classes={rare_classes} with {wrong}, ignore_class="
            f"{ignored}, num_classes={num_classes}"
        )


def check_photometric(channels, dtype="uint8"):
    """Validate that an augmentation can change the colors of images.

    Raises:
        ValueError: If they are neither gray nor RGB, or not uint8.
    """
    if channels not in (1, 3) or dtype != "uint8":
        raise ValueError(
            "An augmentation changes the colors of uint8 images with 1 or 3 channels "
            "only. For others, pass photometric=False to Augmentation. Received: "
            f"images of {channels} channels and dtype {dtype}"
        )
