"""Weights of classes: from counts of pixels, and checked."""

import operator

import numpy as np

from keras_segadapter.validation import check_boolean, check_number


def balanced_class_weight(pixels, bounded=False):
    """Return class weights that are higher the less often a class occurs.

    A class that makes up the share p of N pixels among the P classes that occur weighs
    1 / (P p), so that all of them have the same part in the loss; a class that does not
    occur weighs 1. One of a few pixels can then outweigh all others. Where weights are
    `bounded`, a class weighs 1 / ln(1.02 + p), from 1.4 to 50.5, which is the weight of
    one that does not occur.

    `Segmenter.fit(class_weight="balanced")` counts the pixels by itself, and uses the
    bounded ones.

    Args:
        pixels: Integers `(K,)`. Number of pixels per class.
        bounded: Boolean. Whether no class may weigh much more than others. Defaults to
            `False`.

    Returns:
        List of K floats, for `SegmentationCrossentropy(class_weight=...)`.

    Raises:
        TypeError: If `bounded` is neither True nor False.
        ValueError: If `pixels` are not one count per class, or are all 0.

    Example:

    ```python
    import keras_segadapter as ksa

    weights = ksa.balanced_class_weight([750, 250])
    print(weights)  # [0.666..., 2.0]
    weights = ksa.balanced_class_weight([750, 250], bounded=True)
    print(weights)  # [1.751..., 4.183...]
    loss = ksa.SegmentationCrossentropy(class_weight=weights)
    ```

    Source: scikit-learn's `compute_class_weight("balanced")`; the bounded weights are
    those of ENet (Paszke et al., 2016, arXiv:1606.02147, section 5.2).
    """
    counts = np.asarray(pixels)
    finite = counts.dtype.kind in "uif" and np.isfinite(counts).all()
    if counts.ndim != 1 or not finite or (counts < 0).any() or not counts.any():
        raise ValueError(
            "`pixels` must hold the number of pixels of each class, (num_classes,), "
            f"and not only zeros. Received: pixels={pixels!r}"
        )
    if check_boolean("bounded", bounded):
        return (1 / np.log(1.02 + counts / counts.sum())).tolist()
    occurring = np.count_nonzero(counts)
    weights = counts.sum() / (occurring * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).tolist()


def checked_class_weight(class_weight):
    """Return class weights as a list or dict of floats, or None.

    Raises:
        TypeError: If they are neither a list, a dict nor None.
        ValueError: If one is negative, NaN or infinite, or if all are 0.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, (dict, list, tuple, np.ndarray)):
        raise TypeError(
            "`class_weight` must be a list of one weight per class, or a dict from "
            "classes to weights. For balanced ones call fit(class_weight='balanced'), "
            "or pass keras_segadapter.balanced_class_weight(pixels_per_class). "
            f"Received: class_weight={class_weight!r}"
        )
    named = isinstance(class_weight, dict)
    weights = list(class_weight.values() if named else class_weight)
    try:
        weights = [check_number("class_weight", weight, least=0) for weight in weights]
    except ValueError:
        weights = None
    if weights is None or not (named or any(weights)):
        raise ValueError(
            "`class_weight` must hold finite numbers of at least 0, and not only "
            f"zeros. Received: class_weight={class_weight!r}"
        )
    if not named:
        return weights
    try:  # JSON keeps the classes of a saved dict as text.
        classes = [
            int(c) if isinstance(c, str) else operator.index(c) for c in class_weight
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The keys of `class_weight` must be classes, integers from 0. Received: "
            f"class_weight={class_weight!r}"
        ) from error
    return dict(zip(classes, weights, strict=True))


def weight_of_each_class(class_weight, num_classes):
    """Return a list of `num_classes` weights.

    Raises:
        ValueError: If there are weights of other classes, or too few in a list.
    """
    if not isinstance(class_weight, dict):
        if len(class_weight) != num_classes:
            raise ValueError(
                "`class_weight` must hold one weight per class. Received: "
                f"{len(class_weight)} weights for {num_classes} classes"
            )
        return class_weight
    wrong = sorted(set(class_weight) - set(range(num_classes)))
    if wrong:
        raise ValueError(
            f"`class_weight` must name classes from 0 to {num_classes - 1}. Received: "
            f"class_weight={class_weight} with the classes {wrong}"
        )
    return [class_weight.get(class_, 1.0) for class_ in range(num_classes)]
