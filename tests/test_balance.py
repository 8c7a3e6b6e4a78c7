"""Class weights by how often classes occur, counted by `fit`."""

import math

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import Augmentation, FolderDataset, Labels

# Class 3 has no pixel, and 255 is void.
MASKS = np.random.default_rng(0).choice(5, (6, 8, 8), p=[0.7, 0.2, 0.05, 0, 0.05])
MASKS = np.where(MASKS == 4, 255, MASKS).astype("uint8")
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3)).astype("uint8")


def expected_weights(masks):
    """Compute 1 / ln(1.02 + p) for four classes, in plain Python."""
    ids = masks.ravel().tolist()
    pixels = [ids.count(class_) for class_ in range(4)]
    return [1 / math.log(1.02 + count / sum(pixels)) for count in pixels]


def build(loss="auto", eagerly=EAGER):
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 4, 4)]
    )
    model = ksa.build_segmenter(
        backbone,
        4,
        adapters=False,
        head=ksa.MLPHead(4, channels=8, dropout=0.0),
        preprocessing=keras.layers.Rescaling(1 / 255),
    )
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eagerly)
    return model


def fit(model, *data, class_weight="balanced", **options):
    options = {"batch_size": 3, "verbose": 0} | options
    if len(data) == 1:
        del options["batch_size"]
    return model.fit(*data, class_weight=class_weight, **options).history


class Batches(keras.utils.PyDataset):
    """Batches that never end by themselves, as a list of views would."""

    epoch = 7

    def __init__(self):
        super().__init__()
        self.seen = []

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.seen.append(self.epoch)
        rows = slice(index % 2, None, 2)
        return IMAGES[rows], MASKS[rows]


def tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((IMAGES, MASKS)).batch(4)


def loader():
    data = pytest.importorskip("torch.utils.data")
    pairs = data.StackDataset(IMAGES, MASKS)
    return data.DataLoader(pairs, batch_size=4)


SOURCES = {
    "arrays": lambda: (IMAGES, MASKS),
    "tensors": lambda: [*map(keras.ops.convert_to_tensor, (IMAGES, MASKS))],
    "columns": lambda: (IMAGES, MASKS[..., None]),
    "floats": lambda: (IMAGES, MASKS.astype("float32")),
    "by_output": lambda: (IMAGES, {"logits": MASKS}),
    "PyDataset": lambda: [Batches()],
    "tf.data": lambda: [tf_data()],
    "DataLoader": lambda: [loader()],
}


@pytest.fixture
def folder(tmp_path):
    """Write files whose ids 10 to 13 stand for the classes, and 20 for void."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    ids = np.where(MASKS == 255, 20, MASKS + 10).astype("uint8")
    for i, (image, mask) in enumerate(zip(IMAGES, ids, strict=True)):
        Image.fromarray(image).save(tmp_path / f"images/{i}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def open_views(folder, **options):
    labels = Labels([*"abcd"], {10: 0, 11: 1, 12: 2, 13: 3, 20: 255})
    options = {"augmentation": Augmentation((8, 8))} | options
    return FolderDataset(folder, labels=labels, batch_size=3, **options)


# Contract


@pytest.mark.parametrize("source", SOURCES)
def test_fit_counts_the_masks_of_any_source(source, capsys):
    data = SOURCES[source]()
    model = build()
    fit(model, *data, epochs=0)
    (weights,) = {tuple(loss.class_weight) for loss in model.loss.values()}
    np.testing.assert_allclose(weights, expected_weights(MASKS), rtol=1e-12)
    shown = ", ".join(
        f"{class_} {weight:.3g}" + " (has no pixel)" * (class_ == 3)
        for class_, weight in enumerate(weights)
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"class weights, by the pixels of 6 masks: {shown}"


@pytest.mark.parametrize("shard", [None, (1, 2)], ids=["whole", "shard"])
def test_files_are_counted_whole_and_without_their_images(folder, shard, capsys):
    data = open_views(folder, shard=shard)
    counts = data.count_pixels()
    assert counts.dtype == "int64" and counts.sum() == (MASKS != 255).sum()
    model = build()
    fit(model, data, epochs=0)
    np.testing.assert_allclose(
        model.loss["logits"].class_weight, expected_weights(MASKS), rtol=1e-12
    )
    assert "6 masks: a 1.86, b 4.33, c 12, d 50.5 (has" in capsys.readouterr().out
    for path in data.image_paths:
        path.unlink()
    np.testing.assert_array_equal(data.count_pixels(), counts)


def test_a_faulty_mask_is_named(folder):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "masks/4.png")
    with pytest.raises(ValueError, match=r"4.png with the colors \(1, 2, 3\)"):
        fit(build(), open_views(folder))


def test_a_saved_model_keeps_the_weights(tmp_path):
    model = build(
        ksa.MaskLoss(
            [ksa.SegmentationCrossentropy(), keras.losses.Dice(axis=(0, 1, 2))]
        )
    )
    fit(model, IMAGES, MASKS, epochs=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    weights = loaded.loss["logits"].losses[0].class_weight
    np.testing.assert_allclose(weights, expected_weights(MASKS))


# Meaning


@pytest.mark.parametrize("pixels", [[700, 250, 50, 0], [1, 10**12, 3, 4]], ids=str)
def test_bounded_weights_are_those_of_the_formula(pixels):
    shares = np.array(pixels) / sum(pixels)
    weights = ksa.balanced_class_weight(np.array(pixels), bounded=True)
    np.testing.assert_allclose(weights, 1 / np.log(1.02 + shares), rtol=1e-12)
    assert 1.42 < min(weights) and max(weights) < 50.5
    assert ksa.balanced_class_weight(pixels) != weights


WEIGHTS = {"list": [0.5, 1, 9, 2], "dict": {0: 0.5, 2: 9, 3: 2}}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_fit_are_those_of_the_loss(kind):
    by_loss = build(ksa.SegmentationCrossentropy(class_weight=WEIGHTS["list"]))
    by_fit = build()
    expected = fit(by_loss, IMAGES, MASKS, class_weight=None, shuffle=False)
    found = fit(by_fit, IMAGES, MASKS, class_weight=WEIGHTS[kind], shuffle=False)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.integration
def test_a_step_that_was_compiled_without_weights_is_compiled_again():
    model = build(eagerly=False)
    start = model.get_weights()
    losses = []
    for weights in (None, WEIGHTS["list"]):
        model.set_weights(start)
        history = fit(model, IMAGES, MASKS, class_weight=weights, batch_size=6)
        losses.append([history["loss"][0], model.evaluate(IMAGES, MASKS, verbose=0)[0]])
    model.set_weights(start)
    scores = model(IMAGES, training=True)["logits"]
    scores = keras.ops.convert_to_numpy(scores)
    for weights, (found, _) in zip((None, WEIGHTS["list"]), losses, strict=True):
        loss = ksa.SegmentationCrossentropy(class_weight=weights)
        assert found == pytest.approx(float(loss(MASKS, scores)), rel=1e-4)
    assert abs(losses[0][1] - losses[1][1]) > 0.01  # of `evaluate`


def test_a_resumed_training_has_the_same_weights(tmp_path):
    options = {"epochs": 2, "shuffle": True}
    whole = build()
    expected = fit(whole, IMAGES, MASKS, backup=tmp_path / "a", **options)
    fit(build(), IMAGES, MASKS, backup=tmp_path / "b", **{**options, "epochs": 1})
    resumed = build()
    found = fit(resumed, IMAGES, MASKS, backup=tmp_path / "b", **options)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert resumed.loss["logits"].class_weight == whole.loss["logits"].class_weight


def test_epoch_0_is_counted_and_the_training_goes_on_where_it_was():
    data = Batches()
    fit(build(), data)
    assert data.seen[:3] == [7, 0, 0] and {*data.seen[3:]} == {7}  # the first is a look
    assert data.epoch == 7


# Edges


def generator():
    yield IMAGES, MASKS


@pytest.mark.parametrize(
    "data, class_weight, error, words",
    [
        (generator, "balanced", ValueError, "length must be known. .*bounded=True"),
        (
            lambda: tf_data().repeat(),
            "balanced",
            ValueError,
            "length must be known. .*bounded=True",
        ),
        (Batches, [1, 2], ValueError, "2 weights for 4 classes"),
        (Batches, {4: 1}, ValueError, r"the classes \[4\]"),
        (Batches, [1, 2, 3, -1], ValueError, "at least 0"),
        (Batches, "even", TypeError, r"fit\(class_weight='balanced'\).*='even'$"),
    ],
    ids=["generator", "endless", "few", "beyond", "negative", "word"],
)
def test_wrong_class_weights_raise(data, class_weight, error, words):
    with pytest.raises(error, match=words):
        fit(build(), data(), class_weight=class_weight)


def test_without_a_cross_entropy_they_raise():
    model = build(ksa.MaskLoss(keras.losses.Dice(axis=(0, 1, 2))))
    with pytest.raises(ValueError, match="weighs the classes in SegmentationCross"):
        fit(model, IMAGES, MASKS)


@pytest.mark.parametrize("bounded", [None, 1, "yes"])
def test_bounded_is_true_or_false(bounded):
    with pytest.raises(TypeError, match="`bounded` must be True or False"):
        ksa.balanced_class_weight([1, 2], bounded)
