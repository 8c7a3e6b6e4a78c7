"""Augmentation: its geometry, its colors, and the datasets that use it."""

import colorsys

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import Augmentation, FolderDataset, inspect_folder
from keras_segadapter.data.epochs import count_epochs

PALETTE = np.random.default_rng(0).integers(40, 256, (256, 3), "uint8")
PALETTE[255] = 0  # like the padding


def blocks(rows, columns, side, classes=6, seed=0):
    """Return an image and its mask in blocks of one class, one color per class."""
    ids = np.random.default_rng(seed).integers(0, classes, (rows, columns), "uint8")
    mask = ids.repeat(side, 0).repeat(side, 1)
    return PALETTE[mask], mask


def still(crop_size, **options):
    """Return an augmentation that does nothing but what the options say."""
    nothing = dict(scale=(1, 1), max_class_share=1, flip=0, photometric=False)
    return Augmentation(crop_size, **{**nothing, **options})


def view(augmentation, image, mask, seed=0, **options):
    return augmentation(image, mask, np.random.default_rng(seed), **options)


def write(folder, pairs):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i, (image, mask) in enumerate(pairs):
        Image.fromarray(image).save(folder / f"images/{i}.png")
        Image.fromarray(mask).save(folder / f"masks/{i}.png")
    return folder


# Contract


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("crop_size", [(9, 14), [64, 64], (1, 1)])
def test_sizes_and_types(dtype, crop_size):
    image, mask = blocks(3, 4, 8)
    views = [
        view(Augmentation(crop_size), image, mask.astype(dtype), i) for i in range(4)
    ]
    for changed, ids in views:
        assert changed.shape == (*crop_size, 3) and changed.dtype == "uint8"
        assert ids.shape == tuple(crop_size) and ids.dtype == dtype


def test_generators_in_the_same_state_give_the_same_view():
    pair = blocks(5, 5, 8)
    kept = [array.copy() for array in pair]
    augmentation = Augmentation((20, 20))
    first, again, other = (view(augmentation, *pair, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    for array, before in zip(pair, kept, strict=True):
        np.testing.assert_array_equal(array, before)


# Meaning: geometry


def extents(augmentation, size, seeds):
    """Return the sizes of the resized images, which the padding shows."""
    image, mask = np.full((*size, 3), 9, "uint8"), np.ones(size, "uint8")
    masks = [view(augmentation, image, mask, seed)[1] for seed in seeds]
    return np.array([((m == 1).any(1).sum(), (m == 1).any(0).sum()) for m in masks])


def test_scales_fill_their_range_and_keep_the_ratio():
    found = extents(still((99, 150), scale=(0.5, 2)), (48, 72), range(300))
    assert found[:, 0].min() == 24 and found[:, 0].max() >= 95
    np.testing.assert_allclose(found[:, 1] / found[:, 0], 1.5, atol=0.04)
    assert abs(np.mean(found[:, 0]) / 48 - 1.25) < 0.08  # uniform


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (30, 200), (7, 7), (1, 9)])
@pytest.mark.parametrize("base_size", [(40, 160), (160, 40), None])
@pytest.mark.parametrize("scale", [0.5, 0.73, 2])
def test_an_image_is_fitted_into_the_scaled_base(size, base_size, scale):
    short, long = sorted(int(side * scale) for side in base_size or size)
    factor = min(long / max(size), short / min(size))
    expected = [max(1, int(side * factor + 0.5)) for side in size]
    augmentation = still((400, 400), base_size=base_size, scale=(scale, scale))
    np.testing.assert_array_equal(extents(augmentation, size, [0])[0], expected)
    if base_size and scale == 2:
        assert short in expected or long in expected


def inner(mask, margin=3):
    """Return where all surrounding pixels have a pixel's class."""
    padded = np.pad(mask, margin, constant_values=99)  # stands for what was cropped
    side = 2 * margin + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return (windows == mask[..., None, None]).all((2, 3))


def test_image_and_mask_stay_aligned():
    image, mask = blocks(6, 8, 16)
    augmentation = Augmentation((80, 70), photometric=False)
    for seed in range(12):
        changed, ids = view(augmentation, image, mask, seed)
        there = inner(ids)
        assert there.mean() > 0.2
        np.testing.assert_array_equal(changed[there], PALETTE[ids[there]])


def test_masks_are_never_interpolated():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, 3), "uint8")
    mask = rng.choice(np.array([3, 90, 200], "int32"), (30, 40))
    views = [
        view(Augmentation((33, 33)), image, mask, i, ignore_class=[777, 999])[1]
        for i in range(20)
    ]
    assert set(np.unique(views)) == {3, 90, 200, 777}


def test_corners_are_uniform():
    rows, columns = np.mgrid[:5, :6].astype("uint8")
    image = np.dstack([rows, columns, rows])
    augmentation = still((3, 3))
    corners = [view(augmentation, image, rows, i)[0][0, 0, :2] for i in range(1200)]
    corners, counts = np.unique(corners, axis=0, return_counts=True)
    assert corners.tolist() == [[y, x] for y in range(3) for x in range(4)]
    assert counts.min() > 60 and counts.max() < 140  # 100 each; deviation 9.6


def crops_drawn(mask, **options):
    """Return how many crops were drawn, which the state of the generator shows."""
    rng, image = np.random.default_rng(0), np.zeros((*mask.shape, 3), "uint8")
    still((2, 4), **options)(image, mask, rng, ignore_class=[254, 255])
    for count in range(13):
        twin = np.random.default_rng(0)
        twin.uniform(1, 1)  # the scale
        for _ in range(count):
            twin.integers(np.subtract(mask.shape, (2, 4)) + 1)
        twin.random()  # the flip
        if twin.bit_generator.state == rng.bit_generator.state:
            return count


@pytest.mark.parametrize(
    "crop, share, count",
    [
        pytest.param([0, 0, 0, 0, 0, 0, 0, 1], 0.75, 11, id="above"),
        pytest.param([0, 0, 0, 0, 0, 0, 1, 2], 0.75, 11, id="equal"),
        pytest.param([0, 0, 0, 0, 0, 1, 1, 2], 0.75, 1, id="below"),
        pytest.param([0, 0, 0, 0, 0, 1, 1, 2], 0.6, 11, id="above another"),
        pytest.param([0] * 8, 0.99, 11, id="one class"),
        pytest.param([0, 1, 255, 255, 254, 254, 255, 255], 0.75, 1, id="void"),
        pytest.param([0] + [255] * 7, 0.75, 11, id="one class and void"),
        pytest.param([255] * 8, 0.75, 11, id="only void"),
        pytest.param([0] * 8, 1, 1, id="any"),
    ],
)
def test_crops_are_drawn_until_no_class_has_too_much(crop, share, count):
    # A crop of 2 x 4 holds the same ids, wherever it lies in this mask.
    mask = np.tile(np.array(crop, "uint8").reshape(2, 4), (4, 4))
    assert crops_drawn(mask, max_class_share=share) == count


def test_the_last_crop_is_taken_as_it_is():
    image, mask = np.zeros((9, 9, 3), "uint8"), np.zeros((9, 9), "uint8")
    mask[:, 8] = 1  # only in crops at the right edge
    augmentation = still((2, 2), max_class_share=0.75)
    lucky = np.mean([view(augmentation, image, mask, i)[1].any() for i in range(500)])
    assert abs(lucky - (1 - (7 / 8) ** 11)) < 0.07


def test_flips():
    image, mask = blocks(4, 5, 3)
    np.testing.assert_array_equal(view(still((12, 15)), image, mask)[0], image)
    for array, flipped in zip(
        (image, mask), view(still((12, 15), flip=1), image, mask), strict=True
    ):
        np.testing.assert_array_equal(flipped, array[:, ::-1])
    often = still((12, 15), flip=0.5)
    kept = [(view(often, image, mask, i)[1] == mask).all() for i in range(400)]
    assert 0.4 < np.mean(kept) < 0.6


def test_padding_is_black_and_ignored():
    image, mask = blocks(2, 3, 4)
    augmentation = still((10, 20))
    for void in (255, [255, 254], 254):
        changed, ids = view(augmentation, image, mask, ignore_class=void)
        np.testing.assert_array_equal(changed[:8, :12], image)
        np.testing.assert_array_equal(ids[:8, :12], mask)
        assert changed.sum() == image.sum()
        assert set(ids[8:].flat) == set(ids[:, 12:].flat) == {min(np.atleast_1d(void))}


def test_a_crop_larger_in_one_direction():
    image, mask = blocks(2, 6, 4)  # 8 x 24
    changed, ids = view(still((12, 10)), image, mask, 1)
    assert (ids[:8] != 255).all() and (ids[8:] == 255).all()
    np.testing.assert_array_equal(changed, PALETTE[ids])


# Meaning: colors


def distorted(pixels, seeds):
    """Return pixels `(N, 3)` after the photometric distortion, `(seeds, N, 3)`."""
    image = np.array([pixels], "uint8")
    augmentation = still(image.shape[:2], photometric=True)
    mask = np.zeros(image.shape[:2], "uint8")
    return np.array([view(augmentation, image, mask, i)[0][0] for i in seeds], float)


def test_brightness_and_contrast_of_grays():
    found = distorted([[60] * 3, [130] * 3], range(800))
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, -1))
    low, high = found[..., 0].T
    contrast = (high - low) / 70
    brightness = low / contrast - 60
    assert 0.48 < contrast.min() < 0.55 and 1.45 < contrast.max() < 1.52
    assert -34 < brightness.min() < -29 and 28 < brightness.max() < 34
    assert abs(np.mean(contrast == 1) - 0.5) < 0.08
    assert abs(np.mean(low == 60) - 0.25) < 0.08  # neither


def hsv(pixels):
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels.reshape(-1, 3) / 255]
    return np.array(flat).reshape(pixels.shape)


def test_saturation_and_hue_where_gray_is_unchanged():
    grays = [[60] * 3, [130] * 3]
    pixels = [[200, 110, 100], [60, 90, 130]]
    found = distorted(grays + pixels, range(1500))
    found = found[(found[:, :2] == grays).all((1, 2))]  # a quarter
    colors, before = hsv(found[:, 2:]), hsv(np.array(pixels, float))
    np.testing.assert_allclose(colors[..., 2] - before[:, 2], 0, atol=0.01)
    turned = ((colors[..., 0] - before[:, 0] + 0.5) % 1 - 0.5) * 360
    np.testing.assert_allclose(turned[:, 0], turned[:, 1], atol=3)
    assert -39 < turned.min() < -31 and 29 < turned.max() < 37
    assert abs(np.mean(abs(turned) < 1.5) - 0.5) < 0.13
    factor = colors[..., 1] / before[:, 1]
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], atol=0.04)
    assert 0.45 < factor.min() < 0.6 and 1.4 < factor.max() < 1.55
    assert abs(np.mean(abs(factor - 1) < 0.02) - 0.5) < 0.13


def rewritten(pixel, rng):
    """Distort one pixel in floats, with the random draws in the same order."""
    rng.uniform(1, 1), rng.integers([1, 1]), rng.random()  # scale, crop, flip
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1
    hue = rng.integers(-18, 18) * 2 / 360 if rng.random() < 0.5 else 0
    contrast_first = rng.random() < 0.5
    pixel = np.clip(pixel + brightness, 0, 255)
    if contrast_first:
        pixel = np.clip(pixel * contrast, 0, 255)
    h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
    pixel = np.array(colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), v))
    return np.clip(pixel * 255 * (1 if contrast_first else contrast), 0, 255)


def test_the_distortion_against_colorsys():
    # With bright and dark pixels, the order of the changes matters.
    pixels = [[250, 180, 40], [20, 200, 190], [70, 30, 200], [255, 0, 0]]
    seeds = range(100)
    expected = [
        [rewritten(np.array(p, float), np.random.default_rng(i)) for p in pixels]
        for i in seeds
    ]
    found = distorted(pixels, seeds)
    assert len(np.unique(found, axis=0)) > 80
    np.testing.assert_allclose(found, expected, atol=13)  # 8 bits at each step
    assert np.mean(abs(found - np.array(expected))) < 2


def test_gray_images_change_in_brightness_and_contrast_as_rgb_does():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 1), "uint8")
    mask, changed = np.zeros((9, 9), "uint8"), 0
    for seed in range(40):
        gray, _ = view(Augmentation((9, 9), scale=(1, 1)), image, mask, seed)
        rgb, _ = view(
            Augmentation((9, 9), scale=(1, 1)), image.repeat(3, 2), mask, seed
        )
        assert gray.shape == (9, 9, 1) and gray.dtype == "uint8"
        np.testing.assert_allclose(gray.astype(int), rgb[..., :1], atol=1)
        changed += (np.sort(gray, axis=None) != np.sort(image, axis=None)).any()
    assert 20 < changed < 40


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_views_of_any_channels(channels, dtype):
    """The channels of a view are those of the view of an image of three."""
    image, mask = blocks(4, 5, 6)
    bands = image[..., np.arange(channels) % 3].astype(dtype)
    augmentation = Augmentation((20, 40), photometric=False)
    for seed in range(4):
        expected, ids = view(augmentation, image, mask, seed)
        found, same_ids = view(augmentation, bands, mask, seed)
        assert found.shape == (20, 40, channels) and found.dtype == dtype
        np.testing.assert_array_equal(ids, same_ids)
        expected = expected[..., np.arange(channels) % 3].astype(float)
        # Of some kinds, OpenCV rounds the places between pixels to 1/32.
        np.testing.assert_allclose(found, expected, atol=7)


# Meaning: datasets


@pytest.fixture
def folder(tmp_path):
    sizes = [(3, 4), (4, 3), (2, 6), (5, 5), (1, 1)]
    return write(tmp_path, [blocks(*size, 8, seed=i) for i, size in enumerate(sizes)])


def by_file(data, epoch):
    """Return the views of an epoch, images beside masks, in the order of the files."""
    data.epoch = epoch
    views = np.concatenate([np.concatenate([x, y[..., None]], -1) for x, y in data])
    order = np.arange(len(views))
    if data.shuffle:
        order = np.random.default_rng([data.seed, epoch]).permutation(order)
    return views[np.argsort(order)]


def test_views_depend_on_seed_epoch_and_file_only(folder):
    augmentation = Augmentation((24, 24))
    options = dict(num_classes=6, augmentation=augmentation, seed=7)
    data = FolderDataset(folder, batch_size=2, shuffle=True, threads=4, **options)
    first, second = by_file(data, 0), by_file(data, 1)
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    resumed = FolderDataset(folder, batch_size=5, threads=1, **options)
    np.testing.assert_array_equal(by_file(resumed, 1), second)
    np.testing.assert_array_equal(by_file(resumed, 0), first)
    for i in range(5):  # each file has random numbers of its own
        image, mask = (
            np.asarray(Image.open(paths[i]))
            for paths in (data.image_paths, data.mask_paths)
        )
        image, mask = augmentation(image, mask, np.random.default_rng([7, 1, i]))
        np.testing.assert_array_equal(second[i], np.dstack([image, mask]))
    other = FolderDataset(folder, **{**options, "seed": 8})
    assert (by_file(other, 0) != first).any((1, 2, 3)).all()


def test_fit_gets_new_views_in_each_epoch(folder):
    data = FolderDataset(folder, 6, augmentation=Augmentation((8, 8)), batch_size=5)
    sum_channels = keras.layers.Conv2D(1, 1, kernel_initializer="ones")
    model = keras.Sequential([sum_channels, keras.layers.GlobalAveragePooling2D()])
    # The loss is the mean of the images that the model really gets.
    model.compile(
        keras.optimizers.SGD(0.0), loss=lambda y, x: x[:, 0] / 3, run_eagerly=EAGER
    )
    history = model.fit(data, epochs=2, verbose=0, callbacks=[count_epochs(data)])
    expected = [by_file(data, epoch)[..., :3].mean() for epoch in (0, 1)]
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-4)
    assert expected[0] != expected[1]


def test_inspect_folder_reads_the_files_as_they_are(folder):
    data = FolderDataset(folder, 6, augmentation=Augmentation((64, 64)))
    report, plain = inspect_folder(data), inspect_folder(folder, num_classes=6)
    assert 255 not in report.pixels and min(report.sizes) == (8, 8)
    assert report.pixels == plain.pixels


def test_ids_are_looked_up_first(tmp_path):
    image, mask = blocks(2, 2, 4, classes=2)
    write(tmp_path, [(image, mask + 7)])
    labels = ksa.data.Labels(["a", "b"], {7: 0, 8: 1})
    data = FolderDataset(
        tmp_path, labels=labels, augmentation=still((9, 9)), ignore_class=[300, 255]
    )
    _, (found,) = data[0]
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, np.pad(mask, (0, 1), constant_values=255))


# Edges


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
@pytest.mark.parametrize("scale", [(0.01, 0.02), (30, 30)])
def test_tiny_images(size, scale):
    image, mask = np.full((*size, 3), 200, "uint8"), np.zeros(size, "uint8")
    augmentation = Augmentation((8, 5), scale=scale)
    changed, ids = view(augmentation, image, mask)
    assert changed.shape == (8, 5, 3) and ids[0, 0] == 0


def test_a_mask_of_ignored_ids_only():
    image = np.zeros((12, 12, 3), "uint8")
    _, ids = view(Augmentation((6, 20)), image, np.full((12, 12), 255, "uint8"))
    assert (ids == 255).all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"crop_size": 512}, r"`crop_size` must be \(height, width\).*: crop_size=512"),
        ({"crop_size": (0, 5)}, r"`crop_size\[0\]` must be an integer of at least 1"),
        ({"base_size": (5, 0)}, r"`base_size\[1\]` must be an integer of at least 1"),
        ({"scale": 2}, r"`scale` must be \(lowest, highest\). Received: scale=2$"),
        ({"scale": (0, 2)}, r"`scale\[0\]` must be a finite number above 0"),
        ({"scale": (2, 0.5)}, r"in this order. Received: scale=\(2, 0.5\)$"),
        ({"flip": 1.5}, r"`flip` must be a number from 0 to 1. Received: flip=1.5$"),
        ({"flip": "often"}, r"`flip` must be a number .*: flip='often'$"),
        ({"max_class_share": 75}, r"`max_class_share` must be .*share=75$"),
    ],
    ids=[
        "crop number",
        "crop height",
        "base width",
        "scale number",
        "scale zero",
        "scale order",
        "flip",
        "flip string",
        "share",
    ],
)
def test_wrong_arguments_raise(arguments, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**{"crop_size": (8, 8), **arguments})


@pytest.mark.parametrize(
    "changes, error, words",
    [
        pytest.param(
            {"image": np.zeros((4, 4, 3))},
            ValueError,
            "pass photometric=False .*images of 3 channels and dtype float64$",
            id="float image",
        ),
        pytest.param(
            {"image": np.zeros((4, 4, 6), "uint8")},
            ValueError,
            "pass photometric=False .*images of 6 channels and dtype uint8$",
            id="six channels",
        ),
        pytest.param(
            {"image": np.zeros((4, 4), "uint8")},
            ValueError,
            r"`image` must hold numbers .*image of shape \(4, 4\) and dtype uint8$",
            id="image without channels",
        ),
        pytest.param(
            {"mask": np.zeros((4, 4))},
            ValueError,
            r"`mask` must hold .*\(4, 4\) and dtype float64 for",
            id="float mask",
        ),
        pytest.param(
            {"mask": np.zeros((4, 5), int)},
            ValueError,
            r"mask of shape \(4, 5\) .* for an image of shape \(4, 4, 3\)$",
            id="sizes",
        ),
        pytest.param(
            {"image": np.zeros((0, 4, 3), "uint8"), "mask": np.zeros((0, 4), "uint8")},
            ValueError,
            "`mask` must hold one integer class id for each pixel",
            id="empty",
        ),
        pytest.param(
            {"ignore_class": 300},
            ValueError,
            "Received: uint8 for the id 300$",
            id="id too large",
        ),
        pytest.param(
            {"ignore_class": None},
            ValueError,
            "Pass `ignore_class=255` here and to `compile`",
            id="no ids",
        ),
        pytest.param(
            {"ignore_class": "void"},
            TypeError,
            '`ignore_class` must be "auto", None, an integer',
            id="id",
        ),
        pytest.param(
            {"rng": 3}, TypeError, "`rng` must be .*Generator.*rng=3$", id="rng"
        ),
    ],
)
def test_wrong_calls_raise(changes, error, words):
    call = dict(
        image=np.zeros((4, 4, 3), "uint8"),
        mask=np.zeros((4, 4), "uint8"),
        rng=np.random.default_rng(0),
    )
    with pytest.raises(error, match=words):
        Augmentation((8, 8))(**{**call, **changes})


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (
            {"image_size": (8, 8)},
            ValueError,
            r"Leave out `image_size`.*image_size=\(8, 8\), crop_size=\(16, 16\)$",
        ),
        (
            {"ignore_class": None},
            ValueError,
            "Pass `ignore_class=255`.*ignore_class=None, n",
        ),
        ({"augmentation": "all"}, TypeError, "Augmentation or None.*tation='all'$"),
        ({"channels": 4}, ValueError, "photometric=False.*images of 4 channels"),
    ],
    ids=["image size", "no ids", "string", "channels"],
)
def test_wrong_arguments_of_a_dataset_raise(folder, arguments, error, words):
    options = {"augmentation": Augmentation((16, 16)), **arguments}
    with pytest.raises(error, match=words):
        FolderDataset(folder, 6, **options)
