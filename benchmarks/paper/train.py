"""The paper's protocol: train one of its models on one of its datasets, and score it.

    pip install -e ".[jax,weights]"
    KERAS_BACKEND=jax python benchmarks/paper/train.py adapt_mit_b0 ade20k FOLDER

`mit_b0` is the baseline of `adapt_mit_b0`, without adapters. README.md beside this file
lists all 42 commands with the paper's figures, says what a FOLDER holds and how long it
may take; protocol.py has the settings. The same command goes on after a kill. It writes
the model and result.json to runs/paper/MODEL_DATASET.
"""

import argparse
import contextlib
import json
import math
from pathlib import Path

import keras
from keras import layers
from protocol import (
    AUX_WEIGHT,
    DATASETS,
    MODELS,
    OPTIMIZER,
    WARMUP,
    parts_of,
    published,
    settings_of,
    shrink,
)

import keras_segadapter as ksa

PARTS = 40  # of a training, as epochs of `fit`, each of which ends with a backup


def build(model, settings):
    """Build a model of the paper, or its baseline."""
    base, family, adapted = parts_of(model)
    size = base.removeprefix(f"{family}_").capitalize()
    name = {"mit": "MiT", "convnext": "ConvNeXt"}[family] + size
    classes, width = settings["labels"].num_classes, settings["head_channels"]
    options = {key: settings[key] for key in ("weights", "drop_path")}
    if adapted or family == "mit":
        make = getattr(ksa, f"Adapt{name}")
        return make(classes, adapters=adapted, head_channels=width, **options)
    backbone = getattr(ksa, name)(**options)
    return ksa.build_segmenter(
        backbone,
        classes,
        adapters=False,
        head=ksa.MLPHead(classes, width, activation="relu", name="head"),
        aux=fcn_head(classes, ksa.find_stages(backbone)),
        name=f"{base}_mlp",
    )


def fcn_head(classes, stages):
    """Build the auxiliary head of the ConvNeXt baselines, MMSegmentation's FCN head."""
    maps = [keras.Input((None, None, stage.channels)) for stage in stages]
    x = layers.Conv2D(256, 3, padding="same", use_bias=False)(maps[2])
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    x = layers.SpatialDropout2D(0.1)(layers.ReLU()(x))  # (B, H/16, W/16, 256)
    return keras.Model(maps, layers.Conv2D(classes, 1)(x), name="fcn")


class Steps(keras.utils.PyDataset):
    """The full batches of a dataset, pass after pass, in epochs of `length` for `fit`.

    So steps are the paper's, and each batch can be divided among GPUs.
    """

    def __init__(self, data, length):
        super().__init__()
        self.data, self.length, self.epoch = data, length, 0
        self.batches = len(data.image_paths) // data.batch_size
        if not self.batches:
            raise SystemExit(
                f"A batch is {data.batch_size} images, and there must be one at least. "
                f"Received: {len(data.image_paths)} images to train on"
            )

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        step = self.epoch * self.length + index
        self.data.epoch, batch = divmod(step, self.batches)
        return self.data[batch]


def training_data(dataset, folder, settings, seed=0, processes=0):
    """Open the crops of the dataset's training split."""
    crop = settings["crop"]
    return ksa.data.open_folder(
        folder,
        "train",
        layout=dataset,
        batch_size=settings["batch"],
        augmentation=ksa.data.Augmentation((crop, crop), settings["base"]),
        shuffle=True,
        seed=seed,
        processes=processes,
    )


def optimizer_of(model, settings):
    """Return the optimizer of a model."""
    steps = settings["steps"]
    options = {key: settings[key] for key in OPTIMIZER}
    warmup = min(WARMUP, steps // 10)
    return ksa.paper_optimizer(model, steps, warmup_steps=warmup, **options)


def train(model, dataset, folder, settings, out, seed=0, processes=0):
    """Train a model, or go on with its training, and write it to a folder."""
    data = training_data(dataset, folder, settings, seed, processes)
    epochs = math.gcd(settings["steps"], PARTS)
    steps = Steps(data, settings["steps"] // epochs)
    with all_gpus(), contextlib.closing(data):
        keras.utils.set_random_seed(seed)
        model = build(model, settings)
        model.name_classes(data.class_names, data.colors)
        optimizer = optimizer_of(model, settings)
        model.compile(optimizer, metrics=None, aux_weight=AUX_WEIGHT)
        model.fit(steps, epochs=epochs, backup=out / "backup", verbose=2)
        model.save(out / "model.keras")


def all_gpus():
    """Return a context that trains on all devices, where there are several."""
    backend = keras.backend.backend()
    if backend == "jax" and len(keras.distribution.list_devices()) > 1:
        return keras.distribution.DataParallel().scope()
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices()
        if len(devices) > 1:
            names = [device.name for device in devices]
            return tf.distribute.MirroredStrategy(names).scope()
    if backend == "torch":
        import torch

        if torch.cuda.device_count() > 1:
            print("On PyTorch one GPU is used; JAX and TensorFlow train on all.")
    return contextlib.nullcontext()


def score(dataset, folder, settings, out):
    """Score the model in a folder on all of `val`."""
    model = keras.models.load_model(out / "model.keras")
    return ksa.evaluate_images(
        model,
        ksa.data.open_folder(folder, "val", layout=dataset, batch_size=1),
        short_side=settings["short_side"],
        crop=settings["window"],
        stride=settings["stride"],
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    add("dataset", choices=DATASETS, metavar="DATASET", help=", ".join(DATASETS))
    add("folder", type=Path, metavar="FOLDER")
    add("--out", type=Path, help="default: runs/paper/MODEL_DATASET")
    add("--weights", help="of the backbone: a file, a name on the Hub, or none")
    add("--precision", default="mixed_bfloat16", help="or float32")
    add("--processes", type=int, default=0, help="that read files instead of threads")
    add("--seed", type=int, default=0)
    add("--steps", type=int, help="fewer, to try a command")
    add("--crop", type=int, help="smaller, to try a command; other sizes follow")
    args = parser.parse_args()
    settings = settings_of(args.model, args.dataset)
    if args.weights:
        settings["weights"] = None if args.weights == "none" else args.weights
    settings["steps"] = args.steps or settings["steps"]
    settings = shrink(settings, args.crop or settings["crop"])
    out = args.out or Path("runs/paper") / f"{args.model}_{args.dataset}"
    record = {key: value for key, value in vars(args).items() if key != "out"}
    record |= {key: value for key, value in settings.items() if key != "labels"}
    record |= {"folder": str(args.folder), "backend": keras.backend.backend()}
    record |= {"keras": keras.__version__, "keras_segadapter": ksa.__version__}
    print(*(f"{key}: {value}" for key, value in record.items()), sep="\n", flush=True)

    keras.config.set_dtype_policy(args.precision)
    data = args.dataset, args.folder, settings, out
    train(args.model, *data, args.seed, args.processes)
    found = score(*data)
    paper = published(args.model, args.dataset)
    iou = [None if math.isnan(share) else share for share in found.iou.tolist()]
    record |= {"miou": found.miou, "miou_in_the_paper": paper / 100}
    record |= {"images": found.images}
    record |= {"iou": dict(zip(found.class_names, iou, strict=True))}
    (out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    print(found)
    print(f"mIoU {100 * found.miou:.2f} %; in the paper {paper} %. Wrote to {out}.")


if __name__ == "__main__":
    main()
