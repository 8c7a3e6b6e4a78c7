"""Images and masks of any dtype and number of channels, resized."""

import numpy as np
import pytest
from PIL import Image

from keras_segadapter.data.resizing import resize_image, resize_mask

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
