"""Datasets of tensorflow-datasets with images and masks, under every backend."""

import sys

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter.data import (
    CITYSCAPES,
    OXFORD_PETS,
    Augmentation,
    Labels,
    open_tfds,
)

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")

SIZE = (16, 24)


def mocked(ids, count=3, size=(8, 12)):
    """Mock a dataset whose mask i is full of the i-th id, and image i of i."""

    def value(feature, i):
        if feature.shape[-1:] == (3,):
            return np.full((*size, 3), i, feature.np_dtype)
        if feature.shape[-1:] == (1,):
            return np.full((*size, 1), ids[i], feature.np_dtype)
        shape = [extent or 1 for extent in feature.shape]
        return tf.zeros(shape, feature.tf_dtype)

    def as_dataset(self, *args, **kwargs):
        features = dict(self.info.features.items())
        data = tf.data.Dataset.from_generator(
            lambda: (
                {name: value(feature, i) for name, feature in features.items()}
                for i in range(count)
            ),
            output_signature={
                # The fixed size of Cityscapes' features would be slow.
                name: tf.TensorSpec(
                    [None, None, feature.shape[-1]]
                    if isinstance(feature, tfds.features.Image)
                    else feature.shape,
                    feature.tf_dtype,
                )
                for name, feature in features.items()
            },
        )
        # Stored datasets have a cardinality, which Keras asks for.
        return data.apply(tf.data.experimental.assert_cardinality(count))

    return tfds.testing.mock_data(as_dataset_fn=as_dataset)


def store(folder, count=6):
    """Write a dataset in the format of tensorflow-datasets; mask i is full of i."""
    examples = [
        {
            "photo": np.full((4, 6, 3), i, "uint8"),
            "classes": np.full((4, 6, 1), i, "uint8"),
        }
        for i in range(count)
    ]
    features = {
        "photo": tfds.features.Image(shape=(4, 6, 3), encoding_format="png"),
        "classes": tfds.features.LabeledImage(shape=(4, 6, 1), labels=count),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="numbered",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(enumerate(examples))},
        data_dir=folder,
        disable_shuffling=True,
    )


def birds(count=6, size=(20, 30), **options):
    """Return an opened dataset of noise, and its images and masks."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *size, 3), "uint8")
    masks = rng.integers(0, 4, (count, *size, 1), "uint8")

    def as_dataset(self, *args, **kwargs):
        features = {"image": images, "segmentation_mask": masks}
        return tf.data.Dataset.from_tensor_slices(features)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        data = open_tfds("caltech_birds2011", num_classes=4, **options)
    return data, images, masks[..., 0]


def whole(data):
    """Return the images beside the masks of one pass."""
    return np.concatenate([np.concatenate([x, y[..., None]], -1) for x, y in data])


def order(data):
    """Return the ids that the masks of one pass are full of."""
    return [int(i) for _, masks in data for i in masks.numpy()[:, 0, 0]]


# Contract


@pytest.mark.parametrize(
    "name, labels, ids, classes",
    [
        ("oxford_iiit_pet", OXFORD_PETS, [1, 2, 3], [0, 1, 255]),
        ("cityscapes", CITYSCAPES, [0, 7, 33], [255, 0, 18]),
    ],
    ids=["oxford_iiit_pet", "cityscapes"],
)
def test_known_datasets(name, labels, ids, classes):
    with mocked(ids):
        data = open_tfds(name, image_size=SIZE, batch_size=2)
        batches = list(data.as_numpy_iterator())
    assert [x.shape for x, _ in batches] == [(2, *SIZE, 3), (1, *SIZE, 3)]
    assert [y.shape for _, y in batches] == [(2, *SIZE), (1, *SIZE)]
    assert all(x.dtype == y.dtype == "uint8" for x, y in batches)
    masks = np.concatenate([y for _, y in batches])
    np.testing.assert_array_equal(masks.min((1, 2)), classes)
    np.testing.assert_array_equal(masks.max((1, 2)), classes)
    images = np.concatenate([x for x, _ in batches])
    np.testing.assert_array_equal(images[:, 3, 5, 1], [0, 1, 2])
    assert data.element_spec[0].shape == (None, *SIZE, 3)
    assert (data.num_classes, data.ignore_class) == (labels.num_classes, 255)
    assert data.class_names == labels.class_names
    np.testing.assert_array_equal(data.colors, labels.colors)


@pytest.mark.parametrize(
    "arguments, ids, classes",
    [
        ({"num_classes": 2}, [0, 1, 255], [0, 1, 255]),
        ({"labels": Labels(["a", "b"], {0: 255, 7: 0, 9: 1})}, [7, 0, 9], [0, 255, 1]),
    ],
    ids=["num_classes", "labels"],
)
def test_another_dataset(arguments, ids, classes):
    with mocked(ids):
        data = open_tfds("caltech_birds2011", image_size=SIZE, **arguments)
        assert order(data) == classes
    assert data.num_classes == 2
    assert data.class_names == (("a", "b") if "labels" in arguments else None)


@pytest.mark.integration
def test_fit_sets_the_epoch_of_a_tfds_dataset(tiny_backbone):
    data, *_ = birds(augmentation=Augmentation((16, 16)), batch_size=6, shuffle=True)
    passes = []
    watched = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: passes.append(data.epoch)
    )
    model = ksa.build_segmenter(tiny_backbone((4,)), data.num_classes)
    model.compile(run_eagerly=EAGER)
    history = model.fit(data, epochs=2, verbose=0, callbacks=[watched]).history
    assert len(history["loss"]) == 2 and np.isfinite(history["loss"]).all()
    assert data.epoch == 2  # each pass that begins adds one
    model.fit(data, epochs=6, initial_epoch=5, verbose=0, callbacks=[watched])
    assert passes == [0, 1, 5]


# Meaning


def test_a_stored_dataset(tmp_path):
    # tensorflow-datasets 4.9.10 imports it without requiring it.
    pytest.importorskip("importlib_resources")
    store(tmp_path)
    options = dict(image_size=(4, 6), num_classes=6, batch_size=4, data_dir=tmp_path)
    data = open_tfds("numbered", **options)
    assert len(data) == 2
    assert order(data) == order(data) == list(range(6))
    assert order(open_tfds("numbered", "train[4:]", **options)) == [4, 5]
    shuffled = [open_tfds("numbered", shuffle=True, **options) for _ in range(2)]
    first, second = [[order(data) for _ in range(3)] for data in shuffled]
    assert first == second
    assert all(sorted(epoch) == list(range(6)) for epoch in first)
    assert len(set(map(tuple, first))) > 1
    other = open_tfds("numbered", shuffle=True, seed=1, **options)
    assert [order(other) for _ in range(3)] != first
    assert other.epoch == 3
    shuffled[0].epoch = 1
    assert order(shuffled[0]) == first[1]
    # The order does not depend on the global seed, and the dataset leaves it alone.
    tf.random.set_seed(5)
    number = tf.random.uniform(())
    tf.random.set_seed(5)
    data = open_tfds("numbered", shuffle=True, **options)
    assert tf.random.uniform(()) == number
    assert order(data) == first[0]


def test_views_depend_on_seed_epoch_and_image_only():
    augmentation = Augmentation((16, 24))
    options = dict(augmentation=augmentation, seed=3)
    data, images, masks = birds(batch_size=4, **options)
    assert len(data) == 2 and data.element_spec[1].shape == (None, 16, 24)
    first, second = whole(data), whole(data)
    for epoch, views in enumerate((first, second)):
        for i in range(6):
            rng = np.random.default_rng([3, epoch, i])
            image, mask = augmentation(images[i], masks[i].astype("int32"), rng)
            np.testing.assert_array_equal(views[i], np.dstack([image, mask]))
    resumed, *_ = birds(batch_size=6, shuffle=True, **options)
    resumed.epoch = 1
    found = whole(resumed)
    assert {view.tobytes() for view in found} == {view.tobytes() for view in second}
    assert (found != second).any()
    assert resumed.epoch == 2


def test_resizing_interpolates_images_but_never_masks():
    ids = np.array([[0, 7], [7, 0]], "uint8")

    def as_dataset(self, *args, **kwargs):
        image = ids[..., None].repeat(3, -1) * 30
        example = {"image": image, "segmentation_mask": ids[..., None]}
        return tf.data.Dataset.from_tensors(example)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        data = open_tfds("caltech_birds2011", image_size=(7, 9), num_classes=8)
        ((images, masks),) = data.as_numpy_iterator()
    assert set(np.unique(masks)) == {0, 7}
    assert len(np.unique(images)) > 2


# Edges


def test_an_unknown_id_stops_the_reading():
    words = r"Received: mask of oxford_iiit_pet \(train\) with the ids 0"
    with mocked([1, 0, 3]):
        data = open_tfds("oxford_iiit_pet", image_size=SIZE)
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            list(data)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("scene_parse150", {}, r"instance masks, .* ADE20K.*open_folder"),
        ("scene_parse150", {"num_classes": 150}, "scene_parse150 holds instance masks"),
        ("caltech_birds2011", {}, "Pass `num_classes`.*name='caltech_birds2011'$"),
        ("mnist", {"num_classes": 2}, r"three channels .* pictures \['image'\]$"),
        ("cityscapes/stereo_disparity", {}, r"'image_right', 'disparity_map'\]$"),
        ("oxford_iiit_pet", {"num_classes": 1}, "`num_classes` must be at least 2"),
        ("oxford_iiit_pet", {"ignore_class": None}, r"label_map\[3\]=255$"),
        (
            "oxford_iiit_pet",
            {"features": ("image", "label")},
            r"Received: features=\('image', 'label'\) for the pictures \['image', 's",
        ),
        ("oxford_iiit_pet", {"batch_size": 0}, "`batch_size` must be an integer of"),
        ("oxford_iiit_pet", {"seed": -1}, "`seed` must be an integer of at least 0"),
        ("oxford_iiit_pet", {"image_size": None}, "Pass `image_size=.*`augmentation`"),
        (
            "oxford_iiit_pet",
            {"augmentation": Augmentation((8, 8))},
            r"Leave out `image_size`, .* image_size=\(16, 24\), crop_size=\(8, 8\)$",
        ),
        ("oxford_iiit_pet", {"image_size": 9}, r"`image_size` must be \(height, w"),
    ],
    ids=[
        "instances",
        "instances with classes",
        "unknown classes",
        "no mask",
        "depths",
        "one class",
        "no void",
        "features",
        "no batch",
        "seed",
        "no size",
        "two sizes",
        "one number",
    ],
)
def test_wrong_arguments_raise(name, arguments, words):
    with mocked([1, 2, 3]), pytest.raises(ValueError, match=words):
        open_tfds(name, **{"image_size": SIZE, **arguments})


def test_a_wrong_epoch_raises():
    data, *_ = birds(image_size=SIZE)
    data.epoch = -1
    with pytest.raises(tf.errors.InvalidArgumentError, match="`epoch` must be an inte"):
        list(data)


def test_one_of_several_features_is_chosen():
    pair = ("image_right", "segmentation_label")
    options = dict(image_size=SIZE, labels=CITYSCAPES)
    with mocked([0, 7, 33]):
        with pytest.raises(ValueError, match=r"pass `features=\(image, mask\)`"):
            open_tfds("lost_and_found/full", **options)
        data = open_tfds("lost_and_found/full", features=pair, **options)
        assert order(data) == [255, 0, 18]


def test_missing_tensorflow_datasets_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ImportError, match=r"pip install keras-segadapter\[data,tensorfl"
    ):
        open_tfds("oxford_iiit_pet", image_size=SIZE)
