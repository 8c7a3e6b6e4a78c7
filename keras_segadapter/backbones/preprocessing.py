"""Preprocessing of images as a layer in front of the backbone."""

import keras
from keras import layers

# How the weights of keras.applications were trained, by the names that it gives its
# models: on BGR with the mean subtracted, or on RGB scaled to [-1, 1]. Everything else
# gets ImageNet's mean and standard deviation, as in the paper, torchvision, timm and
# most of keras-hub's presets.
_BGR = ("resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
_MINUS_ONE_TO_ONE = (
    "resnet50v2",
    "resnet101v2",
    "resnet152v2",
    "mobilenet_",
    "mobilenetv2_",
    "xception",
    "inception_v3",
    "inception_resnet_v2",
    "nasnet",
    "NASNet",
)
_BGR_MEAN = (103.939, 116.779, 123.68)
# Mean and standard deviation of RGB in 0..255.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CLIP = ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323))
_HALF = ([127.5] * 3, [127.5] * 3)
_ZERO_TO_ONE = ([0.0] * 3, [255.0] * 3)
_KERAS_HUB = {  # by class
    "ViTBackbone": _HALF,
    "SigLIPVisionEncoder": _HALF,
    "CLIPVisionEncoder": _CLIP,
    "MetaCLIP2VisionEncoder": _CLIP,
    "ViTDetBackbone": _ZERO_TO_ONE,  # it applies ImageNet's by itself
}


def default_preprocessing(backbone):
    """Return a layer that turns RGB in 0..255 into what `backbone` expects.

    It is an `Identity` if the backbone normalizes by itself (it holds a `Rescaling` or
    `Normalization` layer, like EfficientNet, MobileNetV3 and ConvNeXt of
    keras.applications) or if its input has more or fewer than three channels. Other
    families of keras.applications are recognized by their names, those of keras-hub by
    their class; those of keras-cv take 0..1. Everything else gets ImageNet's mean and
    standard deviation (paper, section 5).
    """
    (image,) = keras.tree.flatten(backbone.input)
    normalizes = any(
        isinstance(layer, (layers.Rescaling, layers.Normalization))
        for layer in _layers_inside(backbone)
    )
    if normalizes or image.shape[-1] != 3:
        return layers.Identity(name="preprocessing")
    if backbone.name in _BGR:
        inputs = keras.Input((None, None, 3))
        flipped = keras.ops.flip(inputs, axis=-1)
        outputs = layers.Rescaling(1.0, [-mean for mean in _BGR_MEAN])(flipped)
        return keras.Model(inputs, outputs, name="preprocessing")
    if backbone.name.startswith(_MINUS_ONE_TO_ONE):
        mean, deviation = _HALF
    elif type(backbone).__module__.startswith("keras_cv"):
        mean, deviation = _ZERO_TO_ONE  # as include_rescaling=True does there
    else:
        mean, deviation = _KERAS_HUB.get(type(backbone).__name__, _IMAGENET)
    return layers.Rescaling(
        [1 / d for d in deviation],
        [-m / d for m, d in zip(mean, deviation, strict=True)],
        name="preprocessing",
    )


def _layers_inside(model):
    """Yield the layers of a model and of the models nested in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_inside(layer)
        else:
            yield layer
