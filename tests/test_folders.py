import re

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import FolderDataset
from keras_segadapter.data.epochs import count_epochs


def write(path, array, mode=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array))
    (picture.convert(mode) if mode else picture).save(path, **kwargs)


def numbered(folder, count, size=(4, 6)):
    """Write `count` pairs; image and mask number i hold nothing but i."""
    for i in range(count):
        write(folder / f"images/{i:03}.png", np.full((*size, 3), i, "uint8"))
        write(folder / f"masks/{i:03}.png", np.full(size, i, "uint8"))
    return folder


def orders(data, epochs):
    """Return the numbers of the images, in the order that the dataset gives them."""
    found = []
    for epoch in epochs:
        data.epoch = epoch
        found.append([int(i) for images, _ in data for i in images[:, 0, 0, 0]])
    return found


def expected(seed, epochs, count):
    return [
        np.random.default_rng([seed, epoch]).permutation(count).tolist()
        for epoch in epochs
    ]


def tiny_model():
    return keras.Sequential([keras.layers.Conv2D(1, 1), keras.layers.Flatten()])


def compile_to_show_targets(model):
    """Compile a model so that the loss of a batch is the number of its image."""
    model.compile(
        optimizer=keras.optimizers.SGD(0.0),
        run_eagerly=EAGER,
        loss=lambda y, x: (
            keras.ops.mean(keras.ops.cast(y, "float32"), (1, 2))
            + 0 * keras.ops.mean(x, 1)
        ),
    )


class Order(keras.callbacks.Callback):
    """Record of the masks that a model really gets, from the running mean loss."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])
        self.total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = float(logs["loss"]) * (batch + 1)
        self.epochs[-1].append(round(total - self.total))
        self.total = total


def fit(data, epochs, model=None, callbacks=(), **kwargs):
    if model is None:
        model = tiny_model()
        compile_to_show_targets(model)
    order = Order()
    callbacks = [count_epochs(data), order, *callbacks]  # as Segmenter.fit does
    model.fit(
        data, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **kwargs
    )
    return order.epochs


# Contract


def test_batches(tmp_path):
    data = FolderDataset(
        numbered(tmp_path, 5), 5, batch_size=2, ignore_class=[255, 254]
    )
    batches = list(data)
    assert isinstance(data, keras.utils.PyDataset)
    assert len(data) == len(batches) == 3
    assert [x.shape for x, _ in batches] == [(2, 4, 6, 3), (2, 4, 6, 3), (1, 4, 6, 3)]
    assert [y.shape for _, y in batches] == [(2, 4, 6), (2, 4, 6), (1, 4, 6)]
    assert all(x.dtype == y.dtype == "uint8" for x, y in batches)
    np.testing.assert_array_equal(
        np.concatenate([y for _, y in batches])[:, 0, 0], range(5)
    )
    assert data.image_paths == [tmp_path / f"images/00{i}.png" for i in range(5)]
    assert data.mask_paths == [tmp_path / f"masks/00{i}.png" for i in range(5)]
    assert (data.num_classes, data.ignore_class, data.epoch) == (5, [255, 254], 0)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("num_classes", 1, "at least 2.*num_classes=1$"),
        ("num_classes", 2.0, "an integer.*num_classes=2.0$"),
        ("batch_size", 0, "an integer of at least 1.*batch_size=0$"),
        ("batch_size", True, "an integer.*batch_size=True$"),
        ("image_size", 64, r"\(.*image_size=64$"),
        ("image_size", (64,), r"\(.*image_size=\(64,\)$"),
        ("image_size[1]", (64, 0), r"an integer of at least 1.*size\[1\]=0$"),
        ("image_size[0]", (6.0, 6), r"an integer.*size\[0\]=6.0$"),
        ("seed", -1, "an integer of at least 0.*seed=-1$"),
        ("threads", 0, "an integer of at least 1.*threads=0$"),
        ("channels", 0, "an integer of at least 1.*channels=0$"),
    ],
    ids="one float no-batch bool side tuple width height seed threads channels".split(),
)
def test_wrong_arguments_raise(tmp_path, name, value, words):
    arguments = {"num_classes": 2, name.split("[")[0]: value}
    with pytest.raises(ValueError, match=f"`{re.escape(name)}` must be {words}"):
        FolderDataset(numbered(tmp_path, 2), **arguments)


@pytest.mark.parametrize("ignore_class", ["void", [255, None], 255.0, True], ids=repr)
def test_wrong_ignore_class_raises(tmp_path, ignore_class):
    words = '`ignore_class` must be "auto", None, an integer id or a list of integer '
    words = re.escape(f"{words}ids. Received: ignore_class={ignore_class!r}")
    with pytest.raises(TypeError, match=words):
        FolderDataset(numbered(tmp_path, 2), 2, ignore_class=ignore_class)


@pytest.mark.parametrize("epoch", [-1, 1.0])
def test_wrong_epoch_raises(tmp_path, epoch):
    data = FolderDataset(numbered(tmp_path, 2), 2)
    words = f"`epoch` must be an integer of at least 0.*: epoch={epoch}$"
    with pytest.raises(ValueError, match=words):
        data.epoch = epoch


def truncate(path):
    noise = np.random.default_rng(0).integers(0, 3, (4, 6, 3), "uint8")
    write(path, noise if path.parent.name == "images" else noise[..., 0])
    path.write_bytes(path.read_bytes()[:-40])


def spoil_image(folder):
    truncate(folder / "images/001.png")


def spoil_image_fully(folder):
    (folder / "images/001.png").write_text("not a picture")


def spoil_mask(folder):
    truncate(folder / "masks/001.png")


def spoil_size(folder):
    write(folder / "masks/001.png", np.zeros((2, 3), "uint8"))


def spoil_turn(folder):
    write(folder / "masks/001.png", np.zeros((6, 4), "uint8"))


def spoil_ids(folder):
    write(folder / "masks/001.png", np.array([[3, 7, 255, 1, 1, 1]] * 4, "uint8"))


def spoil_colors(folder):
    write(folder / "masks/001.png", np.full((4, 6, 3), [9, 9, 8], "uint8"))


def spoil_mode(folder):
    (folder / "masks/001.png").unlink()
    write(folder / "masks/001.jpg", np.zeros((4, 6, 3), "uint8"), mode="CMYK")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (spoil_image, "The image cannot be read: .* Replace .*images.001.png$"),
        (spoil_image_fully, "The image cannot be read: .* Replace .*images.001.png$"),
        (spoil_mask, "The mask cannot be read: .* Replace .*masks.001.png$"),
        (spoil_size, r"images.001.png of size \(4, 6\), .*1.png of size \(2, 3\)$"),
        (spoil_turn, r"turned: correct the file. .* \(4, 6\), .* size \(6, 4\)$"),
        (
            spoil_ids,
            r"hold only the ids 0 to 2 and the ignored ids \[255\]. Correct .*"
            r"`num_classes` or `ignore_class`.*masks.001.png with the ids "
            r"3 \(4 pixels\), 7 \(4 pixels\)$",
        ),
        (spoil_colors, r"pass labels=.*colors \(9, 9, 8\) \(24 pixels\)$"),
        (spoil_mode, "as a grayscale PNG.*masks.001.jpg of mode CMYK$"),
    ],
    ids=[
        "image cut",
        "no picture",
        "mask cut",
        "size",
        "turn",
        "ids",
        "colors",
        "mode",
    ],
)
def test_wrong_files_raise(tmp_path, spoil, words):
    spoil(numbered(tmp_path, 3))
    data = FolderDataset(tmp_path, 3)  # the constructor opens no file
    with pytest.raises(ValueError, match=words):
        data[0]


def test_sizes_that_differ_need_image_size(tmp_path):
    numbered(tmp_path, 2)
    write(tmp_path / "images/002.png", np.zeros((8, 6, 3), "uint8"))
    write(tmp_path / "masks/002.png", np.zeros((8, 6), "uint8"))
    words = r"Pass `image_size=.*000.png of size \(4, 6\), .*2.png of size \(8, 6\)$"
    with pytest.raises(ValueError, match=words):
        FolderDataset(tmp_path, 2)[0]
    assert FolderDataset(tmp_path, 2, image_size=[5, 7])[0][0].shape == (3, 5, 7, 3)
    alone = FolderDataset(tmp_path, 2, batch_size=1)
    assert [x.shape[1:3] for x, _ in alone] == [(4, 6), (4, 6), (8, 6)]


# Meaning


def test_ids_beyond_255(tmp_path):
    ids = np.array([[0, 299, 65535]], "uint16")
    write(tmp_path / "images/a.png", np.zeros((1, 3, 3), "uint8"))
    write(tmp_path / "masks/a.png", ids)
    data = FolderDataset(tmp_path, 300, ignore_class=65535, image_size=(2, 6))
    masks = data[0][1]
    assert masks.dtype == "int32"
    np.testing.assert_array_equal(masks[0], ids.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("channels, dtype", [(1, "uint8"), (4, "uint8"), (6, "uint16")])
def test_channels(tmp_path, channels, dtype):
    bands = np.random.default_rng(0).integers(0, 256, (4, 6, channels)).astype(dtype)
    write(tmp_path / "masks/a.png", np.ones((4, 6), "uint8"))
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images/a.npy", bands)
    data = FolderDataset(tmp_path, 2, channels=channels)
    images, _ = data[0]
    assert data.channels == channels and images.dtype == dtype
    np.testing.assert_array_equal(images[0], bands)
    images, _ = FolderDataset(tmp_path, 2, channels=channels, image_size=(8, 5))[0]
    assert images.shape == (1, 8, 5, channels) and images.dtype == dtype


@pytest.mark.integration
def test_gray_images_train_a_gray_backbone(tmp_path):
    data = FolderDataset(
        numbered(tmp_path, 2),
        2,
        channels=1,
        augmentation=ksa.data.Augmentation((16, 16)),
    )
    inputs = keras.Input((None, None, 1))
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 4, 4)(inputs))
    model = ksa.build_segmenter(backbone, 2)
    model.compile(run_eagerly=EAGER)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()


def test_masks_of_another_size_are_resized_by_choice(tmp_path):
    write(tmp_path / "images/a.png", np.zeros((4, 6, 3), "uint8"))
    write(tmp_path / "masks/a.png", np.array([[0, 1, 2], [2, 1, 0]], "uint8"))
    with pytest.raises(ValueError, match=r"Pass `resize_masks=True` \(--resize-masks"):
        FolderDataset(tmp_path, 3)[0]
    _, (mask,) = FolderDataset(tmp_path, 3, resize_masks=True)[0]
    assert mask.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[2, 2, 1, 1, 0, 0]] * 2
    spoil_turn(numbered(tmp_path / "turned", 2))
    with pytest.raises(ValueError, match="One of them is turned"):
        FolderDataset(tmp_path / "turned", 2, resize_masks=True)[0]


def test_labels_travel_with_the_dataset(tmp_path):
    labels = ksa.data.Labels(["a", "b"], colors=[[1, 2, 3], [4, 5, 6]])
    data = FolderDataset(numbered(tmp_path, 2), labels=labels)
    assert data.labels is labels and data.class_names == ("a", "b")
    np.testing.assert_array_equal(data.colors, labels.colors)
    assert data.ignore_class == 255 and FolderDataset(tmp_path, 2).labels is None


def test_resizing_interpolates_images_but_never_masks(tmp_path):
    ids = np.array([[0, 7], [7, 0]], "uint8")
    write(tmp_path / "images/a.png", ids[..., None].repeat(3, -1) * 30)
    write(tmp_path / "masks/a.png", ids)
    images, masks = FolderDataset(tmp_path, 8, image_size=(7, 9))[0]
    assert images.shape[1:3] == masks.shape[1:] == (7, 9)
    assert set(np.unique(masks)) == {0, 7}
    assert len(np.unique(images)) > 2


def test_order_depends_on_seed_and_epoch_only(tmp_path):
    numbered(tmp_path, 7)
    plain = FolderDataset(tmp_path, 7, batch_size=3)
    assert orders(plain, [0, 1]) == [list(range(7))] * 2
    first = FolderDataset(tmp_path, 7, batch_size=3, shuffle=True, seed=5)
    second = FolderDataset(tmp_path, 7, batch_size=2, shuffle=True, seed=5, threads=1)
    assert orders(first, [0, 1, 2]) == expected(5, [0, 1, 2], 7)
    assert orders(second, [2, 0]) == expected(5, [2, 0], 7)
    assert len({tuple(order) for order in expected(5, [0, 1, 2], 7)}) == 3
    other = FolderDataset(tmp_path, 7, shuffle=True, seed=6)
    assert orders(other, [0]) != orders(first, [0])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_order_that_fit_sees(tmp_path, count):
    numbered(tmp_path, count)
    data = FolderDataset(tmp_path, max(2, count), batch_size=1, shuffle=True, seed=3)
    model = tiny_model()
    compile_to_show_targets(model)
    assert fit(data, 2, model) == expected(3, [0, 1], count)
    assert data.epoch == 2
    assert fit(data, 1, model) == expected(3, [2], count)
    assert data.epoch == 3


def test_order_that_fit_sees_after_compiling_again(tmp_path):
    data = FolderDataset(numbered(tmp_path, 5), 5, batch_size=1, shuffle=True)
    assert fit(data, 1) + fit(data, 2) == expected(0, [0, 1, 2], 5)


def test_fit_continues_from_a_set_epoch(tmp_path):
    data = FolderDataset(numbered(tmp_path, 5), 5, batch_size=1, shuffle=True)
    data.epoch = 4
    assert fit(data, 2) == expected(0, [4, 5], 5)
    assert fit(data, 3, initial_epoch=2) == expected(0, [6], 5)
    assert fit(data, 10, initial_epoch=9) == expected(0, [9], 5)


def test_another_models_fit_counts_too(tmp_path):
    data = FolderDataset(numbered(tmp_path, 5), 5, batch_size=1, shuffle=True)
    model = tiny_model()
    compile_to_show_targets(model)
    model.fit(data, shuffle=False, verbose=0)
    before = data.epoch
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    assert data.epoch == before + 3  # and once before the first


@pytest.mark.integration
def test_a_segmenter_sets_the_epoch_of_its_data(tmp_path, tiny_backbone):
    data = FolderDataset(numbered(tmp_path, 2), 2, batch_size=2, image_size=(16, 16))
    model = ksa.build_segmenter(tiny_backbone(), 2)
    model.compile(run_eagerly=EAGER)
    seen = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.epochs.append((epoch, data.epoch))
    )
    seen.epochs = []
    model.fit(data, epochs=2, verbose=0, callbacks=seen)
    model.fit(data, epochs=6, initial_epoch=5, verbose=0, callbacks=[seen])
    assert seen.epochs == [(0, 0), (1, 1), (5, 5)]


def test_validation_leaves_the_order_alone(tmp_path):
    data = FolderDataset(numbered(tmp_path, 5), 5, batch_size=1, shuffle=True)
    plain = FolderDataset(tmp_path, 5, batch_size=2)
    assert fit(data, 2, validation_data=plain) == expected(0, [0, 1], 5)


# Keras on torch turns predictions into arrays in a way that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_predictions_come_in_the_order_of_the_files(tmp_path):
    data = FolderDataset(numbered(tmp_path, 5), 5, batch_size=2)
    model = keras.Sequential([keras.layers.GlobalAveragePooling2D()])
    model.compile()
    predictions = model.predict(data, verbose=0)
    np.testing.assert_allclose(predictions, np.arange(5)[:, None].repeat(3, 1))


# Edges


@pytest.mark.parametrize(
    "source, words",
    [
        pytest.param((["a.png"], None), "mask_paths=None$", id="no masks"),
        pytest.param((3, ["a.png"]), "image_paths=3$", id="number"),
        pytest.param(("images", "masks"), "image_paths='images'$", id="folders"),
        pytest.param(([3], ["a.png"]), "image_path=3 of type int$", id="not a path"),
        pytest.param((["a.png"], [None]), "mask_path=None of type", id="no mask"),
    ],
)
def test_lists_that_are_none_raise(source, words):
    with pytest.raises(TypeError, match=f"Received: {words}"):
        FolderDataset(source, 2)


def test_batch_size_larger_than_the_dataset(tmp_path):
    data = FolderDataset(numbered(tmp_path, 2), 2, batch_size=64)
    assert len(data) == 1
    assert data[0][0].shape == (2, 4, 6, 3)


@pytest.mark.parametrize("index", [-1, 2])
def test_batch_out_of_range_raises(tmp_path, index):
    data = FolderDataset(numbered(tmp_path, 3), 3, batch_size=2)
    with pytest.raises(IndexError, match=f"from 0 to 1. Received: index={index}$"):
        data[index]


def test_numpy_integers_as_arguments(tmp_path):
    size = (np.int64(5), np.int32(7))
    data = FolderDataset(
        numbered(tmp_path, 3), np.int64(3), batch_size=np.int64(2), image_size=size
    )
    assert data[0][0].shape == (2, 5, 7, 3)
    assert data.image_size == (5, 7)


def test_image_of_one_pixel(tmp_path):
    data = FolderDataset(numbered(tmp_path, 1, size=(1, 1)), 2)
    assert data[0][0].shape == (1, 1, 1, 3)
