"""Pictures and masks of all kinds of files, read the same way everywhere."""

import sys

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from keras_segadapter.data import FolderDataset
from keras_segadapter.data.reading import (
    PICTURES,
    picture_pixels,
    read_ids_and_colors,
    read_image,
    read_mask,
    write_mask,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), "uint8")
GRAY = RGB[..., 0]
DEEP = RNG.integers(0, 65536, (5, 7, 3), "uint16")
IDS = np.array([[0, 1, 2], [3, 1, 0]], "uint8")


def save(path, array, mode=None, **options):
    """Save an array as a picture file, or a `.npy` or TIFF file as it is."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    else:
        picture = Image.fromarray(array)
        (picture.convert(mode) if mode else picture).save(path, **options)
    return path


# Contract


@pytest.mark.parametrize("suffix", sorted({*PICTURES} - {".npy"}))
@pytest.mark.parametrize("upper", [False, True], ids=["lower", "upper"])
def test_every_kind_of_file_is_read(tmp_path, suffix, upper):
    path = tmp_path / f"a{suffix.upper() if upper else suffix}"
    Image.fromarray(np.full((4, 6, 3), 200, "uint8")).save(path)
    for channels in (1, 3, 4):
        image = read_image(path, channels)
        assert image.shape == (4, 6, channels) and image.dtype == "uint8"
        assert abs(image[..., 0].astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    "labels, dtype",
    [
        pytest.param([[0, 255, 7]], "uint8", id="8 bits"),
        pytest.param([[0, 256, 65535]], "int32", id="16 bits"),
        pytest.param([[0, 0, 0]], "uint8", id="one class"),
    ],
)
def test_masks_are_written_and_read_back(tmp_path, labels, dtype):
    for given in ("int32", "int64", "uint16"):
        write_mask(tmp_path / "a.png", np.array(labels, given))
        read = read_mask(tmp_path / "a.png")
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize(
    "name, labels, words",
    [
        pytest.param("a.jpg", IDS, r"to a .png file, .*path='a.jpg'$", id="jpeg"),
        pytest.param("a.png", IDS / 1, r"\(2, 3\) and dtype float64$", id="floats"),
        pytest.param("a.png", IDS - np.int32(1), "from 0 to 65535", id="negative"),
        pytest.param("a.png", IDS + np.int32(65535), "from 0 to 65535", id="too high"),
        pytest.param("a.png", IDS[None], r"labels of shape \(1, 2, 3\)", id="batch"),
    ],
)
def test_masks_that_cannot_be_written_raise(name, labels, words):
    with pytest.raises(ValueError, match=words):
        write_mask(name, labels)


# Meaning: images


def as_mode(mode):
    """Return a Pillow picture of a mode, and the RGB pixels that it stands for."""
    deep = GRAY.astype("uint16") << 8 | 77
    if mode == "F":
        return Image.fromarray(GRAY.astype("float32")), GRAY
    if mode == "I":
        return Image.fromarray(GRAY.astype("int32")), GRAY
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        size = GRAY.shape[::-1]
        return Image.frombytes(mode, size, deep.astype(order).tobytes()), GRAY
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        rgb = Image.fromarray(RGB)
        return ImageCms.profileToProfile(rgb, *profiles, outputMode=mode), RGB
    picture = Image.fromarray(RGB).convert(mode)
    return picture, np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize(
    "mode",
    "1 L LA P RGB RGBA CMYK YCbCr HSV LAB I F I;16 I;16B".split(),
)
def test_pictures_of_every_mode(mode):
    picture, expected = as_mode(mode)
    if expected.ndim == 2:
        expected = expected[..., None].repeat(3, -1)
    rgb, gray, rgba = (picture_pixels(picture, channels) for channels in (3, 1, 4))
    loose = {"atol": 20 if mode == "LAB" else 0}
    np.testing.assert_allclose(rgb.astype(int), expected, **loose)
    np.testing.assert_array_equal(rgba[..., :3], rgb)
    assert gray.shape == (5, 7, 1) and rgba.shape == (5, 7, 4)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_allclose(gray[..., 0].astype(int), luma, atol=1)


def test_transparency_of_palettes_and_rgba_is_ignored(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], "uint8")).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    colors = [[[10, 20, 30], [40, 50, 60]]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colors)
    alpha = np.dstack([RGB, GRAY])
    save(tmp_path / "b.png", alpha)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", 4), alpha)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((4, 6), value, "uint8")) for value in (9, 99)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == 9).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "tif", "png"])
def test_exif_orientation(tmp_path, orientation, kind):
    image = np.zeros((8, 16, 3), "uint8")
    image[:, 8:] = 255  # the right half
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / f"a.{kind}", exif=tags)
    turns = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1]}
    turns |= {4: lambda x: x[::-1], 5: lambda x: x.transpose(1, 0, 2)}
    turns |= {6: lambda x: np.rot90(x, -1), 8: np.rot90}
    turns[7] = lambda x: np.rot90(x[::-1])
    expected = turns.get(orientation, lambda x: x)(image)
    read = read_image(tmp_path / f"a.{kind}")
    np.testing.assert_allclose(read.astype(int), expected, atol=5)
    with Image.open(tmp_path / f"a.{kind}") as picture:
        np.testing.assert_array_equal(picture_pixels(picture), read)
    mask = read_mask(tmp_path / f"a.{kind}") if kind != "jpg" else expected[..., 0]
    np.testing.assert_array_equal(mask, expected[..., 0])


def test_16_bits_are_read_in_one_way(tmp_path):
    """Sixteen bits lose the lower eight, in PNG and TIFF, gray and RGB."""
    gray = DEEP[..., 0]
    gray_files = [
        save(tmp_path / "gray.png", gray),
        save(tmp_path / "gray.tif", gray),
    ]
    files = [
        save(tmp_path / "rgb.tif", DEEP, photometric="rgb"),
        save(
            tmp_path / "planes.tif",
            np.moveaxis(DEEP, -1, 0).copy(),
            photometric="rgb",
            planarconfig="separate",
        ),
        save(tmp_path / "bands.tif", DEEP, photometric="minisblack"),
    ]
    for path in files:
        np.testing.assert_array_equal(read_image(path), DEEP >> 8)
    for path in gray_files:
        np.testing.assert_array_equal(read_image(path, 1)[..., 0], gray >> 8)
        repeated = (gray >> 8)[..., None].repeat(3, -1)
        np.testing.assert_array_equal(read_image(path), repeated)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(picture_pixels(picture), repeated)
    data = FolderDataset((gray_files[:1], gray_files[:1]), 2)
    np.testing.assert_array_equal(read_image(data.image_paths[0]), repeated)


def test_floats_that_are_pixels_are_read(tmp_path):
    floats = save(tmp_path / "a.tif", GRAY.astype("float32"))
    np.testing.assert_array_equal(read_image(floats, 1)[..., 0], GRAY)
    rgb = save(tmp_path / "b.tif", RGB.astype("float32"), photometric="rgb")
    np.testing.assert_array_equal(read_image(rgb), RGB)
    black = save(tmp_path / "c.tif", np.zeros((3, 4), "float32"))
    assert (read_image(black) == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_keep_their_values(tmp_path, dtype):
    bands = (RNG.random((5, 7, 6)) * 200).astype(dtype)
    first = np.moveaxis(bands, -1, 0).copy()
    black = {"photometric": "minisblack"}
    files = [
        save(tmp_path / "contig.tif", bands, planarconfig="contig", **black),
        save(tmp_path / "planes.tif", first, planarconfig="separate", **black),
        save(tmp_path / "pages.tif", first, **black),
        save(tmp_path / "plain.tif", bands),
        save(tmp_path / "a.npy", bands),
        save(tmp_path / "first.npy", first),
    ]
    for path in files:
        image = read_image(path, 6)
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, bands)


def test_arrays_keep_their_values(tmp_path):
    deep = save(tmp_path / "a.npy", DEEP)
    assert read_image(deep).dtype == "uint16"
    np.testing.assert_array_equal(read_image(deep), DEEP)
    gray = save(tmp_path / "b.npy", np.float64([[0.5, -1]]))
    assert read_image(gray, 1).dtype == "float32"
    np.testing.assert_array_equal(read_image(gray, 1), [[[0.5], [-1]]])


def test_four_bands_are_not_three_colors(tmp_path):
    bands = np.dstack([RGB, GRAY])
    options = dict(photometric="rgb", extrasamples=["unspecified"])
    path = save(tmp_path / "a.tif", bands, **options)
    np.testing.assert_array_equal(read_image(path, 4), bands)
    np.testing.assert_array_equal(read_image(path, 3), RGB)


# Meaning: masks


def as_palette():
    picture = Image.fromarray(IDS).convert("P")
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 7, 7, 7])
    return picture


def with_alpha():
    alpha = np.arange(6, dtype="uint8").reshape(2, 3) * 40
    return Image.fromarray(np.dstack([IDS, IDS, IDS, alpha]))


@pytest.mark.parametrize(
    "picture, ids",
    [
        pytest.param(Image.fromarray(IDS), IDS, id="gray"),
        pytest.param(as_palette(), IDS, id="palette"),
        pytest.param(Image.fromarray(IDS > 0), IDS > 0, id="1 bit"),
        pytest.param(Image.fromarray(IDS.astype("uint16")), IDS, id="16 bits"),
        pytest.param(Image.fromarray(IDS).convert("RGB"), IDS, id="gray RGB"),
        pytest.param(with_alpha(), IDS, id="gray RGBA"),
        pytest.param(Image.fromarray(IDS).convert("LA"), IDS, id="gray and alpha"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_of_ids(tmp_path, picture, ids, suffix):
    picture.save(tmp_path / f"a.{suffix}")
    mask = read_mask(tmp_path / f"a.{suffix}")
    assert mask.dtype == ("int32" if picture.mode.startswith("I") else "uint8")
    np.testing.assert_array_equal(mask, ids)


@pytest.mark.parametrize(
    "dtype", "bool uint8 uint16 uint32 uint64 int8 int32 int64 float32".split()
)
def test_masks_of_numbers(tmp_path, dtype):
    ids = IDS.astype(dtype)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.npy", ids)), ids)
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "b.npy", ids[..., None])), ids
    )
    if dtype != "bool":
        np.testing.assert_array_equal(read_mask(save(tmp_path / "a.tif", ids)), ids)


def test_negative_ids(tmp_path):
    ids = np.array([[-1, 0, 3]], "int8")
    for name in ("a.npy", "a.tif"):
        np.testing.assert_array_equal(read_mask(save(tmp_path / name, ids)), ids)


def test_masks_of_colors(tmp_path):
    for path in (
        save(tmp_path / "a.png", RGB),
        save(tmp_path / "b.png", np.dstack([RGB, GRAY])),
        save(tmp_path / "c.npy", RGB),
        save(tmp_path / "d.tif", RGB, photometric="rgb"),
    ):
        np.testing.assert_array_equal(read_mask(path), RGB)


def test_gray_values_as_colors(tmp_path):
    """Where masks are color-coded, gray values and palettes stand for colors."""
    as_palette().save(tmp_path / "palette.png")
    ids, colors = read_ids_and_colors(tmp_path / "palette.png")
    np.testing.assert_array_equal(ids, IDS)
    assert colors[0].tolist() == [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert read_ids_and_colors(tmp_path / "palette.png", by_color=True)[0] is None
    Image.fromarray(IDS > 0).save(tmp_path / "one.png")
    ids, colors = read_ids_and_colors(tmp_path / "one.png", by_color=True)
    assert ids is None and colors[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]
    deep = save(tmp_path / "deep.png", IDS.astype("uint16"))
    ids, colors = read_ids_and_colors(deep, by_color=True)
    assert colors is None and ids.tolist() == IDS.tolist()


# Edges


def cut(folder):
    path = save(folder / "a.png", RGB)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def text(folder):
    (folder / "a.tif").write_text("not a picture")
    return folder / "a.tif"


def pickled(folder):
    return save(folder / "a.npy", np.array([{"a": 1}]))


@pytest.mark.parametrize("make", [cut, text, pickled])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_files_that_cannot_be_read_raise(tmp_path, make, read):
    path = make(tmp_path)
    words = f"The {read.__name__[5:]} cannot be read: .*Received: .*{path.name}$"
    with pytest.raises(ValueError, match=words):
        read(path)


@pytest.mark.parametrize(
    "name, array, channels, words",
    [
        pytest.param(
            "a.tif",
            GRAY / np.float32(256),
            3,
            r"float32 with values in 0\.\d+\.\.0\.9\d+$",
            id="0 to 1",
        ),
        pytest.param(
            "a.tif",
            GRAY.astype("float32") - 99,
            3,
            r"pixels in 0\.\.255.*a.tif",
            id="negative",
        ),
        pytest.param(
            "a.tif", np.float32([[1, np.nan]]), 1, r"values in nan\.\.nan$", id="NaN"
        ),
        pytest.param(
            "a.tif", GRAY.astype("int32") + 99, 1, "int32 with values", id="int32"
        ),
        pytest.param(
            "a.png",
            RGB,
            5,
            r"Only .npy and TIFF .*`channels` \(--channels.*a.png$",
            id="PNG of 5",
        ),
        pytest.param(
            "a.npy",
            RGB,
            6,
            r"\(height, width, 6\)\. Correct .*channels=6, .*npy of shape \(5, 7, 3\)",
            id="3 of 6",
        ),
        pytest.param(
            "a.npy", RGB, 4, r"channels=4, .*of shape \(5, 7, 3\) and", id="3 of 4"
        ),
        pytest.param("a.npy", np.array([["a"]]), 1, "dtype <U1$", id="strings"),
        pytest.param(
            "a.tif", np.stack([GRAY] * 30), 1, r"shape \(30, 5, 7\)", id="pages"
        ),
    ],
)
def test_images_that_are_none_raise(tmp_path, name, array, channels, words):
    with pytest.raises(ValueError, match=words):
        read_image(save(tmp_path / name, array), channels)


@pytest.mark.parametrize(
    "name, array, words",
    [
        pytest.param(
            "a.npy",
            IDS / 2,
            "a.npy with 3 pixels that are not integers$",
            id="fractions",
        ),
        pytest.param(
            "a.npy", np.float32([[np.nan, np.inf, 2]]), "with 2 pixels", id="NaN"
        ),
        pytest.param(
            "a.tif", np.float32(IDS / 2), "a.tif with 3 pixels", id="float TIFF"
        ),
        pytest.param(
            "a.npy",
            np.eye(5, dtype="uint8")[IDS],
            r"numpy.argmax.*shape \(2, 3, 5\)",
            id="one-hot",
        ),
        pytest.param("a.npy", np.zeros((0, 3), int), r"shape \(0, 3\)", id="empty"),
        pytest.param("a.npy", np.array([["a"]]), "dtype <U1$", id="strings"),
        pytest.param("a.tif", np.stack([GRAY] * 30), r"shape \(30, 5, 7\)", id="pages"),
        pytest.param(
            "a.tif",
            DEEP,
            "cannot be read: it has several channels of 16 bits",
            id="16-bit RGB",
        ),
    ],
)
def test_masks_that_are_none_raise(tmp_path, name, array, words):
    options = {"photometric": "rgb"} if array is DEEP else {}
    with pytest.raises(ValueError, match=words):
        read_mask(save(tmp_path / name, array, **options))


def test_a_mask_in_cmyk_raises(tmp_path):
    save(tmp_path / "a.jpg", RGB, mode="CMYK")
    with pytest.raises(ValueError, match=r"as a grayscale PNG.*a.jpg of mode CMYK$"):
        read_mask(tmp_path / "a.jpg")


def test_a_picture_for_a_model_of_other_channels_raises():
    words = (
        r"a NumPy array of shape \(height, width, 6\).*channels=6, picture of mode L$"
    )
    with pytest.raises(ValueError, match=words):
        picture_pixels(Image.fromarray(GRAY), 6)


def test_missing_tifffile_raises(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif", np.zeros((5, 6, 8), "uint8"))
    monkeypatch.setitem(sys.modules, "tifffile", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install keras-segadapter\[tiff\]"):
        read_image(path, 8)


def test_png_of_16_bits_under_an_old_pillow():
    """Older versions open PNG files of 16 bits as pictures of 32 bits."""
    picture = Image.fromarray(DEEP[..., 0].astype("int32"))
    picture.format = "PNG"
    np.testing.assert_array_equal(picture_pixels(picture, 1)[..., 0], DEEP[..., 0] >> 8)
