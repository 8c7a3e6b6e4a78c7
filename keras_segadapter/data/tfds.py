"""Images and masks from tensorflow-datasets."""

import numpy as np

from keras_segadapter.validation import check_integer, check_size
from keras_segadapter.data.augmentation import check_augmentation
from keras_segadapter.data.label_table import LabelTable
from keras_segadapter.data.labels import CITYSCAPES, OXFORD_PETS
from keras_segadapter.data.reading import resize_image, resize_mask

KNOWN = {"cityscapes": CITYSCAPES, "oxford_iiit_pet": OXFORD_PETS}
# Images that wait, resized, to be drawn from.
SHUFFLED = 256


def open_tfds(
    name,
    split="train",
    *,
    image_size=None,
    augmentation=None,
    num_classes=None,
    batch_size=8,
    ignore_class=255,
    labels=None,
    features=None,
    shuffle=False,
    seed=0,
    data_dir=None,
):
    """Open a split of a dataset of tensorflow-datasets that has images and masks.

    The masks of `oxford_iiit_pet` and `cityscapes` are mapped to the classes of
    `OXFORD_PETS` and `CITYSCAPES`. `scene_parse150` is refused: it numbers
    instances, not ADE20K's classes. The first call downloads the dataset.

    Install `keras-segadapter[data]`. TensorFlow reads the data whatever Keras'
    backend is. Under JAX or PyTorch on a GPU, keep TensorFlow from taking its memory:
    `tf.config.set_visible_devices([], "GPU")` before the first call.

    The order of the images depends on `seed` and `epoch` only, and what `augmentation`
    makes of an image on these and the image's number. `Segmenter.fit` sets `epoch` as
    it does for a `FolderDataset`; else each pass that begins adds one to it.

    Args:
        name: Name of the dataset, with configuration and version if wanted.
        split: Split as tensorflow-datasets writes it, such as `"train[:80%]"`.
        image_size: `(height, width)` to resize to, images smoothly and masks by
            the nearest pixel.
        augmentation: `Augmentation` that makes a new view of each image in each epoch,
            for training, in place of `image_size`.
        num_classes: Number of classes, 2 or more, if the masks of another dataset
            hold the ids `0..num_classes - 1`.
        batch_size: Number of images in a batch. The last batch may be smaller.
        ignore_class: Id, or list of ids, that masks may hold besides the classes;
            `None` for none.
        labels: `Labels` of the masks of another dataset.
        features: Names `(image, mask)` of the features. By default the only picture
            with three channels and the only one with one channel.
        shuffle: Whether to give each epoch an order of its own. Batches are drawn
            from 256 images that follow each other in the order in which
            tensorflow-datasets stored them, which is mixed for most datasets.
        seed: Non-negative integer that picks these orders and the views.
        data_dir: Folder of the datasets, where not the usual one.

    Returns:
        A `tf.data.Dataset` for `fit` and `evaluate`, of batches `(images, masks)`:
        RGB images, uint8 of shape `(batch, height, width, 3)`, and classes of shape
        `(batch, height, width)`, uint8, or int32 if an id can exceed 255. As with
        `keras.utils.image_dataset_from_directory` it bears attributes, which a
        dataset made from it has not: `num_classes`, `ignore_class`,
        `class_names` and `colors`, `None` without labels, and `epoch`, the number of
        the next pass, from 0.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        TypeError: If `ignore_class` is neither None, an integer nor a list of them,
            `labels` are no `Labels`, or `augmentation` is no `Augmentation`.
        ValueError: If an argument is not what is asked for above, or the dataset has
            not one image and one mask. A mask with an id that has no class stops the
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
            "The images of a dataset have many sizes, so a size for batches is needed. "
            "Pass `image_size=(height, width)`, or `augmentation` for training."
        )
    if augmentation is not None:
        check_augmentation(augmentation, image_size, ignore_class)
    size = image_size or augmentation.crop_size
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "open_tfds needs tensorflow-datasets and TensorFlow. Install them: pip "
            "install keras-segadapter[data]"
        ) from error
    builder = tfds.builder(name, data_dir=data_dir)
    table = _table(builder.name, num_classes, labels, ignore_class)
    image_name, mask_name = _choose_features(
        builder.info.features, features, tfds.features.Image
    )

    def begin_pass():
        epoch = check_integer("epoch", data.epoch, 0)
        data.epoch = epoch + 1
        return np.int64(epoch), np.random.default_rng([seed, epoch]).integers(2**31)

    def prepare(image, mask, epoch, index):
        classes = table.look_up(mask[..., 0], f"of {name}, {split}")  # (H, W)
        if augmentation is None:
            image, classes = resize_image(image, size), resize_mask(classes, size)
        else:
            rng = np.random.default_rng([seed, epoch, index])
            image, classes = augmentation(image, classes, rng, ignore_class)
        return image, classes.astype(table.dtype)

    def one_pass(_):
        # Read anew in each pass: Python's value is no part of tf.data's graph.
        epoch, order = tf.numpy_function(begin_pass, [], [tf.int64, tf.int64])

        def pair(index, example):
            # NumPy's functions, so that the pixels are those that a folder would give.
            image, mask = tf.numpy_function(
                prepare,
                [example[image_name], example[mask_name], epoch, index],
                [tf.uint8, table.dtype],
            )
            return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(mask, size)

        pairs = stored.enumerate().map(pair, num_parallel_calls=tf.data.AUTOTUNE)
        # The seed of this function's graph alone, else tf.random.set_seed would have a
        # say in the order.
        tf.compat.v1.set_random_seed(1)
        return pairs.shuffle(SHUFFLED, order) if shuffle else pairs

    builder.download_and_prepare()
    # Files in their own order, so that an image has the same number in each pass.
    stored = builder.as_dataset(split=split)
    data = tf.data.Dataset.range(1).flat_map(one_pass)
    if stored.cardinality() >= 0:
        data = data.apply(tf.data.experimental.assert_cardinality(len(stored)))
    data = data.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    data.epoch = 0
    data.num_classes, data.ignore_class = table.num_classes, ignore_class
    data.class_names, data.colors = table.class_names, table.colors
    return data


def _table(name, num_classes, labels, ignore_class):
    if name == "scene_parse150":
        raise ValueError(
            "scene_parse150 holds instance masks: their ids count objects and are not "
            "ADE20K's classes. Unpack ADEChallengeData2016.zip and open it with "
            "keras_segadapter.data.open_folder."
        )
    if labels is None and num_classes is None:
        labels = KNOWN.get(name)
        if labels is None:
            raise ValueError(
                f"What the masks of {name} hold is not known here. Pass `num_classes`, "
                "if they hold the classes 0..num_classes - 1, or `labels`."
            )
    return LabelTable(num_classes, labels, ignore_class)


def _choose_features(features, chosen, picture):
    """Return the names of the image and of the mask among a dataset's features."""
    found = {
        name: (feature.shape[-1], np.dtype(feature.np_dtype).name)
        for name, feature in features.items()
        if isinstance(feature, picture)
    }
    images = [name for name, kind in found.items() if kind == (3, "uint8")]
    ids = [(1, "uint8"), (1, "uint16")]  # a float picture holds a depth or the like
    masks = [name for name, kind in found.items() if kind in ids]
    if chosen is not None:
        images = [name for name in images if name == chosen[0]]
        masks = [name for name in masks if name == chosen[1]]
    if len(images) != 1 or len(masks) != 1:
        raise ValueError(
            "The dataset must have one image with three channels and one mask with a "
            "single channel of ids; of several, pass `features=(image, mask)`. "
            f"Received: features={chosen!r} for the pictures {list(found)}"
        )
    return images[0], masks[0]
