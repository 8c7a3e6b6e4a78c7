"""What a backbone expects of its input, as a layer that goes in front of it."""

import keras
from keras import layers

# How keras.applications' weights were trained, by the name it gives the model: colours
# in BGR less their mean, or scaled to [-1, 1]. All else follows ImageNet's mean and
# deviation, as do the paper, torchvision, timm and most of keras-hub's presets.
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
# Mean and deviation of RGB in 0..255.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CLIP = ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323))
_HALF = ([127.5] * 3, [127.5] * 3)
_ZERO_TO_ONE = ([0.0] * 3, [255.0] * 3)
_KERAS_HUB = {  # by class
    "ViTBackbone": _HALF,
    "SigLIPVisionEncoder": _HALF,
    "CLIPVisionEncoder": _CLIP,
    "MetaCLIP2VisionEncoder": _CLIP,
    "ViTDetBackbone": _ZERO_TO_ONE,  # ImageNet's follow inside
}


def default_preprocessing(backbone):
    """Layer that turns RGB in 0..255 into what `backbone` expects.

    A backbone that normalises by itself (it holds a `Rescaling` or `Normalization`
    layer: EfficientNet, MobileNetV3, ConvNeXt of keras.applications) gets an
    `Identity`, as does one whose input has other than three channels. The other
    families of keras.applications are known by the names it gives them, keras-hub's by
    their class, and keras-cv's take 0..1; everything else gets ImageNet's mean and
    deviation (paper, section 5).
    """
    (image,) = keras.tree.flatten(backbone.input)
    normalises = any(
        isinstance(layer, (layers.Rescaling, layers.Normalization))
        for layer in _layers_inside(backbone)
    )
    if normalises or image.shape[-1] != 3:
        return layers.Identity(name="preprocessing")
    if backbone.name in _BGR:
        inputs = keras.Input((None, None, 3))
        flipped = keras.ops.flip(inputs, axis=-1)
        outputs = layers.Rescaling(1.0, [-mean for mean in _BGR_MEAN])(flipped)
        return keras.Model(inputs, outputs, name="preprocessing")
    if backbone.name.startswith(_MINUS_ONE_TO_ONE):
        mean, deviation = _HALF
    elif type(backbone).__module__.startswith("keras_cv"):
        mean, deviation = _ZERO_TO_ONE  # what include_rescaling=True would do
    else:
        mean, deviation = _KERAS_HUB.get(type(backbone).__name__, _IMAGENET)
    return layers.Rescaling(
        [1 / d for d in deviation],
        [-m / d for m, d in zip(mean, deviation, strict=True)],
        name="preprocessing",
    )


def _layers_inside(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_inside(layer)
        else:
            yield layer
