"""Classes of well-known datasets: names, colors, and what the ids in masks mean.

The facts are those of the datasets' own tools: ADE20K's objectInfo150.txt,
cityscapesScripts' labels.py, the VOC development kit, COCO-Stuff's labels.txt.
ADE20K's colors are those of MMSegmentation.
"""

import dataclasses

import numpy as np

from keras_segadapter.data.label_files import read_rows
from keras_segadapter.validation import check_integer, check_num_classes
from keras_segadapter.visualization import palette

VOID = 255


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The classes of a dataset and how the pixels of its masks map to them.

    Those of known datasets are ready-made: `ADE20K`, `CITYSCAPES`, `COCO_STUFF`,
    `OXFORD_PETS` and `PASCAL_VOC`. `BINARY` is for black-and-white masks of 0 and 255.

    Args:
        class_names: List of at least 2 strings. Names of the classes 0, 1, 2, ...
        label_map: Dict from every id that a mask may hold to its class, or to an
            ignored id such as 255. Its keys are RGB tuples if masks are color-coded.
            Several keys may lead to one class. Defaults to `None`: masks already hold
            classes, and pictures in RGB may hold the `colors`.
        colors: RGB colors for pictures, uint8 `(num_classes, 3)`, or None. Defaults to
            `None`: those in `label_map`, else those of `visualization.palette`, or none
            with more than 256 classes.

    Attributes:
        num_classes: Number of classes.

    Raises:
        TypeError: If `class_names` is not a list, or `label_map` is not a dict.
        ValueError: If there are fewer than 2 names, if a key of `label_map` is neither
            an integer of at least 0 nor an RGB tuple, or if there is not one color per
            class.

    Example:

    ```python
    from keras_segadapter.data import CITYSCAPES, Labels

    print(CITYSCAPES.class_names[:2], CITYSCAPES.colors[0])
    # ('road', 'sidewalk') [128  64 128]
    road = Labels(["other", "road"], label_map={0: 255, 1: 0, 2: 1, 3: 1})
    print(road.num_classes)  # 2
    coded = Labels(["other", "road"], label_map={(0, 0, 0): 0, (128, 64, 128): 1})
    print(coded.colors[1])  # [128  64 128]
    ```
    """

    class_names: tuple
    label_map: dict | None = None
    colors: np.ndarray | None = None

    def __post_init__(self):
        names, label_map, colors = self.class_names, self.label_map, self.colors
        if not isinstance(names, (list, tuple)):
            raise TypeError(
                "`class_names` must be a list with one name per class. Received: "
                f"class_names={names!r}"
            )
        check_num_classes(len(names))
        if label_map is not None:
            if not isinstance(label_map, dict):
                raise TypeError(
                    "`label_map` must be a dict from ids or colors to classes, or None."
                    f" Received: label_map={label_map!r}"
                )
            label_map = {_checked_key(key): id_ for key, id_ in label_map.items()}
        # The colors of masks that hold ids, if the user gave them and not the palette.
        mask_colors = colors if label_map is None else None
        if colors is None and len(names) <= 256:
            colors = palette(len(names))
            for key, class_ in reversed((label_map or {}).items()):
                if isinstance(key, tuple) and class_ in range(len(names)):
                    colors[class_] = key
        if colors is not None:
            colors = np.asarray(colors, "uint8")
            if colors.shape != (len(names), 3):
                raise ValueError(
                    f"`colors` must hold one RGB color for each of the {len(names)} "
                    f"classes. Received: colors of shape {colors.shape}"
                )
        object.__setattr__(self, "class_names", tuple(names))
        object.__setattr__(self, "label_map", label_map)
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "_has_mask_colors", mask_colors is not None)

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def keys(self):
        """Dict from all ids and RGB tuples with a meaning in masks to classes.

        Without a label map, these are the colors that were passed, and no ids.
        """
        if not self._has_mask_colors:
            return self.label_map or {}
        colors = [tuple(color) for color in self.colors.tolist()]
        once = (color for color in colors if colors.count(color) == 1)
        return {color: colors.index(color) for color in once}

    @classmethod
    def from_file(cls, path):
        """Read the classes of a dataset from a file.

        A CSV file has a header, with a column `name` and, for color-coded masks, `r`,
        `g` and `b`, or, if masks hold ids other than the numbers of the rows, `id`. A
        JSON file has a list of objects with such a `name`, `color` and `id`, or a dict
        from names to colors or ids, or from ids to names. A text file has a name per
        line, and perhaps an RGB color. The order of the names is that of the classes.
        Rows of one name make one class; those named `void`, `unlabeled`, `unlabelled`,
        `ignore` or `ignored` are ignored.

        Args:
            path: Path of a `.csv`, `.json` or `.txt` file.

        Returns:
            `Labels`.

        Raises:
            ValueError: If the file is not as described.
        """
        rows = read_rows(path)
        names = list(dict.fromkeys(name for name, *_ in rows if not _is_void(name)))
        # 255 may be a class where there are many.
        void = VOID if len(names) <= VOID else 2**16 - 1
        label_map = {}
        numbered = all(color is None and id_ is None for _, color, id_ in rows)
        for number, (name, color, id_) in enumerate(rows):
            class_ = void if _is_void(name) else names.index(name)
            for key in (color, number if numbered else id_):
                if key is not None and label_map.setdefault(key, class_) != class_:
                    raise ValueError(
                        "A color or an id can belong to one class only. Correct the "
                        f"file. Received: {path} with {key} twice"
                    )
        in_order = label_map == dict(enumerate(range(len(names))))
        return cls(names, None if in_order else label_map)


def _checked_key(key):
    """Return a key of a label map as an integer, or as a tuple of three."""
    if isinstance(key, (tuple, list)) and len(key) == 3:
        key = tuple(check_integer("color in label_map", value, 0) for value in key)
        if max(key) < 256:
            return key
    elif check_integer("id in label_map", key, 0) < 2**24:
        return int(key)
    raise ValueError(
        "A key of `label_map` must be an id below 16777216, or an RGB tuple of three "
        f"integers in 0..255. Received: {key}"
    )


def _is_void(name):
    """Return whether a name says that its pixels belong to no class."""
    return name.lower() in ("void", "unlabeled", "unlabelled", "ignore", "ignored")


def _names(text):
    """Split names that are separated by commas, over several lines."""
    return tuple(" ".join(text.split()).split(", "))


def _colors(text):
    """Return the colors, uint8 `(K, 3)`, of hexadecimal RGB triples."""
    return np.frombuffer(bytes.fromhex(text), "uint8").reshape(-1, 3)


def _classes_at(ids):
    """Return a dict from the ids, in their order, to the classes 0, 1, 2, ..."""
    return {id_: class_ for class_, id_ in enumerate(ids)}


def _voc_colors(count):
    """Return the colors of Pascal VOC: the bits of an id, dealt out to R, G and B.

    The lowest three bits become the highest bit of the three channels.
    """
    ids, channels = np.arange(count)[:, None], np.arange(3)
    bits = [(ids >> (channels + 3 * turn)) & 1 for turn in range(8)]  # each (K, 3)
    return sum(bit << (7 - turn) for turn, bit in enumerate(bits))


ADE20K = Labels(
    # The first of the names that objectInfo150.txt gives each class.
    _names(
        """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass,
        cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain, chair,
        car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
        seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box,
        column, signboard, chest of drawers, counter, sand, sink, skyscraper,
        fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
        pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
        toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island,
        computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
        truck, tower, chandelier, awning, streetlight, booth, television, airplane,
        dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet,
        poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
        swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle,
        oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
        lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
        traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor,
        bulletin board, shower, radiator, glass, clock, flag"""
    ),
    # 0 stands for everything else.
    {0: VOID} | _classes_at(range(1, 151)),
    # The road and the skyscraper have the same color.
    _colors(
        """787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07
        e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603
        0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
        08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207
        ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f
        14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
        0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
        008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
        ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
        00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000
        8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff
        00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
        ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
        00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
        4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"""
    ),
)

CITYSCAPES = Labels(
    _names(
        """road, sidewalk, building, wall, fence, pole, traffic light, traffic sign,
        vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle,
        bicycle"""
    ),
    # Of these 34 ids, the benchmark counts 19.
    dict.fromkeys(range(34), VOID)
    | _classes_at([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]),
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ],
)

# COCO planned these classes but never annotated them: street sign, hat, shoe, eye
# glasses, plate, mirror, window, desk, door, blender, hair brush.
_COCO_UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}

COCO_STUFF = Labels(
    _names(
        """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat,
        traffic light, fire hydrant, stop sign, parking meter, bench, bird, cat, dog,
        horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
        tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
        baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
        fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
        hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table,
        toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
        toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
        hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush,
        cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes,
        clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
        floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
        food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house,
        leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net,
        paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing,
        railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other,
        skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
        tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete,
        wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
        waterdrops, window-blind, window-other, wood"""
    ),
    # The ids of stuffthingmaps are those of labels.txt less one.
    {VOID: VOID} | _classes_at(i for i in range(182) if i not in _COCO_UNUSED),
)

PASCAL_VOC = Labels(
    _names(
        """background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair,
        cow, diningtable, dog, horse, motorbike, person, pottedplant, sheep, sofa,
        train, tvmonitor"""
    ),
    colors=_voc_colors(21),
)

# In the trimaps, 1 is the pet, 2 the background, and 3 the border between them.
OXFORD_PETS = Labels(("pet", "background"), {1: 0, 2: 1, 3: VOID})

# Black-and-white masks, as picture editors save them.
BINARY = Labels(("background", "object"), {0: 0, 255: 1})
