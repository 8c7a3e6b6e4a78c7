"""Pairs of images and masks: folders and lists as people have them, and open_folder."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_segadapter.data import FolderDataset, inspect_folder, open_folder
from keras_segadapter.data.pairing import find_pairs


def make(folder, *names):
    """Make empty files; pairing opens none."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def named(*templates, count=2):
    return [template.format(i) for i in range(count) for template in templates]


def pairs(folder, *args, **kwargs):
    """Return the pairs that are found, as names relative to the folder."""
    found = zip(*find_pairs(folder, *args, **kwargs), strict=True)
    root = folder if folder.is_dir() else folder.parent
    return [tuple(path.relative_to(root).as_posix() for path in pair) for pair in found]


# Contract


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("image/{}.png", "label/{}.png"),
        ("imgs/{}.bmp", "labels/{}.gif"),
        ("img/{}.webp", "annotations/{}.tif"),
        ("JPEGImages/{}.JPG", "SegmentationClass/{}.PNG"),
        ("photos/{}.jpeg", "gt/{}.png"),
        ("rgb/{}.tiff", "groundtruth/{}.bmp"),
        ("Original/{}.tif", "Ground Truth/{}.tif"),
        ("inputs/{}.npy", "targets/{}.png"),
        ("input/{}.png", "seg/{}.npy"),
        ("img_dir/{}.png", "ann_dir/{}.png"),
        ("Images/{}.png", "Masks/{}.png"),
        ("images_png/{}.png", "masks_png/{}.png"),
        ("original_images/{}.jpg", "label_images_semantic/{}.png"),
        ("images_{}/a.png", "masks_{}/a.png"),
        ("images_b{}/a.png", "masks_b{}/a.png"),
        ("top_RGB/{}_RGB.tif", "Labels_all/{}_label.tif"),
        ("my_seg_data/{}.jpg", "my_seg_data/{}_mask.png"),
        ("my_seg_data/photos/{}.jpg", "my_seg_data/masks/{}.png"),
        ("images/{}_image.png", "masks/{}_mask.png"),
        ("images/{}.png", "masks/{}_mask.png"),
        ("images/{}-img.png", "labels/{}.png"),
        ("images/{}.png", "labels/{}.labels.png"),
        ("images/image_{}.png", "masks/mask_{}.png"),
        ("photos/{}.jpg", "annot/{}_annotation.png"),
        ("images/{}.png", "annotations/trimaps/{}.png"),
        ("data/images/city_{0}/{0}.png", "data/masks/city_{0}/{0}.png"),
        ("images/city_{}/0.png", "masks/city_{}/0.png"),
        ("patient_{}/images/0.png", "patient_{}/masks/0.png"),
        ("patient_{}/image.png", "patient_{}/mask.png"),
        ("701_StillsRaw_full/{}.png", "LabeledApproved_full/{}_L.png"),
        ("{}.jpg", "masks/{}.png"),
        ("{}.png", "{}_mask.png"),
        ("{}_sat.jpg", "{}_mask.png"),
        ("ISIC_{}.jpg", "ISIC_{}_segmentation.png"),
        ("images/{}.png", "images/{}_gt.png"),
        ("{}_img.png", "{}_seg.png"),
        ("base/cmp_{}.jpg", "base/cmp_{}.png"),
    ],
)
def test_usual_places_and_names(tmp_path, image, mask):
    make(tmp_path, *named(image, mask, count=3))
    expected = [(image.format(i), mask.format(i)) for i in range(3)]
    assert pairs(tmp_path) == expected


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{}/images/a.png", "{}/masks/a.png"),
        ("images/{}/a.png", "masks/{}/a.png"),
        ("images_{}/a.png", "masks_{}/a.png"),
        ("{}_images/a.png", "{}_labels/a_L.png"),
        ("{}/a.jpg", "{}_masks/a_mask.gif"),
        ("{}/a.png", "{}annot/a.png"),
        ("images/{}2017/a.jpg", "annotations/{}2017/a.png"),
        ("{}/a.png", "{}/a_mask.png"),
        ("set/{}/image/x/a.png", "set/{}/gt/x/a.png"),
        ("uavid_{}/seq1/Images/a.png", "uavid_{}/seq1/Labels/a.png"),
        ("{}_set/images/a.png", "{}_set/masks/a.png"),
        ("{}-images-raw/a.png", "{}-masks-raw/a.png"),
    ],
)
@pytest.mark.parametrize("words", ["train val test", "training valid testing"])
def test_splits(tmp_path, capsys, image, mask, words):
    words = words.split()
    make(tmp_path, *(x.format(word) for word in words for x in (image, mask)))
    for split, word in zip(("train", "val", "test"), words, strict=True):
        assert pairs(tmp_path, split) == [(image.format(word), mask.format(word))]
    assert len(pairs(tmp_path)) == 3
    assert len(pairs(tmp_path, "validation")) == 1
    assert capsys.readouterr().out == ""


def test_images_and_masks_settle_what_is_ambiguous(tmp_path):
    places = ("images/{}_image.png", "masks/{}_mask.png", "weeds/{}_annotation.png")
    make(tmp_path, *named(*places))
    images, masks, weeds = ([place.format(i) for i in (0, 1)] for place in places)
    assert pairs(tmp_path) == list(zip(images, masks, strict=True))
    for pattern in ("weeds", "weeds/*.png", "w*", Path("weeds")):
        found = pairs(tmp_path, masks=pattern)
        assert found == list(zip(images, weeds, strict=True))
    found = pairs(tmp_path, images="masks", masks="weeds")
    assert found == list(zip(masks, weeds, strict=True))
    elsewhere = find_pairs(tmp_path / "images", masks="../masks")
    assert [path.name for path in elsewhere[1]] == ["0_mask.png", "1_mask.png"]


def test_splits_below_a_named_folder(tmp_path):
    make(tmp_path, "rgb8/train/a/0.png", "sem/ids/train/a/0.png", "rgb8/val/a/1.png")
    make(tmp_path, "rgb8/train/b/0.png", "sem/ids/train/b/0.png", "sem/ids/val/a/1.png")
    found = pairs(tmp_path, "train", images="rgb8", masks="sem/ids")
    names = ["train/a/0.png", "train/b/0.png"]
    assert found == [(f"rgb8/{name}", f"sem/ids/{name}") for name in names]
    assert len(pairs(tmp_path, "val", images="rgb8", masks="sem/ids/val")) == 1


@pytest.mark.parametrize(
    "lines",
    [
        "/home/me/set/train/{0}.png /home/me/set/trainannot/{0}.png",
        "train/{0}.png trainannot/{0}.png",
        "train/{0}.png,trainannot/{0}.png",
        '"train/{0}.png", "trainannot/{0}.png"',
        "C:\\set\\train\\{0}.png\ttrainannot\\{0}.png",
        "{0}.png",
        "train/{0}",
        "{0}",
    ],
    ids=["SegNet", "space", "comma", "quotes", "tab", "name", "folder", "stem"],
)
def test_a_list(tmp_path, lines):
    make(tmp_path, *named("train/{} a.png", "trainannot/{} a.png", count=3))
    path = tmp_path / "chosen.txt"
    path.write_text("".join(f"{lines.format(f'{i} a')}\n" for i in (2, 0)) + "\n")
    expected = [(f"train/{i} a.png", f"trainannot/{i} a.png") for i in (0, 2)]
    assert pairs(path) == expected
    titles = tmp_path / "titles.csv"
    titles.write_text("image,mask\ntrain/1 a.png,trainannot/1 a.png")
    assert pairs(titles) == [("train/1 a.png", "trainannot/1 a.png")]


def test_a_list_of_names_that_folders_share(tmp_path):
    make(tmp_path, *named("patient_{}/images/0.png", "patient_{}/masks/0.png", count=3))
    path = tmp_path / "chosen.txt"
    for root in ("", f"{tmp_path}/"):
        lines = [f"{root}patient_{i}/images/0" for i in (2, 0)]
        path.write_text(f"{lines[0]}\n{lines[1]}.png")
        names = [f"patient_{i}/images/0.png" for i in (0, 2)]
        assert [image for image, _ in pairs(path)] == names


@pytest.mark.parametrize("place", ["", "ImageSets/Segmentation", "splits"])
def test_lists_in_a_folder_are_its_splits(tmp_path, capsys, place):
    make(tmp_path, *named("images/{}.png", "masks/{}.png", count=5), "images/9.png")
    lists = tmp_path / place
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("3\n0\n2\n")
    (lists / "valid.txt").write_text("images/1.png masks/1.png\n")
    train = [(f"images/{i}.png", f"masks/{i}.png") for i in (0, 2, 3)]
    assert pairs(tmp_path, "train") == train
    out = capsys.readouterr().out
    assert out.endswith(f"the pairs are those of {(lists / 'train.txt').name}.\n")
    assert pairs(tmp_path, "val") == [("images/1.png", "masks/1.png")]
    assert len(pairs(tmp_path)) == 4  # image 9 has no mask, and no list names it
    assert capsys.readouterr().out.count("\n") == 2
    assert len(find_pairs(lists / "train.txt", "train")[0]) == 3
    with pytest.raises(ValueError, match="no split 'val' with masks, only 'train'"):
        find_pairs(lists / "train.txt", "val")


@pytest.mark.parametrize("count, train", [(2, 1), (5, 4), (9, 8), (10, 8), (11, 9)])
def test_an_undivided_folder_is_divided_by_names(tmp_path, capsys, count, train):
    make(tmp_path, *named("images/{:02}.png", "masks/{:02}.png", count=count))
    first, last = pairs(tmp_path, "train"), pairs(tmp_path, "val")
    assert first + last == pairs(tmp_path) == sorted(first + last)
    assert (len(first), len(last)) == (train, count - train)
    assert capsys.readouterr().out == (
        f"{tmp_path}: not divided into splits, so 'train' is the first 80 % of the "
        f"sorted names ({train} of {count} pairs).\n"
        f"{tmp_path}: not divided into splits, so 'val' is the last 20 % of the "
        f"sorted names ({count - train} of {count} pairs).\n"
    )
    (tmp_path / "all.txt").write_text("\n".join(f"{i:02}" for i in range(count)))
    assert pairs(tmp_path / "all.txt", "val") == last


def test_test_takes_the_place_of_val(tmp_path, capsys):
    make(tmp_path, *named("{}/images/a.png", "{}/masks/a.png"))
    for old, new in (("0", "train"), ("1", "test")):
        (tmp_path / old).rename(tmp_path / new)
    assert pairs(tmp_path, "val") == [("test/images/a.png", "test/masks/a.png")]
    out = capsys.readouterr().out
    assert out == f"{tmp_path}: there is no split 'val'; 'test' is used in its place.\n"


def write_pairs(folder, count=5):
    for i in range(count):
        make(folder, f"images/{i}.png", f"masks/{i}.png")
        image = Image.fromarray(np.full((4, 6, 3), i, "uint8"))
        image.save(folder / f"images/{i}.png")
        Image.fromarray(np.full((4, 6), i % 2, "uint8")).save(folder / f"masks/{i}.png")
    return folder


def test_open_folder(tmp_path):
    write_pairs(tmp_path)
    make(tmp_path, "other/0.png", "other/1.png")
    train = open_folder(tmp_path, num_classes=2, batch_size=4)
    val = open_folder(str(tmp_path), "val", num_classes=2)
    whole = open_folder(tmp_path, None, num_classes=2, images="images", masks="masks")
    np.testing.assert_array_equal(train[0][0][:, 0, 0, 0], range(4))
    assert [path.stem for path in val.mask_paths] == ["4"]
    assert whole.mask_paths == FolderDataset(tmp_path, 2).mask_paths
    (tmp_path / "some.txt").write_text("3\n1\n")
    listed = open_folder(tmp_path / "some.txt", None, num_classes=2)
    assert [path.stem for path in listed.image_paths] == ["1", "3"]
    assert FolderDataset(tmp_path / "some.txt", 2).mask_paths == listed.mask_paths


@pytest.mark.parametrize(
    "name, text",
    [
        ("classes.csv", "name,r,g,b\nsky,0,0,255\nroad,9,9,9\n"),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\nroad,9,9,9\n"),
        ("classes.json", '{"sky": [0, 0, 255], "road": [9, 9, 9]}'),
        ("classes.txt", "sky\nroad\n"),
        ("label_colors.txt", "0 0 255\tsky\n9 9 9\troad\n"),
    ],
)
def test_a_file_of_classes_in_the_folder_is_used(tmp_path, capsys, name, text):
    write_pairs(tmp_path)
    (tmp_path / name).write_text(text)
    assert open_folder(tmp_path, None).class_names == ("sky", "road")
    assert capsys.readouterr().out == f"{tmp_path}: uses the 2 classes of {name}.\n"
    assert open_folder(tmp_path, None, num_classes=3).class_names is None
    assert capsys.readouterr().out == ""


# Meaning


def test_hidden_files_and_other_files_are_skipped(tmp_path):
    make(tmp_path, "images/a.png", "masks/a.png", "images/._a.png", "images/notes.txt")
    make(tmp_path, ".cache/images/b.png", "__MACOSX/images/c.png", "masks/a.xml")
    assert pairs(tmp_path) == [("images/a.png", "masks/a.png")]


def test_names_may_hold_dots_and_hyphens(tmp_path):
    stems = ["a-b", "a", "a.b", "b"]
    make(tmp_path, *(f"images/{s}.JPG" for s in stems))
    make(tmp_path, *(f"masks/{s}.png" for s in stems))
    assert pairs(tmp_path) == [(f"images/{s}.JPG", f"masks/{s}.png") for s in stems]


def test_composed_and_decomposed_names_are_one(tmp_path):
    composed, decomposed = (unicodedata.normalize(f, "Ä/é") for f in ("NFC", "NFD"))
    make(tmp_path, f"images/{composed}.png", f"masks/{decomposed}.png")
    assert len(pairs(tmp_path)) == 1
    (tmp_path / "a.txt").write_text(f"{decomposed}\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(
        f"images/{decomposed}.png masks/{composed}.png", encoding="utf-8"
    )
    assert pairs(tmp_path / "a.txt") == pairs(tmp_path / "b.txt") == pairs(tmp_path)


def test_full_names_come_before_endings(tmp_path):
    make(tmp_path, *named("images/{}_L.png", "images/{}_R.png"))
    make(tmp_path, *named("masks/{}_L.png", "masks/{}_R.png"))
    assert all(Path(a).name == Path(b).name for a, b in pairs(tmp_path))


def test_splits_without_masks_hold_pictures_to_predict(tmp_path):
    make(tmp_path, *named("train/image/{}.png", "train/label/{}.png", "test/{}.png"))
    assert len(pairs(tmp_path)) == len(pairs(tmp_path, "train")) == 2
    with pytest.raises(ValueError, match="no split 'val' with masks, only 'train'"):
        find_pairs(tmp_path, "val")
    assert len(pairs(tmp_path / "train", "val")) == 1
    (tmp_path / "train").rename(tmp_path / "test/train")
    (tmp_path / "test").rename(tmp_path / "seg_data")
    assert len(pairs(tmp_path, "train")) == 2


def test_folders_without_a_plain_role_are_left_out_beside_those_with_one(tmp_path):
    make(tmp_path, *named("images/{}.png", "masks/{}.png", "overlays/{}.png"))
    make(tmp_path, *named("masks_colored/{}.png", "raw_images/{}.png"))
    assert pairs(tmp_path)[0] == ("images/0.png", "masks/0.png")
    assert len(pairs(tmp_path)) == 2


# Edges


@pytest.mark.parametrize(
    "files, words",
    [
        pytest.param(
            named("images/{}.png", "masks/{}.png", "annotations/{}.png"),
            r"exactly one mask.*`masks` .*Found pictures in: annotations \(2\), images "
            r"\(2\), masks \(2\)\. Received: .*annotations.0.png and .*masks.0.png, ",
            id="two folders of masks",
        ),
        pytest.param(
            named("images/{}.png", "masks/{}_mask.png", "masks/{}_label.png"),
            r"exactly one mask.*masks.0_label.png and .*0_mask.png, whose names are",
            id="two masks",
        ),
        pytest.param(
            ["images/1.JPG", "images/1.png", "masks/1.png"],
            r"Rename or remove .*Received: .*1.JPG and .*1.png, .* \(1 such names in",
            id="two images",
        ),
        pytest.param(
            ["images/0.png", "masks/0.png", "images/1.png", "images/2.png"],
            r"Add the mask or .*`images` and `masks` .*Found pictures in: images \(3\)"
            r", masks \(1\)\. Received: .*images.1.png without its mask \(2 in total",
            id="no mask",
        ),
        pytest.param(
            ["images/0.png", "masks/0.png", "masks/1.png"],
            r"Add the image or .*masks.1.png without its image \(1 in total\)$",
            id="no image",
        ),
        pytest.param(
            named("images/a{}.png", "masks/b{}.png"),
            r"images.a0.png without its mask \(2 in total\)$",
            id="other names",
        ),
        pytest.param(
            ["0.png", "0_mask.png", "1.png"],
            r"[^s].1.png without its mask \(1 in total\)$",
            id="no mask in one folder",
        ),
        pytest.param(
            ["masks/0.png"], r"masks.0.png without its image \(1 in", id="no images"
        ),
        pytest.param(
            named("images/{}.png", "other/{}.png"),
            r"No images with masks.*`masks` .*images \(2\), other \(2\)\. Received: fo",
            id="no masks",
        ),
        pytest.param([], "No images with masks were found.*nowhere", id="empty"),
        pytest.param(
            ["images.png/notes.txt", "masks"],
            "No images with masks were found.*nowhere",
            id="folders named as files and files named as folders",
        ),
        pytest.param(
            ["images/0.pdf", "masks/0.svg"],
            "No images with masks were found.*Found pictures in: nowhere. Received: fo",
            id="no pictures",
        ),
    ],
)
def test_what_does_not_pair_raises(tmp_path, files, words):
    make(tmp_path, *files)
    for function in (find_pairs, lambda folder: FolderDataset(folder, 2)):
        with pytest.raises(ValueError, match=words):
            function(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "images/0.png", "pairs.json"])
def test_what_is_no_folder_raises(tmp_path, name):
    make(tmp_path, "images/0.png", "pairs.json")
    words = "path of an existing folder .* or of a text file .*: folder=.*"
    with pytest.raises(ValueError, match=words + re.escape(name) + "$"):
        find_pairs(tmp_path / name)


@pytest.mark.parametrize("value", [None, 3, b"set", ["set"]], ids=repr)
def test_what_is_no_path_raises(value):
    words = re.escape(f"Received: folder={value!r} of type {type(value).__name__}")
    for function in (find_pairs, open_folder, inspect_folder):
        with pytest.raises(TypeError, match=f"`folder` must be a path. {words}"):
            function(value)


@pytest.mark.parametrize("argument", ["images", "masks"])
def test_wrong_places_raise(tmp_path, argument):
    make(tmp_path, "images/0.png", "masks/0.png")
    words = rf"`{argument}` must be a sub-folder or .*: {argument}='other/\*', folder="
    with pytest.raises(ValueError, match=words):
        find_pairs(tmp_path, **{argument: "other/*"})


@pytest.mark.parametrize("split", ["all", "", 1])
def test_wrong_split_raises(tmp_path, split):
    with pytest.raises(ValueError, match=rf"'test', or None .*: split={split!r}$"):
        find_pairs(tmp_path, split)


def test_too_little_to_divide_raises(tmp_path):
    make(tmp_path, "images/0.png", "masks/0.png")
    for split in ("train", "val", "test"):
        words = rf"Pass split=None for all .*: split='{split}', folder=.* with 1 pairs$"
        with pytest.raises(ValueError, match=words):
            find_pairs(tmp_path, split)
    assert len(pairs(tmp_path)) == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is empty. Write one name, .*Received: .*list.txt$"),
        ("0\n7\n8\n", r"list.txt must name an image in .*'7' \(2 such lines in total"),
        ("images/0.png masks/9.png", r"the line 'images/0.png masks/9.png' \(1 such"),
        ("0.png 0.png", r"the line '0.png 0.png' \(1 such"),
        ("images/0.png masks/0.png\n1\n", r"the line '1' \(1 such"),
        ("same", r"the line 'same' \(1 such"),
    ],
    ids=["empty", "name", "path", "twice", "mixed", "ambiguous"],
)
def test_wrong_lists_raise(tmp_path, text, words):
    make(tmp_path, *named("images/{}.png", "masks/{}.png"))
    make(tmp_path, *named("images/{}/same.png", "masks/{}/same.png"))
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        find_pairs(tmp_path / "list.txt")
