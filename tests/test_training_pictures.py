"""TrainingPictures: they show what the model does, and do not affect training."""

import os
import subprocess
import sys

import keras
import matplotlib
import numpy as np
import pytest
from numpy_method import seg_adapter, set_random_weights
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.inference.views import Views
from keras_segadapter.training import pictures
from keras_segadapter.visualization import as_rgb, colorize, palette

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 20, 28, 3), "uint8")  # no multiple of the stride 8
MASKS = RNG.integers(0, K, (2, 20, 28), "uint8")
MASKS[0, 0] = 255


def look(callback, model, *epochs, last=9):
    callback.set_model(model)
    callback.set_params({"epochs": last})
    callback.on_train_begin()
    for epoch in epochs:
        callback.on_epoch_end(epoch)


@pytest.fixture
def sheets(monkeypatch):
    """Record what `panels` is given: dict of `{title: pictures}` by file name.

    The names and colors of the legend have the title "legend".
    """
    written = {}

    def panels(rows, titles, path, class_names=None, colors=None):
        columns = zip(*rows, strict=True)
        written[path.name] = dict(zip(titles, columns, strict=True))
        if class_names is not None:
            written[path.name]["legend"] = list(class_names), colors

    monkeypatch.setattr(pictures, "panels", panels)
    return written


def heat(values):
    """Paint values in the colormap "inferno", from the least to the largest one."""
    shares = (values - values.min()) / np.ptp(values)
    return matplotlib.colormaps["inferno"](shares, bytes=True)[..., :3]


def nearest(maps, stride):
    """Enlarge maps `(N, h, w)` to the size of the images."""
    return maps.repeat(stride, axis=1).repeat(stride, axis=2)[:, :20, :28]


# Meaning


def test_each_picture_shows_what_its_title_says(tiny_backbone, tmp_path, sheets):
    backbone = tiny_backbone()
    model = ksa.build_segmenter(backbone, K)
    for layer in model.layers:
        set_random_weights(layer)
    colors = RNG.integers(0, 256, (K, 3), "uint8")
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path, every=5, colors=colors)
    look(callback, model, *range(7), last=7)
    assert list(sheets) == [
        "epoch_0005.png",
        "epoch_0005_features.png",
        "epoch_0007.png",
        "epoch_0007_features.png",
    ]

    # The stages by hand: the parts of the backbone, and between them the adapters in
    # NumPy.
    padded = np.pad(IMAGES, ((0, 0), (0, 4), (0, 4), (0, 0)), "edge").astype("float32")
    by_name = {operation.name: operation for operation in backbone.operations}
    first, second = (by_name[stage.name].output for stage in model.stages)
    parts = keras.Model(backbone.input, first), keras.Model(first, second)
    prepared = keras.ops.convert_to_numpy(model.preprocessing(padded))
    adapters = [model.get_layer("adapter_s4"), model.get_layer("adapter_s8")]
    x1 = keras.ops.convert_to_numpy(parts[0](prepared))
    y1, s1 = seg_adapter(adapters[0], x1)
    x2 = keras.ops.convert_to_numpy(parts[1](y1.astype("float32")))
    y2, s2 = seg_adapter(adapters[1], x2)
    coarse = ksa.ResizeLike()([model(padded)["aux"], padded])
    coarse = keras.ops.convert_to_numpy(coarse).argmax(-1)[:, :20, :28]

    expected = {
        "truth": MASKS,
        "prediction": model.segment(IMAGES),
        "coarse map": coarse,
        "side s4": nearest(s1.argmax(-1), 4),
        "side s8": nearest(s2.argmax(-1), 8),
    }
    sheet = sheets["epoch_0007.png"]
    assert list(sheet) == ["image", *expected, "legend"]
    np.testing.assert_array_equal(sheet["image"], IMAGES)
    for title, labels in expected.items():
        painted = [colorize(one, colors=colors) for one in labels]
        np.testing.assert_array_equal(sheet[title], painted, err_msg=title)

    expected = {"X s4": (x1, 4), "Y s4": (y1, 4), "X s8": (x2, 8), "Y s8": (y2, 8)}
    sheet = sheets["epoch_0007_features.png"]
    assert list(sheet) == ["image", *expected]
    np.testing.assert_array_equal(sheet["image"], IMAGES)
    for title, (maps, stride) in expected.items():
        painted = [heat(one) for one in nearest(np.abs(maps).mean(-1), stride)]
        # Rounding may move a value to a neighboring color.
        difference = np.abs(np.subtract(sheet[title], painted, dtype="int"))
        assert difference.max() <= 8, title
    # Adapted features differ from those before.
    assert np.any(sheet["X s4"] != np.array(sheet["Y s4"]))


@pytest.mark.parametrize("names", [None, ("field", "wood", "lake")])
@pytest.mark.parametrize("colors", [None, RNG.integers(0, 256, (K, 3), "uint8")])
def test_names_and_colors_of_the_model(tiny_backbone, tmp_path, sheets, names, colors):
    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    model.class_names, model.colors = names, colors
    masks = np.where(MASKS == 1, 2, MASKS)
    look(ksa.TrainingPictures(IMAGES, masks, tmp_path), model, 0)
    sheet = sheets["epoch_0001.png"]
    painted = palette(K) if colors is None else colors
    truths = [colorize(mask, colors=painted) for mask in masks]
    np.testing.assert_array_equal(sheet["truth"], truths)
    # The classes that occur, each once, and void is not a class.
    present = sorted({0, 2, *np.unique(model.segment(IMAGES)).tolist()})
    found_names, found_colors = sheet["legend"]
    assert found_names == [(names or range(K))[i] for i in present]
    np.testing.assert_array_equal(found_colors, painted[present])
    assert "legend" not in sheets["epoch_0001_features.png"]


@pytest.mark.parametrize("channels", [1, 5])
def test_images_that_are_not_rgb(tmp_path, sheets, channels):
    inputs = keras.Input((None, None, channels))
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 4, 4)(inputs))
    model = ksa.build_segmenter(
        backbone, K, adapters=False, preprocessing=keras.layers.Identity()
    )
    images = RNG.normal(size=(2, 20, 28, channels)).astype("float32")
    look(ksa.TrainingPictures(images, MASKS, tmp_path), model, 0)
    for sheet in sheets.values():
        np.testing.assert_array_equal(sheet["image"], [*map(as_rgb, images)])


def test_more_than_256_classes(tiny_backbone, tmp_path, sheets):
    model = ksa.build_segmenter(tiny_backbone((4,)), 300, adapters=False)
    masks = np.where(MASKS == 255, 299, MASKS.astype("int32"))
    masks[1, 0] = 255
    look(ksa.TrainingPictures(IMAGES, masks, tmp_path), model, 0)
    truths = sheets["epoch_0001.png"]["truth"]
    np.testing.assert_array_equal(truths, [colorize(mask, 300) for mask in masks])
    assert truths[0][0].any() and truths[1][0].any()
    assert {255, 299} <= set(sheets["epoch_0001.png"]["legend"][0])


@pytest.mark.parametrize(
    "options, titles",
    [
        (dict(), "prediction, coarse map, side s4, side s8, X s4, Y s4, X s8, Y s8"),
        (dict(aux=None), "prediction, side s4, side s8, X s4, Y s4, X s8, Y s8"),
        (dict(aux="per_stage"), "prediction, side s4, side s8, X s4, Y s4, X s8, Y s8"),
        (dict(adapters=False), "prediction, X s4, X s8"),
        (
            dict(
                adapters=[ksa.SegAdapter(K, return_scores=i == 1) for i in range(2)],
                aux=None,
            ),
            "prediction, side s8, X s4, Y s4, X s8, Y s8",
        ),
    ],
    ids=["sum", "none", "per_stage", "no adapters", "one side output"],
)
def test_the_titles_depend_on_the_model(tiny_backbone, options, titles):
    views = Views(ksa.build_segmenter(tiny_backbone(), K, **options))
    assert ", ".join(views.titles) == titles
    shown = {title: maps for kind in views(IMAGES) for title, maps in kind.items()}
    assert set(shown) == set(views.titles)
    assert all(maps.shape == MASKS.shape for maps in shown.values())


def test_tokens_are_shown_as_maps():
    inputs = keras.Input((32, 48, 3))
    x = keras.layers.Reshape((-1, 6))(keras.layers.Conv2D(6, 8, 8)(inputs))
    x = x + keras.layers.Dense(6)(keras.layers.Dense(12, "relu")(x))
    views = Views(ksa.build_segmenter(keras.Model(inputs, x), K, taps=[x]))
    image = RNG.integers(0, 256, (1, 32, 48, 3), "uint8")
    for maps in {**views(image)[0], **views(image)[1]}.values():
        assert maps.shape == (1, 32, 48)


def test_a_model_of_fixed_size(tiny_backbone, tmp_path, sheets):
    model = ksa.build_segmenter(tiny_backbone((4,), (32, 32)), K, adapters=False)
    look(ksa.TrainingPictures(IMAGES, MASKS, tmp_path), model, 0)
    predicted = sheets["epoch_0001.png"]["prediction"][1]
    resized = keras.ops.image.resize(
        IMAGES.astype("float32"), (32, 32), data_format="channels_last"
    )
    labels = model.segment(keras.ops.convert_to_numpy(resized)[1])  # (32, 32)
    rows, columns = np.arange(20) * 32 // 20, np.arange(28) * 32 // 28
    expected = colorize(labels[rows[:, None], columns])
    np.testing.assert_array_equal(predicted, expected)


# Contract


@pytest.mark.integration
def test_training_is_not_affected_and_a_loaded_model_is_shown(tiny_backbone, tmp_path):
    head = ksa.MLPHead(K, 4, dropout=0.5)
    model = ksa.build_segmenter(tiny_backbone((4,)), K, head=head, adapters=False)
    model.compile(keras.optimizers.SGD(1e-2, momentum=0.9))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path / "a/pictures")
    states = []
    for trained, callbacks in ((model, []), (loaded, [callback])):
        keras.utils.set_random_seed(3)
        generators = [v for v in trained.variables if "seed" in v.name]
        assert generators
        for generator in generators:
            generator.assign([1, 2])
        trained.fit(
            IMAGES, MASKS, batch_size=1, epochs=2, verbose=0, callbacks=callbacks
        )
        variables = [*trained.variables, *trained.optimizer.variables]
        states.append([keras.ops.convert_to_numpy(v) for v in variables])
        states[-1].append(np.random.get_state()[1])
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(list((tmp_path / "a/pictures").iterdir())) == 4


def test_tensorboard_has_the_same_pictures(tiny_backbone, tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    logs = tmp_path / "logs"
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path, tensorboard=logs)
    look(callback, model, 0, 1)
    events = event_accumulator.EventAccumulator(str(logs), {"tensors": 0})
    events.Reload()
    for tag, ending in (("predictions", ""), ("features", "_features")):
        tensors = events.Tensors(tag)
        assert [event.step for event in tensors] == [0, 1]
        _, _, png = tensors[1].tensor_proto.string_val
        (tmp_path / "found.png").write_bytes(png)
        found, written = (
            np.asarray(Image.open(tmp_path / name).convert("RGB"))
            for name in ("found.png", f"epoch_0002{ending}.png")
        )
        np.testing.assert_array_equal(found, written)


# Edges


def test_a_training_that_diverged_is_shown(tiny_backbone, tmp_path, sheets):
    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    model.get_layer("reduce_1").bias.assign([np.nan, np.inf, 0, 0])
    look(ksa.TrainingPictures(IMAGES, MASKS, tmp_path), model, 0)
    shown = sheets["epoch_0001_features.png"]["X s4"][0]
    least = matplotlib.colormaps["inferno"](0.0, bytes=True)[:3]
    np.testing.assert_array_equal(shown, np.broadcast_to(least, shown.shape))


@pytest.mark.integration
def test_a_graph_from_a_file_in_another_process(tmp_path):
    # Operations without a name are numbered by process, so those of the file have the
    # names that new ones would get.
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    x = x + keras.ops.mean(keras.ops.abs(x), axis=-1, keepdims=True)
    model = ksa.build_segmenter(keras.Model(inputs, x), K, taps=[x], adapters=False)
    model.save(tmp_path / "model.keras")
    code = (
        "import keras, keras_segadapter\n"
        "from keras_segadapter.inference.views import Views\n"
        "model = keras.models.load_model('model.keras')\n"
        "print(*Views(model).titles, sep=', ')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == "prediction, X s4\n"


BAD = {
    "one mask more": (dict(images=IMAGES[:1]), r"\(1, 20, 28, 3\), masks.* \(2, 20"),
    "one image": (
        dict(images=IMAGES[0], masks=MASKS[0]),
        "of shape .N, height, width, channels.",
    ),
    "none": (dict(images=IMAGES[:0], masks=MASKS[:0]), r"shape \(0, 20"),
    "an axis more": (dict(masks=MASKS[..., None]), r"masks of shape \(2, 20, 28, 1\)"),
    "float masks": (dict(masks=MASKS / 1), "must be integer"),
    "every 0": (dict(every=0), "`every` must be an integer of at least 1"),
    "colors": (dict(colors=[[0, 0, 0]]), "`colors` must be .*uint8"),
}


@pytest.mark.parametrize("options, words", BAD.values(), ids=BAD)
def test_bad_arguments_raise(tmp_path, options, words):
    options = dict(images=IMAGES, masks=MASKS, folder=tmp_path) | options
    with pytest.raises(ValueError, match=words):
        ksa.TrainingPictures(**options)


def test_bad_models_raise(tiny_backbone, tmp_path):
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path)
    with pytest.raises(TypeError, match=r"TrainingPictures takes a .*\.Segmenter"):
        look(callback, tiny_backbone())
    inputs = keras.Input((None, None, 1))
    backbone = keras.Model(inputs, keras.layers.Conv2D(2, 4, 4)(inputs))
    model = ksa.build_segmenter(backbone, K, preprocessing=keras.layers.Identity())
    with pytest.raises(ValueError, match=r"shape \(height, width, 1\)"):
        look(callback, model)


def test_missing_tensorboard_raises(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install keras-segadapter\[tensorboard"):
        ksa.TrainingPictures(IMAGES, MASKS, tmp_path, tensorboard=tmp_path)


def test_pictures_that_cannot_be_written_cost_one_warning(
    tiny_backbone, tmp_path, monkeypatch
):
    def full(*args):
        raise OSError(28, "No space left on device")

    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "panels", full)
        with pytest.warns(UserWarning) as warned:
            look(callback, model, 0, 1)
    said = [str(one.message) for one in warned if "Pictures" in str(one.message)]
    assert len(said) == 1
    assert "No space left on device" in said[0] and str(tmp_path) in said[0]
    callback.on_epoch_end(2)  # There is space again.
    assert (tmp_path / "epoch_0003.png").exists()


def test_a_failure_of_tensorboard_is_one_warning_too(tiny_backbone, tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorboard")
    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    (tmp_path / "logs").touch()  # where a folder is needed
    logs = tmp_path / "logs"
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path, tensorboard=logs)
    with pytest.warns(UserWarning, match="Pictures can't be written.*TensorBoard"):
        look(callback, model, 0)
