"""What a folder of images and masks holds, before a model trains on it."""

from keras_segadapter.data.contents import AnyIds
from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.opening import find_source
from keras_segadapter.data.report import FolderReport


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
            source.num_classes, source._table = None, AnyIds(ignore_class)
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
