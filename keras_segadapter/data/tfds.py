"""Images and masks from tensorflow-datasets."""

import numpy as np

from keras_segadapter.data.augmentation import check_augmentation
from keras_segadapter.data.label_table import LabelTable
from keras_segadapter.data.labels import CITYSCAPES, OXFORD_PETS
from keras_segadapter.data.resizing import resize_image, resize_mask
from keras_segadapter.extras import import_extra
from keras_segadapter.validation import check_integer, check_size

KNOWN = {"cityscapes": CITYSCAPES, "oxford_iiit_pet": OXFORD_PETS}
# Size of the buffer of resized images that batches are drawn from.
SHUFFLED = 256


def open_tfds(
    name,
    split="train",
    *,
    image_size=None,
    augmentation=None,
    num_classes=None,
    batch_size=8,
    ignore_class="auto",
    labels=None,
    features=None,
    shuffle=False,
    seed=0,
    data_dir=None,
):
    """Open a split of a dataset of tensorflow-datasets that has images and masks.

    The masks of `oxford_iiit_pet` and `cityscapes` are mapped to the classes of
    `OXFORD_PETS` and `CITYSCAPES`. `scene_parse150` is refused, since its masks number
    instances and not ADE20K's classes. The first call downloads the dataset.

    Install `keras-segadapter[data,tensorflow]`: TensorFlow reads the data, whatever
    Keras' backend is. Under JAX or PyTorch on a GPU, keep it from taking the memory of
    the GPU with `tf.config.set_visible_devices([], "GPU")` before the first call.

    The order of the images depends only on `seed` and `epoch`, and what `augmentation`
    makes of an image on these and the index of the image. `Segmenter.fit` sets `epoch`
    as it does for a `FolderDataset`; otherwise each pass that begins adds one to it.

    Args:
        name: String. Name of the dataset, with configuration and version if needed.
        split: String. Split as tensorflow-datasets writes it, such as `"train[:80%]"`.
            Defaults to `"train"`.
        image_size: Tuple of integers, `(height, width)`, or None. Size to resize to,
            images by interpolation and masks by the nearest pixel. Defaults to `None`,
            which needs `augmentation`.
        augmentation: `Augmentation` that makes a new view of each image in each epoch,
            for training, in place of `image_size`; or None. Defaults to `None`.
        num_classes: Integer of at least 2, or None. Number of classes, if the masks of
            another dataset hold the ids 0 to `num_classes - 1`. Defaults to `None`.
        batch_size: Integer of at least 1. Number of images per batch; the last batch
            may be smaller. Defaults to `8`.
        ignore_class: Integer, list of integers, None, or `"auto"`. Ids that masks may
            hold besides the classes. Defaults to `"auto"`: 255, or none with more than
            255 classes.
        labels: `Labels` of the masks of another dataset, or None. Defaults to `None`.
        features: Tuple of strings, `(image, mask)`, or None. Names of the features.
            Defaults to `None`: the only picture with three channels and the only one
            with one channel.
        shuffle: Boolean. Whether each epoch has an order of its own. Batches are drawn
            from 256 successive images of the order in which tensorflow-datasets stores
            them, which is already random for most datasets. Defaults to `False`.
        seed: Integer of at least 0. Seed of the orders and views. Defaults to `0`.
        data_dir: Path of the folder of the datasets, or None. Defaults to `None`: that
            of tensorflow-datasets.

    Returns:
        A `tf.data.Dataset` for `fit` and `evaluate`. A batch is a pair of RGB images,
        uint8 `(B, H, W, 3)`, and class ids `(B, H, W)`, uint8, or int32 if an id can
        exceed 255. The dataset has the attributes `num_classes`, `ignore_class`,
        `class_names` and `colors` (both None without labels) and `epoch`, the number of
        the next pass, from 0. As with `keras.utils.image_dataset_from_directory`,
        datasets derived from it do not have them.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        TypeError: If `ignore_class` is not as described, `labels` is not `Labels`, or
            `augmentation` is not an `Augmentation`.
        ValueError: If an argument is not as described, or if the dataset does not have
            one image and one mask. A mask with an id that has no class stops the
            reading with TensorFlow's `InvalidArgumentError`, which names the id.

    Example:

    ```python
    import keras_segadapter as ksa

    def train(model):  # downloads 800 MB
        data = ksa.data.open_tfds("oxford_iiit_pet", image_size=(128, 128))
        print(data.class_names)  # ('pet', 'background')
        model.fit(data)
    ```
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    if image_size is not None:
        image_size = check_size("image_size", image_size)
    elif augmentation is None:
        raise ValueError(
            "The images of a dataset differ in size, but those of a batch must not. "
            "Pass `image_size=(height, width)`, or `augmentation` for training. "
            "Received: image_size=None"
        )
    tfds = import_extra("tensorflow_datasets", "open_tfds")
    tf = import_extra("tensorflow", "open_tfds")
    builder = tfds.builder(name, data_dir=data_dir)
    table = _table(builder.name, num_classes, labels, ignore_class)
    if augmentation is not None:
        check_augmentation(
            augmentation, image_size, table.ignore_class, table.num_classes
        )
    size = image_size or augmentation.crop_size
    image_name, mask_name = _choose_features(
        builder.info.features, features, tfds.features.Image
    )

    def begin_pass():
        """Return the number of the pass and the seed of its order."""
        epoch = check_integer("epoch", data.epoch, 0)
        data.epoch = epoch + 1
        return np.int64(epoch), np.random.default_rng([seed, epoch]).integers(2**31)

    def prepare(image, mask, epoch, index):
        """Return an image `(H, W, 3)` and its classes `(H, W)`, as a batch has them."""
        classes = table.look_up(mask[..., 0], f"of {name} ({split})")  # (H, W)
        if augmentation is None:
            image, classes = resize_image(image, size), resize_mask(classes, size)
        else:
            rng = np.random.default_rng([seed, epoch, index])
            image, classes = augmentation(image, classes, rng, table.ignored)
        return image, classes

    def one_pass(_):
        # Each pass asks Python, since tf.data's graph would keep the first epoch.
        epoch, order = tf.numpy_function(begin_pass, [], [tf.int64, tf.int64])

        def pair(index, example):
            # NumPy and Pillow make the pixels, so that they are those of a folder.
            image, mask = tf.numpy_function(
                prepare,
                [example[image_name], example[mask_name], epoch, index],
                [tf.uint8, table.dtype],
            )
            return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(mask, size)

        pairs = stored.enumerate().map(pair, num_parallel_calls=tf.data.AUTOTUNE)
        # This seeds only the graph of this function. Otherwise the order would also
        # depend on tf.random.set_seed.
        tf.compat.v1.set_random_seed(1)
        return pairs.shuffle(SHUFFLED, order) if shuffle else pairs

    builder.download_and_prepare()
    # The files are not shuffled, so that an image has the same index in each pass.
    stored = builder.as_dataset(split=split)
    data = tf.data.Dataset.range(1).flat_map(one_pass)
    if stored.cardinality() >= 0:
        data = data.apply(tf.data.experimental.assert_cardinality(len(stored)))
    data = data.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    data.epoch = 0
    data.num_classes, data.ignore_class = table.num_classes, table.ignore_class
    data.class_names, data.colors = table.class_names, table.colors
    return data


def _table(name, num_classes, labels, ignore_class):
    """Return the `LabelTable` of a dataset.

    Raises:
        ValueError: If its classes are not known, or if its masks hold none.
    """
    if name == "scene_parse150":
        raise ValueError(
            "scene_parse150 holds instance masks, whose ids number objects and not "
            "ADE20K's classes. Unpack ADEChallengeData2016.zip and open it with "
            "keras_segadapter.data.open_folder. Received: name='scene_parse150'"
        )
    if labels is None and num_classes is None:
        labels = KNOWN.get(name)
        if labels is None:
            raise ValueError(
                "The classes of this dataset are not known. Pass `num_classes`, if its "
                "masks hold the classes 0 to num_classes - 1, or `labels`. Received: "
                f"name={name!r}"
            )
    return LabelTable(num_classes, labels, ignore_class)


def _choose_features(features, chosen, picture):
    """Return the names of the image and the mask among a dataset's features.

    Raises:
        ValueError: If there is not exactly one of each.
    """
    found = {
        name: (feature.shape[-1], np.dtype(feature.np_dtype).name)
        for name, feature in features.items()
        if isinstance(feature, picture)
    }
    images = [name for name, kind in found.items() if kind == (3, "uint8")]
    ids = [(1, "uint8"), (1, "uint16")]  # float pictures hold depths, for example
    masks = [name for name, kind in found.items() if kind in ids]
    if chosen is not None:
        images = [name for name in images if name == chosen[0]]
        masks = [name for name in masks if name == chosen[1]]
    if len(images) != 1 or len(masks) != 1:
        raise ValueError(
            "The dataset must have one image with three channels and one mask with a "
            "single channel of ids. If it has several, pass `features=(image, mask)`. "
            f"Received: features={chosen!r} for the pictures {list(found)}"
        )
    return images[0], masks[0]
