"""Small outdoor scenes drawn with NumPy, for examples and tests."""

import numpy as np
from PIL import Image

from keras_segadapter.validation import check_integer, check_size

SCENE_CLASSES = ("sky", "water", "grass", "road", "building", "tree", "car", "boat")
SKY, WATER, GRASS, ROAD, BUILDING, TREE, CAR, BOAT = range(len(SCENE_CLASSES))

# Blue, gray and dusk; the sky of a scene is a random blend of the three.
AIR_COLORS = np.array([[105, 160, 220], [185, 197, 208], [228, 168, 135]], "float32")
WALL_COLORS = np.array([[205, 175, 135], [170, 95, 75], [160, 160, 172]], "float32")


def make_scenes(count, size=(96, 96), seed=0):
    """Draw small outdoor scenes and their class ids.

    Appearance alone does not tell the classes apart, so a model has to look around each
    pixel. Sky and water are cut from the same texture: sky is above the far shore,
    water below it. Cars and boats are the same object: on a road it is a car, on water
    a boat. `SCENE_CLASSES` holds the class names in the order of their ids.

    Scene `i` depends only on `seed`, `i` and `size`, so more scenes start with the
    fewer ones.

    Args:
        count: Integer of at least 1. Number of scenes.
        size: Tuple of integers of at least 16. `(height, width)` of each scene.
            Defaults to `(96, 96)`.
        seed: Integer of at least 0. Seed of the scenes. Defaults to `0`.

    Returns:
        A pair of RGB images, uint8 `(count, height, width, 3)`, and class ids, uint8
        `(count, height, width)`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    from keras_segadapter.data import SCENE_CLASSES, make_scenes

    images, masks = make_scenes(4, size=(64, 96), seed=1)
    print(images.shape, masks.shape)  # (4, 64, 96, 3) (4, 64, 96)
    print(SCENE_CLASSES[masks[0, 0, 0]])  # sky
    ```
    """
    check_integer("count", count)
    check_integer("seed", seed, least=0)
    size = check_size("size", size, least=16)
    images = np.empty((count, *size, 3), "uint8")
    masks = np.empty((count, *size), "uint8")
    for i in range(count):
        images[i], masks[i] = _draw(np.random.default_rng([seed, i]), *size)
    return images, masks


def _draw(rng, height, width):
    """Draw one scene: an image `(H, W, 3)` and its class ids `(H, W)`, both uint8."""
    y = (np.arange(height, dtype="float32")[:, None] + 0.5) / height  # (H, 1)
    x = (np.arange(width, dtype="float32")[None, :] + 0.5) / width  # (1, W)
    if rng.random() < 0.5:
        x = 1 - x  # water and road swap sides
    horizon = rng.uniform(0.25, 0.42)
    shore = horizon + rng.uniform(0.07, 0.1)
    ground = _ground(rng, x, y, shore)  # (H, W)

    mask = np.full((height, width), SKY, "uint8")
    # Without the far shore in between, sky and water could not be told apart.
    mask[(y > horizon)[:, 0]] = GRASS
    inland = np.broadcast_to(y > shore, mask.shape)
    water_end = rng.uniform(0.4, 0.48)
    road_start = water_end + rng.uniform(0.09, 0.14)
    road_end = road_start + rng.uniform(0.27, 0.31)
    mask[inland & (ground < water_end)] = WATER
    mask[inland & (ground > road_start) & (ground < road_end)] = ROAD

    # Sky and water both show parts of one texture.
    air = rng.dirichlet([1, 1, 1]) @ AIR_COLORS
    image = air + 14 * _streaks(rng, height, width)  # (H, W, 3)
    image[mask == GRASS] = rng.uniform([84, 136, 58], [112, 164, 86])
    image[mask == ROAD] = rng.uniform(95, 130)
    side = min(height, width)
    for _ in range(rng.integers(1, 4)):
        _add_building(rng, image, mask, rng.uniform(horizon, shore), side)
    roots = np.argwhere(mask == GRASS)
    roots = roots[rng.integers(len(roots), size=rng.integers(2, 5))]
    for row, column in sorted(roots.tolist()):  # near trees hide far ones
        _add_tree(rng, image, mask, row, column, side)
    for place, name in ((ROAD, CAR), (WATER, BOAT)):
        for _ in range(rng.integers(1, 3)):
            _add_box(rng, image, mask, place, name, side)

    image *= rng.uniform(0.7, 1.1) * rng.uniform(0.94, 1.06, 3)  # the light
    image += rng.normal(0, 7, image.shape)
    return image.clip(0, 255).astype("uint8"), mask


def _ground(rng, x, y, shore):
    """Return a coordinate `(H, W)` that runs from the water over the road to land."""
    depth = (y - shore) / (1 - shore)  # 0 at the far shore, 1 at the lower edge
    wave = rng.uniform(3, 7), rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:  # side by side, with slanted borders
        slant = rng.uniform(-0.25, 0.25)
        bend = 0.02 * np.sin(wave[0] * depth + wave[1])
        return x + slant * (depth - 0.5) + bend
    if rng.random() < 0.5:  # one behind the other, with the water in front
        depth = 1 - depth
    return depth + 0.02 * np.sin(wave[0] * x + wave[1])


def _streaks(rng, height, width):
    """Return smooth noise in horizontal streaks, `(H, W, 1)`."""
    coarse = rng.normal(size=(14, 5)).astype("float32")
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)[..., None]


def _add_building(rng, image, mask, base, side):
    """Draw a building with its foot at the height `base`, from 0 to 1."""
    height, width = mask.shape
    bottom = round(base * height) + 1
    top = max(0, bottom - round(rng.uniform(0.16, 0.28) * side))
    span = round(rng.uniform(0.13, 0.24) * side)
    left = rng.integers(0, width - span)
    area = np.s_[top:bottom, left : left + span]
    mask[area] = BUILDING
    wall = WALL_COLORS[rng.integers(3)] + rng.uniform(-15, 15, 3)
    image[area] = wall
    pane = max(1, round(0.025 * side))
    rows, columns = np.indices(mask[area].shape)
    image[area][(rows // pane % 2 == 1) & (columns // pane % 2 == 1)] = 0.55 * wall


def _add_tree(rng, image, mask, row, column, side):
    """Draw a tree whose trunk ends at a pixel."""
    radius = rng.uniform(0.07, 0.12) * side
    stem = max(1, round(0.35 * radius))
    rows, columns = np.indices(mask.shape)
    trunk = (rows <= row) & (rows > row - 2 * stem)
    trunk &= abs(columns - column) <= 0.2 * radius
    center = row - 2 * stem - 0.9 * radius
    crown = np.hypot((rows - center) / 1.15, columns - column)  # higher than wide
    image[trunk] = [96, 70, 52]
    green = rng.uniform([36, 86, 40], [60, 110, 64])
    lit = np.clip(1.15 - 0.3 * (rows - center + columns - column) / radius, 0.7, 1.3)
    image[crown < radius] = (green * lit[..., None])[crown < radius]
    mask[trunk | (crown < radius)] = TREE


def _add_box(rng, image, mask, place, name, side):
    """Draw a car or boat of class `name` where it fits as a whole into a `place`."""
    span = max(3, round(rng.uniform(0.15, 0.21) * side))
    body = max(1, round(0.32 * span))
    cabin = max(1, round(0.25 * span))
    tall = body + cabin
    color = rng.uniform(30, 235, 3)
    # An integral image counts the pixels of the place in each window. The box fits
    # where all of them belong to it.
    total = np.pad(mask == place, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = total[tall:, span:] - total[:-tall, span:]
    inside = inside - total[tall:, :-span] + total[:-tall, :-span]
    spots = np.argwhere(inside == tall * span)
    if not len(spots):
        return
    top, left = spots[rng.integers(len(spots))]
    inset = span // 4
    upper = np.s_[top : top + cabin, left + inset : left + span - inset]
    lower = np.s_[top + cabin : top + tall, left : left + span]
    hem = np.s_[top + tall - max(1, body // 3) : top + tall, left : left + span]
    for area, shade in ((upper, 0.5 * color + 110), (lower, color), (hem, 0.5 * color)):
        image[area] = shade
        mask[area] = name
