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
    ],
    ids="one float no-batch bool side tuple width height seed threads".split(),
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
        (spoil_size, r"images.001.png of size \(4, 6\), .*1.png of size \(6, 4\)$"),
        (
            spoil_ids,
            r"hold only the ids 0 to 2 and the ignored ids \[255\]. Correct .*"
            r"`num_classes` or `ignore_class`.*masks.001.png with the ids 3, 7$",
        ),
        (spoil_colors, "not colors. Convert .*masks.001.png of mode RGB$"),
        (spoil_mode, "as a grayscale PNG.*masks.001.jpg of mode CMYK$"),
    ],
    ids=["image cut", "no picture", "mask cut", "size", "ids", "colors", "mode"],
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


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("RGB", "png"),
        ("RGBA", "png"),
        ("L", "jpg"),
        ("LA", "png"),
        ("1", "png"),
        ("P", "png"),
        ("CMYK", "jpeg"),
        ("I;16", "PNG"),
    ],
)
def test_images_of_any_mode_become_rgb(tmp_path, mode, suffix):
    gray = np.array([[0, 255]] * 2, "uint8").repeat(8, 0).repeat(8, 1)
    if mode == "I;16":
        write(tmp_path / f"images/a.{suffix}", gray.astype("uint16") * 257)
    else:
        rgb = Image.fromarray(gray).convert("RGB").convert(mode)
        (tmp_path / "images").mkdir()
        rgb.save(tmp_path / f"images/a.{suffix}")
    write(tmp_path / "masks/a.png", gray // 255)
    images, masks = FolderDataset(tmp_path, 2)[0]
    assert images.dtype == "uint8"
    np.testing.assert_allclose(images[0], gray[..., None].repeat(3, -1), atol=2)
    np.testing.assert_array_equal(masks[0], gray // 255)


def test_transparent_palette_image(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], "uint8")).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images/a.png", transparency=bytes([0, 128]))
    write(tmp_path / "masks/a.png", np.zeros((1, 2), "uint8"))
    images, _ = FolderDataset(tmp_path, 2)[0]
    np.testing.assert_array_equal(images[0, 0], [[10, 20, 30], [40, 50, 60]])


IDS = np.array([[0, 1, 2], [3, 1, 0]], "uint8")


def as_palette():
    picture = Image.fromarray(IDS).convert("P")
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 7, 7, 7])
    return picture


@pytest.mark.parametrize(
    "picture, ids",
    [
        (Image.fromarray(IDS), IDS),
        (as_palette(), IDS),
        (Image.fromarray(IDS > 0), IDS > 0),
        (Image.fromarray(IDS.astype("uint16")), IDS),
        (Image.fromarray(IDS).convert("RGB"), IDS),
        (Image.fromarray(IDS).convert("RGBA"), IDS),
        (Image.fromarray(IDS).convert("LA"), IDS),
    ],
    ids=["gray", "palette", "1-bit", "16-bit", "rgb", "rgba", "gray-alpha"],
)
def test_masks_of_any_mode_hold_ids(tmp_path, picture, ids):
    write(tmp_path / "images/a.png", np.zeros((2, 3, 3), "uint8"))
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks/a.png")
    _, masks = FolderDataset(tmp_path, 4)[0]
    assert masks.dtype == "uint8"
    np.testing.assert_array_equal(masks[0], ids)


def test_ids_beyond_255(tmp_path):
    ids = np.array([[0, 299, 65535]], "uint16")
    write(tmp_path / "images/a.png", np.zeros((1, 3, 3), "uint8"))
    write(tmp_path / "masks/a.png", ids)
    data = FolderDataset(tmp_path, 300, ignore_class=65535, image_size=(2, 6))
    masks = data[0][1]
    assert masks.dtype == "int32"
    np.testing.assert_array_equal(masks[0], ids.repeat(2, 0).repeat(2, 1))


def test_exif_orientation(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6  # the orientation that is to be turned clockwise
    image = np.zeros((8, 16, 3), "uint8")
    image[:, 8:] = 255
    write(tmp_path / "images/a.jpg", image, exif=tags, quality=95)
    write(tmp_path / "masks/a.png", np.zeros((16, 8), "uint8"))
    images, _ = FolderDataset(tmp_path, 2)[0]
    assert images.shape == (1, 16, 8, 3)
    assert images[0, :8].mean() < 5 and images[0, 8:].mean() > 250


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
