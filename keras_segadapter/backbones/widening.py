"""Pretrained backbones for images of more or fewer channels than RGB has."""

import keras
import numpy as np
from keras import layers

from keras_segadapter.backbones.origin import resolve_origin
from keras_segadapter.graph.replay import as_functional
from keras_segadapter.validation import check_integer

# Name of the input of a widened model, by which `default_preprocessing` knows that its
# weights were trained on RGB. It is saved with the model.
WIDENED = "widened_image"
_SIDE = 256  # height and width in pixels at which operations are tried, where open


def widen_input(backbone, channels):
    """Return a pretrained backbone that takes images of any number of channels.

    The first convolution's kernels for red, green and blue are repeated in turn,
    `kernel[:, :, c % 3] * 3 / channels`; for one channel they are added. This is timm's
    rule. Means and standard deviations in front of it are repeated likewise; for one
    channel they are averaged. So an image that repeats RGB gives the features of RGB,
    and a gray one in one channel those of gray RGB, or nearly so where the averages
    count. `build_segmenter` normalizes by the same rule.

    `MiTB0`, `ConvNeXtTiny`, `SegFormerB0` and their like need no such call: they repeat
    weights for RGB by themselves where `input_shape` has other channels.

    The layers behind the first convolution are shared with `backbone`, weights
    included. Those before it may be padding, resizing and other operations that treat
    all channels alike, `Rescaling` and `Normalization`.

    Args:
        backbone: A functional `keras.Model` or a built `keras.Sequential` with one RGB
            image input, channels last.
        channels: Integer of at least 1. Number of channels of the new input.

    Returns:
        A functional `keras.Model` with the name and the layer names of `backbone`.

    Raises:
        TypeError: If `backbone` is neither a functional nor a Sequential model.
        ValueError: If `channels` is not a positive integer, if `backbone` does not take
            RGB images, or if they reach a layer that can't be widened.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.applications.MobileNetV3Small(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    backbone = ksa.widen_input(backbone, channels=13)  # such as Sentinel-2's
    model = ksa.build_segmenter(backbone, num_classes=10)
    print(model.input_shape)  # (None, None, None, 13)
    ```

    Source: `adapt_input_conv` of timm (R. Wightman, PyTorch Image Models).
    """
    channels = check_integer("channels", channels)
    origin = resolve_origin(None, backbone)
    backbone = as_functional(backbone)
    found = backbone.inputs[0].shape[-1]
    if found != 3:
        raise ValueError(
            "`backbone` must take RGB images, as its weights for three colors are "
            "repeated. Build it with input_shape=(None, None, 3). Received: "
            f"backbone='{backbone.name}' with {found} channels"
        )
    if channels == 3:
        return backbone
    model, _ = _widen(backbone, channels)
    model.weights_origin = origin
    return model


def is_widened(backbone):
    """Return whether a functional model was widened, or holds one that was."""
    names = (operation.name for operation in backbone.operations)
    inner = (op for op in backbone.operations if hasattr(op, "operations"))
    return WIDENED in names or any(map(is_widened, inner))


def widen_kernel(kernel, channels):
    """Return a kernel `(h, w, 3, filters)` for `channels` channels, as an array."""
    return _repeat(kernel, channels, axis=2) * np.float32(3 / channels)


def widen_stem(values, name, channels):
    """Widen the first kernel among arrays in place, if it is one for RGB.

    Args:
        values: Dict of arrays by name.
        name: Name of the kernel, which may be missing.
        channels: Integer. Number of channels that the model takes.

    Returns:
        Whether it was widened: there are other channels than three.
    """
    widened = channels != 3 and np.shape(values.get(name))[2:3] == (3,)
    if widened:
        values[name] = widen_kernel(values[name], channels)
    return widened


def repeat_by_color(values, channels):
    """Return values for red, green and blue for `channels` channels, as a list.

    One value for all stays one value.
    """
    if np.size(values) == 1:
        return values
    return _repeat(np.reshape(values, 3), channels, axis=0).tolist()


def _repeat(values, channels, axis):
    if channels == 1:
        return np.mean(values, axis, keepdims=True)
    return np.take(values, np.arange(channels) % 3, axis)


def _widen(model, channels):
    """Return a model on wider images, and for each output whether it is such an image.

    Outputs are images in a model that holds no convolution, such as the preprocessing
    inside another model.
    """
    (old,) = model.inputs
    image = keras.Input((*old.shape[1:-1], channels), dtype=old.dtype, name=WIDENED)
    images, widened = {id(image): image}, {}

    def call(operation, *args, **kwargs):
        tensors = keras.tree.flatten((args, kwargs))
        tensors = [t for t in tensors if isinstance(t, keras.KerasTensor)]
        are_images = [id(tensor) in images for tensor in tensors]
        if not any(are_images):
            return operation(*args, **kwargs)
        if not all(are_images):
            raise _mixed(model, operation)
        if id(operation) not in widened:
            widened[id(operation)] = _wider(model, operation, channels, args, kwargs)
        operation, still_images = widened[id(operation)]
        result = operation(*args, **kwargs)
        for tensor, is_image in zip(
            keras.tree.flatten(result), still_images, strict=True
        ):
            if is_image:
                images[id(tensor)] = tensor
        return result

    (start,) = keras.tree.flatten(model.input)
    copy = keras.models.clone_model(
        keras.Model(start, model.output),
        input_tensors=image,
        clone_function=lambda layer: layer,
        call_function=call,
    )
    outputs = keras.tree.flatten(copy.output)
    return (
        keras.Model(image, copy.output, name=model.name),
        [id(tensor) in images for tensor in outputs],
    )


def _wider(model, operation, channels, args, kwargs):
    """Return what takes the place of an operation on images, and as `_widen` says."""
    if isinstance(operation, keras.Model):
        return _widen(as_functional(operation), channels)
    if isinstance(operation, layers.Conv2D) and operation.groups == 1:
        return _wider_convolution(operation, channels), [False]
    if isinstance(operation, layers.Rescaling):
        config = operation.get_config()
        for key in ("scale", "offset"):
            config[key] = repeat_by_color(getattr(operation, key), channels)
        return type(operation).from_config(config), [True]
    if isinstance(operation, layers.Normalization):
        config = {**operation.get_config(), "axis": -1}
        for key in ("mean", "variance"):
            values = keras.ops.convert_to_numpy(getattr(operation, key))
            values = np.broadcast_to(values, (1, 1, 1, 3))
            config[key] = repeat_by_color(values, channels)
        return type(operation).from_config(config), [True]
    if getattr(operation, "weights", ()):
        raise ValueError(
            "The first layers with weights must be keras.layers.Conv2D with groups=1, "
            "whose kernels can be repeated for more channels. Received: "
            f"backbone='{model.name}' with the layer '{operation.name}' "
            f"({type(operation).__name__})"
        )
    if not _treats_channels_alike(operation, args, kwargs):
        raise _mixed(model, operation)
    return operation, [True]


def _wider_convolution(layer, channels):
    """Return a copy of a convolution with its kernel repeated."""
    config = layer.get_config()
    for key in ("lora_rank", "lora_alpha"):
        config.pop(key, None)  # LoRA is merged into the kernel.
    copy = type(layer).from_config(config)
    copy.build((None, None, None, channels))
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float32")
    copy.kernel.assign(widen_kernel(kernel, channels))
    if layer.use_bias:
        copy.bias.assign(layer.bias)
    return copy


def _treats_channels_alike(operation, args, kwargs):
    """Return whether an operation on RGB images commutes with a turn of the colors."""

    def run(turn):
        generator = np.random.default_rng(0)

        def image(value):
            if not isinstance(value, keras.KerasTensor):
                return value
            size = [1, *(side or _SIDE for side in value.shape[1:-1]), 3]
            pixels = np.roll(generator.integers(0, 256, size), turn, axis=-1)
            return keras.ops.cast(pixels, value.dtype)

        inputs = keras.tree.map_structure(image, (args, kwargs))
        return operation(*inputs[0], **inputs[1])

    result = run(0)
    if len(getattr(result, "shape", ())) != 4 or result.shape[-1] != 3:
        return False
    result, turned = map(keras.ops.convert_to_numpy, (result, run(1)))
    return np.allclose(np.roll(result, 1, axis=-1), turned)


def _mixed(model, operation):
    """Return the error about an operation that mixes, swaps or picks channels."""
    return ValueError(
        "On its way to the first convolution an image may pass layers and operations "
        "that treat its channels alike, `Rescaling` and `Normalization`. Build the "
        "backbone without the others, such as preprocess_input: build_segmenter puts "
        f"that in front of it. Received: backbone='{model.name}' with "
        f"'{operation.name}' ({type(operation).__name__}), which does not"
    )
