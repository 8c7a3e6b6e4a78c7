"""Data that would train or predict nonsense stops with the reason."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 16, 24, 3), "uint8")
MASKS = RNG.integers(0, K, (4, 16, 24), "uint8")
RANGES = {
    "zero_to_one": (lambda x: x / 255, r"in 0\.\.1\. Multiply them by 255"),
    "minus_one_to_one": (lambda x: x / 127.5 - 1, r"in -1\.\.1\. Undo the norm"),
    "normalized": (lambda x: (x - 120.0) / 58, "below 0. Undo the normalization"),
    "16_bit": (lambda x: x.astype("uint16") * 257, "above 255. Divide 16-bit .*by 257"),
    "nan": (lambda x: np.where(x < 9, np.nan, x), "Images must be finite.*images with"),
}


class Batches(keras.utils.PyDataset):
    """Batches of two images."""

    def __init__(self, images, masks):
        super().__init__()
        self.images, self.masks = images, masks

    def __len__(self):
        return 2

    def __getitem__(self, index):
        batch = slice(2 * index, 2 * index + 2)
        return self.images[batch], self.masks[batch]


def generator(images, masks):
    while True:
        yield from ((images[i : i + 2], masks[i : i + 2]) for i in (0, 2))


def dataset(images, masks):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images, masks)).batch(2)


def loader(images, masks):
    import torch

    tensors = torch.from_numpy(images), torch.from_numpy(masks)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), 2)


SOURCES = {
    "arrays": lambda images, masks: (images, masks),
    "py_dataset": lambda images, masks: (Batches(images, masks),),
    "generator": lambda images, masks: (generator(images, masks),),
    "dataset": lambda images, masks: (dataset(images, masks),),
}
if keras.backend.backend() == "torch":
    SOURCES["loader"] = lambda images, masks: (loader(images, masks),)
    del SOURCES["dataset"]  # TensorFlow beside it takes seconds, and is tested there
sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def build(tiny_backbone, num_classes=K, **options):
    model = ksa.build_segmenter(
        tiny_backbone((4,)), num_classes, adapters=False, **options
    )
    model.compile(run_eagerly=EAGER)
    return model


def fit(model, data, **options):
    options = dict(steps_per_epoch=2, epochs=2, verbose=0) | options
    return model.fit(*data, **options)


# Meaning


@pytest.mark.integration
@sources
@pytest.mark.parametrize(("change", "message"), RANGES.values(), ids=RANGES)
def test_images_in_another_range_stop(tiny_backbone, source, change, message):
    model = build(tiny_backbone)
    images = change(IMAGES)
    if images.dtype == "float64":
        images = images.astype("float32")
    with pytest.raises(ValueError, match=message):
        fit(model, source(images, MASKS))
    with pytest.raises(ValueError, match=message):
        model.evaluate(*source(images, MASKS), steps=2, verbose=0)
    with pytest.raises(ValueError, match=message):
        data = source(images, MASKS)
        model.predict(data[0], steps=2, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.segment(images[0])


@pytest.mark.integration
@sources
def test_pixels_pass_from_every_source(tiny_backbone, source):
    model = build(tiny_backbone)
    history = fit(model, source(IMAGES, MASKS))
    assert set(history.history) == {"loss", "mIoU"}
    logs = model.evaluate(*source(IMAGES, MASKS), steps=2, verbose=0, return_dict=True)
    assert set(logs) == set(history.history)
    data = source(IMAGES, MASKS)
    logits = model.predict(data[0], steps=2, verbose=0)
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_pillow_images_are_read_as_files_are(tiny_backbone, tmp_path):
    model = build(tiny_backbone)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(IMAGES[0]).save(tmp_path / "turned.png", exif=exif)
    deep = IMAGES[0, ..., 0].astype("uint16") * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name, size in (("turned", (24, 16)), ("deep", (16, 24))):
        path = tmp_path / f"{name}.png"
        with Image.open(path) as picture:
            labels = model.segment(picture)
        assert labels.shape == size
        expected = model.segment(ksa.data.reading.read_image(path))
        np.testing.assert_array_equal(labels, expected)
    gray = np.repeat(IMAGES[0, ..., :1], 3, axis=-1)
    np.testing.assert_array_equal(labels, model.segment(gray))


@pytest.mark.integration
def test_a_model_that_does_not_normalize_takes_any_range(tiny_backbone):
    model = build(tiny_backbone, preprocessing=keras.layers.Identity())
    images = (IMAGES / 255).astype("float32")
    fit(model, (images, MASKS))
    model.segment(images[0])
    model.predict(images, verbose=0)


@pytest.mark.integration
@sources
@pytest.mark.parametrize(
    ("value", "named"),
    [(7, "7"), (0.5, "fractions"), (-1, "below 0"), (999, "256 and above")],
    ids=["id", "fraction", "negative", "large"],
)
def test_the_first_nan_names_ids_and_their_number(tiny_backbone, source, value, named):
    model = build(tiny_backbone)
    masks = MASKS.astype("float32" if value == 0.5 else "int32")
    masks[3, 0, :5] = value
    data = source(IMAGES, masks)
    if isinstance(data[0], np.ndarray):
        with pytest.raises(ValueError, match=rf"outside the 3 classes.*\[{value}\]"):
            fit(model, data)
        return
    message = (
        r"became NaN in batch 2 of epoch 1 of the training data.*neither one of the 3 "
        rf"classes 0\.\.2 nor ignored.*Received: the ids {named} \(5 pixels\)"
    )
    with pytest.raises(ValueError, match=message):
        fit(model, data)
    model = build(tiny_backbone)
    with pytest.raises(ValueError, match="NaN in batch 2 of the evaluation data"):
        model.evaluate(*source(IMAGES, masks), steps=2, verbose=0)


@pytest.mark.integration
@sources
def test_void_throughout_stops(tiny_backbone, source):
    model = build(tiny_backbone)
    void = np.full_like(MASKS, 255)
    message = "nothing but ignored ids.*255"
    with pytest.raises(ValueError, match=message):
        fit(model, source(IMAGES, void))
    validation = source(IMAGES, void)
    validation = validation if len(validation) == 2 else validation[0]
    with pytest.raises(ValueError, match=message):
        fit(
            model,
            source(IMAGES, MASKS),
            validation_data=validation,
            validation_steps=2,
        )


def test_a_training_that_diverges_stops(tiny_backbone):
    model = build(tiny_backbone)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(ValueError, match="Lower the learning rate"):
        fit(model, (IMAGES, MASKS))


def test_images_that_make_a_later_loss_nan_are_the_reason(tiny_backbone):
    images = IMAGES.astype("float32")
    images[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"must be finite.*images with 3 of them"):
        fit(build(tiny_backbone), (Batches(images, MASKS),))


@pytest.mark.integration
def test_best_epochs_are_those_of_the_highest_miou(tiny_backbone, tmp_path):
    model = build(tiny_backbone)
    path = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.EarlyStopping(monitor="val_mIoU", patience=3),
        keras.callbacks.ReduceLROnPlateau(monitor="val_mIoU", mode="max"),
        keras.callbacks.ModelCheckpoint(path, monitor="val_mIoU", save_best_only=True),
    ]
    options = dict(validation_data=(IMAGES, MASKS), epochs=3, callbacks=callbacks)
    history = fit(model, (IMAGES, MASKS), **options)
    best = keras.models.load_model(path)
    best.run_eagerly = EAGER
    miou = best.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)["mIoU"]
    assert len(history.epoch) == 3
    assert miou == pytest.approx(max(history.history["val_mIoU"]), abs=1e-6)


# Edges


def test_a_backbone_may_name_its_layers_as_we_do(tmp_path):
    names = ["head", "logits", "aux", "adapter_s4", "coarse", "resize", "preprocessing"]
    inputs = x = keras.Input((None, None, 3), name="image")
    for index, name in enumerate(names):
        # Stages of strides 4 and 8, each of several layers.
        stride = {0: 4, 4: 2}.get(index, 1)
        x = keras.layers.Conv2D(4, stride, stride, name=name)(x)
    model = ksa.build_segmenter(keras.Model(inputs, x), K)
    assert list(model.output) == ["logits", "aux"]
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.segment(IMAGES[0]), model.segment(IMAGES[0]))


def test_two_layers_of_one_name_raise_with_both_owners(tiny_backbone):
    head = ksa.MLPHead(K, name="reduce_1")
    words = "`head` and a layer of the backbone, both named 'reduce_1'"
    with pytest.raises(ValueError, match=words):
        ksa.build_segmenter(tiny_backbone(), K, head=head)


@pytest.mark.parametrize("ending", [".h5", ".hdf5"])
def test_hdf5_is_refused_when_saving(tiny_backbone, tmp_path, ending):
    with pytest.raises(ValueError, match="save_weights"):
        build(tiny_backbone).save(tmp_path / f"model{ending}")


@pytest.mark.integration
def test_names_and_colors_travel_from_the_data_into_the_file(
    tiny_backbone, tmp_path, capsys
):
    data = Batches(IMAGES, MASKS)
    data.class_names, data.colors = ("sky", "car", "road"), np.eye(3) * 255
    model = build(tiny_backbone)
    assert model.class_names is None and model.colors is None
    fit(model, (data,))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.class_names == ("sky", "car", "road")
    np.testing.assert_array_equal(loaded.colors, np.eye(3) * 255)
    assert loaded.colors.dtype == "uint8"
    capsys.readouterr()
    data.class_names = ("sky", "boat", "water")
    fit(model, (data,))
    assert "are now ('sky', 'boat', 'water'); they were" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`class_names` must be a list of 3 strings"):
        build(tiny_backbone, class_names=["sky"])


def test_300_classes_count_class_255(tiny_backbone):
    model = build(tiny_backbone, num_classes=300)
    masks = np.full(MASKS.shape, 255)
    assert model.evaluate(IMAGES, masks, verbose=0)[0] > 1
    assert model.get_compile_config()["loss"]["logits"]["config"]["ignore_class"] == []
    with pytest.raises(ValueError, match=r"can't be one of the 300 classes"):
        model.compile(ignore_class=255)
