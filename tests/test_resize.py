"""ResizeLike equals bilinear resizing in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy_method import assert_close, maps, resize

import keras_segadapter as ksa

# Contract; the rest of it is in test_layers_contract.py


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_low_precision_only_rounds_the_result(dtype, tolerance):
    x, reference = maps(2, 3, 5, 4), maps(2, 8, 11, 1)
    resized = ksa.ResizeLike(dtype=f"mixed_{dtype}")([x, reference])
    assert keras.backend.standardize_dtype(resized.dtype) == dtype
    assert_close(resized, resize(x, 8, 11), tolerance)


# Meaning


@pytest.mark.parametrize(
    "size, target",
    [((4, 6), (16, 24)), ((3, 5), (10, 8)), ((7, 4), (5, 9)), ((9, 8), (4, 3))],
    ids=["up", "odd", "mixed", "down"],
)
def test_bilinear_with_half_pixel_centers(size, target):
    x = maps(2, *size, 3)
    resized = ksa.ResizeLike()([x, maps(2, *target, 5)])
    assert_close(resized, resize(x, *target), 1e-6)


def test_same_size_changes_nothing():
    x = maps(2, 5, 3, 4)
    np.testing.assert_array_equal(ops.convert_to_numpy(ksa.ResizeLike()([x, x])), x)


# Edges


def test_the_reference_can_be_an_image_of_integers():
    x, image = maps(1, 2, 3, 4), np.zeros((1, 6, 9, 3), "uint8")
    assert_close(ksa.ResizeLike()([x, image]), resize(x, 6, 9), 1e-6)


def test_one_pixel_fills_the_map():
    resized = ops.convert_to_numpy(
        ksa.ResizeLike()([maps(1, 1, 1, 4), maps(1, 5, 3, 1)])
    )
    np.testing.assert_allclose(resized, resized[:, :1, :1].repeat(5, 1).repeat(3, 2))
