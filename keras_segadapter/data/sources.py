"""The arguments that say which files a dataset has, and which part of them it gives."""

import os

import numpy as np

from keras_segadapter.data.disk import as_path
from keras_segadapter.data.pairing import find_pairs
from keras_segadapter.validation import check_integer


def check_shard(shard, images):
    """Return `shard` as `(index, count)`.

    Raises:
        ValueError: If it is not as described, or if there are fewer images than parts.
    """
    if shard is None:
        return 0, 1
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise ValueError(f"`shard` must be (index, count). Received: shard={shard!r}")
    index, count = (check_integer(f"shard[{i}]", shard[i], i) for i in (0, 1))
    if not index < count <= images:
        raise ValueError(
            "`shard` must be (index, count), with an index below the count and a count "
            f"of at most the number of images. Received: shard={shard!r}, {images} "
            "images"
        )
    return index, count


def find_files(source):
    """Return the lists of image files and mask files of a folder or a pair of lists.

    Raises:
        TypeError: If one of a pair is not a list of paths.
        ValueError: If `source` is neither, or if the lists differ in length.
    """
    if isinstance(source, (str, os.PathLike)):
        return find_pairs(source)
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise ValueError(
            "`source` must be a path or a pair (image_paths, mask_paths). Received: "
            f"source={source!r}"
        )
    for kind, paths in zip(("image", "mask"), source, strict=True):
        if isinstance(paths, (str, os.PathLike)) or not np.iterable(paths):
            raise TypeError(
                f"The {kind}s of a pair must be a list of files. To open folders, call "
                "keras_segadapter.data.open_folder with `images` and `masks`. Received:"
                f" {kind}_paths={paths!r}"
            )
    images, masks = (
        [path if hasattr(path, "read") else as_path(kind, path) for path in paths]
        for kind, paths in zip(("image_path", "mask_path"), source, strict=True)
    )
    if not images or len(images) != len(masks):
        raise ValueError(
            "A pair of lists must name at least one image, and one mask per image. "
            f"Received: {len(images)} images and {len(masks)} masks"
        )
    return images, masks
