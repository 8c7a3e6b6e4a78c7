"""Check of a whole folder of images and masks before training."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.label_table import BLACK_AND_WHITE


def check_folder(folder, num_classes=None, ignore_class=255):
    """Read every image and mask of a folder, and stop at the first that is faulty.

    Call it once before training, which would otherwise stop at a faulty file much later
    or, worse, learn from a wrong mask. Files are read at their own size.

    Args:
        folder: Path of a folder with `images/` and `masks/`, or a `FolderDataset`,
            whose classes and ignored ids then apply.
        num_classes: Integer of at least 2. Number of classes; leave it out for a
            `FolderDataset`.
        ignore_class: Integer, list of integers, or None. Ids that masks may hold
            besides the classes. Defaults to `255`.

    Returns:
        Dict of `images` (number of images), `pixels` (number of pixels per class,
        int64 `(num_classes,)`), `ignored` (number of ignored pixels) and `sizes`
        (sorted list of the sizes `(height, width)`).

    Raises:
        TypeError: If `ignore_class` is neither None, an integer nor a list of integers.
        ValueError: If the folder is not as described, if a file cannot be read, if an
            image and its mask differ in size, if a mask holds an id that is neither a
            class nor ignored, or if all masks hold nothing but 0 and an ignored 255.

    Example:

    ```python
    from pathlib import Path
    from PIL import Image
    from keras_segadapter.data import check_folder, make_scenes

    Path("scenes/images").mkdir(parents=True, exist_ok=True)
    Path("scenes/masks").mkdir(parents=True, exist_ok=True)
    for i, (image, mask) in enumerate(zip(*make_scenes(5))):
        Image.fromarray(image).save(f"scenes/images/{i}.png")
        Image.fromarray(mask).save(f"scenes/masks/{i}.png")

    report = check_folder("scenes", num_classes=8)
    print(report["images"], report["sizes"])  # 5 [(96, 96)]
    ```
    """
    data = folder
    if not isinstance(data, FolderDataset):
        data = FolderDataset(folder, num_classes, ignore_class=ignore_class)
    elif num_classes is not None:
        raise ValueError(
            "A FolderDataset already has its number of classes. Leave out "
            f"`num_classes`. Received: num_classes={num_classes} for a dataset of "
            f"{data.num_classes} classes"
        )

    def count(i):
        _, mask = data._read_whole(i)
        return mask.shape, *np.unique(mask, return_counts=True)

    sizes, pixels = set(), Counter()
    with ThreadPoolExecutor(data.threads) as pool:
        for size, ids, counts in pool.map(count, range(len(data.image_paths))):
            sizes.add(size)
            pixels.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    ignored, mapped = data._table.ignored, data._table.label_map is not None
    if set(pixels) == {0, 255} and 255 in ignored and not mapped:
        raise ValueError(
            "The masks hold nothing but class 0 and the ignored id 255. "
            f"{BLACK_AND_WHITE} Received: masks in {data.mask_paths[0].parent}"
        )
    ignored_pixels = sum(pixels.pop(i, 0) for i in ignored)
    return {
        "images": len(data.image_paths),
        "pixels": np.array([pixels[i] for i in range(data.num_classes)], "int64"),
        "ignored": ignored_pixels,
        "sizes": sorted(sizes),
    }
