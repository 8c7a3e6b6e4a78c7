"""What is on a disk besides good files: pipes, links, bombs and other encodings."""

import os
import re
import struct
import sys
import zlib

import keras
import numpy as np
import pytest
import tifffile
from PIL import Image

from keras_segadapter.cli.predict import _predict_one
from keras_segadapter.data import (
    FolderDataset,
    Labels,
    disk,
    inspect_folder,
    open_coco,
    open_folder,
)
from keras_segadapter.data.disk import read_text, show_progress
from keras_segadapter.data.files import walk
from keras_segadapter.data.pairing import find_pairs
from keras_segadapter.data.reading import read_image, read_mask

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")


def write_pairs(folder, count=3):
    for kind, shape in (("images", (4, 6, 3)), ("masks", (4, 6))):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            array = np.full(shape, i % 2, "uint8")
            Image.fromarray(array).save(folder / f"{kind}/{i}.png")
    return folder


def png_of_size(path, height, width):
    """Write a PNG file of a few bytes that says it holds so many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + check
    path.write_bytes(content)


def npy_of_size(path, height, width):
    """Write a sparse `.npy` file."""
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (height, width)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + height * width)


# Contract


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_every_encoding(tmp_path, encoding):
    write_pairs(tmp_path)
    files = {
        "list.txt": "0\r\n2\r\n",
        "classes.csv": "name,id\nStraße,0\nÄcker,1\n",
        "coco.json": '{"images": [], "categories": [], "annotations": []}',
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert read_text(tmp_path / name) == text
    assert [path.name for path in find_pairs(tmp_path / "list.txt")[0]] == [
        "0.png",
        "2.png",
    ]
    labels = Labels.from_file(tmp_path / "classes.csv")
    assert labels.class_names == ("Straße", "Äcker")
    if encoding == "utf-16":  # big-endian
        (tmp_path / "list.txt").write_bytes(b"\xfe\xff" + "1".encode("utf-16-be"))
        assert [path.name for path in find_pairs(tmp_path / "list.txt")[0]] == ["1.png"]


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "log"])
def test_progress_is_shown_where_it_takes_long(
    tmp_path, capsys, monkeypatch, is_terminal
):
    write_pairs(tmp_path)
    report = str(inspect_folder(tmp_path))
    assert capsys.readouterr().out == ""  # nothing, since it is quick
    monkeypatch.setattr(disk, "_PATIENCE", -1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    keras.config.enable_interactive_logging()
    assert str(inspect_folder(tmp_path)) == report
    out = capsys.readouterr().out
    assert "3/3" in out and "/pair" in out and out.endswith("\n")
    assert ("━" in out) == is_terminal
    assert list(show_progress([])) == []
    assert list(show_progress(iter("abc"))) == [*"abc"]
    open_folder(tmp_path, None, num_classes=2)


# Meaning


def test_links_may_lead_out_of_the_folder(tmp_path):
    """Datasets are often made of links to another disk."""
    disk = write_pairs(tmp_path / "disk")
    by_file, by_folder = tmp_path / "files", tmp_path / "folders"
    for kind in ("images", "masks"):
        (by_file / kind).mkdir(parents=True)
        for path in (disk / kind).iterdir():
            (by_file / kind / path.name).symlink_to(path)
        by_folder.mkdir(exist_ok=True)
        (by_folder / kind).symlink_to(disk / kind)
    (tmp_path / "whole").symlink_to(disk)
    for folder in (by_file, by_folder, tmp_path / "whole"):
        assert inspect_folder(folder).check().images == 3


@pytest.mark.parametrize("target", ["..", ".", "../..", "../masks"])
def test_links_in_a_circle_end(tmp_path, target):
    write_pairs(tmp_path / "set")
    expected = find_pairs(tmp_path / "set/images", masks="../masks")
    (tmp_path / "set/images/again").symlink_to(target)
    (tmp_path / "set/masks/again").symlink_to("../images")
    if target != "../masks":  # which makes two names of each file
        assert find_pairs(tmp_path / "set/images", masks="../masks/*.png") == expected
    assert len([*walk(tmp_path / "set")]) < 30


def test_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    image = np.zeros((5, 8, 3), "uint8")
    Image.fromarray(image).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", image)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 8, 6), "uint8"))
    files = [("a.png", 3), ("a.npy", 3), ("a.tif", 6)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14)
    for name, channels in files:
        words = "image is too large: .* set PIL.Image.MAX_IMAGE_PIXELS to .*" + name
        with pytest.raises(ValueError, match=words):
            read_image(tmp_path / name, channels)
    for limit in (40, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for name, channels in files:
            assert read_image(tmp_path / name, channels).shape == (5, 8, channels)


# Edges


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def dangling_link(path):
    path.symlink_to("/mnt/old disk/0.png")


def link_to_itself(path):
    path.symlink_to(path)


def empty(path):
    path.touch()


def bomb(path):
    png_of_size(path, 40000, 50000)


@pytest.mark.parametrize(
    "make, words",
    [
        pytest.param(pipe, "cannot be read: it is a pipe or", marks=needs_pipes),
        pytest.param(
            dangling_link, "a link to /mnt/old disk/0.png, which can't be reached"
        ),
        pytest.param(link_to_itself, "a link to .*0.png, which can't be reached"),
        pytest.param(empty, "cannot be read: "),
        pytest.param(
            bomb, r"is too large: .*2000000000 pixels.* set PIL.Image.MAX_IMAGE_PIXELS"
        ),
    ],
)
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_what_is_no_picture_is_a_fault(tmp_path, make, words, kind):
    write_pairs(tmp_path)
    path = tmp_path / f"{kind}s/0.png"
    path.unlink()
    make(path)
    words = rf"The {kind} .*{words}.*{kind}s.0.png$"
    (fault,) = inspect_folder(tmp_path).faults
    assert re.match(words, fault)
    with pytest.raises(ValueError, match=words):
        open_folder(tmp_path, None, num_classes=2)[0]


@needs_pipes
@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
@pytest.mark.parametrize("make", [pipe, folder, dangling_link])
def test_files_of_every_kind_are_checked_first(tmp_path, make, read, suffix):
    make(tmp_path / f"0.{suffix}")
    with pytest.raises(ValueError, match=rf"cannot be read: it is a .*0.{suffix}$"):
        read(tmp_path / f"0.{suffix}")


def test_a_missing_file_of_a_list_raises(tmp_path):
    data = FolderDataset(([tmp_path / "a.png"], [tmp_path / "a.png"]), 2)
    with pytest.raises(ValueError, match=r"read: No such file .*a.png$"):
        data[0]


@pytest.mark.parametrize("size", [(10**6, 10**6), (30000, 30000)])
def test_arrays_of_absurd_size_take_no_memory(tmp_path, size):
    npy_of_size(tmp_path / "a.npy", *size)
    with pytest.raises(ValueError, match=r"too large.*a.npy$"):
        read_mask(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 200)  # nearly without values
    with pytest.raises(ValueError, match=r"cannot be read: .*a.npy$"):
        read_mask(tmp_path / "a.npy")


@needs_pipes
@pytest.mark.parametrize("make", [pipe, dangling_link, link_to_itself])
def test_lists_that_are_no_files_raise(tmp_path, make):
    write_pairs(tmp_path)
    for name, read in (
        ("train.txt", lambda path: open_folder(tmp_path, num_classes=2)),
        ("classes.csv", lambda path: open_folder(tmp_path, None)),
        ("labels.csv", Labels.from_file),
        ("coco.json", open_coco),
    ):
        make(tmp_path / name)
        with pytest.raises(ValueError, match=rf"(a pipe|a link to).*{name}"):
            read(tmp_path / name)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "content, words",
    [
        pytest.param("0\n1".encode("utf-16-le"), "it holds zero", id="no mark"),
        pytest.param("ä\n".encode("latin-1"), "'utf-8' codec", id="Latin-1"),
        pytest.param(b"\xff\xfe0", "'utf-16-le' codec", id="cut UTF-16"),
    ],
)
def test_lists_in_other_encodings_raise(tmp_path, content, words):
    write_pairs(tmp_path)
    for name, read in (("list.txt", find_pairs), ("classes.txt", Labels.from_file)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"saved as text in UTF-8 \({words}.*{name}"
        ):
            read(tmp_path / name)


@needs_pipes
@pytest.mark.parametrize("make", [pipe, dangling_link, bomb])
def test_predict_names_the_photo(tmp_path, make):
    make(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"The image .*0.png$"):
        _predict_one(tmp_path / "0.png", None, None, 3, None)
