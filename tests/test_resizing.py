"""Images and masks of any dtype and number of channels, resized."""

import cv2
import numpy as np
import pytest
from PIL import Image

from keras_segadapter.data.resizing import (
    crop_resized_image,
    crop_resized_mask,
    resize_image,
    resize_mask,
)

RNG = np.random.default_rng(0)

# Contract


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels_are_resized_alike(dtype, channels):
    image = (RNG.random((6, 8, channels)) * 250).astype(dtype)
    resized = resize_image(image, (9, 5))
    assert resized.shape == (9, 5, channels) and resized.dtype == dtype
    for i in range(channels):
        picture = Image.fromarray(image[..., i].astype("float32"))
        expected = picture.resize((5, 9), Image.Resampling.BILINEAR)
        atol = 1e-4 if dtype == "float32" else 1
        np.testing.assert_allclose(resized[..., i], np.asarray(expected), atol=atol)


# Meaning


def test_a_fourth_channel_is_not_transparency():
    image = np.full((4, 4, 4), 200, "uint8")
    image[..., 3] = 0
    np.testing.assert_array_equal(resize_image(image, (6, 6))[0, 0], [200] * 3 + [0])


def test_values_of_16_bits_are_kept():
    image = np.full((3, 3, 2), 65535, "uint16")
    assert (resize_image(image, (5, 4)) == 65535).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
def test_masks_are_never_interpolated(dtype):
    ids = np.array([[0, 7], [200, 0]], dtype)
    resized = resize_mask(ids, (4, 6))
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, ids.repeat(2, 0).repeat(3, 1))


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("size", [(13, 46), (40, 23), (9, 7), (3, 5), (1, 1)])
def test_a_crop_is_that_of_the_whole_resized_image(size, channels):
    rows, columns = np.mgrid[:30, :34]
    image = np.dstack([rows * 7, columns * 7, rows + columns] * 2)[..., :channels]
    image = image.astype("float32")
    mask = np.arange(30 * 34).reshape(30, 34)
    whole = crop_resized_image(image, size, (0, 0), size)
    ids = crop_resized_mask(mask, size, (0, 0), size)
    assert whole.shape == (*size, channels) and ids.shape == size
    differ = ids != resize_mask(mask, size)  # halfway between two pixels only
    assert differ.mean() < 0.08
    rng = np.random.default_rng(0)
    for _ in range(5):
        shape = rng.integers(1, np.add(size, 1))
        corner = rng.integers(np.subtract(size, shape) + 1)
        part = tuple(map(slice, corner, corner + shape))
        found = crop_resized_image(image, size, corner, shape)
        # OpenCV rounds the places of the fifth and sixth channel to 1/32 pixel, and
        # before 5.0 those of three and four too.
        is_exact = channels <= 4 and int(cv2.__version__.split(".")[0]) >= 5
        atol = 1e-3 if is_exact else 0.5
        np.testing.assert_allclose(found, whole[part], atol=atol)
        found = crop_resized_mask(mask, size, corner, shape)
        np.testing.assert_array_equal(found, ids[part])


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_shrunk_images_are_means(factor):
    image = np.random.default_rng(0).integers(0, 256, (24, 42, 3), "uint8")
    size = 24 // factor, 42 // factor
    found = crop_resized_image(image, size, (0, 0), size)
    blocks = image.reshape(size[0], factor, size[1], factor, 3)
    np.testing.assert_allclose(found, blocks.mean((1, 3)), atol=0.6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float64"])
def test_crops_keep_the_type(dtype):
    image = np.full((8, 9, 2), 100, dtype)
    for size in ((20, 31), (2, 3)):
        found = crop_resized_image(image, size, (0, 1), (2, 2))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, 100)
