"""Reports of what a folder of images and masks holds."""

import re

import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data import (
    BINARY,
    FolderDataset,
    FolderReport,
    Labels,
    inspect_folder,
    make_scenes,
)


def write(path, array, mode=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array))
    (picture.convert(mode) if mode else picture).save(path, **kwargs)


def write_masks(folder, *masks, suffix="png"):
    """Write masks and a gray image of the size of each."""
    for i, mask in enumerate(masks):
        mask = np.asarray(mask, getattr(mask, "dtype", "uint8"))
        write(folder / f"images/{i}.png", np.full((*mask.shape[:2], 3), 9, "uint8"))
        write(folder / f"masks/{i}.{suffix}", mask)
    return folder


def blocks(*ids, side=16):
    """Return a mask of squares beside each other."""
    return np.repeat(np.array(ids, "uint8"), side)[None].repeat(side, 0)


def note(report, word):
    """Return the only note with a word in it."""
    (found,) = (note for note in report.notes if word in note)
    return found


# Contract


def test_report(tmp_path):
    images, masks = make_scenes(3, size=(20, 30))
    masks[0, :2] = 255
    for i in range(3):
        write(tmp_path / f"images/{i}.png", images[i])
        write(tmp_path / f"masks/{i}.png", masks[i])
    write(tmp_path / "images/3.png", images[0, :16])
    write(tmp_path / "masks/3.png", np.full((16, 30), 3, "uint8"))
    report = inspect_folder(tmp_path, num_classes=8)
    pixels = np.bincount(masks[masks < 255], minlength=8)
    pixels[3] += 16 * 30
    assert isinstance(report, FolderReport) and report.check() is report
    assert report.images == 4
    assert report.sizes == {(16, 30): 1, (20, 30): 3}
    assert report.class_pixels.dtype == "int64"
    np.testing.assert_array_equal(report.class_pixels, pixels)
    expected = {i: n for i, n in enumerate(pixels.tolist()) if n} | {255: 60}
    assert report.pixels == expected
    all_masks = [*masks, np.full((16, 30), 3)]
    assert report.occurrences == {
        i: sum(i in mask for mask in all_masks) for i in expected
    }
    assert (report.num_classes, report.ignored) == (8, [255])
    assert report.class_names is report.colors is None
    assert inspect_folder(FolderDataset(tmp_path, 8)).pixels == report.pixels
    weights = ksa.balanced_class_weight(np.maximum(report.class_pixels, 1))
    assert len(weights) == 8


def test_table(tmp_path):
    labels = Labels(["sky", "road", "tram"])
    write_masks(tmp_path, blocks(0, 0, 1, 255), blocks(0, 0, 0, 0), blocks(1, 1, 1, 1))
    report = inspect_folder(tmp_path, labels=labels)
    expected = """\
3 images and masks, 16 x 64
3 classes
class       pixels   images
  0 sky     50.0 %        2
  1 road    41.7 %        2
255 void     8.3 %        1
Note: 1 class never occurs: tram."""
    assert str(report) == repr(report) == expected
    assert str(inspect_folder(tmp_path)).splitlines()[1:4] == [
        "2 classes, inferred from the highest id",
        "id          pixels   images",
        "0           50.0 %        2",
    ]


def test_many_sizes_are_summed_up(tmp_path):
    masks = [np.zeros((side, side + 2), "uint8") for side in (4, 9, 5, 6, 7)]
    report = inspect_folder(write_masks(tmp_path, *masks), num_classes=2)
    first = "5 images and masks, 5 sizes from 4 x 6 to 9 x 11 (median 6 x 8)"
    assert str(report).splitlines()[0] == first
    assert "pass `image_size` or `augmentation`" in note(report, "differ in size")
    resized = FolderDataset(tmp_path, 2, image_size=(4, 4))
    assert not any("size" in note for note in inspect_folder(resized).notes)


def test_picture(tmp_path):
    write_masks(tmp_path, *(blocks(i, 255, 0) for i in range(10)))
    labels = Labels([f"class {i}" for i in range(10)])
    for options in ({"labels": labels}, {"num_classes": 10}, {}):
        path = inspect_folder(tmp_path, **options).picture(tmp_path / "a.png")
        with Image.open(path) as opened:
            picture = np.asarray(opened.convert("RGB"))
        assert path == tmp_path / "a.png" and picture.std() > 9
    few = inspect_folder(tmp_path).picture(tmp_path / "b.png", count=2)
    with Image.open(few) as opened:
        assert opened.height < len(picture)
    # Class 0 keeps half of the gray image, and half of its own color.
    half = np.round(labels.colors[0] / 2 + 4.5)
    assert (abs(picture - half).max(-1) <= 1).any()


def test_large_images_are_shrunk_in_the_picture(tmp_path):
    write_masks(tmp_path, np.zeros((900, 2001), "uint8"), np.ones((999, 400), "uint8"))
    path = inspect_folder(tmp_path).picture(tmp_path / "a.png")
    with Image.open(path) as picture:
        assert picture.width < 1200 and picture.height < 2400


# Meaning


def test_every_faulty_pair_is_a_sentence(tmp_path):
    masks = [blocks(0, 1) for _ in range(7)]
    masks[2], masks[3] = blocks(0, 7), np.zeros((5, 4), "uint8")
    masks[5] = np.full((16, 32, 3), (9, 9, 8), "uint8")
    write_masks(tmp_path, *masks)
    write(tmp_path / "images/3.png", np.zeros((4, 6, 3), "uint8"))
    (tmp_path / "images/1.png").write_text("not a picture")
    cut = (tmp_path / "masks/4.png").read_bytes()
    (tmp_path / "masks/4.png").write_bytes(cut[:-30])
    report = inspect_folder(tmp_path, num_classes=2)
    words = [
        r"The image cannot be read: .*images.1.png$",
        r"hold only the ids 0 to 1 and .*masks.2.png with the ids 7 \(256 pixels\)$",
        r"images.3.png of size \(4, 6\), .*masks.3.png of size \(5, 4\)$",
        r"The mask cannot be read: .*masks.4.png$",
        r"masks.5.png with the colors \(9, 9, 8\)",
    ]
    assert len(report.faults) == len(words)
    for fault, pattern in zip(report.faults, words, strict=True):
        assert re.search(pattern, fault)
    assert (report.images, report.pixels) == (7, {0: 512, 1: 512})
    assert str(report).count("\nFault: ") == 5
    with pytest.raises(ValueError, match=r"^5 faults .* 7 images .*images.1.png$"):
        report.check()
    report.picture(tmp_path / "a.png")


def test_images_of_another_number_of_channels_are_faults(tmp_path):
    write_masks(tmp_path, blocks(0, 1), blocks(0, 1))
    (tmp_path / "images/0.png").unlink()
    np.save(tmp_path / "images/0.npy", np.zeros((16, 32, 5), "uint8"))
    report = inspect_folder(tmp_path, num_classes=2)
    (fault,) = report.faults
    assert "0.npy" in fault and "channels" in fault
    (other,) = inspect_folder(tmp_path, num_classes=2, channels=5).faults
    assert "1.png" in other


def test_masks_of_another_size_by_choice(tmp_path):
    write_masks(tmp_path, blocks(0, 1))
    write(tmp_path / "images/0.png", np.zeros((8, 16, 3), "uint8"))
    assert len(inspect_folder(tmp_path).faults) == 1
    report = inspect_folder(tmp_path, resize_masks=True).check()
    assert (report.sizes, report.pixels) == ({(8, 16): 1}, {0: 64, 1: 64})


@pytest.mark.parametrize(
    "masks, options, pixels, num_classes, ignored",
    [
        pytest.param([blocks(0, 4, 255)], {}, [0, 4, 255], 5, [255], id="void"),
        pytest.param([blocks(0, 0)], {}, [0], 2, [255], id="one class"),
        pytest.param(
            [blocks(1, 9)], {"ignore_class": 9}, [1, 9], 2, [9], id="another void"
        ),
        pytest.param(
            [blocks(255, 0).astype("uint16") * 2], {}, [0, 510], 511, [], id="16 bits"
        ),
    ],
)
def test_the_number_of_classes_is_inferred(
    tmp_path, masks, options, pixels, num_classes, ignored
):
    report = inspect_folder(write_masks(tmp_path, *masks), **options)
    assert list(report.pixels) == pixels
    assert (report.num_classes, report.ignored) == (num_classes, ignored)
    assert "inferred from the highest id" in str(report)
    assert report.faults == []


def test_colors_are_listed(tmp_path):
    colors = np.array([[0, 0, 0], [128, 0, 64], [9, 9, 9]], "uint8")
    write_masks(tmp_path, colors[blocks(0, 1, 1)], colors[blocks(0, 0, 2)])
    report = inspect_folder(tmp_path)
    assert report.pixels == {(0, 0, 0): 768, (9, 9, 9): 256, (128, 0, 64): 512}
    assert report.occurrences[0, 0, 0] == 2 and report.num_classes is None
    assert len(report.class_pixels) == 0
    assert "classes.csv" in note(report, "hold colors")
    assert str(report).splitlines()[1:3] == [
        "color           pixels   images",
        "(0, 0, 0)       50.0 %        2",
    ]
    report.picture(tmp_path / "a.png")
    (tmp_path / "classes.csv").write_text(
        "name,r,g,b\nsky,0,0,0\nroad,128,0,64\nvoid,9,9,9\n"
    )
    report = inspect_folder(tmp_path).check()
    assert report.class_names == ("sky", "road")
    assert report.pixels == {0: 768, 1: 512, 255: 256}


@pytest.mark.parametrize("options", [{}, {"num_classes": 2}, {"ignore_class": None}])
def test_black_and_white_masks_are_a_fault(tmp_path, options):
    write_masks(tmp_path, blocks(0, 255), blocks(0, 255))
    report = inspect_folder(tmp_path, **options)
    if options.get("ignore_class", 255) is None:
        assert (report.faults, report.num_classes) == ([], 256)
        return
    words = r"labels=keras_segadapter.data.BINARY \(--labels binary .*masks in .*masks$"
    with pytest.raises(ValueError, match=words):
        report.check()
    report = inspect_folder(tmp_path, labels=BINARY).check()
    assert report.pixels == {0: 512, 1: 512}


def test_black_and_white_masks_without_ignored_id(tmp_path):
    write_masks(tmp_path, blocks(0, 255), blocks(0, 255))
    report = inspect_folder(tmp_path, num_classes=2, ignore_class=None)
    assert len(report.faults) == 2
    assert all("BINARY" in fault for fault in report.faults)


def test_ignored_ids_are_not_counted(tmp_path):
    write(tmp_path / "images/a.png", np.zeros((1, 4, 3), "uint8"))
    write(tmp_path / "masks/a.png", np.array([[5, 1, 1, 9]], "uint8"))
    report = inspect_folder(tmp_path, num_classes=2, ignore_class=[5, 9])
    np.testing.assert_array_equal(report.class_pixels, [0, 2])
    assert report.pixels == {1: 2, 5: 1, 9: 1}


def test_ids_beyond_255(tmp_path):
    write_masks(tmp_path, np.array([[0, 299, 65535]], "uint16"))
    report = inspect_folder(tmp_path, num_classes=300, ignore_class=65535)
    assert report.pixels == {0: 1, 299: 1, 65535: 1}
    assert report.class_pixels[299] == 1


def test_exif_orientation(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6  # the orientation that is to be turned clockwise
    write(tmp_path / "images/a.jpg", np.zeros((8, 16, 3), "uint8"), exif=tags)
    write(tmp_path / "masks/a.png", np.zeros((16, 8), "uint8"))
    report = inspect_folder(tmp_path, num_classes=2).check()
    assert report.sizes == {(16, 8): 1}


def test_jpeg_masks_are_noted_with_their_share_of_odd_pixels(tmp_path):
    mask = (make_scenes(1, size=(64, 64))[1][0] * 30).astype("uint8")
    write_masks(tmp_path, mask, suffix="jpg")
    read = np.asarray(Image.open(tmp_path / "masks/0.jpg")).astype(int)
    framed = np.pad(read, 1, constant_values=-1)
    around = [framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]]
    share = np.mean([(read != other) for other in around], axis=0) == 1
    report = inspect_folder(tmp_path)
    text = note(report, "JPEG")
    assert f"{100 * share.mean():.1f} % of" in text and share.mean() > 0.005
    assert (
        text.startswith("1 mask is a JPEG file. JPEG does not keep ids: ")
        and "Save masks as PNG" in text
    )
    assert not any("single pixels" in note for note in report.notes)


def test_masks_that_were_interpolated_are_noted(tmp_path):
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 200, (16, 16), "uint8")
    write_masks(tmp_path, blocks(0, 200), noisy, blocks(0, 1, 0))
    text = note(inspect_folder(tmp_path), "single pixels")
    assert text.startswith("1 mask has many") and "1.png, 100.0 % of" in text
    assert "JPEG" not in text


def test_dark_images_of_16_bits_are_noted(tmp_path):
    write_masks(tmp_path, blocks(0, 1), blocks(0, 1))
    for i in (0, 1):
        write(tmp_path / f"images/{i}.png", np.full((16, 32), 4095, "uint16"))
    text = note(inspect_folder(tmp_path), "16 bits")
    assert text.startswith("2 images have 16 bits, but no value above 4095 of 65535")
    write(tmp_path / "images/0.png", np.full((16, 32), 60000, "uint16"))
    assert not any("16 bits" in note for note in inspect_folder(tmp_path).notes)


def test_void_and_absent_classes_are_noted(tmp_path):
    write_masks(tmp_path, blocks(0, 2), blocks(255, 255))
    report = inspect_folder(tmp_path, num_classes=5)
    assert note(report, "void") == (
        f"1 mask is void everywhere. The first is {tmp_path / 'masks/1.png'}."
    )
    assert note(report, "occur") == "3 classes never occur: 1, 3, 4."


# Edges


def test_a_folder_without_a_sound_pair(tmp_path):
    write_masks(tmp_path, blocks(0, 1))
    (tmp_path / "masks/0.png").write_text("not a picture")
    report = inspect_folder(tmp_path)
    assert len(report.faults) == 1 and report.pixels == report.sizes == {}
    assert "Fault: The mask cannot be read" in str(report)
    with pytest.raises(
        ValueError, match=r"without a fault. Received: 1 pairs .*cannot"
    ):
        report.picture(tmp_path / "a.png")


def test_many_faults_are_cut_short(tmp_path):
    write_masks(tmp_path, *[blocks(9, 9, side=2)] * 25)
    report = inspect_folder(tmp_path, num_classes=2)
    assert len(report.faults) == 25
    assert str(report).count("Fault: ") == 20
    assert str(report).endswith("\nand 5 more faults")


def test_one_pixel(tmp_path):
    report = inspect_folder(write_masks(tmp_path, [[1]]), num_classes=2)
    assert report.class_pixels.tolist() == [0, 1]
    assert not any("single pixels" in note for note in report.notes)


def test_wrong_arguments_raise(tmp_path):
    write_masks(tmp_path, blocks(0, 1))
    with pytest.raises(
        ValueError, match=r"its own options.*num_classes=3, .* of 2 classes$"
    ):
        inspect_folder(FolderDataset(tmp_path, 2), num_classes=3)
    with pytest.raises(ValueError, match="its own options"):
        inspect_folder(FolderDataset(tmp_path, 2), ignore_class=7)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        inspect_folder(tmp_path, num_classes=1)
    with pytest.raises(TypeError, match=r"`ignore_class` must be .*'void'"):
        inspect_folder(tmp_path, ignore_class="void")
    with pytest.raises(ValueError, match="path of an existing folder"):
        inspect_folder(tmp_path / "nowhere")
