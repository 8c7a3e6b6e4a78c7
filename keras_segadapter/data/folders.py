"""Images and masks read from a folder on disk."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageOps

from keras_segadapter.checks import (
    check_integer,
    check_num_classes,
    check_size,
    ignored_ids,
)

SUFFIXES = (".jpg", ".jpeg", ".png")
BLACK_AND_WHITE = (
    "This looks like a black and white picture: write the masks anew with 1 in place "
    "of 255."
)


class FolderDataset(keras.utils.PyDataset):
    """Batches of images and masks from a folder.

    The folder holds `images/` and `masks/` with jpg, jpeg or png files; an image
    and its mask have the same name up to the suffix. A mask is a grey or palette
    picture whose values are class ids.

    The order of the files depends on `seed` and `epoch` only. `epoch` counts the
    passes over the dataset: a pass that `fit` completes adds one. Set it to go on
    with an interrupted training, `data.epoch = 7`, or in a training loop of your
    own. `Segmenter.fit` keeps this order; for another model pass `shuffle=False` to
    `fit`, or Keras mixes the batches itself, with Python's global random state.

    Args:
        folder: Path of the folder.
        num_classes: Number of classes, 2 or more; the ids are
            `0..num_classes - 1`.
        batch_size: Number of images in a batch. The last batch may be smaller.
        image_size: `(height, width)` to resize to, images smoothly and masks by
            the nearest pixel. By default files keep their size, which must then be
            the same within a batch.
        ignore_class: Id, or list of ids, that masks may hold besides the classes;
            `None` for none.
        shuffle: Whether to give each epoch an order of its own.
        seed: Non-negative integer that picks these orders.
        threads: Number of threads that read the files of a batch. The order does
            not depend on it.

    Attributes:
        epoch: Number of the current pass, from 0.
        image_paths: Sorted list of the image files.
        mask_paths: List of the mask files, in the order of the images.
        num_classes: As passed.
        ignore_class: As passed.

    Returns:
        A `keras.utils.PyDataset` of batches `(images, masks)`: RGB images, uint8 of
        shape `(batch, height, width, 3)`, and class ids of shape
        `(batch, height, width)`, uint8, or int32 if an id can exceed 255.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of them.
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
        num_classes,
        *,
        batch_size=8,
        image_size=None,
        ignore_class=255,
        shuffle=False,
        seed=0,
        threads=4,
    ):
        # No `workers` of Keras: its queue keeps the batches that it read ahead to
        # build the model and hands them out in the first epoch in place of others.
        # Our threads work inside of a batch and cannot change the order.
        super().__init__()
        check_num_classes(num_classes)
        self._ignored = ignored_ids(ignore_class)
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        check_integer("threads", threads, 1)
        if image_size is not None:
            image_size = check_size("image_size", image_size)
        self.image_paths, self.mask_paths = _find_pairs(folder)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.image_size = image_size
        self.ignore_class = ignore_class
        self.shuffle = bool(shuffle)
        self.seed = seed
        self.threads = threads
        self.epoch = 0
        self._in_pass = False
        self._before_fit = True
        # One type for all batches, whichever ids they happen to hold.
        largest = max(num_classes - 1, *self._ignored, 0)
        self._mask_dtype = "uint8" if largest < 256 else "int32"

    @property
    def epoch(self):
        return self._epoch

    @epoch.setter
    def epoch(self, value):
        check_integer("epoch", value, 0)
        self._epoch = value
        self._batches_read = set()

    def __len__(self):
        return -(-len(self.image_paths) // self.batch_size)  # rounded up

    def __getitem__(self, index):
        """Return batch `index` of the current epoch as `(images, masks)`."""
        if not 0 <= index < len(self):
            raise IndexError(
                f"Batch {index} was asked for, but the dataset has the batches 0 "
                f"to {len(self) - 1}. Ask for one of these."
            )
        if self._in_pass:
            self._batches_read.add(index)
        order = np.arange(len(self.image_paths))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
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
        return np.stack(images), np.stack(masks).astype(self._mask_dtype)

    def on_epoch_begin(self):
        """Note that Keras starts a pass."""
        self._in_pass = True

    def on_epoch_end(self):
        """Count the pass that ends here, if it was a whole one."""
        # `fit` and `evaluate` also call this before their first epoch, at times
        # after a batch was read to build the model. That must not count, or the
        # first epoch would be number 1.
        if self._before_fit:
            self._batches_read.clear()
        elif len(self._batches_read) == len(self):
            self._epoch += 1
            self._batches_read.clear()
        self._in_pass = self._before_fit = False

    def _read(self, i):
        image, mask = _read_pair(
            self.image_paths[i], self.mask_paths[i], self.num_classes, self._ignored
        )
        if self.image_size is not None:
            image = _resize(image, self.image_size, Image.Resampling.BILINEAR)
            mask = _resize(mask, self.image_size, Image.Resampling.NEAREST)
        return image, mask


def check_folder(folder, num_classes, ignore_class=255):
    """Read every image and mask of a folder and stop at the first fault.

    Call it once before a training, which would else stop at a faulty file much
    later or, worse, learn from a wrong mask.

    Args:
        folder: Path of a folder with `images/` and `masks/`, as for
            `FolderDataset`.
        num_classes: Number of classes, 2 or more.
        ignore_class: Id, or list of ids, that masks may hold besides the classes;
            `None` for none.

    Returns:
        A dictionary: `"images"`, the number of images; `"pixels"`, the number of
        pixels of each class, int64 of shape `(num_classes,)`; `"ignored"`, the
        number of ignored pixels; `"sizes"`, the sorted list of the sizes
        `(height, width)`.

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of them.
        ValueError: If the folder is not as described, a file cannot be read, an
            image and its mask differ in size, or a mask holds something else than
            the ids of classes and ignored ids.

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
    check_num_classes(num_classes)
    ignored = ignored_ids(ignore_class)
    image_paths, mask_paths = _find_pairs(folder)

    def count(image_path, mask_path):
        _, mask = _read_pair(image_path, mask_path, num_classes, ignored)
        return mask.shape, *np.unique(mask, return_counts=True)

    sizes, pixels = set(), {}
    with ThreadPoolExecutor(4) as pool:
        for size, ids, counts in pool.map(count, image_paths, mask_paths):
            sizes.add(size)
            for id_, number in zip(ids.tolist(), counts.tolist(), strict=True):
                pixels[id_] = pixels.get(id_, 0) + number
    if set(pixels) == {0, 255} and 255 in ignored:
        raise ValueError(
            f"The masks in {mask_paths[0].parent} hold only the ids 0 and 255, and "
            "255 is ignored, so nothing but class 0 would be learned. "
            + BLACK_AND_WHITE
        )
    classes = [0 if i in ignored else pixels.get(i, 0) for i in range(num_classes)]
    return {
        "images": len(image_paths),
        "pixels": np.array(classes, "int64"),
        "ignored": sum(pixels.get(i, 0) for i in set(ignored)),
        "sizes": sorted(sizes),
    }


def _find_pairs(folder):
    """Return the image paths, sorted, and the mask path of each."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"The folder {folder} does not exist or is not a folder. Pass the path "
            "of a folder that holds the folders images and masks."
        )
    images, masks = _find_files(folder / "images"), _find_files(folder / "masks")
    for lonely, other in ((images, masks), (masks, images)):
        missing = sorted(lonely[stem] for stem in lonely.keys() - other.keys())
        if missing:
            kind, wanted = ("image", "mask") if lonely is images else ("mask", "image")
            raise ValueError(
                f"The {kind} {missing[0]} has no {wanted} of the same name in "
                f"{folder / wanted}s ({len(missing)} such files in all). Add the "
                f"{wanted} or remove the {kind}."
            )
    image_paths = sorted(images.values())
    return image_paths, [masks[path.stem] for path in image_paths]


def _find_files(folder):
    """Return the picture files in a folder by stem."""
    if not folder.is_dir():
        raise ValueError(
            f"The folder {folder} does not exist. Put the {folder.name} there, as "
            "jpg, jpeg or png files."
        )
    files = {}
    for path in sorted(folder.iterdir()):
        # Some systems write hidden companions of the files, such as `._a.jpg`.
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(
                f"The files {files[path.stem]} and {path} have the same name up to "
                "the suffix, so images and masks cannot be paired. Rename or remove "
                "one of them."
            )
        files[path.stem] = path
    if not files:
        raise ValueError(
            f"The folder {folder} holds no jpg, jpeg or png files. Put the "
            f"{folder.name} there."
        )
    return files


def _read_pair(image_path, mask_path, num_classes, ignored):
    """Return an image (H, W, 3) and its mask (H, W), both checked."""
    image, mask = _read_image(image_path), _read_mask(mask_path)
    if image.shape[:2] != mask.shape:
        raise ValueError(
            f"The image {image_path} has the size {image.shape[:2]} (height, width), "
            f"but its mask {mask_path} has {mask.shape}. Make their sizes equal."
        )
    if mask.max() < num_classes:  # ids are never negative
        return image, mask
    found = np.unique(mask).tolist()
    wrong = [id_ for id_ in found if id_ >= num_classes and id_ not in ignored]
    if wrong:
        fix = "Correct the mask, `num_classes` or `ignore_class`."
        raise ValueError(
            f"The mask {mask_path} holds the ids {_listed(wrong)}, but only ids from "
            f"0 to {num_classes - 1} and the ignored ids {ignored} are allowed. "
            + (BLACK_AND_WHITE if set(found) <= {0, 255} else fix)
        )
    return image, mask


def _listed(ids):
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")


def _open(path, kind):
    """Read a whole picture file, turned as its EXIF orientation says."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture)
    except Exception as error:  # the decoders of Pillow raise all kinds of errors
        raise ValueError(
            f"The {kind} {path} cannot be read: {error}. Replace the file, or remove "
            "it together with its partner."
        ) from error


def _read_image(path):
    picture = _open(path, "image")
    if picture.mode.startswith("I"):  # 16 bits: keep the upper ones
        picture = Image.fromarray((np.asarray(picture) >> 8).astype("uint8"))
    if picture.mode == "P":
        # Directly to RGB, Pillow would warn about transparent palette colors.
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))  # (H, W, 3)


def _read_mask(path):
    picture = _open(path, "mask")
    mask = np.asarray(picture)  # of a palette picture, the palette index
    if picture.mode in ("RGB", "RGBA"):
        if (mask[..., :1] != mask[..., 1:3]).any():
            raise ValueError(
                f"The mask {path} is a picture in colors (mode {picture.mode}), not "
                "class ids. Convert its colors to ids and save them as a grey PNG."
            )
        mask = mask[..., 0]  # (H, W)
    elif picture.mode == "LA":
        mask = mask[..., 0]
    elif picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise ValueError(
            f"The mask {path} has the picture mode {picture.mode}, which holds no "
            "class ids. Save the ids as a grey PNG."
        )
    return mask.astype("int32" if picture.mode.startswith("I") else "uint8")


def _resize(array, size, resampling):
    height, width = size
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))
