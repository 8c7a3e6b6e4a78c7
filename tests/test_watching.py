"""The pictures of a training show what the model does, and leave it as it is."""

import sys

import keras
import numpy as np
import pytest
from numpy_method import seg_adapter, set_random_weights
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.visualization import colorize
from keras_segadapter.training.pictures import _views

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


def panels(path, columns, size=(20, 28), rows=2):
    """The pictures on a sheet `[row][column]`, at their own size."""
    height, width = size
    factor = -(-240 // width)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 6 + columns * (factor * width + 6)
    top = len(sheet) - rows * (factor * height + 6)
    found = [
        [
            sheet[
                top + row * (factor * height + 6) :,
                6 + column * (factor * width + 6) :,
            ][: factor * height, : factor * width]
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    for panel in np.concatenate(found):
        blocks = panel.reshape(height, factor, width, factor, 3)
        assert np.all(blocks == blocks[:, :1, :, :1])
    return [[panel[::factor, ::factor] for panel in row] for row in found]


def heat(values):
    """Black, red, yellow from the least to the largest value."""
    share = (values - values.min()) / (values.max() - values.min())
    red, green = np.minimum(2 * share, 1), np.maximum(2 * share - 1, 0)
    return 255 * np.stack([red, green, 0 * share], axis=-1)


def nearest(maps, stride):
    return maps.repeat(stride, axis=1).repeat(stride, axis=2)[:, :20, :28]


# Meaning


def test_each_panel_shows_what_its_title_says(tiny_backbone, tmp_path):
    backbone = tiny_backbone()
    model = ksa.build_segmenter(backbone, K)
    for layer in model.layers:
        set_random_weights(layer)
    colors = RNG.integers(0, 256, (K, 3), "uint8")
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path, every=5, colors=colors)
    look(callback, model, *range(7), last=7)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert [name for name in names if "features" not in name] == [
        "epoch_0005.png",
        "epoch_0007.png",
    ]

    # The stages by hand: the backbone's parts, with adapters in NumPy between them.
    padded = np.pad(IMAGES, ((0, 0), (0, 4), (0, 4), (0, 0)), "edge").astype("float32")
    by_name = {operation.name: operation for operation in backbone.operations}
    first, second = (by_name[stage.name].output for stage in model.stages)
    parts = keras.Model(backbone.input, first), keras.Model(first, second)
    prepared = keras.ops.convert_to_numpy(model._parts.preprocessing(padded))
    adapters = [model.get_layer("adapter_s4"), model.get_layer("adapter_s8")]
    x1 = keras.ops.convert_to_numpy(parts[0](prepared))
    y1, s1 = seg_adapter(adapters[0], x1)
    x2 = keras.ops.convert_to_numpy(parts[1](y1.astype("float32")))
    y2, s2 = seg_adapter(adapters[1], x2)
    outputs = model(padded, aux=True)
    coarse = keras.ops.convert_to_numpy(outputs["aux"]).argmax(-1)[:, :20, :28]

    found = panels(tmp_path / "epoch_0007.png", 6)
    expected = [
        MASKS,
        model.segment(IMAGES),
        coarse,
        nearest(s1.argmax(-1), 4),
        nearest(s2.argmax(-1), 8),
    ]
    for row in range(2):
        np.testing.assert_array_equal(found[row][0], IMAGES[row])
        for panel, labels in zip(found[row][1:], expected, strict=True):
            np.testing.assert_array_equal(panel, colorize(labels[row], colors=colors))

    found = panels(tmp_path / "epoch_0007_features.png", 5)
    expected = [(x1, 4), (y1, 4), (x2, 8), (y2, 8)]
    for row in range(2):
        np.testing.assert_array_equal(found[row][0], IMAGES[row])
        for panel, (maps, stride) in zip(found[row][1:], expected, strict=True):
            maps = nearest(np.abs(maps).mean(-1), stride)
            np.testing.assert_allclose(panel, heat(maps[row]), atol=4)
        # Adapted features are not those before.
        assert np.any(found[row][1] != found[row][2])


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
def test_what_there_is_to_see_depends_on_the_model(tiny_backbone, options, titles):
    views = _views(ksa.build_segmenter(tiny_backbone(), K, **options))
    assert ", ".join(views.output) == titles
    assert all(len(view.shape) == 3 for view in views.output.values())


def test_tokens_are_shown_as_the_map_that_they_make(tmp_path):
    from test_tokens import transformer

    model = ksa.build_segmenter(transformer(size=(32, 48)), K)
    (key,) = {f"s{stage.stride}" for stage in model.stages}
    views = _views(model)
    stride = model.stages[0].stride
    for name in ("X", "Y", "side"):
        assert views.output[f"{name} {key}"].shape == (None, 32 // stride, 48 // stride)


def test_a_model_of_fixed_size(tiny_backbone, tmp_path):
    model = ksa.build_segmenter(tiny_backbone((4,), (32, 32)), K, adapters=False)
    look(ksa.TrainingPictures(IMAGES, MASKS, tmp_path), model, 0)
    predicted = panels(tmp_path / "epoch_0001.png", 3)[1][2]
    resized = keras.ops.image.resize(
        IMAGES.astype("float32"), (32, 32), data_format="channels_last"
    )
    labels = model.segment(keras.ops.convert_to_numpy(resized)[1])  # (32, 32)
    rows, columns = np.arange(20) * 32 // 20, np.arange(28) * 32 // 28
    expected = colorize(labels[rows[:, None], columns])
    np.testing.assert_array_equal(predicted, expected)


# Contract


def test_training_goes_on_as_without_and_a_loaded_model_is_shown(
    tiny_backbone, tmp_path
):
    head = ksa.MLPHead(K, 4, dropout=0.5)
    model = ksa.build_segmenter(tiny_backbone((4,)), K, head=head, adapters=False)
    model.compile(keras.optimizers.SGD(1e-2, momentum=0.9))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    pictures = ksa.TrainingPictures(IMAGES, MASKS, tmp_path / "a/pictures")
    states = []
    for trained, callbacks in ((model, []), (loaded, [pictures])):
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
            np.asarray(Image.open(tmp_path / name))
            for name in ("found.png", f"epoch_0002{ending}.png")
        )
        np.testing.assert_array_equal(found, written)


# Edges


def test_a_training_that_broke_is_shown_too(tiny_backbone, tmp_path):
    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    model.get_layer("reduce_1").bias.assign([np.nan, np.inf, 0, 0])
    look(ksa.TrainingPictures(IMAGES, MASKS, tmp_path), model, 0)
    shown = panels(tmp_path / "epoch_0001_features.png", 2)[0][1]
    assert not shown.any()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(images=IMAGES / 1), "uint8 .* Received: images float64"),
        (dict(images=IMAGES[:1]), r"images uint8 \(1, 20, 28, 3\), masks \(2, 20, 28"),
        (dict(images=IMAGES[0], masks=MASKS[0]), "uint8 .N, height, width, 3."),
        (dict(images=IMAGES[:0], masks=MASKS[:0]), r"images uint8 \(0, 20"),
        (dict(masks=MASKS[..., None]), r"masks \(2, 20, 28, 1\)"),
        (dict(masks=MASKS / 1), "labels must be integers"),
        (dict(every=0), "`every` must be an integer of at least 1"),
        (dict(colors=[[0, 0, 0]]), "`colors` must be uint8"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_gets_a_sentence(tmp_path, options, words):
    options = dict(images=IMAGES, masks=MASKS, folder=tmp_path) | options
    with pytest.raises(ValueError, match=words):
        ksa.TrainingPictures(**options)


def test_a_model_that_cannot_be_shown_gets_a_sentence(tiny_backbone, tmp_path):
    callback = ksa.TrainingPictures(IMAGES, MASKS, tmp_path)
    with pytest.raises(TypeError, match="`model` must be a Segmenter"):
        look(callback, tiny_backbone())
    inputs = keras.Input((None, None, 1))
    backbone = keras.Model(inputs, keras.layers.Conv2D(2, 4, 4)(inputs))
    model = ksa.build_segmenter(backbone, K, preprocessing=keras.layers.Identity())
    with pytest.raises(ValueError, match=r"an image \(height, width, 1\)"):
        look(callback, model)


def test_tensorboard_that_is_absent_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install keras-segadapter\[tensorboard"):
        ksa.TrainingPictures(IMAGES, MASKS, tmp_path, tensorboard=tmp_path)
