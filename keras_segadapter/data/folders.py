"""Images and masks read from a folder on disk."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from keras_segadapter.data.ahead import Readers
from keras_segadapter.data.augmentation import check_augmentation
from keras_segadapter.data.counting import count_classes, count_ids
from keras_segadapter.data.disk import show_progress
from keras_segadapter.data.epochs import epoch_order
from keras_segadapter.data.label_table import LabelTable
from keras_segadapter.data.pairs import read_classes, read_pair
from keras_segadapter.data.resizing import resize_image, resize_mask
from keras_segadapter.data.sources import check_shard, find_files
from keras_segadapter.validation import check_integer, check_size


class FolderDataset(keras.utils.PyDataset):
    """Batches of images and masks from a folder, or from lists of files.

    `open_folder` opens one split of a dataset, finds its classes, and describes which
    images and masks belong together. A mask is a picture whose values are class ids, or
    whose colors or ids `labels` map to classes; or a `.npy` file of ids.

    A batch is a pair of images `(B, H, W, channels)` and class ids `(B, H, W)`, uint8,
    or int32 if an id can exceed 255. Images are uint8; those in `.npy` files, and those
    of other than 1, 3 or 4 channels, may also be uint16 or float32.

    The order of the files depends only on `seed` and `epoch`, and what `augmentation`
    makes of a file on these and the index of the file. `Segmenter.fit` sets `epoch`: it
    continues from an earlier `fit`, or from `initial_epoch`. In your own training loop,
    set it before each pass. The `fit` of other models adds one after each pass, and
    before its first; pass `shuffle=False` there, or Keras shuffles the batches itself,
    with Python's global random state.

    The next two batches are read while a model trains on one. `Segmenter` and
    `evaluate_images` end the threads or processes that do so when they are done; after
    a loop of your own, `close` does.

    Args:
        source: Path of the folder, or a pair `(image_paths, mask_paths)` of lists of
            files in the same order.
        num_classes: Integer of at least 2 if masks hold the ids 0 to `num_classes - 1`;
            else leave it out and pass `labels`. Number of classes.
        batch_size: Integer of at least 1. Number of images per batch; the last batch
            may be smaller. Defaults to `8`.
        image_size: Tuple of integers, `(height, width)`, or None. Size to resize to,
            images by interpolation and masks by the nearest pixel. Defaults to `None`:
            files keep their size, which must be the same within a batch.
        augmentation: `Augmentation` that makes a new view of each image in each epoch,
            for training, in place of `image_size`; or None. Defaults to `None`.
        ignore_class: Integer, list of integers, None, or `"auto"`. Ids that masks may
            hold besides the classes. Defaults to `"auto"`: 255, or none with more than
            255 classes.
        labels: `Labels` that name the classes and may map the ids or colors in the
            masks to them, or None. Defaults to `None`.
        channels: Integer of at least 1. Channels of the images: 3 for RGB, 1 for gray,
            4 for RGBA; others are those of TIFF files with as many bands (which need
            `keras-segadapter[tiff]`) or of `.npy` files `(H, W, channels)`. Defaults to
            `3`.
        resize_masks: Boolean. Whether a mask of another size than its image is resized
            to it, by the nearest pixel, rather than an error. Defaults to `False`.
        shuffle: Boolean. Whether each epoch has an order of its own. Defaults to
            `False`.
        seed: Integer of at least 0. Seed of the orders and views. Defaults to `0`.
        shard: Tuple of integers, `(index, count)`, or None. Which part of each epoch
            this dataset gives, for one of several machines; all parts are of equal
            size, and up to `count - 1` images of an epoch are left out. Defaults to
            `None`: all of it.
        threads: Integer of at least 1. Number of threads that read files; like
            `processes`, it changes no result. Defaults to `4`.
        processes: Integer of at least 0. Number of processes that read files in place
            of the threads, for accelerators that take more images than threads can
            make under Python's one lock. Each takes the memory and the time of an
            import of Keras. A script that trains with them must do so under
            `if __name__ == "__main__":`. Defaults to `0`.

    Attributes:
        epoch: Number of the current pass, from 0.
        fault: The error of the last batch, or None.
        image_paths: List of the image files; sorted, if they come from a folder.
        mask_paths: List of the mask files, in the order of the images.
        num_classes: Number of classes.
        channels: Number of channels.
        labels: The `labels`, as passed.
        ignore_class: The ignored ids, as passed; in place of `"auto"`, 255 or None.
        class_names: Tuple of the names in `labels`, or None.
        colors: RGB colors in `labels`, uint8 `(num_classes, 3)`, or None.

    Raises:
        TypeError: If `ignore_class` is not as described, `labels` is not `Labels`,
            `augmentation` is not an `Augmentation`, or a list does not hold paths.
        ValueError: If the folder or another argument is not as described, or, when a
            batch is made, if one of its files is faulty.

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
        source,
        num_classes=None,
        *,
        batch_size=8,
        image_size=None,
        augmentation=None,
        ignore_class="auto",
        labels=None,
        channels=3,
        resize_masks=False,
        shuffle=False,
        seed=0,
        shard=None,
        threads=4,
        processes=0,
    ):
        super().__init__()
        self._table = LabelTable(num_classes, labels, ignore_class)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.seed = check_integer("seed", seed, 0)
        self.threads = check_integer("threads", threads, 1)
        self.processes = check_integer("processes", processes, 0)
        if image_size is not None:
            image_size = check_size("image_size", image_size)
        self.channels = check_integer("channels", channels, 1)
        self.num_classes = self._table.num_classes
        self.ignore_class = self._table.ignore_class
        if augmentation is not None:
            check_augmentation(
                *(augmentation, image_size, self.ignore_class),
                *(self.num_classes, self.channels),
            )
        self.image_paths, self.mask_paths = find_files(source)
        self.labels, self.resize_masks = labels, bool(resize_masks)
        self.class_names, self.colors = self._table.class_names, self._table.colors
        self.image_size = image_size
        self.augmentation = augmentation
        self.shuffle = bool(shuffle)
        self.shard = check_shard(shard, len(self.image_paths))
        self.epoch = 0
        self.fault = None
        self._readers, self._previous = None, -1

    @property
    def epoch(self):
        return self._epoch

    @epoch.setter
    def epoch(self, value):
        self._epoch = check_integer("epoch", value, 0)

    def __len__(self):
        count = len(self.image_paths) // self.shard[1]
        return -(-count // self.batch_size)  # rounded up

    def __getitem__(self, index):
        """Return batch `index` of the current epoch as `(images, masks)`."""
        if not 0 <= index < len(self):
            raise IndexError(
                f"The index of a batch must be from 0 to {len(self) - 1}. Received: "
                f"index={index}"
            )
        if self._readers is None:
            self._readers = Readers(self._read, self.threads, self.processes)
        # The epoch is a part of the keys only where it makes a difference.
        epoch = self.epoch if self.shuffle or self.augmentation is not None else 0
        count = len(self.image_paths)
        part, parts = self.shard
        order = epoch_order(count, self.shuffle, self.seed, epoch)
        order = order[part::parts][: count // parts]
        keys = [(epoch, i) for i in order.tolist()]
        start, stop = index * self.batch_size, (index + 1) * self.batch_size
        chosen = keys[start:stop]
        # Nothing is known about the next batch where batches are drawn at random.
        goes_on = index in (0, self._previous + 1)
        ahead = 2 * max(self.batch_size, self.processes or self.threads)
        self._previous = index
        try:
            later = keys[stop : stop + ahead] if goes_on else ()
            pairs, self.fault = self._readers.get(chosen, later), None
        except Exception as error:
            self.fault = error
            raise
        images, masks = zip(*pairs, strict=True)
        for (_, i), image in zip(chosen, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    "The images of a batch must have one size. Pass "
                    "`image_size=(height, width)` to resize them. Received: "
                    f"{self.image_paths[chosen[0][1]]} of size {images[0].shape[:2]}, "
                    f"{self.image_paths[i]} of size {image.shape[:2]}"
                )
        return np.stack(images), np.stack(masks)

    def count_pixels(self):
        """Return the number of pixels per class, int64 `(num_classes,)`, in all masks.

        Masks are read at their own size, without augmentation; images are not read.
        """

        def count(path):
            return count_ids(read_classes(path, self._table))

        with ThreadPoolExecutor(self.threads) as pool:
            found = pool.map(count, self.mask_paths)
            found = show_progress(found, len(self.mask_paths), "mask")
            return count_classes(found, self.num_classes)

    def close(self):
        """End the threads or processes that read; the next batch starts new ones."""
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()

    def __getstate__(self):
        return {**self.__dict__, "_readers": None}

    def on_epoch_end(self):
        """Move on to the next order; Keras calls this after a pass."""
        self.epoch += 1

    def _read(self, key):
        """Return an image `(H, W, C)` and its classes `(H, W)`, as a batch has them.

        `key` is `(epoch, i)`.
        """
        epoch, i = key
        image, mask = self._read_whole(i)
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, epoch, i])
            return self.augmentation(image, mask, rng, self._table.ignored)
        if self.image_size is None:
            return image, mask
        return resize_image(image, self.image_size), resize_mask(mask, self.image_size)

    def _read_whole(self, i):
        """Return image i `(H, W, C)` and its classes `(H, W)` at the size of the image.

        Raises:
            ValueError: If one of the two files is faulty.
        """
        paths = self.image_paths[i], self.mask_paths[i]
        return read_pair(*paths, self._table, self.channels, self.resize_masks)


@contextlib.contextmanager
def reading(*sources):
    """End the readers of the `FolderDataset`s among sources when a use of them ends.

    Faults of files are raised as they were, where TensorFlow would tell them as text.
    """
    folders = [source for source in sources if isinstance(source, FolderDataset)]
    for folder in folders:
        folder.fault = None  # of an earlier use
    try:
        yield
    except Exception:
        for fault in filter(None, (folder.fault for folder in folders)):
            raise fault from None
        raise
    finally:
        for folder in folders:
            folder.close()
