"""Layouts of datasets: how their files are found and their ids become classes."""

import dataclasses
import re

import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    OXFORD_PETS,
    PASCAL_VOC,
    FolderDataset,
    Labels,
    inspect_folder,
    open_folder,
)

SIZE = (4, 6)


def write_image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*SIZE, 3), 20 * number, "uint8")
    Image.fromarray(image).save(path)


def write_mask(path, ids, colors=None):
    """Write repeated ids, as a grayscale picture or one with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.resize(np.array(ids, "uint8"), SIZE))
    if colors is not None:
        picture = picture.convert("P")
        picture.putpalette(colors.astype("uint8").tobytes())
    picture.save(path)


def ade20k(folder):
    for part, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            write_image(folder / f"images/{part}/ADE_{i}.jpg", i)
            write_mask(folder / f"annotations/{part}/ADE_{i}.png", [0, 1, 150, i + 1])


def cityscapes(folder, kinds=("labelIds", "labelTrainIds")):
    files = {"train": ["ulm/ulm_0", "aachen/aachen_1", "ulm/ulm_2"]}
    files["val"] = ["bonn/bonn_0", "bonn/bonn_1"]
    ids = {"labelIds": [0, 7, 33, 11], "labelTrainIds": [255, 0, 18, 2]}
    for part, names in files.items():
        for name in names:
            number = int(name[-1])
            write_image(folder / f"leftImg8bit/{part}/{name}_leftImg8bit.png", number)
            for kind in kinds:
                write_mask(
                    folder / f"gtFine/{part}/{name}_gtFine_{kind}.png", ids[kind]
                )
            write_image(folder / f"gtFine/{part}/{name}_gtFine_color.png", number)


def coco_stuff(folder, endings=("", "_labelTrainIds")):
    ids = {"": [255, 0, 181, 12], "_labelTrainIds": [255, 0, 170, 11]}
    for part, count in (("train2017", 3), ("val2017", 2)):
        for i in range(count):
            write_image(folder / f"images/{part}/{i:012}.jpg", i)
            for end in endings:
                path = folder / f"annotations/{part}/{i:012}{end}.png"
                write_mask(path, ids[end])


def pascal_voc(folder):
    colors = np.zeros((256, 3), int)
    colors[:21], colors[255] = PASCAL_VOC.colors, (224, 224, 192)
    for i in range(6):  # the last one has no mask, like most of the archive
        write_image(folder / f"JPEGImages/2007_{i}.jpg", i)
        if i < 5:
            path = folder / f"SegmentationClass/2007_{i}.png"
            write_mask(path, [255, 0, 20, i], colors)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_2\n2007_0\n2007_4\n")
    (lists / "val.txt").write_text("2007_1\n2007_3\n")


LAYOUTS = [
    # Each row: a layout, its labels, and the classes of each mask's first pixels.
    (ade20k, ADE20K, [255, 0, 149]),
    (cityscapes, CITYSCAPES, [255, 0, 18, 2]),
    (coco_stuff, COCO_STUFF, [255, 0, 170, 11]),
    (pascal_voc, PASCAL_VOC, [255, 0, 20]),
]
by_layout = pytest.mark.parametrize(
    "make, labels, classes", LAYOUTS, ids=[make.__name__ for make, *_ in LAYOUTS]
)


# Contract


@by_layout
def test_a_layout_is_detected(tmp_path, make, labels, classes):
    make(tmp_path)
    train = open_folder(tmp_path, batch_size=3)
    val = open_folder(str(tmp_path), "val", batch_size=2)
    for data, count in ((train, 3), (val, 2)):
        assert isinstance(data, FolderDataset)
        assert (data.num_classes, data.ignore_class) == (labels.num_classes, 255)
        assert data.class_names == labels.class_names
        np.testing.assert_array_equal(data.colors, labels.colors)
        assert len(data.image_paths) == len(data.mask_paths) == count
        assert data.image_paths == sorted(data.image_paths)
        ((images, masks),) = list(data)
        assert images.dtype == masks.dtype == "uint8"
        assert (masks.reshape(count, -1)[:, : len(classes)] == classes).all()
    assert not set(train.image_paths) & set(val.image_paths)
    named = open_folder(tmp_path, layout=make.__name__)
    assert named.mask_paths == train.mask_paths
    whole = open_folder(tmp_path, None)
    assert whole.mask_paths == sorted(train.mask_paths + val.mask_paths)


@by_layout
def test_images_and_masks_stay_together(tmp_path, make, labels, classes):
    make(tmp_path)
    data = open_folder(tmp_path, shuffle=True, batch_size=1)
    for image, mask in zip(data.image_paths, data.mask_paths, strict=True):
        stem = image.stem.removesuffix("_leftImg8bit")
        assert mask.stem.removesuffix("_gtFine_labelIds") == stem
    numbers = sorted(round(x[0, 0, 0, 0] / 20) for x, _ in data)
    assert numbers == ([0, 2, 4] if make is pascal_voc else [0, 1, 2])


@pytest.mark.parametrize("source", ["a dataset", "a folder", "a layout"])
def test_inspect_folder(tmp_path, source):
    ade20k(tmp_path)
    report = {
        "a dataset": lambda: inspect_folder(open_folder(tmp_path, image_size=(2, 2))),
        "a folder": lambda: inspect_folder(tmp_path, "train"),
        "a layout": lambda: inspect_folder(tmp_path, "train", layout="ade20k"),
    }[source]()
    assert (report.images, report.sizes) == (3, {SIZE: 3})
    assert report.pixels == {0: 24, 1: 6, 2: 6, 149: 18, 255: 18}
    np.testing.assert_array_equal(report.class_pixels[[0, 1, 2, 149]], [24, 6, 6, 18])
    assert report.class_names == ADE20K.class_names
    with pytest.raises(ValueError, match=r"=3, .* for a dataset of 150 classes$"):
        inspect_folder(open_folder(tmp_path), num_classes=3)


@pytest.mark.integration
def test_fit_from_a_layout(tmp_path, tiny_backbone):
    cityscapes(tmp_path)
    data = open_folder(tmp_path, image_size=(16, 16), batch_size=3)
    model = ksa.build_segmenter(tiny_backbone((4,)), data.num_classes)
    model.compile(run_eagerly=EAGER)
    history = model.fit(data, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# Meaning


@pytest.mark.parametrize(
    "labels, count",
    [(ADE20K, 150), (CITYSCAPES, 19), (COCO_STUFF, 171), (PASCAL_VOC, 21)],
    ids=["ade20k", "cityscapes", "coco_stuff", "pascal_voc"],
)
def test_names_and_colors(labels, count):
    assert labels.num_classes == len(set(labels.class_names)) == count
    assert all(name == name.strip() and "\n" not in name for name in labels.class_names)
    assert labels.colors.dtype == "uint8"
    # The published colors of ADE20K's road and skyscraper are the same.
    assert len(np.unique(labels.colors, axis=0)) == count - (labels is ADE20K)


def test_ade20k_colors():
    expected = {"wall": (120, 120, 120), "person": (150, 5, 61), "flag": (92, 0, 255)}
    for name, color in expected.items():
        assert tuple(ADE20K.colors[ADE20K.class_names.index(name)]) == color


def test_ade20k_ids():
    assert ADE20K.label_map == {0: 255} | {i: i - 1 for i in range(1, 151)}
    names = {1: "wall", 13: "person", 90: "television", 131: "screen", 150: "flag"}
    for id_, name in names.items():
        assert ADE20K.class_names[ADE20K.label_map[id_]] == name


def test_cityscapes_ids():
    names = {
        7: "road",
        8: "sidewalk",
        11: "building",
        12: "wall",
        13: "fence",
        17: "pole",
        19: "traffic light",
        20: "traffic sign",
        21: "vegetation",
        22: "terrain",
        23: "sky",
        24: "person",
        25: "rider",
        26: "car",
        27: "truck",
        28: "bus",
        31: "train",
        32: "motorcycle",
        33: "bicycle",
    }
    assert CITYSCAPES.class_names == tuple(names.values())
    for id_, class_ in CITYSCAPES.label_map.items():
        name = "void" if class_ == 255 else CITYSCAPES.class_names[class_]
        assert name == names.get(id_, "void")
    assert list(CITYSCAPES.label_map) == list(range(34))
    np.testing.assert_array_equal(CITYSCAPES.colors[13], (0, 0, 142))


def test_coco_stuff_ids():
    unused = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    ids = COCO_STUFF.label_map.keys() - {255}
    assert ids == set(range(182)) - unused
    assert [COCO_STUFF.label_map[id_] for id_ in sorted(ids)] == list(range(171))
    assert COCO_STUFF.label_map[255] == 255
    names = {10: "fire hydrant", 12: "stop sign", 26: "backpack", 45: "wine glass"}
    names |= {89: "toothbrush", 91: "banner", 127: "house", 168: "tree", 181: "wood"}
    for id_, name in names.items():
        assert COCO_STUFF.class_names[COCO_STUFF.label_map[id_]] == name


def test_pascal_voc_colors():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 7: (128, 128, 128)}
    known |= {8: (64, 0, 0), 15: (192, 128, 128), 18: (0, 192, 0), 20: (0, 64, 128)}
    for class_, color in known.items():
        np.testing.assert_array_equal(PASCAL_VOC.colors[class_], color)
    assert PASCAL_VOC.label_map is None


def test_trimap_ids():
    assert OXFORD_PETS.label_map == {1: 0, 2: 1, 3: 255}
    assert OXFORD_PETS.class_names == ("pet", "background")


@pytest.mark.parametrize(
    "make, kinds, classes",
    [
        (cityscapes, ["labelTrainIds"], [255, 0, 18, 2]),
        (coco_stuff, ["_labelTrainIds"], [255, 0, 170, 11]),
    ],
    ids=["cityscapes", "coco_stuff"],
)
def test_masks_that_already_hold_classes(tmp_path, make, kinds, classes):
    make(tmp_path, kinds)
    data = open_folder(tmp_path)
    assert all("labelTrainIds" in path.name for path in data.mask_paths)
    np.testing.assert_array_equal(data[0][1][0].ravel()[:4], classes)
    assert data.class_names[2] in ("building", "car")


def test_a_custom_label_map(tmp_path):
    write_image(tmp_path / "images/a.png", 1)
    write_mask(tmp_path / "masks/a.png", [0, 200, 9, 7])
    labels = Labels(["low", "high"], {0: 255, 7: 0, 9: 0, 200: 1}, [[0] * 3, [9] * 3])
    data = FolderDataset(tmp_path, labels=labels, image_size=(8, 12))
    expected = np.resize([255, 1, 0, 0], SIZE).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(data[0][1][0], expected)
    assert data.num_classes == 2 and data.colors.tolist() == [[0] * 3, [9] * 3]


def test_a_label_map_may_lead_to_any_ignored_id(tmp_path):
    write_image(tmp_path / "images/a.png", 1)
    write_mask(tmp_path / "masks/a.png", [0, 1, 2])
    labels = Labels(["a", "b"], {0: -1, 1: 0, 2: 1})
    data = FolderDataset(tmp_path, labels=labels, ignore_class=-1)
    masks = data[0][1]
    assert masks.dtype == "int32"
    np.testing.assert_array_equal(masks[0].ravel()[:3], [-1, 0, 1])
    assert inspect_folder(data).pixels[-1] == 8


def test_lists_of_files(tmp_path):
    ade20k(tmp_path)
    whole = open_folder(tmp_path)
    pairs = (whole.image_paths[1:], [str(path) for path in whole.mask_paths[1:]])
    part = FolderDataset(pairs, labels=ADE20K, batch_size=2)
    np.testing.assert_array_equal(part[0][1], whole[0][1][1:])


def test_own_classes_take_the_place_of_those_of_the_layout(tmp_path, capsys):
    ade20k(tmp_path)
    assert open_folder(tmp_path).num_classes == 150
    assert "uses the 150 classes of ade20k.\n" in capsys.readouterr().out
    own = Labels(["a", "b"], {0: 0, 1: 1, 150: 1, 2: 1})
    assert open_folder(tmp_path, labels=own).class_names == ("a", "b")
    assert open_folder(tmp_path, num_classes=151).class_names is None
    assert capsys.readouterr().out == ""


def test_a_plain_folder_in_the_shape_of_a_dataset(tmp_path):
    ade20k(tmp_path)
    data = open_folder(tmp_path, "val", layout="plain", num_classes=151)
    assert [path.parent.name for path in data.mask_paths] == ["validation"] * 2
    assert data[0][1].max() == 150


def test_voc_without_its_lists_is_a_plain_folder(tmp_path):
    pascal_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").unlink()
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(ValueError, match=r"2007_5.jpg without its mask \(1 in total"):
        open_folder(tmp_path, num_classes=21)


# Edges


@pytest.mark.parametrize(
    "make, mask, known",
    [
        (ade20k, "annotations/training/ADE_1.png", True),
        (cityscapes, "gtFine/train/ulm/ulm_2_gtFine_labelIds.png", True),
        (coco_stuff, "annotations/train2017/000000000001.png", True),
        (pascal_voc, "SegmentationClass/2007_2.png", False),
    ],
    ids=["ade20k", "cityscapes", "coco_stuff", "pascal_voc"],
)
def test_an_unknown_id_raises_with_its_file(tmp_path, make, mask, known):
    make(tmp_path)
    write_mask(tmp_path / mask, [200, 1])
    words = "the keys of the label map" if known else "the ids 0 to 20 and"
    words = f"must hold only {words}.*Received: mask .*{mask} with the ids 200 "
    data = open_folder(tmp_path)
    with pytest.raises(ValueError, match=words):
        list(data)
    (fault,) = inspect_folder(data).faults
    assert re.search(words, fault)


@pytest.mark.parametrize(
    "make, lost, words",
    [
        pytest.param(
            ade20k,
            "images/training/ADE_1.jpg",
            r"Add the image .*ADE_1.png without its image \(1 in total\)$",
            id="image",
        ),
        pytest.param(
            ade20k,
            "annotations/training/ADE_1.png",
            r"Add the mask .*ADE_1.jpg without its mask \(1 in total\)$",
            id="mask",
        ),
        pytest.param(
            cityscapes,
            "gtFine/train/ulm/ulm_2_gtFine_labelIds.png",
            r"Found pictures in: gtFine.*ulm_2_leftImg8bit.png without its mask \(1 in",
            id="mask of a city",
        ),
        pytest.param(
            pascal_voc,
            "JPEGImages/2007_4.jpg",
            r"train.txt must name an image .*: the line '2007_4' \(1 such lines",
            id="listed image",
        ),
        pytest.param(
            pascal_voc,
            "SegmentationClass/2007_2.png",
            "train.txt must name an image .* one mask.*: the line '2007_2'",
            id="listed mask",
        ),
        pytest.param(
            pascal_voc,
            "ImageSets/Segmentation/train.txt",
            "no split 'train' with masks, only 'val'",
            id="list",
        ),
    ],
)
def test_missing_files_raise(tmp_path, make, lost, words):
    make(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(ValueError, match=words):
        open_folder(tmp_path)


def test_missing_split_raises(tmp_path):
    write_image(tmp_path / "images/training/a.jpg", 0)
    write_mask(tmp_path / "annotations/training/a.png", [0, 1])
    words = "no split 'val' with masks, only 'train'. .*: split='val', folder="
    with pytest.raises(ValueError, match=words):
        open_folder(tmp_path, "val")


def test_empty_list_raises(tmp_path):
    pascal_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"is empty. Write .*val.txt$"):
        open_folder(tmp_path, "val")


def test_unknown_layouts_raise(tmp_path):
    ade20k(tmp_path)
    with pytest.raises(ValueError, match=r"must be one of \['ade20k'.*layout='ADE'$"):
        open_folder(tmp_path, layout="ADE")
    with pytest.raises(ValueError, match="`split` must be 'train', 'val', 'test', or"):
        open_folder(tmp_path, "all")
    with pytest.raises(ValueError, match=r"an existing folder .*folder=.*nowhere$"):
        open_folder(tmp_path / "nowhere")
    cityscapes(tmp_path)
    with pytest.raises(ValueError, match=r"which fits \['ade20k', 'cityscapes'\]$"):
        open_folder(tmp_path)
    assert open_folder(tmp_path, layout="ade20k").num_classes == 150


def test_classes_must_be_given_once(tmp_path):
    ade20k(tmp_path)
    words = "either `num_classes`, .* Received: num_classes=None, labels=None$"
    with pytest.raises(ValueError, match=words):
        open_folder(tmp_path, layout="plain")
    words = "Received: num_classes=7, labels=150 classes$"
    with pytest.raises(ValueError, match=words):
        open_folder(tmp_path, num_classes=7, labels=ADE20K)
    with pytest.raises(TypeError, match=r"must be keras_segadapter.data.Labels, .*'a'"):
        open_folder(tmp_path, labels=["a", "b"])


def test_a_label_map_must_fit_the_ignored_ids(tmp_path):
    ade20k(tmp_path)
    words = r"from 0 to 149 or to the ignored ids \[\].*label_map\[0\]=255$"
    with pytest.raises(ValueError, match=words):
        open_folder(tmp_path, ignore_class=None)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (("road",), TypeError, "one name per class.* class_names='road'$"),
        ((["road"],), ValueError, "`num_classes` must be at least 2"),
        ((["a", "b"], [0, 1]), TypeError, r"must be a dict .* label_map=\[0, 1\]$"),
        ((["a", "b"], {-1: 0}), ValueError, "id in label_map.* at least 0.*=-1$"),
        ((["a", "b"], {"0": 0}), ValueError, "id in label_map.* an integer .*='0'$"),
        ((["a", "b"], None, [[0, 0, 0]]), ValueError, r"of shape \(1, 3\)$"),
    ],
    ids=["string", "one name", "list as map", "negative id", "string id", "colors"],
)
def test_wrong_labels_raise(arguments, error, words):
    with pytest.raises(error, match=words):
        Labels(*arguments)


@pytest.mark.parametrize(
    "folder, words",
    [
        (7, r"a path or a pair \(image_paths, mask_paths\). Received: source=7$"),
        ((["a.png"], []), "Received: 1 images and 0 masks$"),
        (([], []), "at least one image, and one mask per image. Received: 0 images"),
    ],
    ids=["number", "lengths", "empty"],
)
def test_wrong_lists_raise(folder, words):
    with pytest.raises(ValueError, match=words):
        FolderDataset(folder, 2)


def test_more_classes_than_colors():
    labels = Labels([str(i) for i in range(300)])
    assert labels.colors is None
    assert dataclasses.replace(labels, label_map={0: 299}).num_classes == 300
