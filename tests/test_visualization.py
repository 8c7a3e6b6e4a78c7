import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from keras_segadapter.data import make_scenes
from keras_segadapter.visualization import (
    _legend,
    as_rgb,
    colorize,
    overlay,
    palette,
    panels,
)


def plain(height, width, value):
    return np.full((height, width, 3), value, "uint8")


def read(path):
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB"))


def area(sheet, color):
    """Return the (top, bottom, left, right) of a rectangle in one color."""
    found = (sheet == color).all(-1)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert found.sum() == len(rows) * len(columns) > 0
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


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


@pytest.mark.parametrize("num_classes", [0, 2.0, True, None])
def test_palette_wrong_number_raises(num_classes):
    words = f"an integer of at least 1. Received: num_classes={num_classes!r}$"
    with pytest.raises(ValueError, match=words):
        palette(num_classes)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.zeros((2, 2)), id="float"),
        pytest.param(np.zeros((2, 2, 1), int), id="3D"),
    ],
)
def test_colorize_wrong_labels_raise(labels):
    words = r"`labels` must be integer .*\(height, width\).*Received: labels of shape"
    with pytest.raises(ValueError, match=words):
        colorize(labels)


def test_colorize_wrong_colors_raise():
    with pytest.raises(ValueError, match=r"`colors` must be RGB, uint8 .*float64$"):
        colorize(np.zeros((1, 4), int), colors=[[0.1, 0.2, 0.3]])


@pytest.mark.parametrize(
    "changes, words",
    [
        pytest.param(
            {"labels": np.zeros((3, 2), int)},
            r"Received: image of shape \(2, 3, 3\), labels of shape \(3, 2\)$",
            id="sizes",
        ),
        pytest.param(
            {"image": plain(2, 3, 0)[None]}, r"Received: shape \(1, 2, 3, 3\)", id="4D"
        ),
        pytest.param({"image": np.full((2, 3), "a")}, "hold numbers", id="strings"),
        pytest.param({"alpha": 1.5}, "`alpha` .*Received: alpha=1.5$", id="alpha"),
    ],
)
def test_overlay_wrong_arguments_raise(changes, words):
    arguments = {"image": plain(2, 3, 0), "labels": np.zeros((2, 3), int)}
    with pytest.raises(ValueError, match=words):
        overlay(**{**arguments, **changes})


@pytest.mark.parametrize(
    "rows, titles, words",
    [
        pytest.param([], ["a"], "Received: 0 rows and 1 titles$", id="no rows"),
        pytest.param([[]], [], "Received: 1 rows and 0 titles$", id="no titles"),
        pytest.param(
            [[plain(4, 4, 0)]],
            ["a", "b"],
            "Received: 1 pictures in row 0 for 2 titles$",
            id="picture missing",
        ),
        pytest.param(
            [[plain(4, 4, 0), plain(4, 8, 0)]],
            ["a", "b"],
            r"Received: shapes \[\(4, 4, 3\), \(4, 8, 3\)\] in row 0$",
            id="sizes",
        ),
        pytest.param([[plain(4, 4, 0) * 1.0]], ["a"], "uint8 .*float64$", id="float"),
    ],
)
def test_panels_wrong_arguments_raise(tmp_path, rows, titles, words):
    with pytest.raises(ValueError, match=words):
        panels(rows, titles, tmp_path / "x.png")


@pytest.mark.parametrize(
    "names, colors",
    [
        pytest.param(["a"], palette(2), id="more colors"),
        pytest.param(["a", "b"], palette(2)[:, :2], id="two channels"),
    ],
)
def test_panels_wrong_legends_raise(tmp_path, names, colors):
    with pytest.raises(
        ValueError, match=r"one RGB color per name.*Received: colors of"
    ):
        panels([[plain(4, 4, 0)]], ["a"], tmp_path / "x.png", names, colors)


def test_panels_leave_pyplot_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    panels([[plain(2, 2, 0)]], ["a"], tmp_path / "x.png")
    assert "matplotlib.pyplot" not in sys.modules


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


def test_colorize_and_overlay_with_the_colors_of_a_dataset():
    labels = np.array([[0, 1, 2, 255]])
    colors = np.array([[10, 20, 30], [40, 50, 60]], "uint8")
    painted = colorize(labels, colors=colors)
    np.testing.assert_array_equal(painted[0], [*colors, [0] * 3, [0] * 3])
    mixed = overlay(plain(1, 4, 100), labels, alpha=1.0, colors=colors)
    np.testing.assert_array_equal(mixed[0], [*colors, [100] * 3, [100] * 3])


def test_ids_above_255():
    labels = np.array([[255, 256, 300, 65535, 10**6, -(10**6)]], "int32")
    picture = colorize(labels)[0]
    colors = palette(65536)
    np.testing.assert_array_equal(picture[[1, 2, 3]], colors[[256, 300, 65535]])
    assert not picture[[0, 4, 5]].any()  # 255 is void
    mixed = overlay(plain(1, 6, 100), labels, alpha=1.0)[0]
    np.testing.assert_array_equal(mixed[[1, 2, 3]], colors[[256, 300, 65535]])
    assert (mixed[[0, 4, 5]] == 100).all()
    # With 300 classes, 255 is one of them.
    np.testing.assert_array_equal(colorize(labels, 300)[0, :2], colors[[255, 256]])
    assert not colorize(labels, 300)[0, 2:].any()


def test_images_of_other_channels_and_values():
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 256, (4, 5, 7), "uint8")
    np.testing.assert_array_equal(as_rgb(bands), bands[..., :3])
    for gray in (bands[..., 0], bands[..., :1], bands[..., :2]):
        np.testing.assert_array_equal(as_rgb(gray), bands[..., [0, 0, 0]])
    # Values in 0..255 keep their brightness, others are scaled.
    np.testing.assert_array_equal(as_rgb(bands / 1.0), bands[..., :3])
    values = np.array([[[0.25, 0.5, 0.75]]])
    for scaled in (values, values * 4000, values - 1, np.uint16(values * 4000)):
        np.testing.assert_array_equal(as_rgb(scaled), [[[0, 128, 255]]])
    values[0, 0, 1] = np.nan
    assert as_rgb(values)[0, 0].tolist() == [85, 0, 255]
    assert not as_rgb(np.zeros((2, 2))).any()
    labels = np.full((4, 5), 1)
    np.testing.assert_array_equal(
        overlay(bands[..., :1], labels), overlay(bands[..., [0, 0, 0]], labels)
    )


def test_panels_with_a_legend(tmp_path):
    colors, names = palette(9), [f"class {i}" for i in range(9)]
    picture = plain(60, 60, 0)
    plain_sheet = read(panels([[picture] * 2], ["a", "b"], tmp_path / "x.png"))
    sheet = read(panels([[picture] * 2], ["a", "b"], tmp_path / "y.png", names, colors))
    height = len(plain_sheet)
    assert len(sheet) > height
    np.testing.assert_array_equal(sheet[: height - 3], plain_sheet[: height - 3])
    swatches = [area(sheet[height:], color) for color in colors]
    tops, lefts = ({swatch[i] for swatch in swatches} for i in (0, 2))
    assert 1 < len(tops) < 9 and 1 < len(lefts) < 9  # several rows and columns
    for top, bottom, _, right in swatches:
        name = sheet[height:][top:bottom, right : right + 50]
        assert name.min() < 100 and name.max() == 255


@pytest.mark.parametrize("count, more", [(40, []), (41, ["and 1 more"])])
def test_a_long_legend_ends_with_a_number(count, more):
    legend = _legend(None, palette(count))
    assert [label for label, _ in legend] == [*map(str, range(40)), *more]
    np.testing.assert_allclose(legend[39][1], palette(40)[39] / 255)


def test_panels_show_each_picture_in_its_place(tmp_path):
    colors = palette(6).reshape(2, 3, 3)
    rows = [[plain(40, 80, color) for color in row] for row in colors]
    path = panels(rows, ["left", "middle", "right"], tmp_path / "x.png")
    assert path == tmp_path / "x.png"
    sheet = read(path)
    areas = [[area(sheet, color) for color in row] for row in colors]
    for row in areas:
        for top, bottom, left, right in row:
            assert (top, bottom) == row[0][:2]
            assert right - left >= 240
            assert abs((right - left) / (bottom - top) - 2) < 0.05
        assert all(a[3] + 4 < b[2] for a, b in itertools.pairwise(row))
    for above, below in zip(*areas, strict=True):
        assert above[1] + 4 < below[0] and above[2:] == below[2:]
        title = sheet[: above[0], above[2] : above[3]]
        assert title.min() < 100 and title[:, 0].min() == 255  # inside its column


def test_panels_keep_pixels_sharp(tmp_path):
    colors = palette(12).reshape(3, 4, 3)
    sheet = read(panels([[colors]], [""], tmp_path / "x.png"))
    areas = np.array([[area(sheet, color) for color in row] for row in colors])
    sides = areas[..., [1, 3]] - areas[..., [0, 2]]
    assert sides.min() >= 60 and np.ptp(sides) <= 1
    np.testing.assert_array_equal(areas[:-1, :, 1], areas[1:, :, 0])
    np.testing.assert_array_equal(areas[:, :-1, 3], areas[:, 1:, 2])


def test_panels_keep_every_pixel_of_large_pictures(tmp_path):
    numbers = np.arange(150 * 300)
    picture = np.stack([numbers // 256, numbers % 256, numbers % 7], -1)
    picture = picture.astype("uint8").reshape(150, 300, 3)
    sheet = read(panels([[picture, picture]], ["a", "b"], tmp_path / "x.png"))
    for half in np.array_split(sheet, 2, axis=1):
        shown = set(map(tuple, half.reshape(-1, 3).tolist()))
        assert shown >= set(map(tuple, picture.reshape(-1, 3).tolist()))


# Edges


def test_panels_with_rows_of_other_sizes_and_long_titles(tmp_path):
    colors = palette(2)
    rows = [[plain(10, 20, colors[0])] * 2, [plain(300, 400, colors[1])] * 2]
    sheet = read(panels(rows, ["title " * 9, ""], str(tmp_path / "no_suffix")))
    for color, ratio in zip(colors, (2, 4 / 3), strict=True):
        top, bottom, left, right = area(sheet[:, : sheet.shape[1] // 2], color)
        assert right - left >= 400
        assert abs((right - left) / (bottom - top) - ratio) < 0.02
    top = area(sheet[:, : sheet.shape[1] // 2], colors[0])[0]
    assert sheet[:top, :right].min() < 100
    assert sheet[:top, right:].min() == 255  # no title reaches its neighbor


def test_all_256_ids_can_have_a_color():
    ids = np.arange(256, dtype="uint8").reshape(16, 16)
    np.testing.assert_array_equal(colorize(ids, 256).reshape(256, 3), palette(256))
