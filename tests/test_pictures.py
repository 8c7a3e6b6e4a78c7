import numpy as np
import pytest
from PIL import Image

from keras_segadapter.data import make_scenes
from keras_segadapter.visualization import colorize, overlay, palette, panels


def plain(height, width, value):
    return np.full((height, width, 3), value, "uint8")


# Contract


@pytest.mark.parametrize("num_classes", [1, 2, 21, 150, 256])
def test_palette_has_distinct_colors(num_classes):
    colors = palette(num_classes)
    assert colors.shape == (num_classes, 3)
    assert colors.dtype == "uint8"
    assert len(np.unique(colors, axis=0)) == num_classes
    np.testing.assert_array_equal(colors, palette(256)[:num_classes])


def test_colorize_and_overlay_shapes_and_types():
    images, masks = make_scenes(1, size=(20, 30))
    for picture in (colorize(masks[0]), overlay(images[0], masks[0])):
        assert picture.shape == (20, 30, 3)
        assert picture.dtype == "uint8"


@pytest.mark.parametrize(
    "num_classes, rule",
    [
        (0, "an integer of at least 1"),
        (257, "at most 256"),
        (2.0, "an integer of at least 1"),
        (True, "an integer of at least 1"),
        (None, "an integer of at least 1"),
    ],
)
def test_palette_wrong_number(num_classes, rule):
    words = f"`num_classes` must be {rule}.*: num_classes={num_classes!r}$"
    with pytest.raises(ValueError, match=words):
        palette(num_classes)


@pytest.mark.parametrize("labels", [np.zeros((2, 2)), np.zeros((2, 2, 1), int)])
def test_wrong_labels(labels):
    with pytest.raises(ValueError, match=r"integers of shape \(height, width\), but"):
        colorize(labels)


@pytest.mark.parametrize(
    "image, labels, alpha, words",
    [
        (plain(2, 3, 0), np.zeros((3, 2), int), 0.5, r"\(2, 3\) and the labels have"),
        (plain(2, 3, 0) / 1, np.zeros((2, 3), int), 0.5, "uint8 .* but float64"),
        (plain(2, 3, 0)[..., 0], np.zeros((2, 3), int), 0.5, r"of shape \(2, 3\)"),
        (plain(2, 3, 0), np.zeros((2, 3), int), 1.5, "`alpha` .* but 1.5 was"),
    ],
)
def test_overlay_wrong_arguments(image, labels, alpha, words):
    with pytest.raises(ValueError, match=words):
        overlay(image, labels, alpha)


@pytest.mark.parametrize(
    "rows, titles, words",
    [
        ([], ["a"], "`rows` has 0 rows"),
        ([[]], [], "`titles` 0 titles"),
        ([[plain(4, 4, 0)]], ["a", "b"], "Row 0 has 1 pictures for 2 titles"),
        ([[plain(4, 4, 0), plain(4, 8, 0)]], ["a", "b"], "pictures of row 0 differ"),
        ([[plain(4, 4, 0) * 1.0]], ["a"], "must be uint8 .* but float64"),
    ],
)
def test_panels_wrong_arguments(tmp_path, rows, titles, words):
    with pytest.raises(ValueError, match=words):
        panels(rows, titles, tmp_path / "x.png")


# Meaning


def test_first_colors_are_far_apart_and_from_black():
    colors = palette(20).astype(int)
    distance = abs(colors[:, None] - colors).sum(-1) + 999 * np.eye(20, dtype=int)
    assert distance.min() > 30
    assert colors.sum(-1).min() > 100


def test_colorize_paints_ids_and_leaves_void_black():
    labels = np.array([[0, 1, 2], [255, -1, 7]], "int32")
    picture = colorize(labels, num_classes=7)
    np.testing.assert_array_equal(picture[0], palette(7)[:3])
    assert not picture[1].any()
    assert colorize(labels)[1, 2].any()


def test_overlay_blends_and_leaves_void():
    image = plain(1, 3, 100)
    labels = np.array([[0, 4, 255]])
    colors = colorize(labels).astype(int)
    np.testing.assert_array_equal(overlay(image, labels, 0), image)
    np.testing.assert_array_equal(overlay(image, labels, 1)[0, :2], colors[0, :2])
    np.testing.assert_allclose(
        overlay(image, labels)[0, :2], (100 + colors[0, :2]) / 2, atol=0.5
    )
    assert (overlay(image, labels)[0, 2] == 100).all()


def test_panels_hold_the_pictures_sharp_and_apart(tmp_path):
    checks = plain(50, 100, 0)
    checks[::2, ::2] = 200
    path = panels([[checks, plain(50, 100, 80)]], ["left", "right"], tmp_path / "x.png")
    sheet = np.asarray(Image.open(path))
    assert path == tmp_path / "x.png"
    assert sheet.shape[1] == 3 * 6 + 2 * 300
    body = sheet[-156:-6]
    np.testing.assert_array_equal(
        body[:, 6:306], checks.repeat(3, axis=0).repeat(3, axis=1)
    )
    assert (body[:, 306:312] == 255).all()
    assert (body[:, 312:612] == 80).all()
    for half in (sheet[:-156, :306], sheet[:-156, 306:]):
        assert half.min() < 100  # a title


# Edges


def test_panels_rows_of_other_sizes_and_long_titles(tmp_path):
    rows = [[plain(10, 20, 9)] * 2, [plain(300, 500, 9)] * 2]
    path = panels(rows, ["title " * 9, ""], str(tmp_path / "no_suffix"))
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width == 3 * 6 + 2 * 500


def test_all_256_ids_can_have_a_color():
    ids = np.arange(256, dtype="uint8").reshape(16, 16)
    np.testing.assert_array_equal(colorize(ids, 256).reshape(256, 3), palette(256))


def test_the_colors_of_a_dataset():
    labels = np.array([[0, 1, 2, 255]])
    colors = np.array([[10, 20, 30], [40, 50, 60]], "uint8")
    painted = colorize(labels, colors=colors)
    np.testing.assert_array_equal(painted[0], [*colors, [0] * 3, [0] * 3])
    image = np.full((1, 4, 3), 100, "uint8")
    mixed = overlay(image, labels, alpha=1.0, colors=colors)
    np.testing.assert_array_equal(mixed[0], [*colors, [100] * 3, [100] * 3])
    with pytest.raises(ValueError, match="`colors` must be uint8"):
        colorize(labels, colors=[[0.1, 0.2, 0.3]])
