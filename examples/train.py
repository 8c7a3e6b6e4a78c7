"""Train a segmenter: on built-in scenes, on photographs, or on a public dataset.

    python examples/train.py
    python examples/train.py --data FOLDER --classes 11 --backbone MobileNetV3Small
    python examples/train.py --data CITYSCAPES_FOLDER --size 512 1024
    python examples/train.py --tfds oxford_iiit_pet --size 128 128

FOLDER holds images/ and masks/ of the same file names (masks: grey or palette PNGs of
class ids, 255 is void), or train/ and val/ with these inside; or ADE20K, Cityscapes,
Pascal VOC or COCO-Stuff as they were unpacked, whose classes are known. Writes the
model and a picture of image, truth, prediction and coarse map to the folder --out.
"""

import argparse
import importlib
from pathlib import Path

import keras
import numpy as np

import keras_segadapter as ksa


def main():
    args = parse_arguments()
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {device()}")
    keras.utils.set_random_seed(args.seed)
    train, val, num_classes = load_data(args)
    backbone = build_backbone(args.backbone, args.weights)
    model = ksa.build_segmenter(backbone, num_classes, adapters=args.adapters)
    for stage in model.stages:
        print(f"stage: {stage.name}, stride {stage.stride}, {stage.channels} channels")

    arrays = isinstance(train, tuple)
    batches = -(-len(train[0]) // args.batch) if arrays else len(train)
    steps = args.epochs * batches
    warmup = min(steps // 10, 1500)
    schedule = keras.optimizers.schedules.CosineDecay(
        args.lr / 100, steps - warmup, warmup_target=args.lr, warmup_steps=warmup
    )
    jit = {"on": True, "off": False, "auto": "auto"}[args.jit]
    model.compile(ksa.AdamW(schedule), jit_compile=jit)
    options = dict(validation_data=val, epochs=args.epochs)
    if arrays:
        history = model.fit(*train, batch_size=args.batch, **options)
    else:
        history = model.fit(train, **options)
    print(f"validation mIoU: {history.history['val_mIoU'][-1]:.3f}")

    args.out.mkdir(parents=True, exist_ok=True)
    model.save(args.out / "model.keras")
    images, masks = val if arrays else next(iter(val))[:2]
    colors = getattr(train, "colors", None)
    images, masks = np.asarray(images[:4]), np.asarray(masks[:4])
    picture(model, images, masks, colors, args.out / "prediction.png")
    print(f"saved {args.out / 'model.keras'} and {args.out / 'prediction.png'}")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of photographs; built-in scenes without it")
    add("--layout", help="of --data, where the folders do not show it")
    add("--tfds", help="a dataset of tensorflow-datasets, in place of --data")
    add("--splits", nargs=2, default=("train", "test"), help="of --tfds")
    add("--classes", type=int, help="number of classes in masks of ids 0, 1, ...")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="resize photographs")
    add(
        "--backbone",
        default="small",
        help="small, MiTB0 to MiTB5, a model of keras.applications (MobileNetV3Small), "
        "keras_hub:PRESET or keras_cv:PRESET (resnet50_imagenet, or a folder)",
    )
    add("--weights", default="imagenet", help="imagenet, none, or a file of weights")
    add("--no-adapters", dest="adapters", action="store_false")
    add("--epochs", type=int, default=16)
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=2e-3, help="highest learning rate")
    add("--jit", choices=("on", "off", "auto"), default="auto", help="XLA")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/train"))
    args = parser.parse_args()
    if args.tfds and not args.size:
        parser.error("--tfds needs --size, since its images have many sizes")
    return args


def device():
    """Where the backend puts a new tensor: its default device."""
    return f"device {keras.ops.zeros(1).device}"


def load_data(args):
    """Training and validation data, and the number of classes."""
    if args.tfds:
        options = dict(image_size=args.size, num_classes=args.classes)
        options.update(batch_size=args.batch, seed=args.seed)
        train, val = (
            ksa.data.open_tfds(args.tfds, split, shuffle=shuffle, **options)
            for split, shuffle in zip(args.splits, (True, False), strict=True)
        )
        return train, val, train.num_classes
    if args.data:
        train, val = open_folders(args)
        return train, val, train.num_classes
    images, masks = ksa.data.make_scenes(480, size=(96, 96), seed=args.seed)
    num_classes = len(ksa.data.SCENE_CLASSES)
    return (images[:400], masks[:400]), (images[400:], masks[400:]), num_classes


def open_folders(args):
    """The two parts of --data, every mask checked before training."""
    options = dict(num_classes=args.classes, batch_size=args.batch)
    options.update(image_size=args.size, seed=args.seed)
    undivided = args.layout == "plain" or (args.data / "masks").is_dir()
    if undivided:
        # By file name, since neighbours are often frames of one film.
        whole = ksa.data.open_folder(args.data, None, layout="plain", **options)
        report(args.data, whole)
        files = whole.image_paths, whole.mask_paths
        cut = max(1, len(files[0]) // 5)
        parts = [paths[:-cut] for paths in files], [paths[-cut:] for paths in files]
        train = ksa.data.FolderDataset(parts[0], shuffle=True, **options)
        return train, ksa.data.FolderDataset(parts[1], **options)
    train, val = (
        ksa.data.open_folder(
            args.data, split, layout=args.layout, shuffle=split == "train", **options
        )
        for split in ("train", "val")
    )
    report(f"{args.data}, train", train)
    report(f"{args.data}, val", val)
    return train, val


def report(name, data):
    found = ksa.data.check_folder(data)
    print(f"{name}: {found['images']} images of {found['sizes']}")


def build_backbone(name, weights):
    """A functional backbone by name; any other of yours serves as well."""
    weights = None if weights == "none" else weights
    library, _, model = name.rpartition(":")
    if name == "small":
        return small_backbone()
    if library in ("keras_hub", "keras_cv"):
        models = importlib.import_module(library).models
        known = [
            kind
            for kind in vars(models).values()
            if isinstance(kind, type)
            and issubclass(kind, models.Backbone)
            and model in kind.presets
        ]
        kind = known[0] if known else models.Backbone
        return kind.from_preset(model, load_weights=weights is not None)
    build = getattr(keras.applications, name, None)
    options = {"include_top": False, "input_shape": (None, None, 3)}
    if name.startswith("MiTB"):
        build, options = getattr(ksa, name, None), {}
    if not callable(build):
        raise SystemExit(
            f"--backbone {name}: keras.applications has no such model. Write its name "
            "as in the Keras documentation, or MiTB0 to MiTB5, or keras_hub:PRESET, or "
            "keras_cv:PRESET."
        )
    try:
        return build(weights=weights, **options)
    except Exception as error:
        if weights is None:
            raise
        raise SystemExit(
            f"The weights {weights} of {name} could not be loaded: {error}\n"
            "Without a network, pass --weights none to train from scratch."
        ) from error


def small_backbone(channels=(32, 64, 96, 128)):
    """A residual net of 0.75 M parameters, strides 4 to 32, to train from scratch."""
    layers = keras.layers

    def convolution(x, width, stride):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((None, None, 3))
    x = layers.ReLU()(convolution(inputs, channels[0], 2))
    for width in channels:
        x = shortcut = layers.ReLU()(convolution(x, width, 2))
        x = layers.ReLU()(convolution(x, width, 1))
        x = layers.ReLU()(convolution(x, width, 1) + shortcut)
    return keras.Model(inputs, x, name="small")


def picture(model, images, masks, colors, path):
    """Image, truth, prediction and the adapters' coarse map, one row an image."""
    columns = {"image": images, "truth": masks, "prediction": model.segment(images)}
    if "aux" in model.output:
        coarse = keras.Model(model.input, model.output["aux"])
        columns["coarse map"] = np.argmax(coarse.predict(images, verbose=0), -1)
    rows = [
        [image, *(ksa.pictures.colorize(labels, 255, colors) for labels in maps)]
        for image, *maps in zip(*columns.values(), strict=True)
    ]
    ksa.pictures.panels(rows, list(columns), path)


if __name__ == "__main__":
    main()
