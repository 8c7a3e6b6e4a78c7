"""Class weights of one `fit`, as they are given or counted in its data."""

import keras
from keras import ops

from keras_segadapter.data.counting import count_classes, count_ids
from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.losses.class_weight import (
    balanced_class_weight,
    checked_class_weight,
    weight_of_each_class,
)
from keras_segadapter.losses.crossentropy import SegmentationCrossentropy


def weigh_classes(model, class_weight, x, y=None):
    """Give the cross-entropies of a compiled model their class weights.

    Args:
        model: A compiled `Segmenter`.
        class_weight: As in `SegmentationCrossentropy`, or `"balanced"` for the bounded
            weights of `balanced_class_weight`, which are printed.
        x: Images, or a source of batches.
        y: Masks, or a dict of them by output; None with a source of batches.

    Raises:
        TypeError: If the weights are neither a list, a dict nor `"balanced"`.
        ValueError: If they do not fit the classes, if there is no cross-entropy, or if
            the masks can't be counted.
    """
    losses = [
        part
        for loss in keras.tree.flatten(model.loss)
        for part in [loss, *getattr(loss, "losses", ())]
        if isinstance(part, SegmentationCrossentropy)
    ]
    if not losses:
        raise ValueError(
            "`class_weight` weighs the classes in SegmentationCrossentropy, alone or "
            "in a MaskLoss. Leave it out, or compile with such a loss. Received: "
            f"class_weight={class_weight!r}, loss={model.loss}"
        )
    if isinstance(class_weight, str) and class_weight == "balanced":
        class_weight = _balance(model, x, y)
    weights = checked_class_weight(class_weight)
    weight_of_each_class(weights, model.num_classes)
    for loss in losses:
        loss.class_weight = weights
    # Steps that were compiled before hold the weights of then.
    model.train_function = model.test_function = None


def _balance(model, x, y):
    """Return weights by the pixels of each class, and print them."""
    if isinstance(x, FolderDataset):
        pixels, count = x.count_pixels(), len(x.mask_paths)
    else:
        counts = [count_ids(mask) for mask in _masks(x, y)]
        pixels, count = count_classes(counts, model.num_classes), len(counts)
    weights = balanced_class_weight(pixels, bounded=True)
    names = model.class_names or range(model.num_classes)
    shown = [
        f"{name} {weight:.3g}" + (" (has no pixel)" if not n else "")
        for name, weight, n in zip(names, weights, pixels, strict=True)
    ]
    print(f"class weights, by the pixels of {count} masks: {', '.join(shown)}")
    return weights


def _masks(x, y):
    """Yield the masks `(H, W)` of one pass over data.

    Raises:
        ValueError: If the length of a source of batches is not known: it may never end,
            or have no second pass.
    """
    batches, epoch = [(x, y)], getattr(x, "epoch", None)
    if y is None:
        try:
            count = len(x)
        except TypeError as error:
            raise ValueError(
                "class_weight='balanced' counts the masks of one pass over the data, "
                "whose length must be known. Count a part of it, and pass class_weight="
                "keras_segadapter.balanced_class_weight(pixels, bounded=True). "
                f"Received: x={x!r}"
            ) from error
        batches = x
        if isinstance(x, keras.utils.PyDataset):  # which may give batches without end
            batches = (x[i] for i in range(count))
    if epoch is not None:
        x.epoch = 0  # which gives the same views in a training that is resumed
    try:
        for batch in batches:
            for masks in keras.tree.flatten(batch[1]):
                masks = ops.convert_to_numpy(masks)  # (B, H, W) or (B, H, W, 1)
                masks = masks.reshape(masks.shape[:3])
                yield from masks.astype("int64") if masks.dtype.kind == "f" else masks
    finally:
        if epoch is not None:
            x.epoch = epoch
