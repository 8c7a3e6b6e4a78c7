"""Random changes of the colors of an image."""

import cv2
import numpy as np

HUES = 256  # steps around the circle of hues


def distort(image, rng):
    """Change the brightness, contrast, saturation and hue of an image `(H, W, C)`."""
    same = np.arange(256)  # each change is a table of new values for the 256 values

    def sometimes(draw):
        return draw() if rng.random() < 0.5 else same

    brightness = sometimes(lambda: same + rng.uniform(-32, 32))
    contrast = sometimes(lambda: same * rng.uniform(0.5, 1.5))
    saturation = sometimes(lambda: same * rng.uniform(0.5, 1.5))
    hue = sometimes(
        lambda: (same + round(rng.integers(-18, 18) * 2 / 360 * HUES)) % 256
    )
    contrast_first = rng.random() < 0.5

    shape = image.shape
    image = _replace(image, brightness)
    if contrast_first:
        image = _replace(image, contrast)
    is_changed = hue is not same or saturation is not same
    if shape[2] == 3 and is_changed:  # since the way to HSV rounds
        image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        image = _replace(image, np.stack([hue, saturation, same], axis=-1))
        image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB_FULL)
    if not contrast_first:
        image = _replace(image, contrast)
    return image.reshape(shape)


def _replace(image, table):
    """Replace values by those of a table `(256,)` or `(256, C)`, clipped to 0..255."""
    table = np.clip(table, 0, 255).astype("uint8")
    return cv2.LUT(image, table.reshape(1, 256, -1))
