"""Images and masks from the polygons and run lengths in a COCO annotation file."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from keras_segadapter.data.disk import as_path, read_text
from keras_segadapter.data.folders import FolderDataset
from keras_segadapter.data.labels import Labels
from keras_segadapter.extras import import_extra
from keras_segadapter.validation import ignored_ids


def open_coco(annotations, images=None, **options):
    """Open the images and the outlined objects of a COCO annotation file.

    The classes are the background, 0, and the categories in the order of their ids.
    Where objects overlap, the smaller one is in front. Regions that are marked as
    crowds are ignored. Objects that have a box but no outline are left out, which is
    printed.

    Install `keras-segadapter[coco]`: pycocotools draws the objects.

    Args:
        annotations: Path of the JSON file.
        images: Path of the folder that the file names of the images belong to, or None.
            Defaults to `None`: that of the JSON file, the one above it, or `images` or
            the split's folder (the last part of the JSON file's name, such as
            `val2017`) in these.
        **options: As in `FolderDataset`, without `num_classes`.

    Returns:
        A `FolderDataset`.

    Raises:
        ImportError: If pycocotools is not installed.
        TypeError: As in `FolderDataset`.
        ValueError: As in `FolderDataset`; also if the file does not hold images,
            categories and outlined objects, or if an image is missing.

    Example:

    ```python
    import json
    from pathlib import Path
    from PIL import Image
    from keras_segadapter.data import open_coco

    Path("coco").mkdir(exist_ok=True)
    Image.new("RGB", (8, 6)).save("coco/a.jpg")
    square = [2, 1, 6, 1, 6, 5, 2, 5]  # x, y of the corners
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 7, "segmentation": [square]}],
    }
    Path("coco/all.json").write_text(json.dumps(content))
    data = open_coco("coco/all.json", batch_size=1)
    print(data.class_names, data[0][1].sum())  # ('background', 'cat') 16
    ```
    """
    import_extra("pycocotools.mask", "open_coco")  # It raises before work is lost.
    path = as_path("annotations", annotations)
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(
            f"The COCO annotation file cannot be read: {error}. Received: {path}"
        ) from error
    try:
        content = json.loads(text)
        categories = sorted((row["id"], row["name"]) for row in content["categories"])
        sizes = [
            (row["id"], row["file_name"], (row["height"], row["width"]))
            for row in content["images"]
        ]
        rows = [
            (row["image_id"], row["category_id"], row) for row in content["annotations"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            "A COCO annotation file must be JSON with `images` (id, file_name, height, "
            "width), `categories` (id, name) and `annotations` (image_id, category_id, "
            f"segmentation). Received: {path} ({error!r})"
        ) from error
    # Some files have a category for the background.
    is_object = {id_: name.lower() != "background" for id_, name in categories}
    names = ["background", *(name for id_, name in categories if is_object[id_])]
    ids = [id_ for id_, _ in categories if is_object[id_]]
    classes = dict.fromkeys(is_object, 0) | {id_: i + 1 for i, id_ in enumerate(ids)}
    void = ignored_ids(options.get("ignore_class", "auto"), len(names))
    known_images = {id_ for id_, _, _ in sizes}
    objects, left_out = defaultdict(list), 0
    for image, category, row in rows:
        outline = row.get("segmentation")
        if isinstance(outline, list):
            # pycocotools takes four numbers for a box.
            outline = [polygon for polygon in outline if len(polygon) >= 6]
        if not outline:
            left_out += 1
            continue
        for name, id_, known in (
            ("category_id", category, classes),
            ("image_id", image, known_images),
        ):
            if id_ not in known:
                raise ValueError(
                    "Each annotation must belong to one of the images and categories. "
                    f"Correct the file. Received: {path} with {name}={id_!r}"
                )
        if row.get("iscrowd") and not void:
            raise ValueError(
                "Crowds need an ignored id, and there is none. Pass `ignore_class`, "
                "such as 65535, here and to `compile`. Received: ignore_class="
                f"{options.get('ignore_class', 'auto')!r}, {len(names)} classes"
            )
        class_ = void[0] if row.get("iscrowd") else classes[category]
        objects[image].append((class_, outline))
    if not objects:
        raise ValueError(
            "The objects must have outlines, polygons or run lengths, and not only "
            f"boxes. Received: {path} with {left_out} objects without"
        )
    if left_out:
        print(
            f"{path}: {left_out} of {len(rows)} objects have no outline and are left "
            "out."
        )
    paths = _find_images([name for _, name, _ in sizes], path, images)
    masks = [
        CocoMask(f"{name} in {path}", size, objects[id_]) for id_, name, size in sizes
    ]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    source = [paths[i] for i in order], [masks[i] for i in order]
    return FolderDataset(source, labels=Labels(names), **options)


class CocoMask:
    """The mask of one image, which is drawn when it is read.

    Args:
        name: String. What errors call the mask.
        size: Tuple of integers, `(height, width)`.
        objects: List of tuples of a class and an outline: a list of polygons, or a dict
            of run lengths.
    """

    def __init__(self, name, size, objects):
        self.name, self.size, self.objects = name, size, objects

    def __str__(self):
        return self.name

    __fspath__ = __str__  # so that it can stand among the paths of files

    def read(self):
        """Return the class ids, int32 `(H, W)`."""
        from pycocotools import mask as coco

        height, width = self.size
        drawn = []
        for class_, outline in self.objects:
            try:
                if isinstance(outline, list):
                    outline = coco.merge(coco.frPyObjects(outline, height, width))
                elif isinstance(outline["counts"], list):
                    outline = coco.frPyObjects(outline, height, width)
                area = int(coco.area(outline))
            except Exception as error:  # pycocotools raises errors of all kinds
                raise ValueError(
                    f"An outline cannot be drawn: {error!r}. Correct or remove it. "
                    f"Received: {self.name}"
                ) from error
            if tuple(outline["size"]) != (height, width):
                raise ValueError(
                    "An outline must have the size of its image. Correct the file. "
                    f"Received: {self.name} of size {(height, width)} with an outline "
                    f"of size {tuple(outline['size'])}"
                )
            drawn.append((area, class_, outline))
        mask = np.zeros((height, width), "int32")
        for _, class_, outline in sorted(drawn, key=lambda row: -row[0]):
            mask[coco.decode(outline) == 1] = class_
        return mask


def _find_images(names, path, folder):
    """Return the paths of images by their file names.

    Raises:
        ValueError: If one does not exist.
    """
    if folder is not None:
        places = [Path(folder)]
    else:
        split = path.stem.split("_")[-1]
        above = [path.parent, path.parent.parent]
        places = [place / sub for place in above for sub in ("", "images", split)]
    found = [
        next(filter(Path.is_file, (p / name for p in places)), None) for name in names
    ]
    if None in found:
        raise ValueError(
            "The images that the annotation file names must exist. Pass `images`, the "
            "path of their folder (--images on the command line). Received: "
            f"{path} with {names[found.index(None)]!r}, which is not in "
            f"{', '.join(map(str, places))} ({found.count(None)} of {len(names)} "
            "images are missing)"
        )
    return found
