"""Images and masks read from a folder on disk."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

from keras_segadapter.validation import check_integer, check_size
from keras_segadapter.data.augmentation import check_augmentation
from keras_segadapter.data.label_table import BLACK_AND_WHITE, LabelTable
from keras_segadapter.data.layouts import find_pairs
from keras_segadapter.data.reading import (
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from keras_segadapter.data.epochs import epoch_order


class FolderDataset(keras.utils.PyDataset):
    """Batches of images and masks from a folder, or from lists of files.

    The folder holds `images/` and `masks/` with jpg, jpeg or png files; an image
    and its mask have the same name up to the suffix. A mask is a grey or palette
    picture whose values are class ids. `open_folder` opens the layouts of known
    datasets.

    The order of the files depends on `seed` and `epoch` only, and what `augmentation`
    makes of a file on these and the file's number. `Segmenter.fit` sets `epoch`: it
    goes on from an earlier `fit`, or from `initial_epoch`. In a training loop of your
    own set it before each pass. Another model's `fit` adds one after each pass, and
    before its first; pass `shuffle=False` there, or Keras mixes the batches itself,
    with Python's global random state.

    Args:
        folder: Path of the folder, or a pair `(image_paths, mask_paths)`, two lists
            of files in the same order.
        num_classes: Number of classes, 2 or more, if masks hold the ids
            `0..num_classes - 1`; else leave it out and pass `labels`.
        batch_size: Number of images in a batch. The last batch may be smaller.
        image_size: `(height, width)` to resize to, images smoothly and masks by
            the nearest pixel. By default files keep their size, which must then be
            the same within a batch.
        augmentation: `Augmentation` that makes a new view of each image in each epoch,
            for training, in place of `image_size`.
        ignore_class: Id, or list of ids, that masks may hold besides the classes;
            `None` for none.
        labels: `Labels`, which name the classes and may map the ids in the masks to
            them.
        shuffle: Whether to give each epoch an order of its own.
        seed: Non-negative integer that picks these orders and the views.
        threads: Number of threads that read the files of a batch. Nothing else
            depends on it.

    Attributes:
        epoch: Number of the current pass, from 0.
        image_paths: List of the image files; of a folder, sorted.
        mask_paths: List of the mask files, in the order of the images.
        num_classes: Number of classes.
        ignore_class: As passed.
        class_names: Tuple of the names in `labels`, or `None`.
        colors: RGB colors in `labels`, uint8 of shape `(num_classes, 3)`, or `None`.

    Returns:
        A `keras.utils.PyDataset` of batches `(images, masks)`: RGB images, uint8 of
        shape `(batch, height, width, 3)`, and class ids of shape
        `(batch, height, width)`, uint8, or int32 if an id can exceed 255.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of them,
            `labels` are no `Labels`, or `augmentation` is no `Augmentation`.
        ValueError: If the folder is not as described, an argument is not what is
            asked for above, or, when a batch is made, one of its files is faulty.

    Example:

    ```python
    from pathlib import Path
    from PIL import Image
    from keras_segadapter.data import FolderDataset, make_scenes

    Path("scenes/images").mkdir(parents=True, exist_ok=True)
    Path("scenes/masks").mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(*make_scenes(5))):
        Image.fromarray(image).save(f"scenes/images/{i}.png")
        Image.fromarray(mask).save(f"scenes/masks/{i}.png")

    data = FolderDataset("scenes", num_classes=8, batch_size=2, image_size=(64, 64))
    images, masks = data[0]
    print(len(data), images.shape, masks.shape)  # 3 (2, 64, 64, 3) (2, 64, 64)
    ```
    """

    def __init__(
        self,
        folder,
        num_classes=None,
        *,
        batch_size=8,
        image_size=None,
        augmentation=None,
        ignore_class=255,
        labels=None,
        shuffle=False,
        seed=0,
        threads=4,
    ):
        # No `workers` of Keras: its queue keeps the batches that it read ahead to
        # build the model and hands them out in the first epoch in place of others.
        # Our threads work inside of a batch and cannot change the order.
        super().__init__()
        self._table = LabelTable(num_classes, labels, ignore_class)
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        check_integer("threads", threads, 1)
        if image_size is not None:
            image_size = check_size("image_size", image_size)
        if augmentation is not None:
            check_augmentation(augmentation, image_size, ignore_class)
        self.image_paths, self.mask_paths = _paths(folder)
        self.num_classes = self._table.num_classes
        self.class_names, self.colors = self._table.class_names, self._table.colors
        self.batch_size = batch_size
        self.image_size = image_size
        self.augmentation = augmentation
        self.ignore_class = ignore_class
        self.shuffle = bool(shuffle)
        self.seed = seed
        self.threads = threads
        self.epoch = 0

    @property
    def epoch(self):
        return self._epoch

    @epoch.setter
    def epoch(self, value):
        check_integer("epoch", value, 0)
        self._epoch = value

    def __len__(self):
        return -(-len(self.image_paths) // self.batch_size)  # rounded up

    def __getitem__(self, index):
        """Return batch `index` of the current epoch as `(images, masks)`."""
        if not 0 <= index < len(self):
            raise IndexError(
                f"Batch {index} was asked for, but the dataset has the batches 0 "
                f"to {len(self) - 1}. Ask for one of these."
            )
        count = len(self.image_paths)
        indices = epoch_order(count, self.shuffle, self.seed, self.epoch)
        chosen = indices[index * self.batch_size : (index + 1) * self.batch_size]
        with ThreadPoolExecutor(self.threads) as pool:
            pairs = list(pool.map(self._read, chosen))
        images, masks = zip(*pairs, strict=True)
        for i, image in zip(chosen, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    "The images of a batch must have one size, but "
                    f"{self.image_paths[chosen[0]]} has {images[0].shape[:2]} and "
                    f"{self.image_paths[i]} has {image.shape[:2]}. Pass "
                    "`image_size=(height, width)` to resize them."
                )
        return np.stack(images), np.stack(masks).astype(self._table.dtype)

    def on_epoch_end(self):
        """Go on to the next order; Keras calls this after a pass."""
        self.epoch += 1

    def _read(self, i):
        image, mask = self._read_whole(i)
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.epoch, i])
            return self.augmentation(image, mask, rng, self.ignore_class)
        if self.image_size is None:
            return image, mask
        return resize_image(image, self.image_size), resize_mask(mask, self.image_size)

    def _read_whole(self, i):
        """Return image i (H, W, 3) and its classes (H, W), both checked."""
        image, mask = read_image(self.image_paths[i]), read_mask(self.mask_paths[i])
        if image.shape[:2] != mask.shape:
            raise ValueError(
                f"The image {self.image_paths[i]} has the size {image.shape[:2]} "
                f"(height, width), but its mask {self.mask_paths[i]} has {mask.shape}. "
                "Make their sizes equal."
            )
        return image, self._table.look_up(mask, self.mask_paths[i])


def check_folder(folder, num_classes=None, ignore_class=255):
    """Read every image and mask of a folder as it is, and stop at the first fault.

    Call it once before a training, which would else stop at a faulty file much
    later or, worse, learn from a wrong mask.

    Args:
        folder: Path of a folder with `images/` and `masks/`, or a `FolderDataset`,
            whose own classes count then.
        num_classes: Number of classes, 2 or more; not for a `FolderDataset`.
        ignore_class: Id, or list of ids, that masks may hold besides the classes;
            `None` for none. A `FolderDataset` has its own.

    Returns:
        A dictionary: `"images"`, the number of images; `"pixels"`, the number of
        pixels of each class, int64 of shape `(num_classes,)`; `"ignored"`, the
        number of ignored pixels; `"sizes"`, the sorted list of the sizes
        `(height, width)`.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of them.
        ValueError: If the folder is not as described, a file cannot be read, an
            image and its mask differ in size, or a mask holds an id that has no
            class and is not ignored.

    Example:

    ```python
    from pathlib import Path
    from PIL import Image
    from keras_segadapter.data import check_folder, make_scenes

    Path("scenes/images").mkdir(parents=True, exist_ok=True)
    Path("scenes/masks").mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(*make_scenes(5))):
        Image.fromarray(image).save(f"scenes/images/{i}.png")
        Image.fromarray(mask).save(f"scenes/masks/{i}.png")

    report = check_folder("scenes", num_classes=8)
    print(report["images"], report["sizes"])  # 5 [(96, 96)]
    ```
    """
    data = folder
    if not isinstance(data, FolderDataset):
        data = FolderDataset(folder, num_classes, ignore_class=ignore_class)
    elif num_classes is not None:
        raise ValueError(
            f"The dataset knows its {data.num_classes} classes. Leave `num_classes` "
            f"out. Received: num_classes={num_classes}"
        )

    def count(i):
        _, mask = data._read_whole(i)
        return mask.shape, *np.unique(mask, return_counts=True)

    sizes, pixels = set(), {}
    with ThreadPoolExecutor(data.threads) as pool:
        for size, ids, counts in pool.map(count, range(len(data.image_paths))):
            sizes.add(size)
            for id_, number in zip(ids.tolist(), counts.tolist(), strict=True):
                pixels[id_] = pixels.get(id_, 0) + number
    ignored, mapped = data._table.ignored, data._table.label_map is not None
    if set(pixels) == {0, 255} and 255 in ignored and not mapped:
        raise ValueError(
            f"The masks in {data.mask_paths[0].parent} hold only the ids 0 and 255, "
            "and 255 is ignored, so nothing but class 0 would be learned. "
            + BLACK_AND_WHITE
        )
    classes = range(data.num_classes)
    classes = [0 if i in ignored else pixels.get(i, 0) for i in classes]
    return {
        "images": len(data.image_paths),
        "pixels": np.array(classes, "int64"),
        "ignored": sum(pixels.get(i, 0) for i in set(ignored)),
        "sizes": sorted(sizes),
    }


def open_folder(folder, split="train", *, layout=None, labels=None, **options):
    """Open one split of a dataset as it was unpacked.

    | layout | images | masks |
    |---|---|---|
    | `"ade20k"` | `images/training/*.jpg` | `annotations/training/*.png` |
    | `"cityscapes"` | `leftImg8bit/train/CITY/*_leftImg8bit.png` | \
`gtFine/train/CITY/*_gtFine_labelIds.png` |
    | `"coco_stuff"` | `images/train2017/*.jpg` | `annotations/train2017/*.png` |
    | `"pascal_voc"` | `JPEGImages/*.jpg` | `SegmentationClass/*.png` |
    | `"plain_splits"` | `train/images/*` | `train/masks/*` |
    | `"plain"` | `images/*` | `masks/*` |

    COCO-Stuff's `stuffthingmaps` are put into `annotations/`, one folder a split.
    Pascal VOC's splits are lists, `ImageSets/Segmentation/train.txt`. Masks of
    Cityscapes and COCO-Stuff that hold classes already, `*_labelTrainIds.png`, are
    taken where the original ones are missing.

    Args:
        folder: Path of the folder that holds these folders.
        split: `"train"` or `"val"`; `None` for the layout `"plain"`, which has none.
        layout: Name of the layout. By default the folder shows it.
        labels: `Labels`, in place of those that belong to the layout.
        **options: As for `FolderDataset`; the plain layouts need `num_classes` or
            `labels`.

    Returns:
        A `FolderDataset`.

    Raises:
        TypeError: As `FolderDataset`.
        ValueError: As `FolderDataset`; also if the folder has not the layout, or an
            image or a mask is missing.

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


def _paths(source):
    """Return the lists of image files and mask files."""
    if isinstance(source, (str, os.PathLike)):
        images, masks, _ = find_pairs(source, None, "plain")
        return images, masks
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise ValueError(
            "`folder` must be a path or a pair (image_paths, mask_paths). Received: "
            f"folder={source!r}"
        )
    images, masks = ([Path(path) for path in paths] for paths in source)
    if not images or len(images) != len(masks):
        raise ValueError(
            "A pair of lists must name at least one image and a mask for each. "
            f"Received: {len(images)} images and {len(masks)} masks"
        )
    return images, masks
