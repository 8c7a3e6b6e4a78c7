"""The settings of every row of the paper's tables of results.

They are those of the authors' settings files, which differ from the paper's text in
places, and of the text where the files are silent. The settings of a row are those of
its dataset, of its family and of itself; what comes later counts.
"""

import keras

from keras_segadapter.data import ADE20K, CITYSCAPES, COCO_STUFF

# Sizes are in pixels. `base` is the box (height, width) that an image is fitted into
# before the random resize by 0.5 to 2. Test images are resized to a `short_side`, or
# keep their size, and are scored in windows of `window`, or as a whole.
DATASETS = {
    "ade20k": {
        "labels": ADE20K,
        "steps": 160_000,
        "batch": 16,
        "crop": 512,
        "base": (512, 2048),
        "short_side": 512,
        "window": None,
        "stride": None,
    },
    "cityscapes": {
        "labels": CITYSCAPES,
        "steps": 160_000,
        "batch": 8,
        "crop": 768,
        "base": (1024, 2048),
        "short_side": None,
        "window": 1024,
        "stride": 768,
    },
    "coco_stuff": {
        "labels": COCO_STUFF,
        "steps": 80_000,
        "batch": 16,
        "crop": 512,
        "base": (512, 2048),
        "short_side": 512,
        "window": None,
        "stride": None,
    },
}
FAMILIES = {
    "mit": {
        "weights": "imagenet",
        "drop_path": 0.1,
        "head_channels": 256,
        "learning_rate": 6e-5,
        "weight_decay": 0.01,
        "adapter_multiplier": 7.0,
        "head_multiplier": 10.0,
        "layer_decay": None,
    },
    "convnext": {
        "weights": "imagenet",
        "drop_path": 0.1,
        "head_channels": 256,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "adapter_multiplier": 1.0,
        "head_multiplier": 1.0,
        "layer_decay": 0.9,
    },
}
OPTIMIZER = (
    *("learning_rate", "weight_decay", "adapter_multiplier", "head_multiplier"),
    "layer_decay",
)
OWN = {
    ("mit_b0", "ade20k"): {"steps": 180_000},
    ("convnext_tiny", "ade20k"): {"steps": 180_000, "drop_path": 0.4},
    ("convnext_small", "ade20k"): {
        "steps": 180_000,
        "head_channels": 384,
        "window": 512,
        "stride": 341,
    },
    ("convnext_base", "ade20k"): {
        "steps": 180_000,
        "drop_path": 0.2,
        "head_channels": 512,
        "window": 512,
        "stride": 341,
    },
}
# The paper's saw ImageNet-1k only. Those of "imagenet" saw ImageNet-22k first.
WEIGHTS = {"convnext_base": "facebook/convnext-base-224@main"}
WARMUP = 1500
AUX_WEIGHT = 0.4

# mIoU in percent on ADE20K, Cityscapes and COCO-Stuff, without and with adapters.
PUBLISHED = {
    "mit_b0": ((37.4, 40.3), (76.2, 77.8), (35.6, 36.6)),
    "mit_b1": ((42.2, 44.0), (78.1, 79.6), (40.2, 41.1)),
    "mit_b2": ((45.9, 48.0), (81.0, 81.5), (44.6, 45.5)),
    "mit_b3": ((48.6, 49.4), (81.4, 81.9), (45.0, 46.2)),
    "convnext_tiny": ((41.6, 45.1), (77.2, 79.9), (39.7, 42.0)),
    "convnext_small": ((45.6, 47.0), (79.9, 80.6), (41.6, 43.1)),
    "convnext_base": ((46.1, 48.0), (80.8, 81.6), (42.4, 44.6)),
}
MODELS = [name for base in PUBLISHED for name in (base, f"adapt_{base}")]


def parts_of(model):
    """Return a model's backbone, its family, and whether the model has adapters."""
    base = model.removeprefix("adapt_")
    return base, base.split("_")[0], base != model


def settings_of(model, dataset):
    """Return the settings of a row; a model and its baseline have the same."""
    base, family, _ = parts_of(model)
    settings = {**DATASETS[dataset], **FAMILIES[family], **OWN.get((base, dataset), {})}
    settings["weights"] = WEIGHTS.get(base, settings["weights"])
    return settings


def published(model, dataset):
    """Return the paper's mIoU in percent."""
    base, _, adapted = parts_of(model)
    return PUBLISHED[base][[*DATASETS].index(dataset)][adapted]


def shrink(settings, crop):
    """Return settings with all sizes in proportion to another crop."""
    sizes = {key: settings[key] for key in ("base", "short_side", "window", "stride")}

    def resized(side):
        return side and round(side * crop / settings["crop"])

    return {**settings, **keras.tree.map_structure(resized, sizes), "crop": crop}
