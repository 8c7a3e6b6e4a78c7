"""Masks drawn from the polygons and run lengths of COCO annotation files."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from keras_segadapter.data import FolderDataset, inspect_folder, open_coco

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]


def square(top, left, bottom, right):
    """Return the polygon around the rows and columns from the first to the last."""
    return [left, top, right, top, right, bottom, left, bottom]


def pixels(top, left, bottom, right, size=(10, 12)):
    found = np.zeros(size, "uint8", order="F")
    found[top:bottom, left:right] = 1
    return found


def write(folder, objects, images=None, categories=CATEGORIES, name="all.json"):
    """Write an annotation file and its images, of 10 x 12 pixels; return its path."""
    folder.mkdir(exist_ok=True)
    images = images or [{"id": 5, "file_name": "a.jpg", "height": 10, "width": 12}]
    for i, image in enumerate(images):
        Image.new("RGB", (12, 10), (i,) * 3).save(folder / image["file_name"])
    objects = [{"image_id": 5, **row} for row in objects]
    content = {"images": images, "categories": categories, "annotations": objects}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def drawn(path, **options):
    """Return the first mask of an annotation file."""
    return open_coco(path, batch_size=1, **options)[0][1][0]


# Contract


def test_a_dataset_of_two_images(tmp_path):
    images = [
        {"id": 5, "file_name": "b.png", "height": 10, "width": 12},
        {"id": 2, "file_name": "a.png", "height": 10, "width": 12},
    ]
    row = {"category_id": 9, "segmentation": [square(2, 1, 6, 7)]}
    path = write(tmp_path / "coco", [row], images)
    data = open_coco(str(path), image_size=(20, 24), channels=1)
    assert isinstance(data, FolderDataset)
    assert data.class_names == ("background", "cat", "dog") and data.num_classes == 3
    assert data.ignore_class == 255
    assert [p.name for p in data.image_paths] == ["a.png", "b.png"]
    x, y = data[0]
    assert x.shape == (2, 20, 24, 1) and y.dtype == "uint8"
    assert x[:, 0, 0, 0].tolist() == [1, 0]
    assert not y[0].any()  # nothing is annotated
    np.testing.assert_array_equal(y[1][::2, ::2], 2 * pixels(2, 1, 6, 7))
    report = inspect_folder(data).check()
    assert report.images == 2 and report.pixels == {0: 216, 2: 24}


# Meaning


@pytest.mark.parametrize("kind", ["polygon", "counts", "bytes"])
def test_outlines(tmp_path, kind):
    expected = pixels(2, 1, 6, 7)
    if kind == "polygon":
        outline = [square(2, 1, 6, 7)]
    elif kind == "counts":  # of 0 and 1 by turns, column by column
        flat = expected.ravel(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *ends, flat.size]).tolist()
        outline = {"size": [10, 12], "counts": counts}
    else:
        outline = coco.encode(expected)
        outline["counts"] = outline["counts"].decode()
    path = write(tmp_path, [{"category_id": 3, "segmentation": outline}])
    np.testing.assert_array_equal(drawn(path), expected)


def test_an_object_of_several_polygons(tmp_path):
    outline = [square(0, 0, 3, 3), square(5, 5, 9, 9), [1, 1, 2, 2]]
    path = write(tmp_path, [{"category_id": 3, "segmentation": outline}])
    np.testing.assert_array_equal(drawn(path), pixels(0, 0, 3, 3) + pixels(5, 5, 9, 9))


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_objects_are_in_front(tmp_path, order):
    rows = [
        {"category_id": 3, "segmentation": [square(0, 0, 9, 9)]},
        {"category_id": 9, "segmentation": [square(2, 2, 5, 5)]},
    ]
    expected = pixels(0, 0, 9, 9) + pixels(2, 2, 5, 5)
    np.testing.assert_array_equal(drawn(write(tmp_path, rows[::order])), expected)


def test_crowds_are_ignored(tmp_path):
    runs = coco.encode(pixels(0, 0, 9, 9))
    runs["counts"] = runs["counts"].decode()
    rows = [
        {"category_id": 3, "segmentation": runs, "iscrowd": 1},
        {"category_id": 9, "segmentation": [square(2, 2, 5, 5)]},
    ]
    path = write(tmp_path, rows)
    expected = 255 * pixels(0, 0, 9, 9)
    expected[2:5, 2:5] = 2
    np.testing.assert_array_equal(drawn(path), expected)
    assert set(np.unique(drawn(path, ignore_class=[7, 8]))) == {0, 2, 7}
    with pytest.raises(ValueError, match=r"`ignore_class`, such as 65535, .*3 cla"):
        drawn(path, ignore_class=None)


def test_a_category_for_the_background_is_class_0(tmp_path):
    categories = [{"id": 0, "name": "Background"}, *CATEGORIES]
    rows = [
        {"category_id": 3, "segmentation": [square(0, 0, 9, 9)]},
        {"category_id": 0, "segmentation": [square(2, 2, 5, 5)]},
    ]
    path = write(tmp_path, rows, categories=categories)
    assert open_coco(path).class_names == ("background", "cat", "dog")
    np.testing.assert_array_equal(drawn(path), pixels(0, 0, 9, 9) - pixels(2, 2, 5, 5))


def test_objects_without_an_outline_are_told(tmp_path, capsys):
    rows = [
        {"category_id": 3, "segmentation": []},
        {"category_id": 3, "bbox": [0, 0, 5, 5]},
        {"category_id": 9, "segmentation": [square(2, 2, 5, 5)]},
    ]
    assert set(np.unique(drawn(write(tmp_path, rows)))) == {0, 2}
    told = "2 of 3 objects have no outline and are left out."
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    "place", ["annotations", "annotations/..", "images", "val2017", "elsewhere"]
)
def test_images_are_found(tmp_path, place):
    (tmp_path / "annotations").mkdir()
    row = {"category_id": 3, "segmentation": [square(2, 2, 5, 5)]}
    path = write(tmp_path / "annotations", [row], name="instances_val2017.json")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "annotations/a.jpg").rename(tmp_path / place / "a.jpg")
    data = open_coco(path, tmp_path / place if place == "elsewhere" else None)
    assert data.image_paths[0].samefile(tmp_path / place / "a.jpg")


# Edges


ROW = {"category_id": 3, "segmentation": [square(2, 2, 5, 5)]}


@pytest.mark.parametrize(
    "change, words",
    [
        pytest.param({"categories": None}, "Received: .*all.json", id="categories"),
        pytest.param(
            {"images": [{"id": 5}]}, "`images` .id, file_name.*'file_name'", id="images"
        ),
        pytest.param(
            {"annotations": [{**ROW, "image_id": 5, "category_id": 4}]},
            "all.json with category_id=4$",
            id="category",
        ),
        pytest.param(
            {"annotations": [{**ROW, "image_id": 6}]},
            "all.json with image_id=6$",
            id="image",
        ),
        pytest.param(
            {"annotations": []},
            "only boxes. Received: .*with 0 objects without$",
            id="none",
        ),
        pytest.param(
            {"annotations": [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1]}]},
            "with 1 objects without$",
            id="boxes",
        ),
        pytest.param(
            {"images": [{"id": 5, "file_name": "c.jpg", "height": 10, "width": 12}]},
            r"Pass `images`.*'c.jpg', which is not in .*\(1 of 1 images are missing\)$",
            id="no image",
        ),
    ],
)
def test_wrong_files_raise(tmp_path, change, words):
    path = write(tmp_path, [ROW])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        open_coco(path)


@pytest.mark.parametrize(
    "outline, words",
    [
        pytest.param(
            {"size": [5, 5], "counts": [3, 22]},
            r"size \(10, 12\) with an outline of size \(5, 5\)$",
            id="size",
        ),
        pytest.param(
            {"counts": [3, 22]},
            "An outline cannot be drawn: .*a.jpg in .*all.json$",
            id="no size",
        ),
        pytest.param([["a"] * 8], "An outline cannot be drawn", id="strings"),
    ],
)
def test_wrong_outlines_raise(tmp_path, outline, words):
    data = open_coco(write(tmp_path, [{"category_id": 3, "segmentation": outline}]))
    with pytest.raises(ValueError, match=words):
        data[0]


def test_a_size_other_than_the_images_raises(tmp_path):
    images = [{"id": 5, "file_name": "a.jpg", "height": 5, "width": 6}]
    path = write(tmp_path, [ROW], images)
    words = r"a.jpg of size \(10, 12\), a.jpg in .*all.json of size \(5, 6\)$"
    with pytest.raises(ValueError, match=words):
        open_coco(path)[0]
    assert drawn(path, resize_masks=True).shape == (10, 12)


def test_missing_pycocotools_raises(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r"pip install keras-segadapter\[coco\]"):
        open_coco(tmp_path / "all.json")
