"""predict_logits and predict_labels: whole images, windows, scales, flips and tiles."""

import tracemalloc

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.inference import evaluate_images, predict, rows
from keras_segadapter.inference.predict import (
    label_images,
    predict_labels,
    predict_logits,
    window_starts,
)
from keras_segadapter.layers.native import resize_bilinear


class First(keras.layers.Layer):
    """A head that returns the features of the first stage."""

    def call(self, features):
        return features[0]


def pixelwise(weights):
    """Build a segmenter whose logits are the image, convolved by (k, k, 3, K)."""
    size, _, _, classes = weights.shape
    backbone = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(
                classes, size, padding="same", use_bias=False, name="scores"
            ),
        ]
    )
    backbone.layers[0].set_weights([weights])
    return ksa.build_segmenter(
        backbone,
        classes,
        taps=["scores"],
        adapters=False,
        head=First(),
        aux=None,
        preprocessing=keras.layers.Identity(),
    )


def photo(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), "uint8")


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def model(tiny_backbone):
    keras.utils.set_random_seed(0)
    head = ksa.MLPHead(3, channels=8)
    return ksa.build_segmenter(tiny_backbone(), 3, head=head)  # strides 4 and 8


@pytest.fixture
def sizes_seen(model, monkeypatch):
    """Record the sizes that the model predicts at; its scores become 0."""
    sizes = []

    def scores(model, images):
        sizes.append(images.shape[1:3])
        return np.zeros((*images.shape[:3], 3), "float32")

    monkeypatch.setattr(rows, "_scores", scores)
    return sizes


# Contract


def test_without_arguments_its_argmax_is_segment(model):
    image = photo(21, 30)
    logits = predict_logits(model, image)
    assert logits.shape == (21, 30, 3)
    assert logits.dtype == "float32"
    np.testing.assert_array_equal(logits.argmax(-1), model.segment(image))


def test_windows_scales_and_flips_give_the_size_of_the_image(model):
    logits = predict_logits(
        model, photo(21, 30), short_side=24, crop=16, scales=[0.5, 1], flip=True
    )
    assert logits.shape == (21, 30, 3)
    assert logits.dtype == "float32"


BAD = {
    "side 0": ({"short_side": 0}, "at least 1.*short_side=0"),
    "side 48.0": ({"short_side": 48.0}, "an integer.*short_side=48.0"),
    "crop below the stride": ({"crop": 7}, "at least 8.*crop=7"),
    "crop a pair": ({"crop": (16, 16)}, "`crop` must be an integer"),
    "stride 17": ({"crop": 16, "stride": 17}, "left out.*stride=17, crop=16"),
    "stride 0": ({"crop": 16, "stride": 0}, "at least 1.*stride=0"),
    "stride without crop": ({"stride": 8}, "`crop`, too.*stride=8"),
    "no scales": ({"scales": []}, r"list of positive numbers.*scales=\[\]"),
    "scales a number": ({"scales": 1.0}, "list of positive numbers.*scales=1.0"),
    "scale 0": ({"scales": [1, 0]}, r"`scales\[1\]` must be .* above 0"),
    "scale NaN": ({"scales": [float("nan")]}, "`scales.*above 0.*nan"),
    "scale a string": ({"scales": ["1"]}, "`scales.*above 0.*'1'"),
}


@pytest.mark.parametrize("arguments, words", BAD.values(), ids=BAD)
def test_wrong_arguments_raise_before_the_model_runs(
    model, sizes_seen, arguments, words
):
    with pytest.raises(ValueError, match=words):
        predict_logits(model, photo(16, 16), **arguments)
    assert not sizes_seen


@pytest.mark.parametrize(
    "image, words",
    [
        pytest.param(photo(8, 8)[None], r"one image .*\(1, 8, 8, 3\)", id="batch"),
        pytest.param(photo(8, 8)[..., 0], r"one image .*\(8, 8\)", id="no channels"),
        pytest.param(photo(8, 8)[..., :1], r"shape \(8, 8, 1\)", id="gray"),
        pytest.param(photo(8, 8) / 255, "Multiply them by 255", id="0..1"),
    ],
)
def test_wrong_images_raise(model, image, words):
    with pytest.raises(ValueError, match=words):
        predict_logits(model, image)


def test_other_models_raise(tiny_backbone):
    words = r"predict_logits takes a keras_segadapter\.Segmenter.* of type Functional"
    with pytest.raises(TypeError, match=words):
        predict_logits(tiny_backbone(), photo(8, 8))


def test_pillow_images_are_turned_as_their_exif_says(model):
    picture = Image.fromarray(photo(21, 30))
    picture.getexif()[0x0112] = 6  # a quarter turn clockwise
    turned = np.rot90(photo(21, 30), -1)
    for call in (predict_labels, predict_logits):
        np.testing.assert_array_equal(call(model, picture), call(model, turned))


@pytest.mark.parametrize("num_classes, dtype", [(256, "uint8"), (257, "int32")])
def test_labels_are_ids_of_the_images_size(model, monkeypatch, num_classes, dtype):
    def scores(model, images):
        return np.eye(num_classes, dtype="float32")[[[[num_classes - 1]]] * len(images)]

    monkeypatch.setattr(model, "num_classes", num_classes)
    monkeypatch.setattr(rows, "_scores", scores)
    for labels in (
        label_images(model, photo(30, 70)[None])[0],
        predict_labels(model, photo(30, 70)),
        predict_labels(model, photo(30, 70), tile=16, overlap=8),
    ):
        assert labels.shape == (30, 70)
        assert labels.dtype == dtype
        assert (labels == num_classes - 1).all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        pytest.param({"tile": 0}, "`tile` must be .*at least 1.*tile=0", id="tile 0"),
        pytest.param({"tile": (8, 8)}, "`tile` must be an integer", id="tile a pair"),
        pytest.param({"overlap": -1}, "at least 0.*overlap=-1", id="overlap -1"),
        pytest.param({"overlap": 8.0}, "an integer.*overlap=8.0", id="overlap 8.0"),
    ],
)
def test_wrong_tiles_raise(model, sizes_seen, arguments, words):
    with pytest.raises(ValueError, match=words):
        predict_labels(model, photo(16, 16), **arguments)
    assert not sizes_seen


def test_labels_of_other_models_and_images_raise(model, tiny_backbone):
    with pytest.raises(TypeError, match=r"predict_labels takes a .*Segmenter"):
        predict_labels(tiny_backbone(), photo(8, 8))
    with pytest.raises(ValueError, match=r"predict_labels takes one image"):
        predict_labels(model, photo(8, 8)[None])


# Meaning


@pytest.mark.parametrize("size", [(16, 24), (21, 30), (1, 9)])
def test_segment_is_the_argmax_of_predict(model, size):
    images = np.stack([photo(*size, seed) for seed in range(10)])  # more than a step
    padded = np.pad(
        images, ((0, 0), *((0, -side % 8) for side in size), (0, 0)), "edge"
    )
    expected = model.predict(padded, verbose=0)[:, : size[0], : size[1]]
    assert_argmax(model.segment(images), expected)


def assert_argmax(labels, logits):
    """Assert that labels are the argmax of logits, except where classes nearly tie."""
    second, first = np.sort(logits, axis=-1)[..., -2:].transpose(
        -1, *range(labels.ndim)
    )
    clear = first - second > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(labels[clear], logits.argmax(-1)[clear])


@pytest.mark.parametrize("size", [(24, 28), (25, 13), (5, 3), (1, 1), (6, 7)])
def test_rows_are_those_of_a_map_resized_as_a_whole(size):
    maps = np.random.default_rng(0).normal(size=(6, 7, 5)).astype("float32")
    expected = resize_bilinear(maps[None], *size)
    found = list(rows.resized_rows(maps, (6, 7), size))
    np.testing.assert_allclose(
        found, keras.ops.convert_to_numpy(expected)[0], atol=1e-5
    )


def test_tiles_equal_the_whole_image_where_they_overlap_enough(model):
    image = photo(198, 270)
    logits = predict_logits(model, image)
    # A pixel changes logits up to 40 pixels away: this is the overlap that is enough.
    for column in range(104, 112):  # all places in a cell of stride 8
        changed = image.copy()
        changed[:, column:] ^= 255
        reached = (predict_logits(model, changed) != logits).any(axis=(0, 2))
        assert reached[column:].any() and not reached[: column - 40].any()
    for tile in (32, 100):
        assert_argmax(predict_labels(model, image, tile=tile, overlap=40), logits)
    np.testing.assert_array_equal(
        predict_labels(model, image, tile=198, overlap=72), model.segment(image)
    )
    without = predict_labels(model, image, tile=32, overlap=0)
    assert (without != logits.argmax(-1)).any()


def test_tiles_cover_every_pixel_with_their_surroundings():
    rng = np.random.default_rng(0)
    for _ in range(500):
        tile, overlap, length = rng.integers([1, 0, 1], [30, 20, 200])
        covered = np.zeros(length, int)
        for seen, kept in predict._tiles(length, tile, overlap):
            covered[kept] += 1
            assert kept.start < kept.stop <= length
            assert seen.stop - seen.start == tile + 2 * overlap
            # Nothing is nearer to where the tile was cut than the overlap.
            assert seen.start == 0 or kept.start >= seen.start + overlap
            assert kept.stop == length or kept.stop <= seen.stop - overlap
        assert (covered == 1).all()


TILES = {
    "the whole image": ((1280, 1280), {}, [(1280, 1280)]),
    "1024 and 128": ((1281, 1280), {}, [(1280, 1280)] * 2),
    "rounded up": ((60, 90), {"tile": 20, "overlap": 5}, [(40, 40)] * 8),
    "lower than a tile": ((20, 90), {"tile": 32, "overlap": 8}, [(24, 48)] * 3),
    "one tile": ((20, 30), {"tile": 500}, [(24, 32)]),
}


@pytest.mark.parametrize("size, arguments, seen", TILES.values(), ids=TILES)
def test_tiles_that_the_model_sees(model, sizes_seen, size, arguments, seen):
    predict_labels(model, photo(*size), **arguments)
    assert sizes_seen == seen


CALLS = {
    "segment": lambda model, image: label_images(model, image[None]),
    "labels": predict_labels,
    "tiles": lambda model, image: predict_labels(model, image, tile=64, overlap=32),
    "evaluate": lambda model, image: evaluate_images(model, [(image, image[..., 0])]),
    "evaluate windows": lambda model, image: evaluate_images(
        model, [(image, image[..., 0])], crop=64
    ),
    "evaluate resized": lambda model, image: evaluate_images(
        model, [(image, image[..., 0])], short_side=128
    ),
    "logits": predict_logits,
    "logits, windows": lambda model, image: predict_logits(model, image, crop=64),
    "logits, views": lambda model, image: predict_logits(
        model, image, scales=[0.5, 1], flip=True
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_memory_is_that_of_the_result(model, monkeypatch, call):
    classes, image = 150, np.zeros((192, 256, 3), "uint8")

    def scores(model, images):
        batch, height, width, _ = images.shape
        return np.zeros((batch, height // 4, width // 4, classes), "float32")

    monkeypatch.setattr(model, "num_classes", classes)
    monkeypatch.setattr(rows, "_scores", scores)
    tracemalloc.start()
    try:
        result = call(model, image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    logits = 4 * classes * image.shape[0] * image.shape[1]
    given = logits if np.ndim(result) == 3 and len(result) > 1 else 0
    assert peak < given + logits / 3


@pytest.mark.parametrize("short_side", [None, 20])
def test_one_window_is_the_whole_image(model, short_side):
    image = photo(21, 30)
    whole = predict_logits(model, image, short_side=short_side)
    window = predict_logits(model, image, short_side=short_side, crop=64, stride=8)
    assert np.ptp(whole) > 0.01
    np.testing.assert_array_equal(window, whole)


def test_windows_cover_every_pixel_and_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(500):
        length, crop = rng.integers(1, 200, 2)
        stride = rng.integers(1, crop + 1)
        starts = window_starts(length, crop, stride)
        covered = np.zeros(length, int)
        for start in starts:
            covered[start : start + crop] += 1
        assert covered.min() >= 1
        assert starts[0] == 0
        assert starts[-1] + crop == max(length, crop)
        # There are no more windows than it takes.
        assert len(starts) == max(-(-(length - crop) // stride), 0) + 1


def test_windows_of_the_papers_tests():
    assert window_starts(2048, 1024, 768) == [0, 768, 1024]
    assert window_starts(1024, 1024, 768) == [0]
    assert window_starts(704, 512, 341) == [0, 192]


def test_overlaps_are_averaged():
    weights = np.random.default_rng(1).normal(size=(5, 5, 3, 2)).astype("float32")
    model, image = pixelwise(weights), photo(11, 18)

    def convolved(window):
        height, width, _ = window.shape
        padded = np.pad(window.astype("float64"), ((2, 2), (2, 2), (0, 0)))
        return sum(
            padded[i : i + height, j : j + width] @ weights[i, j].astype("float64")
            for i in range(5)
            for j in range(5)
        )

    total, counts = np.zeros((11, 18, 2)), np.zeros((11, 18, 1))
    for top in (0, 3):
        for left in (0, 5, 10):
            total[top : top + 8, left : left + 8] += convolved(
                image[top : top + 8, left : left + 8]
            )
            counts[top : top + 8, left : left + 8] += 1
    logits = predict_logits(model, image, crop=8)  # the stride is 5
    np.testing.assert_allclose(logits, total / counts, rtol=1e-4, atol=0.05)
    whole = convolved(image)
    assert abs(logits - whole).max() > 100  # the windows' borders matter
    np.testing.assert_allclose(
        predict_logits(model, image), whole, rtol=1e-4, atol=0.05
    )


def test_scales_and_flips_average_probabilities(model):
    image = photo(16, 24)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    both = predict_logits(model, image, scales=(1, 1.5), flip=True)
    parts = [
        predict_logits(model, view, scales=[scale])[:, ::step]
        for scale in (1, 1.5)
        for view, step in ((image, 1), (mirrored, -1))
    ]
    expected = np.mean([softmax(part) for part in parts], axis=0)
    np.testing.assert_allclose(np.exp(both), expected, atol=1e-5)
    assert abs(softmax(parts[0]) - expected).max() > 1e-4


def test_flips_change_nothing_for_a_model_of_single_pixels():
    weights = np.random.default_rng(0).normal(size=(1, 1, 3, 2)).astype("float32")
    model, image = pixelwise(weights / 100), photo(9, 14)
    plain = predict_logits(model, image)
    flipped = predict_logits(model, image, flip=True)
    np.testing.assert_allclose(np.exp(flipped), softmax(plain), atol=1e-6)


def test_logits_of_a_resized_image_are_aligned_with_the_image():
    # The logits are the image. A ramp stays a ramp at any size, except at its ends.
    model = pixelwise(np.eye(3, dtype="float32")[None, None])
    ramp = np.stack(np.broadcast_arrays(np.arange(40) * 6, np.arange(30)[:, None]))
    image = np.stack([*ramp, ramp[0]], axis=-1).astype("uint8")  # (30, 40, 3)
    for arguments in ({"short_side": 60}, {"short_side": 15}, {"scales": [2.0]}):
        logits = predict_logits(model, image, **arguments)
        np.testing.assert_allclose(
            logits[3:-3, 3:-3], image[3:-3, 3:-3], rtol=1e-4, atol=1e-2
        )


SIZES = {
    "padded": ((21, 30), {}, [(24, 32)]),
    "short side": ((60, 90), {"short_side": 48}, [(48, 72)]),
    "70.8 goes up": ((90, 61), {"short_side": 48}, [(72, 48)]),
    "71 goes up": ((48, 71), {"short_side": 48}, [(48, 72)]),
    "side and scales": (
        (60, 90),
        {"short_side": 48, "scales": [0.5, 1.75]},
        [(24, 40), (88, 128)],
    ),
    "scales": ((20, 30), {"scales": [0.5, 1]}, [(16, 16), (24, 32)]),
    "tiny": ((2, 80), {"scales": [0.1]}, [(8, 8)]),
    "windows": ((20, 60), {"crop": 32, "stride": 20}, [(24, 32)] * 3),
    "all": ((20, 60), {"short_side": 24, "crop": 24, "flip": True}, [(24, 24)] * 8),
}


@pytest.mark.parametrize("size, arguments, seen", SIZES.values(), ids=SIZES)
def test_sizes_that_the_model_sees(model, sizes_seen, size, arguments, seen):
    predict_logits(model, photo(*size), **arguments)
    assert sizes_seen == seen


def test_ade20k_goes_up_to_a_multiple_of_32(tiny_backbone, monkeypatch):
    model = ksa.build_segmenter(tiny_backbone((2, 2, 2, 2)), num_classes=2)
    sizes = []

    def scores(model, images):
        sizes.append(images.shape[1:3])
        return np.zeros((*images.shape[:3], 2), "float32")

    monkeypatch.setattr(rows, "_scores", scores)
    predict_logits(model, photo(256, 341), short_side=512)
    predict_logits(model, photo(256, 341), short_side=512, crop=512, stride=341)
    assert sizes == [(512, 704), (512, 512), (512, 512)]


# Edges


def test_a_model_of_fixed_size(tiny_backbone):
    backbone, head = tiny_backbone(size=(16, 24)), ksa.MLPHead(3, channels=8)
    model = ksa.build_segmenter(backbone, num_classes=3, head=head)
    image = photo(21, 50)
    assert predict_logits(model, image).shape == (21, 50, 3)
    assert predict_logits(model, image, crop=16, flip=True).shape == (21, 50, 3)
    fits = image[:16, :24]
    expected = model.predict_on_batch(fits[None])[0]
    np.testing.assert_allclose(predict_logits(model, fits), expected, atol=1e-5)
    labels = predict_labels(model, image)
    assert_argmax(labels, predict_logits(model, image))
    np.testing.assert_array_equal(labels, model.segment(image))


def test_tiles_of_a_model_of_fixed_size_are_resized_to_it(tiny_backbone):
    head = ksa.MLPHead(3, channels=8)
    model = ksa.build_segmenter(tiny_backbone(size=(16, 16)), num_classes=3, head=head)
    image = photo(30, 20)
    tiled = predict_labels(model, image, tile=8, overlap=4)  # no stride rounds these up
    assert tiled.shape == (30, 20)
    # What the model sees starts at 0, 8 and 14 from the top, and at 0 and 4 from the
    # left.
    first, last = model.segment(image[:16, :16]), model.segment(image[14:, 4:])
    np.testing.assert_array_equal(tiled[:12, :8], first[:12, :8])
    np.testing.assert_array_equal(tiled[18:, 8:], last[4:, 4:])


def test_certain_logits_stay_finite():
    model = pixelwise(np.eye(3, dtype="float32")[None, None] * 10)
    image = np.zeros((4, 4, 3), "uint8")
    image[..., 1] = 255
    logits = predict_logits(model, image, flip=True)
    assert np.isfinite(logits).all()
    assert (logits.argmax(-1) == 1).all()
