"""One split of a dataset, from the folders that it is unpacked into."""

from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.layouts import find_pairs


def open_folder(folder, split="train", *, layout=None, labels=None, **options):
    """Open one split of a dataset in the folders that it is unpacked into.

    | layout | images | masks |
    |---|---|---|
    | `"ade20k"` | `images/training/*.jpg` | `annotations/training/*.png` |
    | `"cityscapes"` | `leftImg8bit/train/CITY/*_leftImg8bit.png` | \
`gtFine/train/CITY/*_gtFine_labelIds.png` |
    | `"coco_stuff"` | `images/train2017/*.jpg` | `annotations/train2017/*.png` |
    | `"pascal_voc"` | `JPEGImages/*.jpg` | `SegmentationClass/*.png` |
    | `"plain_splits"` | `train/images/*` | `train/masks/*` |
    | `"plain"` | `images/*` | `masks/*` |

    Unpack COCO-Stuff's `stuffthingmaps` into `annotations/`, one folder per split.
    The splits of Pascal VOC are lists, such as `ImageSets/Segmentation/train.txt`.
    Masks of Cityscapes and COCO-Stuff that already hold classes,
    `*_labelTrainIds.png`, are used where the original ones are missing.

    Args:
        folder: Path of the folder that holds these folders.
        split: `"train"` or `"val"`; None for the layout `"plain"`, which has no splits.
            Defaults to `"train"`.
        layout: String, or None. Name of the layout. Defaults to `None`: the one whose
            folders exist.
        labels: `Labels` in place of those that belong to the layout, or None. Defaults
            to `None`.
        **options: As in `FolderDataset`. The plain layouts need `num_classes` or
            `labels`.

    Returns:
        A `FolderDataset`.

    Raises:
        TypeError: As in `FolderDataset`.
        ValueError: As in `FolderDataset`; also if the folder does not have the layout,
            or if an image or a mask is missing.

    Example:

    ```python
    from pathlib import Path
    import numpy as np
    from PIL import Image
    from keras_segadapter.data import check_folder, open_folder

    for kind in ("images", "annotations"):
        Path(f"ade/{kind}/training").mkdir(parents=True, exist_ok=True)
    ids = np.array([[0, 1], [1, 150]], "uint8")  # other, wall, wall, flag
    Image.new("RGB", (2, 2)).save("ade/images/training/a.jpg")
    Image.fromarray(ids).save("ade/annotations/training/a.png")

    data = open_folder("ade", "train", batch_size=1)
    print(data.num_classes, data.class_names[149], data[0][1][0].tolist())
    # 150 flag [[255, 0], [0, 149]]
    print(check_folder(data)["ignored"])  # 1
    ```
    """
    images, masks, known = find_pairs(folder, split, layout)
    if labels is None:
        labels = known
    return FolderDataset((images, masks), labels=labels, **options)
