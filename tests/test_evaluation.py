"""evaluate_images: the figures against plain counting, the table and the picture."""

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.inference.evaluate import Evaluation, evaluate_images
from keras_segadapter.inference.predict import predict_logits
from keras_segadapter.metrics import figures

NAMES = ["road", "sky", "tree", "car"]


@pytest.fixture
def model(tiny_backbone):
    head = ksa.MLPHead(4, channels=8)
    return ksa.build_segmenter(tiny_backbone(), num_classes=4, head=head)


@pytest.fixture
def pairs(model):
    """Images of two sizes; masks near what the model says, with void."""
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
    """The figures, by looking for each class in all pixels."""
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
    """Half of each class right, the rest taken for the next; class 1 does not occur."""
    right = np.eye(num_classes, dtype="int64")
    confusion = 30 * right + 10 * np.roll(right, 1, axis=1)
    confusion[1] = 0
    figures = np.where(np.arange(num_classes) == 1, np.nan, 0.75)
    names = tuple(f"class {i}" for i in range(num_classes))
    return Evaluation(0.7, 0.75, 0.8, figures, figures, confusion, names, 6)


# Contract


def test_what_comes_back(model, pairs):
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
        ({"class_names": NAMES[:3]}, "must hold 4 names.*Received: 3 names"),
        ({"crop": 4}, "`crop` must be at least the deepest stride"),
        ({"crop": 16, "stride": 20}, "`stride` must be at most `crop`"),
        ({"scales": [-1.0]}, "`scales` must be .*positive"),
        ({"short_side": "512"}, "`short_side` must be an integer"),
    ],
)
def test_wrong_arguments_stop_before_the_first_image(model, arguments, words):
    def unread():
        raise AssertionError("a pair was asked for")
        yield

    with pytest.raises(ValueError, match=words):
        evaluate_images(model, unread(), **arguments)


def test_other_models_and_ids_are_refused(model, tiny_backbone):
    with pytest.raises(TypeError, match="must be a Segmenter"):
        evaluate_images(tiny_backbone(), [])
    with pytest.raises(TypeError, match="`ignore_class` must be None, an integer"):
        evaluate_images(model, [], ignore_class="void")


def test_no_pairs(model):
    with pytest.raises(ValueError, match=r"gave no images.*read before is empty"):
        evaluate_images(model, iter([]))


@pytest.mark.parametrize(
    "image, mask, words",
    [
        ((8, 8, 3), np.zeros((8, 9), int), r"pair 1 must hold.*\(8, 9\) for an image"),
        ((8, 8, 3), np.zeros((8, 8, 4), int), r"one class id a pixel.*\(8, 8, 4\)"),
        ((8, 8), np.zeros(8, int), r"mask of shape \(8,\) for an image of shape"),
        ((8, 8, 3), np.zeros((8, 8)), "pair 1 must hold class ids.*float64"),
        ((8, 8, 3), np.full((8, 8), 4), r"pair 1 .*0\.\.3: \[4\] \(ignored: \[255\]"),
        ((8, 8, 3), np.full((8, 8), -1), r"0\.\.3: \[-1\]"),
        ((8, 8, 1), np.zeros((8, 8), int), r"image of pair 1 failed.*\(8, 8, 1\)"),
    ],
)
def test_a_faulty_pair_is_named(model, image, mask, words):
    good = np.zeros((8, 8, 3), "uint8"), np.zeros((8, 8), "uint8")
    with pytest.raises(ValueError, match=words):
        evaluate_images(model, [good, (np.zeros(image, "uint8"), mask)])


@pytest.mark.parametrize("pairs", [[np.zeros((8, 8, 3))], [(1, 2, 3)], ["ab"]])
def test_what_is_no_pair(model, pairs):
    with pytest.raises(TypeError, match=r"zip\(images, masks\).*number 0 is a"):
        evaluate_images(model, pairs)


# Meaning


def test_fifty_images_against_a_plain_count(model):
    sizes = [(13, 15), (16, 24), (22, 15), (22, 24), (9, 31)]
    pairs = make_pairs(model, sizes, each=10)
    evaluation = evaluate_images(model, pairs)
    assert_counts(evaluation, *counted(model.segment, pairs))
    assert 0.1 < evaluation.miou < 0.9
    assert evaluation.images == 50


def test_windows_scales_and_flips_against_a_plain_count(model, pairs):
    ways = {"short_side": 16, "crop": 24, "stride": 8, "scales": [1.5], "flip": True}

    def predict(image):
        return predict_logits(model, image, **ways).argmax(-1)

    evaluation = evaluate_images(model, pairs[1:3], **ways)
    assert_counts(evaluation, *counted(predict, pairs[1:3]))
    plain = evaluate_images(model, pairs[1:3])
    assert (evaluation.confusion != plain.confusion).any()


@pytest.mark.parametrize("ignored", [[255, 3], [255, 0]])
def test_ignored_ids_are_not_counted(model, pairs, ignored):
    evaluation = evaluate_images(model, pairs, ignore_class=ignored)
    assert_counts(evaluation, *counted(model.segment, pairs, ignored))
    assert not evaluation.confusion[ignored[1]].any()


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
    for pairs in (files, [tuple(map(str, files[i])) for i in range(3)], folder, batch):
        evaluation = evaluate_images(model, pairs)
        assert evaluation.images == 3
        np.testing.assert_array_equal(evaluation.confusion, expected)


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
    with pytest.raises(ValueError, match=r"image.png, .*mask.png\) holds ids .*\[9\]"):
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


def test_the_picture(tmp_path):
    path = example().picture(str(tmp_path / "no_suffix"))
    assert path == Path(tmp_path / "no_suffix")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape[0] == pixels.shape[1]
    margin = pixels.shape[0] - 4 * 40
    corners = pixels[margin + 2 :: 40, margin + 2 :: 40]  # no digits there
    darkness = 255 - corners.mean(-1)
    right, next_one = np.eye(4, dtype=bool), np.roll(np.eye(4, dtype=bool), 1, axis=1)
    rows = [0, 2, 3]
    assert np.ptp(darkness[rows][right[rows]]) == 0
    shares = darkness[rows][right[rows]].mean(), darkness[rows][next_one[rows]].mean()
    assert shares[0] == pytest.approx(3 * shares[1], abs=2)
    assert not darkness[rows][~(right | next_one)[rows]].any()
    assert (corners[1] == 225).all()  # does not occur
    block = pixels[margin : margin + 40, margin : margin + 40]
    assert (block == 255).all(-1).any()  # the percentage, white on dark
    for names in (pixels[margin:, :margin], pixels[:margin, margin:]):
        for i in range(4):
            lines = names[40 * i : 40 * i + 40], names[:, 40 * i : 40 * i + 40]
            line = lines[0] if names.shape[0] > names.shape[1] else lines[1]
            assert line.min() < 100
            assert (line[:2] == 255).all() or (line[:, :2] == 255).all()


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


@pytest.mark.parametrize("num_classes", [2, 41, 172])
def test_a_picture_of_many_classes(tmp_path, num_classes):
    path = example(num_classes).picture(tmp_path / "x.png")
    with Image.open(path) as picture:
        side = num_classes * {2: 40, 41: 23, 172: 12}[num_classes]
        assert side < picture.width < side + 120
