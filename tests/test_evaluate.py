"""evaluate_images: its figures against plain counting, its table and its picture."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.inference import rows
from keras_segadapter.inference.evaluate import (
    Evaluation,
    _confusion_figure,
    evaluate_images,
)
from keras_segadapter.inference.predict import predict_logits
from keras_segadapter.metrics import figures

NAMES = ["road", "sky", "tree", "car"]


@pytest.fixture(scope="module")
def model(tiny_backbone):
    keras.utils.set_random_seed(0)
    head = ksa.MLPHead(4, channels=8)
    return ksa.build_segmenter(tiny_backbone(), num_classes=4, head=head)


@pytest.fixture(scope="module")
def pairs(model):
    """Make images of two sizes, and masks near what the model says, with void."""
    return make_pairs(model, [(13, 15), (16, 24)], each=2)


def make_pairs(model, sizes, each):
    rng = np.random.default_rng(0)
    pairs = []
    for size in sizes:
        images = rng.integers(0, 256, (each, *size, 3), "uint8")
        noise = rng.choice([0, 2, 3, 255], (each, *size))  # class 1 is predicted only
        noisy = (rng.random((each, *size)) < 0.6) | (noise == 255)
        masks = np.where(noisy, noise, model.segment(images)).astype("uint8")
        pairs += zip(images, masks, strict=True)
    return pairs


def counted(predict, pairs, ignored=(255,)):
    """Compute the figures by looking for each class in all pixels."""
    true, predicted = [], []
    for image, mask in pairs:
        valid = ~np.isin(mask, ignored)
        true.append(mask[valid])
        predicted.append(predict(image)[valid])
    true, predicted = np.concatenate(true), np.concatenate(predicted)
    iou, accuracy = np.full(4, np.nan), np.full(4, np.nan)
    for i in range(4):
        both, either = (true == i) & (predicted == i), (true == i) | (predicted == i)
        if either.any():
            iou[i] = both.sum() / either.sum()
        if (true == i).any():
            accuracy[i] = both.sum() / (true == i).sum()
    return iou, accuracy, np.mean(true == predicted)


def assert_counts(evaluation, iou, accuracy, overall):
    np.testing.assert_allclose(evaluation.iou, iou, atol=1e-6)
    np.testing.assert_allclose(evaluation.class_accuracy, accuracy, atol=1e-6)
    assert evaluation.miou == pytest.approx(np.nanmean(iou), abs=1e-6)
    assert evaluation.mean_accuracy == pytest.approx(np.nanmean(accuracy), abs=1e-6)
    assert evaluation.accuracy == pytest.approx(overall, abs=1e-6)


def example(num_classes=4):
    """Return an evaluation: of each class 3/4 are right, and class 1 is absent."""
    right = np.eye(num_classes, dtype="int64")
    confusion = 30 * right + 10 * np.roll(right, 1, axis=1)
    confusion[1] = 0
    figures = np.where(np.arange(num_classes) == 1, np.nan, 0.75)
    names = tuple(f"class {i}" for i in range(num_classes))
    return Evaluation(0.7, 0.75, 0.8, figures, figures, confusion, names, 6)


# Contract


def test_the_types_and_shapes_of_the_result(model, pairs):
    evaluation = evaluate_images(model, pairs, class_names=NAMES)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.images == 4
    assert evaluation.class_names == tuple(NAMES)
    assert evaluation.confusion.shape == (4, 4)
    assert evaluation.confusion.dtype == "int64"
    valid = sum((mask != 255).sum() for _, mask in pairs)
    assert evaluation.confusion.sum() == valid
    assert evaluation.iou.dtype == evaluation.class_accuracy.dtype == "float64"
    assert isinstance(evaluation.miou, float)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"class_names": NAMES[:3]}, "`class_names` must be a list of 4 strings"),
        ({"crop": 4}, "`crop` must be an integer of at least 8"),
        ({"crop": 16, "stride": 20}, "`stride` must be at most `crop`"),
        ({"scales": [-1.0]}, r"`scales\[0\]` must be a finite number above 0"),
        ({"short_side": "512"}, "`short_side` must be an integer"),
    ],
    ids=["names", "crop", "stride", "scales", "short side"],
)
def test_wrong_arguments_raise_before_the_first_image(model, arguments, words):
    def unread():
        raise AssertionError("a pair was asked for")
        yield

    with pytest.raises(ValueError, match=words):
        evaluate_images(model, unread(), **arguments)


def test_other_models_and_ids_raise(model, tiny_backbone):
    words = r"evaluate_images takes a keras_segadapter\.Segmenter"
    with pytest.raises(TypeError, match=words):
        evaluate_images(tiny_backbone(), [])
    with pytest.raises(TypeError, match=r"`ignore_class` must be .*None, an integer"):
        evaluate_images(model, [], ignore_class="void")
    with pytest.raises(ValueError, match="An ignored id can't be one of the 4 classes"):
        evaluate_images(model, [], ignore_class=[255, 3])


def test_no_pairs_raise(model):
    with pytest.raises(ValueError, match=r"at least one pair.*read before is empty"):
        evaluate_images(model, iter([]))


BAD_PAIRS = {
    "size": ((8, 8, 3), np.zeros((8, 9), int), r"pair 1 must.*\(8, 9\) for an image"),
    "one-hot": ((8, 8, 3), np.zeros((8, 8, 4), int), r"id per pixel.*\(8, 8, 4\)"),
    "one axis": ((8, 8), np.zeros(8, int), r"mask of shape \(8,\) for an image"),
    "float": ((8, 8, 3), np.zeros((8, 8)), "pair 1 must hold integer.*float64"),
    "id 4": ((8, 8, 3), np.full((8, 8), 4), r"pair 1 .*0\.\.3, .*\[4\], .*=\[255\]"),
    "id -1": ((8, 8, 3), np.full((8, 8), -1), r"0\.\.3, .*\[-1\]"),
    "gray": ((8, 8, 1), np.zeros((8, 8), int), r"image of pair 1 can't.*\(8, 8, 1\)"),
}


@pytest.mark.parametrize("image, mask, words", BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_faulty_pair_is_named(model, image, mask, words):
    good = np.zeros((8, 8, 3), "uint8"), np.zeros((8, 8), "uint8")
    with pytest.raises(ValueError, match=words):
        evaluate_images(model, [good, (np.zeros(image, "uint8"), mask)])


@pytest.mark.parametrize(
    "pairs",
    [[np.zeros((8, 8, 3))], [(1, 2, 3)], ["ab"]],
    ids=["image", "triple", "string"],
)
def test_items_that_are_not_pairs_raise(model, pairs):
    with pytest.raises(TypeError, match=r"zip\(images, masks\).*item 0 of type"):
        evaluate_images(model, pairs)


# Meaning


@pytest.mark.integration
def test_twenty_images_against_a_plain_count(model):
    sizes = [(13, 15), (16, 24), (22, 15), (22, 24), (9, 31)]
    pairs = make_pairs(model, sizes, each=4)
    evaluation = evaluate_images(model, pairs)
    assert_counts(evaluation, *counted(model.segment, pairs))
    assert 0.1 < evaluation.miou < 0.9
    assert evaluation.images == 20


def test_windows_scales_and_flips_against_a_plain_count(model, pairs):
    ways = {"short_side": 16, "crop": 24, "stride": 8, "scales": [1.5], "flip": True}

    def predict(image):
        return predict_logits(model, image, **ways).argmax(-1)

    evaluation = evaluate_images(model, pairs[1:3], **ways)
    assert_counts(evaluation, *counted(predict, pairs[1:3]))
    plain = evaluate_images(model, pairs[1:3])
    assert (evaluation.confusion != plain.confusion).any()


def test_ignored_ids_are_not_counted(model, pairs):
    # Class 3 becomes void.
    pairs = [
        (image, np.where(mask == 3, 77, mask.astype("int16"))) for image, mask in pairs
    ]
    evaluation = evaluate_images(model, pairs, ignore_class=[255, 77])
    assert_counts(evaluation, *counted(model.segment, pairs, [255, 77]))
    assert not evaluation.confusion[3].any()


def test_more_than_255_classes_have_no_void(model, monkeypatch):
    def scores(model, images):
        return np.eye(300, dtype="float32")[np.full((1, 2, 2), 255)]

    monkeypatch.setattr(model, "num_classes", 300)
    monkeypatch.setattr(rows, "_scores", scores)
    mask = np.full((8, 8), 255, "int32")
    mask[0] = 299
    evaluation = evaluate_images(model, [(np.zeros((8, 8, 3), "uint8"), mask)])
    assert evaluation.confusion[255, 255] == 56
    assert evaluation.confusion[299, 255] == 8
    assert evaluation.confusion.sum() == 64


def test_names_are_the_datasets_or_else_the_models(model, pairs, monkeypatch):
    def names(pairs, **options):
        return evaluate_images(model, pairs, **options).class_names

    assert names(pairs) == ("0", "1", "2", "3")
    monkeypatch.setattr(model, "class_names", ("a", "b", "c", "d"))
    assert names(pairs) == ("a", "b", "c", "d")

    class Named(list):
        class_names = NAMES

    assert names(Named(pairs)) == tuple(NAMES)
    assert names(Named(pairs), class_names=[*"wxyz"]) == tuple("wxyz")


def test_masks_that_the_model_gives_are_all_right(model, pairs):
    own = [(image, model.segment(image)) for image, _ in pairs]
    evaluation = evaluate_images(model, own)
    assert evaluation.miou == evaluation.accuracy == evaluation.mean_accuracy == 1
    assert np.array_equal(evaluation.confusion, np.diag(np.diag(evaluation.confusion)))


def test_files_arrays_and_batches_count_the_same(model, tmp_path):
    images, masks = ksa.data.make_scenes(3, size=(16, 24))
    masks = masks % 4
    expected = evaluate_images(model, zip(images, masks, strict=True)).confusion
    for name, arrays in (("images", images), ("masks", masks)):
        (tmp_path / name).mkdir()
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    folder = ksa.data.FolderDataset(tmp_path, num_classes=4, batch_size=2)
    files = list(zip(folder.image_paths, folder.mask_paths, strict=True))
    batch = [(images, masks[..., None])]
    paths = [tuple(map(str, pair)) for pair in files]
    pictures = [tuple(map(Image.open, pair)) for pair in files]
    for pairs in (files, paths, pictures, folder, batch):
        evaluation = evaluate_images(model, pairs)
        assert evaluation.images == 3
        np.testing.assert_array_equal(evaluation.confusion, expected)


def test_files_are_read_with_the_channels_of_the_model(tmp_path):
    inputs = keras.Input((None, None, 1))
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 4, 4)(inputs))
    model = ksa.build_segmenter(
        backbone, 4, adapters=False, preprocessing=keras.layers.Identity()
    )
    images, _ = ksa.data.make_scenes(1, size=(16, 24))
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as picture:
        gray = np.asarray(picture.convert("L"))[..., None]
        own = model.segment(gray)
        Image.fromarray(own).save(tmp_path / "mask.png")
        pairs = [(tmp_path / "image.png", tmp_path / "mask.png"), (picture, own)]
        assert evaluate_images(model, pairs).accuracy == 1


def test_a_dataset_is_read_by_its_length(model):
    class Endless(keras.utils.PyDataset):
        class_names = NAMES

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.zeros((1, 8, 8, 3), "uint8"), np.zeros((1, 8, 8), "uint8")

    evaluation = evaluate_images(model, Endless())
    assert evaluation.images == 2
    assert evaluation.class_names == tuple(NAMES)


def test_a_faulty_file_is_named(model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"image.png, .*mask.png\) must hold .*\[9\]"):
        evaluate_images(model, [(tmp_path / "image.png", tmp_path / "mask.png")])


def test_the_table():
    lines = str(example()).splitlines()
    assert lines[0] == "6 images, 120 pixels, 80.00 % of them right"
    assert lines[1].split() == "class IoU, % accuracy, % pixels, %".split()
    assert lines[2].split() == "class 0 75.00 75.00 33.33".split()
    assert lines[3].split() == "class 1 - - 0.00".split()
    assert lines[6].split() == "mean 70.00 75.00 100.00".split()
    assert len({len(line) for line in lines[1:]}) == 1
    assert repr(example()) == str(example())


def test_the_picture_is_a_png_file_of_any_name(tmp_path):
    path = example().picture(str(tmp_path / "no_suffix"))
    assert path == Path(tmp_path / "no_suffix")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        colors = picture.convert("RGB").getcolors(100_000)
    common = [color for count, color in colors if count > 500]
    assert (224, 224, 224) in common  # the row of the absent class
    assert any(blue > red + 50 for red, _, blue in common)


def test_the_picture_shows_shares_percentages_and_names():
    evaluation = example()
    figure = _confusion_figure(evaluation.confusion, evaluation.class_names)
    (axes,) = figure.axes
    (image,) = axes.images
    shares = image.get_array()
    right = np.eye(4)
    expected = 0.75 * right + 0.25 * np.roll(right, 1, axis=1)
    np.testing.assert_array_equal(shares.mask[:, 0], [False, True, False, False])
    np.testing.assert_allclose(shares[[0, 2, 3]], expected[[0, 2, 3]])
    assert image.get_clim() == (0, 1)
    # Masked cells are transparent, and what is behind them is gray.
    assert image.cmap(shares)[1, 0, 3] == 0
    assert axes.get_facecolor() == (0.88, 0.88, 0.88, 1)
    texts = {
        (*text.get_position(), text.get_text(), text.get_color()) for text in axes.texts
    }
    assert texts == {
        *((i, i, "75", "white") for i in (0, 2, 3)),
        *(((i + 1) % 4, i, "25", "black") for i in (0, 2, 3)),
    }
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == list(evaluation.class_names)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


# Edges


def test_counts_past_the_range_of_int32():
    report = figures(np.array([[3 * 2**33 + 1, 2**33], [0, 2**34]]))
    assert report["aAcc"] == pytest.approx(5 / 6, rel=1e-9)
    np.testing.assert_allclose(report["IoU"], [3 / 4, 2 / 3], rtol=1e-9)


def test_only_void(model):
    image, mask = np.zeros((8, 8, 3), "uint8"), np.full((8, 8), 255, "uint8")
    evaluation = evaluate_images(model, [(image, mask)])
    assert np.isnan([evaluation.miou, evaluation.accuracy]).all()
    assert str(evaluation).startswith("1 images, 0 pixels, - % of them right")


def test_the_picture_when_no_class_occurs(tmp_path):
    empty = dataclasses.replace(example(2), confusion=np.zeros((2, 2), "int64"))
    assert empty.picture(tmp_path / "x.png").exists()


@pytest.mark.parametrize("num_classes, texts", [(2, 2), (40, 78), (41, 0), (172, 0)])
def test_a_picture_of_many_classes(tmp_path, num_classes, texts):
    evaluation = example(num_classes)
    figure = _confusion_figure(evaluation.confusion, evaluation.class_names)
    (axes,) = figure.axes
    assert len(axes.texts) == texts
    figure.draw_without_rendering()
    # The names of neighboring rows do not overlap.
    heights = [tick.get_window_extent().height for tick in axes.get_yticklabels()]
    assert max(heights) <= axes.get_window_extent().height / num_classes
