"""Preprocessing of images as a layer in front of the backbone."""

import inspect

import keras
import numpy as np
from keras import layers

from keras_segadapter.backbones.mit import EfficientSelfAttention
from keras_segadapter.backbones.widening import is_widened, repeat_by_color
from keras_segadapter.graph.inside import layers_inside
from keras_segadapter.graph.replay import as_functional, record

# Means and standard deviations of RGB in 0..255, by the name that the layer gets.
_SCALES = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "clip": ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323)),
    "minus_one_to_one": (127.5, 127.5),
    "zero_to_one": (0.0, 255.0),
    "efficientnetv2": (128.0, 128.0),  # sizes S, M and L
}
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

# How the weights of keras.applications were trained, by names of layers that come early
# in each family. Models that are renamed, nested or cut keep them. (A VGG cut out of
# keras-hub's or keras-cv's has the same layers and can't be told from this one.)
_BY_LAYERS = (
    ({"conv1_pad", "conv1_bn", "conv2_block1_1_conv"}, "caffe"),  # ResNet
    ({"conv1_pad", "conv2_block1_preact_bn"}, "minus_one_to_one"),  # ResNetV2
    ({"block1_conv1", "block1_conv2", "block1_pool"}, "caffe"),  # VGG
    ({"block1_conv1_bn", "block2_sepconv1"}, "minus_one_to_one"),  # Xception
    ({"conv1", "conv_dw_1"}, "minus_one_to_one"),  # MobileNet
    ({"Conv1", "expanded_conv_depthwise"}, "minus_one_to_one"),  # MobileNetV2
    ({"conv", "expanded_conv_depthwise"}, "minus_one_to_one"),  # MobileNetV3
    ({"mixed0"}, "minus_one_to_one"),  # InceptionV3
    ({"mixed_5b"}, "minus_one_to_one"),  # InceptionResNetV2
    ({"stem_conv1", "reduction_conv_1_stem_1"}, "minus_one_to_one"),  # NASNet
    ({"conv1_conv", "conv2_block1_0_bn"}, "imagenet"),  # DenseNet
)
# The same for keras-hub, by classes of its models and of their first layers.
_KERAS_HUB = {
    "XceptionBackbone": "minus_one_to_one",
    "DINOV2Backbone": "imagenet",
    "DINOV2Embedding": "imagenet",
    "ViTBackbone": "minus_one_to_one",
    "ViTPatchingAndEmbedding": "minus_one_to_one",
    "SigLIPVisionEncoder": "minus_one_to_one",
    "SigLIPVisionEmbedding": "minus_one_to_one",
    "CLIPVisionEncoder": "clip",
    "CLIPVisionEmbedding": "clip",
    "MetaCLIP2VisionEncoder": "clip",
    "MetaCLIP2VisionEmbedding": "clip",
}

# Layers of keras and keras-cv that move or mix pixels at random, by class. Those that
# change colors or erase pixels leave the mask as it is.
_MOVES_PIXELS = {
    *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomCrop"),
    *("RandomShear", "RandomPerspective", "RandomElasticTransform", "MixUp", "CutMix"),
    *("AugMix", "RandAugment", "RandomCropAndResize", "RandomlyZoomedCrop"),
    *("RandomAspectRatio", "JitteredResize", "Mosaic", "FourierMix"),
}

_GRAYS = (64, 192)  # probe images
_SIDE = 256  # their height and width in pixels, where these are open
_MOST_GAIN = 1.5  # Arithmetic that makes differences larger expects pixels in 0..1.


def check_backbone(backbone):
    """Validate that no layer of a backbone moves or mixes pixels at random.

    Raises:
        ValueError: If one does: images would be changed and masks would not.
    """
    for _, layer in layers_inside(backbone):
        moves = _class_names(layer) & _MOVES_PIXELS
        if moves:
            raise ValueError(
                "A backbone must not move or mix pixels at random, since the mask "
                "would stay as it is. Augment images and masks together, with "
                "keras_segadapter.data.Augmentation, and leave the layer out of the "
                f"backbone. Received: backbone='{backbone.name}' with the layer "
                f"'{layer.name}' ({min(moves)})"
            )


def default_preprocessing(backbone):
    """Return a layer that turns RGB in 0..255 into what `backbone` expects.

    It is an `Identity` if the backbone normalizes by itself (see `normalizes`), as
    ConvNeXt, here and in keras.applications, and EfficientNet and MobileNetV3 there do,
    or if its input has more or fewer than three channels. Other families of
    keras.applications are recognized by the names of their layers, those of keras-hub
    by classes; models of keras-cv take 0..1. Everything else gets ImageNet's mean and
    standard deviation, as in the paper (section 5), torchvision, timm and most of
    keras-hub's presets. A backbone that `widen_input` made gets what it would on three
    channels, repeated as its kernels were. Then, and where the backbone's needs are not
    known, a printed line says what was chosen. The name of the layer tells it too.
    """
    channels = backbone.inputs[0].shape[-1]
    widened = channels != 3 and is_widened(backbone)
    normalized, gain = _front(backbone)
    if gain > _MOST_GAIN:
        choice, why = "zero_to_one", None
    elif normalized:
        choice, why = "none", None
    elif channels != 3 and not widened:
        choice, why = "none", f"not normalized, because they have {channels} channels"
    else:
        choice, why = _family(backbone), None
    unknown = choice is None
    if unknown:
        choice, why = "imagenet", "normalized by ImageNet's mean and standard deviation"
    if widened and choice != "none":
        why = why or "normalized by the values for RGB"
        why += (
            ", averaged for one channel"
            if channels == 1
            else f", repeated for {channels} channels"
        )
    if unknown:
        why += ", because keras_segadapter does not know what it expects"
    if why:
        print(
            f"Images for the backbone '{backbone.name}' are {why}. To change this, "
            "pass a layer as preprocessing=, such as keras.layers.Rescaling(1 / 255)."
        )
    return _scaling(choice, channels)


def normalizes(backbone):
    """Return whether a backbone takes pixels in 0..255 and scales them by itself.

    It does if it begins with a normalization layer, or if arithmetic without weights
    (`preprocess_input`, a `Rescaling` or `Lambda` layer) changes the value of a gray
    image before the first weights. Padding, resizing, casts, dropout and swapped
    channels don't.
    """
    normalized, gain = _front(backbone)
    return normalized and not gain > _MOST_GAIN


def _front(backbone):
    """Return what happens to pixels before a backbone's first weights.

    Returns:
        Whether they are normalized, and the factor by which that multiplies their
        differences.
    """
    backbone = as_functional(backbone)
    (image,) = backbone.inputs
    shape = [1 if image.shape[0] is None else image.shape[0]]
    shape += [side or _SIDE for side in image.shape[1:]]
    found, normalized = [], False
    for gray in _GRAYS:
        arrived = []
        pixels = keras.ops.full(shape, gray, dtype=image.dtype)
        outputs, norm = _follow(backbone, pixels, arrived)
        normalized = normalized or norm
        arrived += [output for output in outputs if output is not None]
        # Most of the values: padding and coordinates may be among them.
        found.append([np.median(_array(pixels)) for pixels in arrived])
    dark, bright = map(np.array, found)
    changed = not np.allclose([dark, bright], np.array(_GRAYS)[:, None], rtol=0.01)
    gains = np.abs(bright - dark) / (_GRAYS[1] - _GRAYS[0])
    return normalized or changed, np.max(gains, initial=0)


def _follow(model, pixels, arrived):
    """Follow pixels through a model, up to its first weights.

    Args:
        model: A functional model with one input.
        pixels: Tensor for its input.
        arrived: List to which the tensors are added that calls with weights receive.

    Returns:
        List of the model's outputs, None for those that depend on weights, and whether
        the pixels pass a normalization layer.
    """
    recording = record(model)
    known, norm = {id(recording.inputs[0]): pixels}, False
    for call in recording.calls:
        operation, inputs = call.operation, call.inputs
        if not all(id(tensor) in known for tensor in inputs):
            continue
        args, kwargs = keras.tree.map_structure(
            lambda value: known.get(id(value), value), (call.args, call.kwargs)
        )
        weights = getattr(operation, "weights", ())
        if weights and isinstance(operation, keras.Sequential):
            inner = keras.Model(operation.inputs, operation.outputs)
            outputs, found = _follow(inner, args[0], arrived)
        else:
            found = _is_normalization(operation)
            if weights and not isinstance(operation, layers.Normalization):
                arrived += [known[id(tensor)] for tensor in inputs]
                outputs = [None] * len(call.outputs)
            else:
                if "training" in inspect.signature(operation.call).parameters:
                    kwargs = {**kwargs, "training": False}  # no random colors
                outputs = keras.tree.flatten(operation(*args, **kwargs))
        norm = norm or found
        pairs = zip(keras.tree.flatten(call.result), outputs, strict=True)
        known.update({id(t): output for t, output in pairs if output is not None})
    return [known.get(id(tensor)) for tensor in recording.outputs], norm


def _is_normalization(operation):
    """Return whether a layer normalizes pixels, or holds a layer that is for that."""
    norms = (
        layers.BatchNormalization,
        layers.GroupNormalization,
        layers.LayerNormalization,
    )
    return isinstance(operation, norms) or any(
        isinstance(layer, (layers.Rescaling, layers.Normalization))
        for _, layer in layers_inside(operation)
    )


def _family(backbone):
    """Return how the family's weights were trained, or None if it is not known."""
    inside = [layer for _, layer in layers_inside(backbone)]
    libraries = set()
    for layer in inside:
        library = type(layer).__module__.split(".")[0]
        libraries.add(library)
        if isinstance(layer, EfficientSelfAttention):
            return "imagenet"  # MiT
        if library == "keras_cv" and isinstance(layer, keras.Model):
            return "zero_to_one"  # as include_rescaling=True does there
        if library == "keras_hub":
            for name in _class_names(layer) & _KERAS_HUB.keys():
                return _KERAS_HUB[name]
    if libraries & {"keras_hub", "keras_cv"}:
        return None  # they use some of the names of keras.applications
    by_name = {layer.name: layer for layer in inside}
    for names, choice in _BY_LAYERS:
        if names <= by_name.keys():
            return choice
    if {"stem_conv", "block1a_project_conv"} <= by_name.keys():  # EfficientNetV2
        small = by_name["block1a_project_conv"].filters == 16  # sizes B0 to B3
        return "imagenet" if small else "efficientnetv2"
    if any(name.endswith("stage_0_block_0_depthwise_conv") for name in by_name):
        return "imagenet"  # ConvNeXt
    return None


def _scaling(choice, channels):
    """Return the layer of a choice, with a name that tells it."""
    name = f"preprocessing_{choice}"
    if choice == "none":
        return layers.Identity(name=name)
    if choice == "caffe":
        order = np.arange(channels)
        whole = order[: channels // 3 * 3].reshape(-1, 3)
        whole[:] = whole[:, ::-1].copy()  # each RGB in turn; `whole` is a view
        offset = repeat_by_color([-mean for mean in _CAFFE_MEAN_BGR], channels)
        inputs = keras.Input((None, None, channels))
        flipped = keras.ops.take(inputs, order.tolist(), axis=-1)
        return keras.Model(inputs, layers.Rescaling(1.0, offset)(flipped), name=name)
    mean, deviation = (repeat_by_color(each, channels) for each in _SCALES[choice])
    mean, deviation = np.array(mean), np.array(deviation)
    scale, offset = (1 / deviation).tolist(), (-mean / deviation).tolist()
    return layers.Rescaling(scale, offset, name=name)


def _class_names(layer):
    return {kind.__name__ for kind in type(layer).__mro__}


def _array(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float32")
