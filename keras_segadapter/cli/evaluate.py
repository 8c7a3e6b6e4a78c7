"""`segadapter evaluate`: how good a model's masks are, class by class."""

import keras_segadapter as ksa
from keras_segadapter.cli.models import load_segmenter
from keras_segadapter.cli.sources import (
    has_classes,
    is_tfds,
    open_source,
    scenes,
)


def evaluate(args):
    """Print the figures of a model on images and masks, class by class."""
    model = load_segmenter(args.model)
    ignored = "auto" if args.ignore is None else args.ignore
    names = None
    if args.data == "scenes":
        pairs, names = [scenes(args.size)[1]], ksa.data.SCENE_CLASSES
    else:
        split = args.split or ("test" if is_tfds(args.data) else "val")
        options = {"batch_size": 1, "image_size": args.size}
        if not has_classes(args, args.data, split):
            options["num_classes"] = model.num_classes
        args.channels = model.input_shape[-1]
        pairs = open_source(args, args.data, split, **options)
    evaluation = ksa.evaluate_images(
        model,
        pairs,
        ignore_class=ignored,
        class_names=names,
        short_side=args.short_side,
        crop=args.crop,
        stride=args.stride,
        scales=args.scales,
        flip=args.flip,
    )
    print(evaluation)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"wrote {evaluation.picture(args.out)}")
