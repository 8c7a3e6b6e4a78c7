"""Crops that are placed where a rare class is."""

import pickle

import numpy as np
import pytest
from PIL import Image

from keras_segadapter.data import Augmentation, FolderDataset, Labels


def mask_of(size, pixels, background=0):
    """Return a mask `(H, W)` with the classes of a dict from (row, column)."""
    mask = np.full(size, background, "uint8")
    for place, class_ in pixels.items():
        mask[place] = class_
    return mask


def crops(mask, crop_size, seeds, image=None, ignore_class=255, **options):
    """Return views, and their masks, of nothing but crops or what the options say."""
    still = dict(scale=(1, 1), max_class_share=1, flip=0, photometric=False)
    still.update(rare_probability=1)
    augmentation = Augmentation(crop_size, **{**still, **options})
    image = np.zeros((*mask.shape, 1), "uint8") if image is None else image
    views = [
        augmentation(image, mask, np.random.default_rng(seed), ignore_class)
        for seed in range(seeds)
    ]
    return [np.stack(each) for each in zip(*views, strict=True)]


# Contract


@pytest.mark.parametrize("rare_classes", [None, [], (), np.array([], int)])
def test_without_rare_classes_the_views_are_as_ever(rare_classes):
    mask = np.random.default_rng(0).integers(0, 3, (20, 30)).astype("uint8")
    image = np.dstack([mask] * 3)
    before, after = np.random.default_rng(5), np.random.default_rng(5)
    expected = Augmentation((8, 9))(image, mask, before)
    found = Augmentation((8, 9), rare_classes=rare_classes)(image, mask, after)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert before.bit_generator.state == after.bit_generator.state


def test_a_copy_by_pickle_gives_the_same_views():
    mask = np.random.default_rng(0).integers(0, 9, (20, 30)).astype("uint8")
    image = np.dstack([mask] * 3)
    augmentation = Augmentation((8, 9), rare_classes=[7, 3], rare_probability=0.7)
    copy = pickle.loads(pickle.dumps(augmentation))
    for seed in range(9):
        one, other = (
            each(image, mask, np.random.default_rng(seed))
            for each in (augmentation, copy)
        )
        np.testing.assert_array_equal(one[0], other[0])


# Meaning


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_probability_is_the_one_asked_for(probability):
    mask = mask_of((40, 40), {(5, 33): 3})
    options = dict(rare_classes=[3], rare_probability=probability)
    _, ids = crops(mask, (4, 4), 1500, **options)
    by_chance = 16 / 37**2
    expected = probability + (1 - probability) * by_chance
    assert abs((ids == 3).any((1, 2)).mean() - expected) <= 0.04 * (0 < expected < 1)


def test_classes_and_then_pixels_are_drawn_evenly():
    """A crop of one pixel is the pixel that was drawn."""
    few, many = [(0, 3)], [(2, x) for x in range(4)]
    mask = mask_of((4, 6), {**dict.fromkeys(few, 1), **dict.fromkeys(many, 2)})
    image = np.arange(24, dtype="uint8").reshape(4, 6, 1)
    image, ids = crops(mask, (1, 1), 1600, image, rare_classes=[1, 2, 8])
    shares = np.bincount(ids.ravel(), minlength=3) / 1600
    np.testing.assert_allclose(shares, [0, 0.5, 0.5], atol=0.05)
    shares = np.bincount(image.ravel(), minlength=24)[12:16] / 1600
    np.testing.assert_allclose(shares, [0.125] * 4, atol=0.035)


@pytest.mark.parametrize(
    "pixel, rows, columns",
    [((10, 10), [0, 1, 2], [0, 1]), ((0, 10), [0], [0, 1]), ((19, 19), [2], [1])],
    ids=["inside", "at the top", "in a corner"],
)
def test_the_pixel_lies_anywhere_in_its_crops(pixel, rows, columns):
    _, ids = crops(mask_of((20, 20), {pixel: 1}), (3, 2), 600, rare_classes=[1])
    places, counts = np.unique(np.argwhere(ids == 1)[:, 1:], axis=0, return_counts=True)
    assert places.tolist() == [[y, x] for y in rows for x in columns]
    assert counts.sum() == 600 and counts.min() > 0.6 * 600 / len(counts)


@pytest.mark.parametrize("base_size", [None, (30, 90)])
def test_the_pixel_is_in_the_view_at_any_scale(base_size):
    """The same scale, with room for the whole image, shows what shrinking lost."""
    mask = mask_of((61, 83), {(7, 70): 1, (60, 0): 2})
    options = dict(scale=(0.2, 3), flip=0.5, rare_classes=[1, 2], base_size=base_size)
    for class_ in (1, 2):
        options["rare_classes"] = [class_]
        whole = crops(mask, (270, 270), 120, **options)[1]
        part = crops(mask, (7, 9), 120, **options)[1]
        held, drawn = ((ids == class_).any((1, 2)) for ids in (whole, part))
        assert 40 < held.sum() < 120  # it is lost in some, and never by the crop
        np.testing.assert_array_equal(drawn, held)


def test_crops_of_several_classes_are_chosen_among_those_with_the_pixel():
    mask = mask_of((30, 30), {(15, 13): 2})
    mask[:, 15:] = 1
    shares = {}
    for share in (1, 0.75):
        options = dict(rare_classes=[2], max_class_share=share)
        _, ids = crops(mask, (6, 6), 200, **options)
        assert (ids == 2).any((1, 2)).all()
        largest = np.maximum((ids == 0).mean((1, 2)), (ids == 1).mean((1, 2)))
        shares[share] = (largest >= 0.75).mean()
    assert shares[1] > 0.3 and shares[0.75] < 0.05
    # Where none of the crops will do, the last one holds the pixel too.
    _, ids = crops(
        mask_of((9, 9), {(4, 4): 1}), (3, 3), 50, **{**options, "rare_classes": [1]}
    )
    assert (ids == 1).any((1, 2)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
def test_among_void_pixels_of_any_dtype(dtype):
    mask = mask_of((30, 30), {(3, 3): 1, (20, 20): 2}, background=255).astype(dtype)
    _, ids = crops(mask, (5, 5), 60, rare_classes=[2, 300], ignore_class=[254, 255])
    assert (ids == 2).any((1, 2)).all() and ids.dtype == dtype


def test_an_image_without_rare_classes_is_cropped_as_ever():
    mask = np.zeros((20, 30), "uint8")
    image = np.arange(600).reshape(20, 30, 1).astype("uint16")
    found, _ = crops(mask, (2, 2), 500, image, rare_classes=[1])
    corners = found[:, 0, 0, 0]
    assert len(np.unique(corners)) > 250  # of 551


@pytest.fixture
def folder(tmp_path):
    """Write five pairs, the ids 7 of whose masks stand for class 1."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(5):
        size = (30 + 5 * i, 50 - 3 * i)
        image = np.random.default_rng(i).integers(0, 256, (*size, 3)).astype("uint8")
        Image.fromarray(image).save(tmp_path / f"images/{i}.png")
        mask = mask_of(size, {(3 * i, 5 * i): 7})
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def open_views(folder, **options):
    augmentation = Augmentation(
        (9, 9), scale=(1, 2), rare_classes=[1], rare_probability=1
    )
    labels = Labels(["much", "little"], {0: 0, 7: 1})
    return FolderDataset(folder, labels=labels, augmentation=augmentation, **options)


def read(data, epoch):
    data.epoch = epoch
    images, masks = map(np.concatenate, zip(*data, strict=True))
    data.close()
    order = np.arange(len(masks))
    if data.shuffle:
        order = np.random.default_rng([data.seed, epoch]).permutation(order)
    return images[np.argsort(order)], masks[np.argsort(order)]


def test_views_depend_on_seed_epoch_and_file_only(folder):
    data = open_views(folder, batch_size=2, shuffle=True)
    expected = [read(data, epoch) for epoch in (0, 1)]
    assert (expected[0][0] != expected[1][0]).any((1, 2, 3)).all()
    for _, masks in expected:  # classes are rare, and not the ids in the files
        assert (masks == 1).any((1, 2)).all()
    resumed = open_views(folder, batch_size=5, threads=1)
    for epoch in (1, 0):
        for one, other in zip(read(resumed, epoch), expected[epoch], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.integration
def test_processes_give_the_same_views(folder):
    expected = read(open_views(folder), 3)
    found = read(open_views(folder, processes=1), 3)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# Edges


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"rare_classes": 3}, TypeError, "must be a list of classes, or None.*=3$"),
        ({"rare_classes": "sky"}, TypeError, "must be a list of classes.*='sky'$"),
        ({"rare_classes": [1, 0.5]}, ValueError, r"`rare_classes\[1\]` must be an int"),
        ({"rare_classes": [-1]}, ValueError, r"`rare_classes\[0\]` .* at least 0"),
        ({"rare_probability": 2}, ValueError, "must be a number from 0 to 1.*=2$"),
    ],
    ids=["number", "text", "fraction", "negative", "probability"],
)
def test_wrong_arguments_raise(options, error, words):
    with pytest.raises(error, match=words):
        Augmentation((8, 8), **options)


def test_a_rare_class_that_is_none_raises(folder):
    words = r"must be classes, and no ignored ids.*=\[1, {0}\] with \[{0}\], ignore_"
    for id_ in (2, 255):
        augmentation = Augmentation((8, 8), rare_classes=[1, id_])
        with pytest.raises(ValueError, match=words.format(id_)):
            FolderDataset(folder, 2, augmentation=augmentation)
    image, mask = np.zeros((9, 9, 3), "uint8"), np.zeros((9, 9), "uint8")
    with pytest.raises(ValueError, match=words.format(255)):
        augmentation(image, mask, np.random.default_rng(0))
