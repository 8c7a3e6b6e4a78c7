import numpy as np
import pytest

from keras_segadapter.data import SCENE_CLASSES, make_scenes

SKY, WATER, GRASS, ROAD, BUILDING, TREE, CAR, BOAT = range(8)


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(120)


def color_classifier(scenes, first, second):
    """Return the balanced accuracy, on new scenes, of the best answer by color."""
    images, masks = scenes
    bins = (images // 16).astype(int) @ [256, 16, 1]  # (N, H, W)
    train, test = np.s_[:80], np.s_[80:]
    counts = [
        np.bincount(bins[train][masks[train] == name], minlength=4096)
        for name in (first, second)
    ]
    says_first = counts[0] / counts[0].sum() > counts[1] / counts[1].sum()
    return (
        says_first[bins[test][masks[test] == first]].mean()
        + (~says_first)[bins[test][masks[test] == second]].mean()
    ) / 2


# Contract


@pytest.mark.parametrize("size", [(96, 96), (16, 16), (16, 48), (70, 33)])
def test_shapes_and_types(size):
    images, masks = make_scenes(3, size=size)
    assert images.shape == (3, *size, 3)
    assert masks.shape == (3, *size)
    assert images.dtype == masks.dtype == "uint8"
    assert masks.max() < len(SCENE_CLASSES)


def test_scenes_depend_on_the_seed():
    images, masks = make_scenes(2, seed=3)
    again, masks_again = make_scenes(2, seed=3)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(masks, masks_again)
    assert (make_scenes(2, seed=4)[1] != masks).any()
    assert (masks[0] != masks[1]).any()


def test_more_scenes_start_with_the_fewer_ones():
    few, few_masks = make_scenes(4, size=(40, 56), seed=2)
    many, many_masks = make_scenes(8, size=(40, 56), seed=2)
    np.testing.assert_array_equal(many[:4], few)
    np.testing.assert_array_equal(many_masks[:4], few_masks)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"count": 0}, "`count` must be an integer of at least 1.*: count=0$"),
        ({"count": 2.0}, "`count` must be an integer .*: count=2.0$"),
        ({"count": True}, "`count` must be an integer .*: count=True$"),
        ({"size": 96}, r"`size` must be \(height, width\).*: size=96$"),
        ({"size": (96, 96, 3)}, r"Received: size=\(96, 96, 3\)$"),
        ({"size": (96, 8)}, r"`size\[1\]` must be an integer of at least 16.*\]=8$"),
        ({"size": (96.0, 96)}, r"`size\[0\]` must .*\]=96.0$"),
        ({"seed": -1}, "`seed` must be an integer of at least 0.*=-1$"),
    ],
    ids=["no scenes", "float", "bool", "number", "3D", "small", "float size", "seed"],
)
def test_wrong_arguments_raise(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_scenes(**{"count": 1, **arguments})


# Meaning


def test_every_class_is_in_most_scenes(scenes):
    for name in range(len(SCENE_CLASSES)):
        share = (scenes[1] == name).any((1, 2)).mean()
        assert share > 0.8, SCENE_CLASSES[name]


def test_sky_and_water_look_the_same(scenes):
    images, masks = scenes
    sky, water, grass = (
        np.array([x[y == name].mean(0) for x, y in zip(images, masks, strict=True)])
        for name in (SKY, WATER, GRASS)
    )
    assert abs(sky - water).mean() < 6
    assert abs(sky - grass).mean() > 40
    spread = [images[masks == name].std(0) for name in (SKY, WATER)]
    np.testing.assert_allclose(spread[0], spread[1], rtol=0.1)


def test_color_alone_does_not_tell_the_classes_apart(scenes):
    assert color_classifier(scenes, SKY, WATER) < 0.56
    assert color_classifier(scenes, CAR, BOAT) < 0.62
    # The same classifier works on classes that differ in color.
    assert color_classifier(scenes, SKY, GRASS) > 0.9


def test_the_surroundings_tell_the_classes_apart(scenes):
    for mask in scenes[1]:
        rows = np.arange(96)[:, None] * np.ones(96, int)
        assert rows[mask == SKY].max() < rows[mask == WATER].min()
        padded = np.pad(mask, 3, mode="edge")
        near = np.stack(
            [padded[3 + i : 99 + i, 3 + j : 99 + j] for i in (-3, 3) for j in (-3, 3)]
        )
        for name, place, other in ((CAR, ROAD, WATER), (BOAT, WATER, ROAD)):
            around = near[:, mask == name]
            assert (around == place).sum() > 0.15 * around.size
            assert (around == place).sum() > 10 * (around == other).sum()


def test_position_alone_does_not_tell_the_classes_apart(scenes):
    masks = scenes[1]
    counts = np.stack([(masks[:80] == name).sum(0) for name in range(8)])
    guess = counts.argmax(0)
    assert (guess == masks[80:])[masks[80:] == WATER].mean() < 0.8
    assert (guess == masks[80:])[masks[80:] >= CAR].mean() < 0.1


# Edges


@pytest.mark.parametrize("size", [(16, 16), (16, 200), (200, 16)])
def test_small_and_long_scenes_hold_all_classes(size):
    masks = make_scenes(40, size=size)[1]
    assert set(np.unique(masks)) == set(range(8))


def test_numpy_integers_and_lists_as_arguments():
    images, _ = make_scenes(np.int64(1), size=[16, np.int32(20)], seed=np.int64(0))
    np.testing.assert_array_equal(images, make_scenes(1, size=(16, 20))[0])
