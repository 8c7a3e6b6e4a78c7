"""`segadapter train`: a model from images and masks."""

import shutil
import sys
from pathlib import Path

import keras
import numpy as np

import keras_segadapter as ksa
from keras_segadapter.cli.arguments import DATA, add_command, add_data
from keras_segadapter.cli.backbones import build_backbone
from keras_segadapter.cli.record import BEST, Record
from keras_segadapter.cli.sources import (
    inspect_source,
    is_tfds,
    open_source,
    scenes,
)
from keras_segadapter.cli.train_arguments import add_training
from keras_segadapter.graph.inside import layers_inside
from keras_segadapter.model_card import describe_input

_MODELS = ("best.keras", "model.keras")
_STATE = "backup/state.json"

DESCRIPTION = """\
Train a model. The data is inspected first, and faults stop the command before work is
lost on it.

  segadapter train scenes
  segadapter train FOLDER --backbone MobileNetV3Small --freeze --size 256 256
  segadapter train CITYSCAPES --backbone MiTB0 --crop 512 512 --batch 4

These are written to the folder --out: model.keras after the last epoch, best.keras with
the best validation mIoU so far, history.csv, curves.png and, in pictures/, predictions
after each epoch. After a stop, the same command with --resume goes on.
"""


def add_train(commands):
    """Add the command `train`."""
    usage, result = "DATA", "a model from images and masks"
    add = add_command(commands, train, usage, result, DESCRIPTION, DATA)
    add_data(add)
    add_training(add)


def train(args):
    """Train a model, and write it and the record of its training to a folder."""
    args.out = args.out or Path("runs") / _name_of(args.data)
    _check_folder(args)
    print(f"Keras {keras.__version__} on {keras.config.backend()}, {_device()}")
    keras.utils.set_random_seed(args.seed)
    data, validation, num_classes = _load(args)
    model = _build(args, num_classes)
    arrays = isinstance(data, tuple)
    if args.data == "scenes":
        model.name_classes(ksa.data.SCENE_CLASSES)
    _compile(args, model, data)

    if args.overwrite:
        _clear(args.out)
    images, masks = validation if arrays else next(iter(validation))[:2]
    callbacks = [
        ksa.TrainingPictures(
            np.asarray(images[:4]),
            np.asarray(masks[:4]),
            args.out / "pictures",
            tensorboard=args.tensorboard,
        ),
        Record(args.out, args.early_stopping),
    ]
    if args.tensorboard:
        callbacks.append(
            keras.callbacks.TensorBoard(args.tensorboard, write_graph=False)
        )
    args.resumable = args.out / _STATE
    history = model.fit(
        *(data if arrays else [data]),
        batch_size=args.batch if arrays else None,
        validation_data=validation,
        epochs=args.epochs,
        callbacks=callbacks,
        backup=args.out / "backup",
        class_weight=args.class_weights,
        verbose=1 if sys.stdout.isatty() else 2,
    )

    model.save(args.out / "model.keras")
    figures = history.history[BEST]
    best = int(np.nanargmax(figures))
    print(
        f"validation mIoU: {figures[-1]:.3f} (best: {figures[best]:.3f} after epoch "
        f"{history.epoch[best] + 1})"
    )
    print(f"wrote model.keras, best.keras, history.csv and curves.png to {args.out}")


def _name_of(data):
    """Return a name for DATA: that of the folder, file or dataset."""
    return Path(data.removeprefix("tfds:")).resolve().stem or "train"


def _check_folder(args):
    """Exit with an error if --out holds a training that nothing is said about."""
    error, out = args.parser.error, args.out
    if args.resume and not (out / _STATE).exists():
        error(
            f"There is nothing to resume: {out} holds no completed epoch. Correct "
            "--out, or leave --resume out."
        )
    held = [name for name in (*_MODELS, _STATE, "history.csv") if (out / name).exists()]
    if held and not (args.resume or args.overwrite):
        error(
            f"{out} already holds a training ({held[0]}). Pass --resume to go on with "
            "it, --overwrite to replace it, or another --out."
        )


def _clear(out):
    """Remove what an earlier training wrote."""
    shutil.rmtree(out / "backup", ignore_errors=True)
    written = [out / name for name in (*_MODELS, "history.csv", "curves.png")]
    for path in (*written, *out.glob("pictures/epoch_*.png")):
        path.unlink(missing_ok=True)


def _device():
    """Return the backend's default device, on which new tensors are."""
    return f"device {keras.ops.zeros(1).device}"


def _load(args):
    """Inspect and open the data.

    Returns:
        Training data, validation data and the number of classes.
    """
    if args.data == "scenes":
        data, validation = scenes(args.size, args.seed)
        return data, validation, len(ksa.data.SCENE_CLASSES)
    sources = args.data, args.val or args.data
    splits = args.split or _default_splits(args)
    reports = _inspect(args, sources, splits)
    options = {"batch_size": args.batch, "seed": args.seed}
    if reports and args.classes is None and reports[0].class_names is None:
        options["num_classes"] = _infer_classes(reports)
    training = dict(options, shuffle=True, **_views(args, reports))
    if args.processes:
        training["processes"] = args.processes
    options["image_size"] = args.size or args.crop
    data = open_source(args, sources[0], splits[0], **training)
    validation = open_source(args, sources[1], splits[1], **options)
    return data, validation, data.num_classes


def _default_splits(args):
    """Return the names of the splits to train and to validate on."""
    if is_tfds(args.data):
        return "train", "test"
    return (None, None) if args.val else ("train", "val")


def _inspect(args, sources, splits):
    """Print and return the reports of files.

    Raises:
        ValueError: If a report has faults.
    """
    reports = []
    for source, split in zip(sources, splits, strict=True):
        if not is_tfds(source):  # whose masks are checked while they are read
            reports.append(inspect_source(args, source, split))
            print(f"{source}, {split or 'all'}: {reports[-1]}\n")
            reports[-1].check()
    return reports


def _infer_classes(reports):
    """Return the number of classes by the highest id in the masks, and say so.

    Raises:
        ValueError: If the masks hold colors.
    """
    found = [report.num_classes for report in reports]
    if None in found:
        raise ValueError(
            "The masks hold colors, and it is not known which classes they stand for. "
            "Pass --labels with a classes.csv of the columns name,r,g,b, or put it "
            "into the folder. Received: no --labels"
        )
    print(
        f"classes: {max(found)}, by the highest id; pass --classes for another number"
    )
    return max(found)


def _views(args, reports):
    """Return the options that make one size of the images to train on.

    Raises:
        ValueError: If they differ in size and no flag says what to do.
    """
    rare = {"rare_classes": args.rare_classes}
    if args.crop:
        return {"augmentation": ksa.data.Augmentation(args.crop, args.size, **rare)}
    sizes = sorted({size for report in reports for size in report.sizes})  # (H, W)
    if args.size is None and len(sizes) > 1:
        raise ValueError(
            "The images of a batch must have one size. Pass --size H W to resize them, "
            f"or --crop H W to train on crops. Received: images of {len(sizes)} sizes"
        )
    if args.augment:
        size = args.size or sizes[0]
        return {"augmentation": ksa.data.Augmentation(size, size, **rare)}
    return {"image_size": args.size}


def _build(args, num_classes):
    """Build the model, and say where the adapters go and what happens to the input."""
    channels, preprocessing = args.channels or 3, None
    backbone = build_backbone(args.backbone, args.weights or "imagenet", channels)
    if args.freeze:
        backbone.trainable = False
    if args.backbone == "small" and channels in (1, 3, 4):  # which are pixels
        name = "preprocessing_minus_one_to_one"
        preprocessing = keras.layers.Rescaling(1 / 127.5, -1, name=name)
    model = ksa.build_segmenter(
        backbone,
        num_classes,
        adapters=args.adapters,
        neck=ksa.SimpleFeaturePyramid() if args.neck else None,
        preprocessing=preprocessing,
    )
    print(f"input: {describe_input(model)}")
    for stage in model.stages:
        print(f"stage: {stage.name}, stride {stage.stride}, {stage.channels} channels")
    return model


def _tell_of_slow_norms(model, steps):
    """Say so if batch norms end with most of the statistics that they start with."""
    momentum = max(
        (
            layer.momentum
            for _, layer in layers_inside(model)
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ),
        default=0,
    )
    kept = momentum**steps
    if kept > 0.5:
        print(
            f"batch norms: at a momentum of {momentum:g}, {kept:.0%} of the statistics "
            f"by which predictions are normalized will be older than these {steps} "
            "steps; pass more --epochs, a smaller --batch or, for a pretrained "
            "backbone, --freeze"
        )


def _compile(args, model, data):
    """Compile the model with warm-up and a cosine over all steps."""
    arrays = isinstance(data, tuple)
    batches = -(-len(data[0]) // args.batch) if arrays else len(data)
    steps = args.epochs * batches
    few = "; that is few: pass more --epochs or a smaller --batch"
    print(f"steps: {batches} an epoch, {steps} in all{few if steps < 100 else ''}")
    _tell_of_slow_norms(model, steps)
    warmup = min(steps // 10, 1500)
    schedule = keras.optimizers.schedules.CosineDecay(
        args.lr / 100, steps - warmup, warmup_target=args.lr, warmup_steps=warmup
    )
    averages = {"use_ema": True, "ema_momentum": args.ema} if args.ema else {}
    model.compile(
        ksa.AdamW(schedule, **averages),
        args.loss,
        ignore_class="auto" if args.ignore is None else args.ignore,
        jit_compile={"on": True, "off": False, "auto": "auto"}[args.jit],
    )
