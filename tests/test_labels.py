"""Classes of datasets: label maps, files of classes, and lookup of ids and colors."""

import json
import time

import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import BINARY, CITYSCAPES, PASCAL_VOC, FolderDataset, Labels
from keras_segadapter.data.label_table import LabelTable

ROAD = {(0, 0, 0): 0, (128, 64, 128): 1, (64, 64, 64): 255}


def dataset(folder, mask, **options):
    """Return a dataset of one image, whose mask is an array or a Pillow picture."""
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    picture.save(folder / "mask.png")
    Image.new("RGB", picture.size).save(folder / "image.png")
    source = [folder / "image.png"], [folder / "mask.png"]
    return FolderDataset(source, **options)


def classes_of(folder, mask, **options):
    return dataset(folder, mask, **options)[0][1][0]


# Contract


def test_ready_made_labels():
    assert BINARY.class_names == ("background", "object")
    assert ksa.data.BINARY.label_map == {0: 0, 255: 1}
    assert CITYSCAPES.num_classes == 19 and PASCAL_VOC.colors.dtype == "uint8"


def test_colors_come_from_the_label_map():
    labels = Labels(["a", "b"], {(1, 2, 3): 0, (9, 9, 9): 0, (4, 5, 6): 1, 7: 1})
    np.testing.assert_array_equal(labels.colors, [[1, 2, 3], [4, 5, 6]])
    other = Labels(["a", "b"], {(1, 2, 3): 0}, colors=[[7, 7, 7], [8, 8, 8]])
    np.testing.assert_array_equal(other.colors, [[7, 7, 7], [8, 8, 8]])
    keys = Labels(["a", "b"], {(np.uint8(1), 2, 3): 0, np.int64(4): 1}).label_map
    assert keys == {(1, 2, 3): 0, 4: 1} and type(list(keys)[1]) is int


@pytest.mark.parametrize(
    "key, words",
    [
        pytest.param(
            (0, 0, 256),
            r"three integers in 0..255. Received: \(0, 0, 256\)$",
            id="color",
        ),
        pytest.param((0, 0, 1.5), "color in label_map.* an integer", id="fraction"),
        pytest.param((0, 0), "id in label_map.* an integer", id="two"),
        pytest.param(2**24, "below 16777216, .*: 16777216$", id="id"),
    ],
)
def test_wrong_keys_raise(key, words):
    with pytest.raises(ValueError, match=words):
        Labels(["a", "b"], {key: 0})


# Meaning: files of classes

CSV = """name, r, g, b
Sky,128,128,128
 Road ,128, 64,128
Lane,0,0,192
Road,9,9,9
Void,0,0,0
"""
KEYS = {
    (128, 128, 128): 0,
    (128, 64, 128): 1,
    (0, 0, 192): 2,
    (9, 9, 9): 1,
    (0, 0, 0): 255,
}
ROWS = [
    {"name": "Sky", "color": [128, 128, 128]},
    {"name": "Road", "color": "#804080"},
    {"name": "Lane", "color": "0, 0, 192"},
    {"name": "Road", "color": [9, 9, 9]},
    {"name": "Void", "color": [0, 0, 0]},
]


@pytest.mark.parametrize(
    "name, text",
    [
        pytest.param("a.csv", CSV, id="csv"),
        pytest.param("a.csv", "\ufeff" + CSV.replace(",", ";"), id="semicolons"),
        pytest.param(
            "a.csv",
            CSV.replace("r, g, b", "Red,Green,Blue").replace("name", "Class"),
            id="long names",
        ),
        pytest.param("a.json", json.dumps(ROWS), id="json"),
        pytest.param("a.json", json.dumps({"classes": ROWS}), id="json in a dict"),
        pytest.param(
            "a.txt",
            "128 128 128\tSky\n128 64 128 Road\n0 0 192 Lane\n9 9 9 Road\n0 0 0 Void\n",
            id="label_colors.txt",
        ),
        pytest.param(
            "a.txt",
            "# label:color_rgb:parts:actions\nSky:128,128,128::\nRoad:128,64,128::\n"
            "Lane:0,0,192::\nRoad:9,9,9::\nvoid:0,0,0::",
            id="labelmap.txt",
        ),
    ],
)
def test_colors_in_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    labels = Labels.from_file(tmp_path / name)
    assert labels.class_names == ("Sky", "Road", "Lane")
    assert labels.label_map == KEYS
    assert labels.colors.tolist() == [[128, 128, 128], [128, 64, 128], [0, 0, 192]]


@pytest.mark.parametrize(
    "name, text, names, label_map",
    [
        pytest.param(
            "a.txt",
            "sky\ntraffic light\n\nroad 2\n",
            ("sky", "traffic light", "road 2"),
            None,
            id="names",
        ),
        pytest.param(
            "a.csv", "name\nsky\nroad\n", ("sky", "road"), None, id="one column"
        ),
        pytest.param(
            "a.csv",
            "id,name\n0,sky\n1,road\n",
            ("sky", "road"),
            None,
            id="ids in order",
        ),
        pytest.param(
            "a.csv",
            "id,name\n7,sky\n9,road\n11,road\n0,ignore\n",
            ("sky", "road"),
            {7: 0, 9: 1, 11: 1, 0: 255},
            id="ids",
        ),
        pytest.param(
            "a.txt",
            "unlabelled\nsky\nroad\n",
            ("sky", "road"),
            {0: 255, 1: 0, 2: 1},
            id="void first",
        ),
        pytest.param(
            "a.json",
            '{"sky": [1, 2, 3], "road": [4, 5, 6]}',
            ("sky", "road"),
            {(1, 2, 3): 0, (4, 5, 6): 1},
            id="dict of colors",
        ),
        pytest.param(
            "a.json",
            '{"sky": 5, "road": 6}',
            ("sky", "road"),
            {5: 0, 6: 1},
            id="dict of ids",
        ),
        pytest.param(
            "a.json",
            '{"5": "sky", "6": "road"}',
            ("sky", "road"),
            {5: 0, 6: 1},
            id="dict of names",
        ),
        pytest.param(
            "a.json", '["sky", "road"]', ("sky", "road"), None, id="list of names"
        ),
        pytest.param(
            "a.csv",
            "id,name,r,g,b\n1,sky,1,2,3\n2,road,4,5,6",
            ("sky", "road"),
            {(1, 2, 3): 0, 1: 0, (4, 5, 6): 1, 2: 1},
            id="ids and colors",
        ),
    ],
)
def test_names_and_ids_in_a_file(tmp_path, name, text, names, label_map):
    (tmp_path / name).write_text(text)
    labels = Labels.from_file(str(tmp_path / name))
    assert (labels.class_names, labels.label_map) == (names, label_map)


def test_void_among_more_than_255_classes(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["void", *map(str, range(300))]))
    labels = Labels.from_file(tmp_path / "a.txt")
    assert labels.num_classes == 300 and labels.label_map[0] == 65535
    assert LabelTable(None, labels, 65535).dtype == "int32"


@pytest.mark.parametrize(
    "name, text, words",
    [
        pytest.param(
            "a.csv",
            "a,b\n1,2\n",
            "header such as name,r,g,b .*no name in",
            id="no header",
        ),
        pytest.param(
            "a.csv",
            "name,r,g,b\nsky,1,2,300\n",
            r"\(1, 2, 300\) is not an RGB color",
            id="color",
        ),
        pytest.param(
            "a.csv",
            "name,r,g,b\nsky,1,2,3\nroad,1,2,3\n",
            r"a.csv with \(1, 2, 3\) twice$",
            id="twice",
        ),
        pytest.param(
            "a.csv", "id,name\n1,door, wall\n", r"more fields .*' wall'", id="fields"
        ),
        pytest.param("a.json", "{", "a.json, which does not", id="json"),
        pytest.param("a.json", '{"categories": []}', "open_coco", id="COCO"),
        pytest.param("a.txt", "\n", "a.txt, which is empty$", id="empty"),
        pytest.param("a.txt", "sky\n", "`num_classes` must be at least 2", id="one"),
        pytest.param(
            "a.yaml", "sky", "a .csv, .json or .txt file.*a.yaml'$", id="yaml"
        ),
        pytest.param("b.txt", None, "cannot be read.*b.txt$", id="missing"),
    ],
)
def test_wrong_files_raise(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        Labels.from_file(tmp_path / name)


# Meaning: masks of colors


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_of_colors(tmp_path, mode):
    colors = np.array([[list(color) for color in ROAD] * 2], "uint8")
    picture = Image.fromarray(colors)
    picture = picture.quantize(3) if mode == "P" else picture.convert(mode)
    found = classes_of(tmp_path, picture, labels=Labels(["a", "b"], ROAD))
    assert found.tolist() == [[0, 1, 255] * 2] and found.dtype == "uint8"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_gray_is_a_color_where_labels_are_colors(tmp_path, mode):
    labels = Labels(["a", "b"], {(200, 0, 0): 0, (0, 0, 0): 1, (255, 255, 255): 255})
    picture = Image.fromarray(np.array([[0, 255]], "uint8")).convert(mode)
    assert classes_of(tmp_path, picture, labels=labels).tolist() == [[1, 255]]


def test_gray_ids_beside_colors_name_the_fix(tmp_path):
    labels = Labels(["a", "b"], {(200, 0, 0): 0, (0, 0, 0): 1})
    with pytest.raises(ValueError, match=r"The mask is gray.*a column `id`"):
        classes_of(tmp_path, np.array([[0, 1]], "uint8"), labels=labels)


def test_alpha_is_ignored(tmp_path):
    mask = np.array([[[128, 64, 128, a] for a in (0, 9, 255)]], "uint8")
    found = classes_of(tmp_path, mask, labels=Labels(["a", "b"], ROAD))
    assert found.tolist() == [[1, 1, 1]]


def test_colors_without_a_label_map(tmp_path):
    """Colors that were passed are looked up, and gray pixels are ids."""
    labels = Labels(["a", "b", "c"], colors=[[9, 0, 0], [0, 9, 0], [77, 77, 77]])
    rgb = np.array([[[0, 9, 0], [77, 77, 77]]], "uint8")
    assert classes_of(tmp_path, rgb, labels=labels).tolist() == [[1, 2]]
    gray = np.array([[2, 255]], "uint8")
    assert classes_of(tmp_path, gray, labels=labels).tolist() == [[2, 255]]
    rgb = gray[..., None].repeat(3, -1)
    assert classes_of(tmp_path, rgb, labels=labels).tolist() == [[2, 255]]
    rgb = np.full((1, 2, 3), 77, "uint8")  # gray, but no ids
    assert classes_of(tmp_path, rgb, labels=labels).tolist() == [[2, 2]]


def test_palettes_hold_ids(tmp_path):
    picture = Image.fromarray(np.array([[0, 20, 255]], "uint8")).convert("P")
    picture.putpalette(PASCAL_VOC.colors.ravel().tolist())  # black for 255
    found = classes_of(tmp_path, picture, labels=PASCAL_VOC)
    assert found.tolist() == [[0, 20, 255]]


def test_masks_with_two_meanings_raise(tmp_path):
    labels = Labels(["a", "b"], colors=[[9, 9, 9], [0, 0, 0]])
    words = "ids and as colors .*label_map.*mask .*mask.png$"
    with pytest.raises(ValueError, match=words):
        classes_of(tmp_path, np.zeros((1, 2, 3), "uint8"), labels=labels)
    # A palette in another order than the classes, as some programs save it.
    picture = Image.fromarray(np.array([[0, 1]], "uint8")).convert("P")
    picture.putpalette([0, 0, 0, 9, 9, 9])
    with pytest.raises(ValueError, match=words):
        classes_of(tmp_path, picture, labels=labels)


def test_ids_and_colors_in_one_map(tmp_path):
    labels = Labels(["a", "b"], {7: 0, 8: 1, (1, 2, 3): 0, (4, 5, 6): 1})
    assert classes_of(tmp_path, np.uint8([[7, 8]]), labels=labels).tolist() == [[0, 1]]
    rgb = np.array([[[4, 5, 6], [1, 2, 3]]], "uint8")
    assert classes_of(tmp_path, rgb, labels=labels).tolist() == [[1, 0]]


def test_several_ids_of_one_class(tmp_path):
    labels = Labels(["other", "road"], {0: 255, 1: 0, 2: 1, 3: 1})
    found = classes_of(tmp_path, np.uint8([[0, 1, 2, 3]]), labels=labels)
    assert found.tolist() == [[255, 0, 1, 1]]


def test_black_and_white_masks(tmp_path):
    mask = np.array([[0, 255, 255]], "uint8")
    assert classes_of(tmp_path, mask, labels=BINARY).tolist() == [[0, 1, 1]]
    words = (
        r"pass labels=keras_segadapter.data.BINARY \(--labels binary on the command "
        r"line\). Received: mask .*mask.png with the ids 255 \(2 pixels\)$"
    )
    with pytest.raises(ValueError, match=words):
        classes_of(tmp_path, mask, num_classes=2, ignore_class=None)


def test_negative_ids():
    table = LabelTable(3, None, -1)
    mask = np.array([[-1, 0, 2]], "int32")
    np.testing.assert_array_equal(table.look_up(mask, "m"), mask)
    with pytest.raises(ValueError, match=r"the ids -2 \(1 pixel\), 3 \(1 pixel\)$"):
        table.look_up(np.int32([[-2, 0, 3]]), "m")


def test_lookup_is_fast():
    values = np.random.default_rng(0).integers(0, 3, (2500, 4000))
    colors = np.array([*ROAD], "uint8")[values]
    table = LabelTable(None, Labels(["a", "b"], ROAD), "auto")
    start = time.process_time()
    classes = table.look_up(None, "m", colors)
    assert time.process_time() - start < 3  # 10 megapixels; 0.3 s on one core
    np.testing.assert_array_equal(classes, np.array([0, 1, 255])[values])


# Edges


@pytest.mark.parametrize(
    "mask, options, words",
    [
        pytest.param(
            np.uint8([[[9, 9, 8]] * 4 + [[0, 0, 0]]]),
            {"labels": Labels(["a", "b"], ROAD)},
            r"mask.png with the colors \(9, 9, 8\) \(4 pixels\)$",
            id="unknown color",
        ),
        pytest.param(
            np.uint8([[[9, 9, 8]] * 4]),
            {"num_classes": 3},
            r"Labels\(names, \{\(r, g, b\): class.*--labels.*\(9, 9, 8\) \(4 pixels\)$",
            id="no labels",
        ),
        pytest.param(
            np.uint16([[300]]),
            {"labels": Labels(["a", "b"], ROAD)},
            r"the ids 300 \(1 pixel\)$",
            id="ids for colors",
        ),
        pytest.param(
            np.uint8([[3, 7, 7, 0]]),
            {"num_classes": 2},
            r"the ids 0 to 1 and the ignored ids \[255\]. Correct the masks, "
            r"`num_classes` or `ignore_class`.*ids 3 \(1 pixel\), 7 \(2 pixels\)$",
            id="unknown ids",
        ),
        pytest.param(
            np.uint8([[9]]),
            {"labels": Labels(["a", "b"], {1: 0, 2: 1})},
            "the keys of the label map. Correct the masks, or add them",
            id="map",
        ),
        pytest.param(
            np.arange(20, dtype="uint8")[None],
            {"num_classes": 2},
            r"11 \(1 pixel\), \.\.\.$",
            id="many",
        ),
    ],
)
def test_unknown_values_are_listed(tmp_path, mask, options, words):
    with pytest.raises(ValueError, match=words):
        classes_of(tmp_path, mask, **options)


def test_jpeg_masks_are_told(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (16, 16), "uint8") * 9
    Image.fromarray(noise).save(tmp_path / "mask.jpg")
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    data = FolderDataset(([tmp_path / "image.png"], [tmp_path / "mask.jpg"]), 2)
    with pytest.raises(ValueError, match="JPEG files change their values: use PNG"):
        data[0]


def test_an_ignored_class_raises(tmp_path):
    mask = np.zeros((2, 2), "uint8")
    words = r"can't be one of the 2 classes 0\.\.1.*ignore_class=\[0, 9\]"
    with pytest.raises(ValueError, match=words):
        dataset(tmp_path, mask, num_classes=2, ignore_class=[0, 9])
    with pytest.raises(ValueError, match="one of the 300 classes"):
        dataset(tmp_path, mask, num_classes=300, ignore_class=255)


def test_no_class_of_many_is_ignored(tmp_path):
    """With 256 classes or more, 255 is a class, and nothing is ignored by default."""
    mask = np.uint16([[0, 255, 299]])
    data = dataset(tmp_path, mask, num_classes=300)
    assert data.ignore_class is None and data[0][1].tolist() == [mask.tolist()]
    assert dataset(tmp_path, mask, num_classes=255).ignore_class == 255
    augmentation = ksa.data.Augmentation((8, 8))
    words = r"Pass `ignore_class=65535` here and to `compile`.*num_classes=300$"
    with pytest.raises(ValueError, match=words):
        dataset(tmp_path, mask, num_classes=300, augmentation=augmentation)
