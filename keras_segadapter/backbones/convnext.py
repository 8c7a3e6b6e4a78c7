"""ConvNeXt for images of any size and number of channels, with stochastic depth.

That of keras.applications has no stochastic depth, and TensorFlow runs its grouped
convolutions several times as slowly as depthwise ones.
"""

import os

import keras
import numpy as np
from keras import layers

from keras_segadapter.backbones.convnext_weights import (
    IMAGENET,
    assign_convnext_weights,
    read_convnext_weights,
    read_normalization,
)
from keras_segadapter.backbones.origin import name_origin
from keras_segadapter.backbones.widening import WIDENED, repeat_by_color, widen_stem
from keras_segadapter.layers.faster import Dense, DepthwiseConv2D, PatchConv2D
from keras_segadapter.validation import check_input_shape, check_number, check_rate

# Weights of the sizes that keras.applications lacks, by their names on the Hub.
IMAGENET_ON_THE_HUB = {
    "Atto": "timm/convnext_atto.d2_in1k",
    "Femto": "timm/convnext_femto.d1_in1k",
    "Pico": "timm/convnext_pico.d1_in1k",
    "Nano": "timm/convnext_nano.d1h_in1k",
}
STEM = "downsample_layers.0.0.weight"


@keras.saving.register_keras_serializable("keras_segadapter")
class LayerScale(layers.Layer):
    """Multiply each channel by a weight, which is small at the start.

    Args:
        init_value: Number. Initial value of the weights. Defaults to `1e-6`.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Features of any rank, channels last.

    Returns:
        Features of the same shape.

    Raises:
        ValueError: If `init_value` is not a finite number.

    Source: H. Touvron et al., Going Deeper with Image Transformers, ICCV 2021.
    """

    def __init__(self, init_value=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.init_value = check_number("init_value", init_value)

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.init_value)
        self.gamma = self.add_weight(
            shape=input_shape[-1:], initializer=initializer, name="gamma"
        )

    def call(self, inputs):
        return inputs * self.gamma

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        config = super().get_config()
        config.update(init_value=self.init_value)
        return config


def ConvNeXtTiny(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_tiny"
):
    """Build ConvNeXt-T: 3, 3, 9 and 3 blocks of 96, 192, 384 and 768 channels.

    ConvNeXtAtto to ConvNeXtXLarge have the same arguments and other numbers of blocks
    and channels. As in keras.applications, RGB images go in as 0..255 and the first
    layer normalizes them, by ImageNet's mean and standard deviation or those that the
    weights were trained with, such as CLIP's. With random weights, images of more or
    fewer channels are not normalized. Layers are named as in keras.applications.

    The model ends in a layer norm, as in keras.applications. Classifiers train it on
    pooled features, DINOv3 and EUPE on those of each pixel. The deepest stage ends in
    front of it. To tap what is behind it instead, name that layer,
    "convnext_tiny_layernorm", as the last of `taps`.

    Args:
        weights: None for random weights, or the source of pretrained weights of a
            ConvNeXt. Defaults to `None`. Sources are:

            - "imagenet": those of keras.applications; Base, Large and XLarge were
              trained on ImageNet-22k first. For Atto to Nano, timm's on the Hub.
            - A name on the Hugging Face Hub: "timm/convnext_tiny.fb_in22k" (Apache 2.0
              there), "timm/convnext_tiny.in12k", "timm/convnext_base.clip_laion2b",
              "facebook/convnext-tiny-224"; "timm/convnext_tiny.dinov3_lvd1689m" or
              "facebook/dinov3-convnext-tiny-pretrain-lvd1689m" (under DINOv3's license,
              which goes with the model); "timm/convnext_tiny.eupe_lvd1689m" (for
              non-commercial research). A path on disk of that name takes precedence.
              "owner/name@revision" pins a branch, tag or commit.
            - A folder or file of transformers or timm: `.safetensors`,
              `pytorch_model.bin`. Mean and standard deviation are read from timm's
              `config.json` or transformers' `preprocessor_config.json` beside it.
            - A `.pth` file of Meta's ConvNeXt, DINOv3 or EUPE.
            - A ConvNeXt model of keras.applications, or its `.h5` file of weights
              without the top.

            Files on the Hub need the extra `weights`; PyTorch's files need torch.
            ConvNeXtV2 and timm's variants _ols, _hnf and _rms are other networks.
        input_shape: Tuple `(height, width, channels)`, with None for an open height or
            width. Weights for RGB are repeated for other numbers of channels, as by
            `widen_input`. Defaults to `(None, None, 3)`.
        drop_path: Number in [0, 1). Stochastic depth: the rate at which the last
            block's residual is dropped in training. It rises linearly from 0 at the
            first block. Defaults to `0.1`.
        name: String. Name of the model. Defaults to `"convnext_tiny"`.

    Returns:
        A functional `keras.Model` from images to the last stage's features
        `(B, H/32, W/32, C)`; `find_stages` gives the four stages.

    Raises:
        TypeError: If `weights` is none of these.
        ValueError: If the weights can't be fetched or read, if their tensors or shapes
            are not those of the model, or if `drop_path` is not in [0, 1).
        ImportError: If a package that reads the weights is not installed.

    Example:

    ```python
    import keras_segadapter as ksa

    backbone = ksa.ConvNeXtTiny()  # weights="imagenet" to start trained
    model = ksa.build_segmenter(backbone, num_classes=19)
    print([stage.channels for stage in model.stages])  # [96, 192, 384, 768]
    ```

    Source: Z. Liu et al., A ConvNet for the 2020s, CVPR 2022; paper, section 5.
    """
    return _convnext("Tiny", (3, 3, 9, 3), 96, weights, input_shape, drop_path, name)


def ConvNeXtAtto(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_atto"
):
    """Build timm's ConvNeXt-Atto, of 2, 2, 6 and 2 blocks, 40 to 320 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Atto", (2, 2, 6, 2), 40, weights, input_shape, drop_path, name)


def ConvNeXtFemto(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_femto"
):
    """Build timm's ConvNeXt-Femto, of 2, 2, 6 and 2 blocks, 48 to 384 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Femto", (2, 2, 6, 2), 48, weights, input_shape, drop_path, name)


def ConvNeXtPico(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_pico"
):
    """Build timm's ConvNeXt-Pico, of 2, 2, 6 and 2 blocks, 64 to 512 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Pico", (2, 2, 6, 2), 64, weights, input_shape, drop_path, name)


def ConvNeXtNano(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_nano"
):
    """Build timm's ConvNeXt-Nano, of 2, 2, 8 and 2 blocks, 80 to 640 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Nano", (2, 2, 8, 2), 80, weights, input_shape, drop_path, name)


def ConvNeXtSmall(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_small"
):
    """Build ConvNeXt-S, of 3, 3, 27 and 3 blocks, 96 to 768 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Small", (3, 3, 27, 3), 96, weights, input_shape, drop_path, name)


def ConvNeXtBase(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_base"
):
    """Build ConvNeXt-B, of 3, 3, 27 and 3 blocks, 128 to 1,024 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Base", (3, 3, 27, 3), 128, weights, input_shape, drop_path, name)


def ConvNeXtLarge(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_large"
):
    """Build ConvNeXt-L, of 3, 3, 27 and 3 blocks, 192 to 1,536 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext("Large", (3, 3, 27, 3), 192, weights, input_shape, drop_path, name)


def ConvNeXtXLarge(
    weights=None, input_shape=(None, None, 3), drop_path=0.1, name="convnext_xlarge"
):
    """Build ConvNeXt-XL, of 3, 3, 27 and 3 blocks, 256 to 2,048 channels.

    Example: see `ConvNeXtTiny`.
    """
    return _convnext(
        "XLarge", (3, 3, 27, 3), 256, weights, input_shape, drop_path, name
    )


def _convnext(size, depths, width, weights, input_shape, drop_path, name):
    """Build a ConvNeXt of `depths` blocks per stage, with `width` channels at first."""
    check_rate("drop_path", drop_path)
    input_shape = check_input_shape(input_shape)
    source = _source(size, weights)
    # Read first, so that a wrong file raises before a large model is built.
    values = None if source is None else read_convnext_weights(source)
    normalization = IMAGENET if source is None else read_normalization(source)
    channels = input_shape[-1]
    widened = widen_stem(values or {}, STEM, channels)
    inputs = keras.Input(input_shape, name=WIDENED if widened else None)
    rates = iter(np.linspace(0, drop_path, sum(depths)).tolist())
    x = inputs
    if channels == 3 or widened:
        mean, deviation = (repeat_by_color(each, channels) for each in normalization)
        x = layers.Normalization(
            mean=[255 * value for value in mean],
            variance=[(255 * value) ** 2 for value in deviation],
            name=f"{name}_prestem_normalization",
        )(x)
    for stage, depth in enumerate(depths):
        x = _reduction(width * 2**stage, stage, name)(x)
        for block in range(depth):
            x = x + _residual(x, f"{name}_stage_{stage}_block_{block}", next(rates))
    model = keras.Model(inputs, _norm(f"{name}_layernorm")(x), name=name)
    if values is not None:
        assign_convnext_weights(model, values)
        if weights == "imagenet":
            own = f"keras.applications.ConvNeXt{size}, imagenet"
            weights = source if isinstance(source, str) else own
        model.weights_origin = name_origin(weights)
    return model


def _source(size, weights):
    """Return what `read_convnext_weights` reads for the argument `weights`."""
    if weights is None or isinstance(weights, keras.Model):
        return weights
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(
            '`weights` must be None, "imagenet", a file, a folder, a name on the '
            "Hugging Face Hub or a ConvNeXt of keras.applications. Received: "
            f"weights={weights!r} of type {type(weights).__name__}"
        )
    if weights == "imagenet" and size in IMAGENET_ON_THE_HUB:
        # With a revision, it is never taken for a path in a folder `timm`.
        return f"{IMAGENET_ON_THE_HUB[size]}@main"
    file_of_keras = str(weights).endswith(".h5") and os.path.isfile(weights)
    if weights == "imagenet" or (file_of_keras and size not in IMAGENET_ON_THE_HUB):
        build = getattr(keras.applications, f"ConvNeXt{size}")
        return build(include_top=False, weights=weights, input_shape=(None, None, 3))
    return weights


def _reduction(channels, stage, name):
    """Return one layer of the norm and the convolution in front of a stage's blocks.

    As one layer, the norm is not a part of the stage before.
    """
    part, end = ("stem", "") if stage == 0 else ("downsampling", f"_{stage - 1}")
    norm = _norm(f"{name}_{part}_layernorm{end}")
    side = 4 if stage == 0 else 2
    reduce = PatchConv2D(
        channels, side, side, name=f"{name}_{part}_conv{end}", **_initial()
    )
    if stage == 0:
        return keras.Sequential([reduce, norm], name=f"{name}_stem")
    return keras.Sequential([norm, reduce], name=f"{name}_downsampling_block{end}")


def _residual(x, name, rate):
    """Return what a block adds to its input."""
    channels = x.shape[-1]
    x = DepthwiseConv2D(
        7,
        padding="same",
        depthwise_initializer=_truncated_normal(),
        name=f"{name}_depthwise_conv",
    )(x)
    x = _norm(f"{name}_layernorm")(x)
    x = Dense(4 * channels, "gelu", name=f"{name}_pointwise_conv_1", **_initial())(x)
    x = Dense(channels, name=f"{name}_pointwise_conv_2", **_initial())(x)
    x = LayerScale(name=f"{name}_layer_scale")(x)
    # Stochastic depth: whole images are dropped, and the others scaled up.
    return layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop_path")(
        x
    )


def _norm(name):
    return layers.LayerNormalization(epsilon=1e-6, name=name)


def _initial():
    return {"kernel_initializer": _truncated_normal()}


def _truncated_normal():
    return keras.initializers.TruncatedNormal(stddev=0.02)
