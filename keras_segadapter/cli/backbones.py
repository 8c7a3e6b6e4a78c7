"""Backbones by the names that the command line takes."""

import keras
from keras import layers

import keras_segadapter as ksa
from keras_segadapter.backbones.origin import name_origin
from keras_segadapter.extras import import_extra


def build_backbone(name, weights="imagenet", channels=3):
    """Build a functional backbone by name.

    Args:
        name: String. `small`, MiTB0 to MiTB5, ConvNeXtAtto to ConvNeXtXLarge, the name
            of a model of keras.applications, `keras_hub:PRESET` or `keras_cv:PRESET`.
        weights: `"imagenet"`, `"none"` or the path of a file. Defaults to
            `"imagenet"`, which `small` does not have.
        channels: Integer. Channels of the images. Defaults to `3`.

    Raises:
        ImportError: If the library of a preset is not installed.
        ValueError: If there is no such backbone, or if its weights can't be loaded.
    """
    library, _, preset = name.rpartition(":")
    options = {"weights": None if weights == "none" else weights}
    if name == "small":
        return small_backbone(channels)
    if library in ("keras_hub", "keras_cv"):
        if weights not in ("imagenet", "none"):
            raise ValueError(
                "A preset has weights of its own. Leave --weights out, or pass none to "
                f"train from scratch. Received: --weights {weights}"
            )
        build, options = _preset(library, preset), {"load_weights": weights != "none"}
    elif name in ksa.__all__ and name.startswith(("MiTB", "ConvNeXt")):
        build = getattr(ksa, name)
        options["input_shape"] = (None, None, channels)
    else:
        build = getattr(keras.applications, name, None)
        options.update(include_top=False, input_shape=(None, None, channels))
    if not callable(build):
        raise ValueError(
            "keras.applications has no such model. Write the name as in the Keras "
            "documentation, or pass small, MiTB0 to MiTB5, ConvNeXtAtto to "
            "ConvNeXtXLarge, keras_hub:PRESET or keras_cv:PRESET. Received: --backbone "
            f"{name}"
        )
    try:
        backbone = build(**options)
    except Exception as error:  # of any kind: a download, a file, a preset
        if weights == "none":
            raise
        raise ValueError(
            f"The backbone's weights can't be loaded: {error}. To train from scratch, "
            f"pass --weights none. Received: --backbone {name} --weights {weights}"
        ) from error
    if weights != "none" and not hasattr(backbone, "weights_origin"):
        source = name_origin(preset if library else weights)
        builder = f"{library}:" if library else f"keras.applications.{name}, "
        backbone.weights_origin = builder + source
    return backbone


def _preset(library, preset):
    """Return a function that builds a preset of keras-hub or keras-cv."""
    models = import_extra(library, "This backbone").models
    kinds = [kind for kind in vars(models).values() if isinstance(kind, type)]
    known = [
        kind
        for kind in kinds
        if issubclass(kind, models.Backbone) and preset in kind.presets
    ]
    kind = known[0] if known else models.Backbone
    return lambda **options: kind.from_preset(preset, **options)


def small_backbone(channels=3, widths=(32, 64, 96, 128)):
    """Build a residual net with strides 4 to 32, small enough to train from scratch."""

    def convolution(x, width, stride):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((None, None, channels))
    x = layers.ReLU()(convolution(inputs, widths[0], 2))
    for width in widths:
        x = shortcut = layers.ReLU()(convolution(x, width, 2))
        x = layers.ReLU()(convolution(x, width, 1))
        x = layers.ReLU()(convolution(x, width, 1) + shortcut)
    return keras.Model(inputs, x, name="small")
