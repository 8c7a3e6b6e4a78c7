"""Train a segmenter on built-in scenes, on photographs, or on a public dataset.

    python examples/train.py
    python examples/train.py --data FOLDER --classes 11 --backbone MobileNetV3Small
    python examples/train.py --data CITYSCAPES_FOLDER --size 512 1024 --crop 512 512
    python examples/train.py --tfds oxford_iiit_pet --size 128 128

FOLDER holds images/ and masks/ with the same file names, or train/ and val/ with these
inside. Masks are gray or palette PNGs of class ids, in which 255 is void. FOLDER may
also be ADE20K, Cityscapes, Pascal VOC or COCO-Stuff as unpacked; their classes are
known. The model and, after each epoch, pictures of a few predictions are written to the
folder --out. A training that was killed resumes with --resume after the last epoch that
was completed.
"""

import argparse
import importlib
import shutil
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
    images, masks = val if arrays else next(iter(val))[:2]
    pictures = ksa.TrainingPictures(
        np.asarray(images[:4]),
        np.asarray(masks[:4]),
        args.out / "pictures",
        colors=getattr(train, "colors", None),
        tensorboard=args.tensorboard,
    )
    if not args.resume:
        shutil.rmtree(args.out / "backup", ignore_errors=True)
    options = dict(validation_data=val, epochs=args.epochs, callbacks=[pictures])
    options.update(backup=args.out / "backup")
    if arrays:
        history = model.fit(*train, batch_size=args.batch, **options)
    else:
        history = model.fit(train, **options)
    print(f"validation mIoU: {history.history['val_mIoU'][-1]:.3f}")

    model.save(args.out / "model.keras")
    print(f"saved {args.out / 'model.keras'} and {args.out / 'pictures'}")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="the folder to train on (default: built-in scenes)")
    add("--layout", help="the layout of --data, where its folders do not tell")
    add("--tfds", help="the name in tensorflow-datasets of a dataset to train on")
    add(
        "--splits",
        nargs=2,
        default=("train", "test"),
        metavar=("TRAIN", "VAL"),
        help="the splits of --tfds to train and to validate on (default: train test)",
    )
    add("--classes", type=int, help="the number of classes, whose ids are 0, 1, ...")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the height and width to resize photographs to",
    )
    add(
        "--crop",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="train on random crops of this height and width, after the photographs "
        "are fitted into --size, if given, and resized by a random factor of 0.5 to 2; "
        "flips and colors are random as well",
    )
    add(
        "--backbone",
        default="small",
        help="the backbone: small (default), MiTB0 to MiTB5, the name of a model of "
        "keras.applications such as MobileNetV3Small, or keras_hub:PRESET or "
        "keras_cv:PRESET, where PRESET is a name such as resnet50_imagenet or a folder",
    )
    add(
        "--weights",
        default="imagenet",
        help="the backbone's weights: imagenet (default), none, or the path of a file",
    )
    add(
        "--no-adapters",
        dest="adapters",
        action="store_false",
        help="build the same model without adapters",
    )
    add("--epochs", type=int, default=16, help="the number of epochs (default: 16)")
    add("--batch", type=int, default=8, help="the number of images in a batch")
    add("--lr", type=float, default=2e-3, help="the highest learning rate")
    add(
        "--jit",
        choices=("on", "off", "auto"),
        default="auto",
        help="whether to compile with XLA (torch.compile on torch)",
    )
    add("--seed", type=int, default=0, help="the seed of all random numbers")
    add("--out", type=Path, default=Path("runs/train"), help="the folder to write to")
    add("--resume", action="store_true", help="resume the training that wrote to --out")
    add(
        "--tensorboard", type=Path, help="write the pictures to this folder of logs too"
    )
    args = parser.parse_args()
    if args.tfds and not (args.size or args.crop):
        parser.error("--tfds needs --size or --crop, since its images differ in size")
    if args.crop and not (args.tfds or args.data):
        parser.error("--crop needs the photographs of --data or --tfds")
    return args


def device():
    """Return the backend's default device, on which new tensors are."""
    return f"device {keras.ops.zeros(1).device}"


def load_data(args):
    """Return training data, validation data and the number of classes."""
    if args.tfds:
        options = all_options(args)
        train = ksa.data.open_tfds(args.tfds, args.splits[0], **training(args, options))
        val = ksa.data.open_tfds(args.tfds, args.splits[1], **options)
        return train, val, train.num_classes
    if args.data:
        train, val = open_folders(args)
        return train, val, train.num_classes
    images, masks = ksa.data.make_scenes(480, size=(96, 96), seed=args.seed)
    num_classes = len(ksa.data.SCENE_CLASSES)
    return (images[:400], masks[:400]), (images[400:], masks[400:]), num_classes


def all_options(args):
    """Return the options that training and validation data share."""
    options = dict(num_classes=args.classes, batch_size=args.batch, seed=args.seed)
    return dict(options, image_size=args.size or args.crop)


def training(args, options):
    """Return the options of training data: shuffled and, with --crop, cropped."""
    if args.crop is None:
        return dict(options, shuffle=True)
    crops = ksa.data.Augmentation(args.crop, args.size)
    return dict(options, shuffle=True, image_size=None, augmentation=crops)


def open_folders(args):
    """Open training and validation data of --data, and check every mask."""
    options = all_options(args)
    undivided = args.layout == "plain" or (args.data / "masks").is_dir()
    if undivided:
        # Neighboring names are often frames of one film, so the split is not random.
        whole = ksa.data.open_folder(args.data, None, layout="plain", **options)
        report(args.data, whole)
        files = whole.image_paths, whole.mask_paths
        cut = max(1, len(files[0]) // 5)
        parts = [paths[:-cut] for paths in files], [paths[-cut:] for paths in files]
        train = ksa.data.FolderDataset(parts[0], **training(args, options))
        return train, ksa.data.FolderDataset(parts[1], **options)
    train, val = (
        ksa.data.open_folder(args.data, split, layout=args.layout, **chosen)
        for split, chosen in (("train", training(args, options)), ("val", options))
    )
    report(f"{args.data}, train", train)
    report(f"{args.data}, val", val)
    return train, val


def report(name, data):
    found = ksa.data.check_folder(data)
    print(f"{name}: {found['images']} images of {found['sizes']}")


def build_backbone(name, weights):
    """Build a functional backbone by name."""
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
            "keras.applications has no such model. Write the name as in the Keras "
            "documentation, or pass MiTB0 to MiTB5, keras_hub:PRESET or "
            f"keras_cv:PRESET. Received: --backbone {name}"
        )
    try:
        return build(weights=weights, **options)
    except Exception as error:
        if weights is None:
            raise
        raise SystemExit(
            f"The weights can't be loaded: {error}\nTo train from scratch, pass "
            f"--weights none. Received: --backbone {name} --weights {weights}"
        ) from error


def small_backbone(channels=(32, 64, 96, 128)):
    """Build a residual net with strides 4 to 32, small enough to train from scratch."""
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


if __name__ == "__main__":
    main()
