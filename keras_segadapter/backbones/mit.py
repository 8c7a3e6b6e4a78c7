"""MiT, SegFormer's encoder, on 4-D feature maps of any height and width.

Those of keras-hub and keras-cv take square images only.
"""

import keras
import numpy as np
from keras import layers, ops

from keras_segadapter.backbones.mit_weights import (
    STEM,
    assign_mit_weights,
    read_mit_weights,
)
from keras_segadapter.backbones.origin import name_origin
from keras_segadapter.backbones.widening import WIDENED, widen_stem
from keras_segadapter.layers.faster import Dense, DepthwiseConv2D, PatchConv2D
from keras_segadapter.validation import (
    check_feature_map,
    check_input_shape,
    check_integer,
    check_rate,
)

# One value per stage, the same in all sizes of MiT.
KERNELS, STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)  # of the overlapping patches
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
# Channels of each stage, in MiT-B0 and in the larger sizes.
NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
MLP_RATIO = 4


@keras.saving.register_keras_serializable("keras_segadapter")
class EfficientSelfAttention(layers.Layer):
    """Self-attention on a feature map, with keys and values from a smaller map.

    Args:
        num_heads: Integer of at least 1. Number of heads; must divide the number of
            channels.
        reduction: Integer of at least 1. Side of the square of pixels that is reduced
            to one key and value. Defaults to `1`.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Features `(B, H, W, C)`, channels last, with a height and width of at
            least `reduction`.

    Returns:
        Features `(B, H, W, C)`.

    Raises:
        ValueError: If an argument is not a positive integer, if the input is not `(B,
            H, W, C)` with a known C that `num_heads` divides, or if Keras is set to
            channels_first.

    Source: E. Xie et al., SegFormer, NeurIPS 2021, section 3.1.
    """

    def __init__(self, num_heads, reduction=1, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.reduction = check_integer("reduction", reduction)

    def build(self, input_shape):
        check_feature_map(self, input_shape)
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the number of channels of the features. "
                f"Received: num_heads={self.num_heads} for {channels} channels"
            )
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.query, self.key, self.value, self.projection = (
            _dense(channels, **inner) for _ in range(4)
        )
        for layer in (self.query, self.key, self.value, self.projection):
            layer.build(input_shape)
        if self.reduction > 1:
            self.reduce = PatchConv2D(
                channels,
                self.reduction,
                self.reduction,
                data_format="channels_last",
                **inner,
            )
            self.norm = layers.LayerNormalization(epsilon=1e-5, **inner)
            self.reduce.build(input_shape)
            self.norm.build(input_shape)

    def call(self, inputs):
        source = inputs
        if self.reduction > 1:
            source = self.norm(self.reduce(inputs))  # (B, H/r, W/r, C)
        attended = ops.dot_product_attention(
            self._tokens(self.query(inputs)),  # (B, H*W, heads, C/heads)
            self._tokens(self.key(source)),  # (B, H*W/r^2, heads, C/heads)
            self._tokens(self.value(source)),
        )
        return self.projection(ops.reshape(attended, ops.shape(inputs)))  # (B, H, W, C)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        config = super().get_config()
        config.update(num_heads=self.num_heads, reduction=self.reduction)
        return config

    def _tokens(self, features):
        """Return `(B, H*W, heads, C/heads)` of a feature map."""
        size = features.shape[-1] // self.num_heads
        return ops.reshape(features, (ops.shape(features)[0], -1, self.num_heads, size))


@keras.saving.register_keras_serializable("keras_segadapter")
class MixFFN(layers.Layer):
    """SegFormer's feed-forward network: Linear, depthwise 3 x 3, GELU, Linear.

    The zeros that pad the convolution tell where the borders are, in the place of a
    positional encoding.

    Args:
        ratio: Integer of at least 1. Width of the hidden layer divided by the number of
            channels. Defaults to `4`.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Features `(B, H, W, C)`, channels last.

    Returns:
        Features `(B, H, W, C)`.

    Raises:
        ValueError: If `ratio` is not a positive integer, if the input is not `(B, H, W,
            C)` with a known C, or if Keras is set to channels_first.

    Source: E. Xie et al., SegFormer, NeurIPS 2021, section 3.1.
    """

    def __init__(self, ratio=MLP_RATIO, **kwargs):
        super().__init__(**kwargs)
        self.ratio = check_integer("ratio", ratio)

    def build(self, input_shape):
        check_feature_map(self, input_shape)
        channels = input_shape[-1]
        hidden_shape = (*input_shape[:-1], self.ratio * channels)
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.expansion = _dense(self.ratio * channels, **inner)
        self.depthwise = DepthwiseConv2D(
            3, padding="same", data_format="channels_last", **inner
        )
        self.contraction = _dense(channels, **inner)
        self.expansion.build(input_shape)
        self.depthwise.build(hidden_shape)
        self.contraction.build(hidden_shape)

    def call(self, inputs):
        hidden = self.depthwise(self.expansion(inputs))  # (B, H, W, ratio * C)
        return self.contraction(keras.activations.gelu(hidden, approximate=False))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        config = super().get_config()
        config.update(ratio=self.ratio)
        return config


def MiTB0(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="mit_b0"):
    """Build MiT-B0, the encoder of SegFormer-B0: channels 32, 64, 160, 256.

    MiTB1 to MiTB5 have the same arguments, channels 64, 128, 320, 512 and more blocks.
    The input is RGB normalized by ImageNet's mean and standard deviation, which
    `build_segmenter` does in front of the backbone by default.

    Args:
        weights: None for random weights, or the source of pretrained weights of a
            SegFormer or its encoder. Defaults to `None`. Sources are:

            - "imagenet": nvidia/mit-b0 on the Hugging Face Hub (mit-b1 for `MiTB1` and
              so on). NVIDIA licenses it for non-commercial research only.
            - Another name on the Hub, such as
              "nvidia/segformer-b0-finetuned-ade-512-512". A path on disk of that name
              takes precedence. "owner/name@revision" pins a branch, tag or commit.
            - A folder or file of transformers or segmentation_models_pytorch:
              `.safetensors`, `pytorch_model.bin`.
            - A `.pth` file of OpenMMLab's mmsegmentation or of NVlabs' SegFormer.
            - A MiTBackbone or SegFormer of keras-hub, from any preset. The presets are
              fine-tuned on ADE20K or Cityscapes.

            The first three need the extra `weights`; PyTorch's files need torch.
        input_shape: Tuple `(height, width, channels)`, with None for an open height or
            width. Weights for RGB are repeated for other numbers of channels, as by
            `widen_input`. Defaults to `(None, None, 3)`.
        drop_path: Number in [0, 1). Stochastic depth: the rate at which the last
            block's residuals are dropped in training. It rises linearly from 0 at the
            first block. Defaults to `0.1`.
        name: String. Name of the model. Defaults to `"mit_b0"`.

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

    backbone = ksa.MiTB0()
    model = ksa.build_segmenter(backbone, num_classes=19)
    print([stage.channels for stage in model.stages])  # [32, 64, 160, 256]
    ```

    Source: paper, section 5; E. Xie et al., SegFormer, NeurIPS 2021.
    """
    return _mit("b0", (2, 2, 2, 2), NARROW, weights, input_shape, drop_path, name)


def MiTB1(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="mit_b1"):
    """Build MiT-B1, of 2, 2, 2 and 2 blocks. Example: see `MiTB0`."""
    return _mit("b1", (2, 2, 2, 2), WIDE, weights, input_shape, drop_path, name)


def MiTB2(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="mit_b2"):
    """Build MiT-B2, of 3, 4, 6 and 3 blocks. Example: see `MiTB0`."""
    return _mit("b2", (3, 4, 6, 3), WIDE, weights, input_shape, drop_path, name)


def MiTB3(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="mit_b3"):
    """Build MiT-B3, of 3, 4, 18 and 3 blocks. Example: see `MiTB0`."""
    return _mit("b3", (3, 4, 18, 3), WIDE, weights, input_shape, drop_path, name)


def MiTB4(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="mit_b4"):
    """Build MiT-B4, of 3, 8, 27 and 3 blocks. Example: see `MiTB0`."""
    return _mit("b4", (3, 8, 27, 3), WIDE, weights, input_shape, drop_path, name)


def MiTB5(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="mit_b5"):
    """Build MiT-B5, of 3, 6, 40 and 3 blocks. Example: see `MiTB0`."""
    return _mit("b5", (3, 6, 40, 3), WIDE, weights, input_shape, drop_path, name)


def _mit(size, depths, channels, weights, input_shape, drop_path, name):
    """Build a MiT of the given number of blocks and channels per stage."""
    check_rate("drop_path", drop_path)
    input_shape = check_input_shape(input_shape)
    if isinstance(weights, str) and weights == "imagenet":
        # With a revision, it is never taken for a path in a folder `nvidia`.
        weights = f"nvidia/mit-{size}@main"
    # Read first, so that a wrong file raises before a large model is built.
    values = None if weights is None else read_mit_weights(weights)
    widened = widen_stem(values or {}, STEM, input_shape[-1])
    inputs = keras.Input(input_shape, name=WIDENED if widened else None)
    rates = iter(np.linspace(0, drop_path, sum(depths)).tolist())
    x = inputs
    for stage, (depth, width) in enumerate(zip(depths, channels, strict=True), 1):
        kernel, stride = KERNELS[stage - 1], STRIDES[stage - 1]
        # Padded here, since "same" pads an odd size elsewhere than PyTorch does.
        x = layers.ZeroPadding2D(kernel // 2)(x)
        embed = PatchConv2D(width, kernel, stride, name=f"stage{stage}_embed")
        x = embed(x)  # (B, H/stride, W/stride, width)
        x = _norm(f"stage{stage}_embed_norm")(x)
        for block in range(1, depth + 1):
            prefix, rate = f"stage{stage}_block{block}", next(rates)
            attention = EfficientSelfAttention(
                HEADS[stage - 1], REDUCTIONS[stage - 1], name=f"{prefix}_attention"
            )
            ffn = MixFFN(name=f"{prefix}_ffn")
            x = x + _drop_path(rate)(attention(_norm(f"{prefix}_norm1")(x)))
            x = x + _drop_path(rate)(ffn(_norm(f"{prefix}_norm2")(x)))
        x = _norm(f"stage{stage}_norm")(x)
    model = keras.Model(inputs, x, name=name)
    if values is not None:
        assign_mit_weights(model, values)
        model.weights_origin = name_origin(weights)
    return model


def _norm(name):
    return layers.LayerNormalization(epsilon=1e-5, name=name)


def _drop_path(rate):
    # Stochastic depth: whole images are dropped, and the others scaled up.
    return layers.Dropout(rate, noise_shape=(None, 1, 1, 1))


def _dense(units, **inner):
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return Dense(units, kernel_initializer=initializer, **inner)
