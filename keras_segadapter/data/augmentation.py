"""Training augmentation of the paper: resize, crop, flip, distort, pad."""

from numbers import Real

import numpy as np

from keras_segadapter.data.augmentation_checks import (
    check_ignored,
    check_photometric,
    check_rare,
)
from keras_segadapter.data.counting import count_ids
from keras_segadapter.data.distortion import distort
from keras_segadapter.data.resizing import (
    crop_resized_image,
    crop_resized_mask,
    draw_pixel,
)
from keras_segadapter.data_validation import check_pair
from keras_segadapter.validation import (
    check_integer,
    check_positive,
    check_size,
)

CROPS = 10  # that are looked at; if none of them fits, the next is taken as it is


# Keras' random layers don't serve here: their contrast is relative to the mean, each
# backend draws other numbers from a seed, and JAX compiles again for each image size.
class Augmentation:
    """Random views of an image and its mask, for training.

    A view is made in five steps: resize by a random scale, keeping the aspect ratio;
    crop at a random place; flip left and right; distort the colors; pad at the bottom
    and on the right with black and an ignored id, where the image is smaller than the
    crop. Images are resized by interpolation, masks by the nearest pixel.

    The datasets of this package take it as `augmentation`. What an image becomes there
    depends only on `seed`, the dataset's `epoch` and the index of the image.

    Up to ten crops are looked at, until one holds several classes and none of them
    covers `max_class_share` or more of its pixels, not counting ignored ones; an
    eleventh is taken as it is. Brightness changes by up to 32 of 255, contrast and
    saturation by a factor of 0.5 to 1.5, the hue by up to 36 degrees, each in half of
    the images; contrast changes at random before or after saturation and hue.

    With `rare_classes`, some crops are placed where a rare class is: with the
    probability `rare_probability` one of the rare classes that the image holds is
    drawn, then one of its pixels, each as likely as the others, and all crops that are
    looked at hold this pixel. Rare classes that are lost in shrinking don't count. An
    image that holds none is cropped as without them.

    Args:
        crop_size: Tuple of integers, `(height, width)`. Size of the views.
        base_size: Tuple of integers, `(height, width)`, or None. Box that an image is
            fitted into at scale 1, long side along long side; `(512, 2048)` for ADE20K
            in the paper. Defaults to `None`: the size of the image.
        scale: Tuple of numbers above 0. Lowest and highest factor on the base size.
            Defaults to `(0.5, 2.0)`.
        max_class_share: Number from 0 to 1. Share of a crop that each class must stay
            below; 1 takes any crop. Defaults to `0.75`.
        flip: Number from 0 to 1. Probability of a flip. Defaults to `0.5`.
        photometric: Boolean. Whether to change brightness, contrast, saturation and
            hue. Gray images have only the first two; images of other numbers of
            channels, or of other dtypes than uint8, need `False`. Defaults to `True`.
        rare_classes: List of integers of at least 0, or None. Classes that crops are
            to hold more often than by chance. Defaults to `None`.
        rare_probability: Number from 0 to 1. Probability that a crop of an image with
            rare classes is placed on one of them; others may hold one by chance.
            Defaults to `0.5`.

    Raises:
        TypeError: If `rare_classes` is neither a list nor None.
        ValueError: If an argument is not as described.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    images, masks = ksa.data.make_scenes(1, size=(60, 80))
    augmentation = ksa.data.Augmentation((64, 64))
    image, mask = augmentation(images[0], masks[0], np.random.default_rng(0))
    print(image.shape, mask.shape)  # (64, 64, 3) (64, 64)
    # ksa.data.open_folder("ade", augmentation=ksa.data.Augmentation((512, 512)))
    ```

    Source: paper, section 5, for the outline; MMSegmentation's pipelines, which the
    paper trains with, for the ranges. Their hue of 18 counts OpenCV's steps of 2
    degrees. Rare classes: after the oversampling of foreground in nnU-Net (Isensee et
    al., Nature Methods 2021), which draws a class and then a pixel for a fixed third of
    each batch.
    """

    def __init__(
        self,
        crop_size,
        base_size=None,
        *,
        scale=(0.5, 2.0),
        max_class_share=0.75,
        flip=0.5,
        photometric=True,
        rare_classes=None,
        rare_probability=0.5,
    ):
        self.crop_size = check_size("crop_size", crop_size)
        if base_size is not None:
            base_size = check_size("base_size", base_size)
        self.base_size = base_size
        if not isinstance(scale, (tuple, list)) or len(scale) != 2:
            raise ValueError(
                f"`scale` must be (lowest, highest). Received: scale={scale!r}"
            )
        self.scale = tuple(check_positive(f"scale[{i}]", scale[i]) for i in (0, 1))
        if self.scale[0] > self.scale[1]:
            raise ValueError(
                "`scale` must be (lowest, highest), in this order. Received: "
                f"scale={scale!r}"
            )
        if not isinstance(rare_classes, (list, tuple, np.ndarray, type(None))):
            raise TypeError(
                "`rare_classes` must be a list of classes, or None. Received: "
                f"rare_classes={rare_classes!r}"
            )
        self.rare_classes = [
            check_integer(f"rare_classes[{i}]", class_, 0)
            for i, class_ in enumerate(() if rare_classes is None else rare_classes)
        ]
        for name, value in (
            ("max_class_share", max_class_share),
            ("flip", flip),
            ("rare_probability", rare_probability),
        ):
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(
                    f"`{name}` must be a number from 0 to 1. Received: {name}={value!r}"
                )
        self.max_class_share, self.flip = max_class_share, flip
        self.photometric = bool(photometric)
        self.rare_probability = rare_probability

    def __call__(self, image, mask, rng, ignore_class=255):
        """Return one random view of an image and its mask.

        Args:
            image: Image `(H, W, C)`. With `photometric`, uint8 and gray or RGB.
            mask: Integer class ids `(H, W)`.
            rng: `np.random.Generator`. Source of the random numbers.
            ignore_class: Integer or list of integers. Ids of void pixels; the lowest
                pads the mask. Defaults to `255`.

        Returns:
            The image and the mask at the crop size, with their dtypes unchanged.

        Raises:
            TypeError: If `rng` is not a generator, or if `ignore_class` is neither an
                integer nor a list of integers.
            ValueError: If the image or the mask is not as described, if there is no
                ignored id, if the mask cannot hold it, or if it is a rare class.
        """
        image, mask = np.asarray(image), np.asarray(mask)
        ignored = check_ignored(ignore_class)
        check_rare(self.rare_classes, ignored)
        check_pair(image, mask, ignored[0])
        if self.photometric:
            check_photometric(image.shape[2], image.dtype)
        if not isinstance(rng, np.random.Generator):
            raise TypeError(
                "`rng` must be a np.random.Generator, such as np.random.default_rng(0)"
                f". Received: rng={rng!r}"
            )
        # Only the pixels of the crop are resized.
        size = self._draw_size(image.shape[:2], rng)
        shape = np.minimum(size, self.crop_size)
        corner, ids = self._draw_crop(mask, size, shape, ignored, rng)
        pixels = crop_resized_image(image, size, corner, shape)
        step = -1 if rng.random() < self.flip else 1
        if self.photometric:
            pixels = distort(pixels, rng)
        view = np.zeros((*self.crop_size, image.shape[2]), image.dtype)
        classes = np.full(self.crop_size, ignored[0], mask.dtype)
        view[: shape[0], : shape[1]] = pixels[:, ::step]
        classes[: shape[0], : shape[1]] = ids[:, ::step]
        return view, classes

    def _draw_size(self, size, rng):
        """Return the size at which an image of `size` fits the scaled base box."""
        ratio = rng.uniform(*self.scale)
        box = [int(side * ratio) for side in self.base_size or size]
        factor = min(max(box) / max(size), min(box) / min(size))
        return [max(1, int(side * factor + 0.5)) for side in size]

    def _draw_crop(self, mask, size, shape, ignored, rng):
        """Return the corner of a crop and its ids, at most `(crop height, width)`."""
        first, last = np.zeros(2, int), np.subtract(size, shape)
        if self.rare_classes and rng.random() < self.rare_probability:
            pixel = draw_pixel(mask, size, self.rare_classes, rng)
            if pixel is not None:  # which all crops from here to there hold
                first = np.maximum(first, pixel - shape + 1)
                last = np.minimum(last, pixel)
        for trial in range(CROPS + 1):
            corner = rng.integers(first, last + 1)
            ids = crop_resized_mask(mask, size, corner, shape)
            if self.max_class_share == 1 or trial == CROPS:
                break
            counts = [n for id_, n in count_ids(ids).items() if id_ not in ignored]
            if len(counts) > 1 and max(counts) < self.max_class_share * sum(counts):
                break
        return corner, ids


def check_augmentation(
    augmentation, image_size, ignore_class, num_classes=None, channels=3
):
    """Validate that a dataset's `augmentation` fits its other arguments.

    Raises:
        TypeError: If it is not an `Augmentation`.
        ValueError: If there is an image size, if there is no ignored id, if a rare
            class is none of the classes, or if it cannot change the colors of such
            images.
    """
    if not isinstance(augmentation, Augmentation):
        raise TypeError(
            "`augmentation` must be a keras_segadapter.data.Augmentation or None. "
            f"Received: augmentation={augmentation!r}"
        )
    if image_size is not None:
        raise ValueError(
            "The crop size of `augmentation` sets the size of the images. Leave out "
            "`image_size`, or pass it to Augmentation as `base_size`. Received: "
            f"image_size={image_size!r}, crop_size={augmentation.crop_size}"
        )
    ignored = check_ignored(ignore_class, num_classes)
    check_rare(augmentation.rare_classes, ignored, num_classes)
    if augmentation.photometric:
        check_photometric(channels)
