"""SegAdapter: attention and a feed-forward network beside the path (equation 6)."""

import keras
from keras import layers, ops

from keras_segadapter.layers.attention import HighOrderSpatialAttention
from keras_segadapter.layers.faster import Dense
from keras_segadapter.layers.tokens import is_pair, join_tokens, map_shape, split_tokens
from keras_segadapter.validation import (
    check_boolean,
    check_feature_map,
    check_integer,
    check_num_classes,
    check_number,
    check_positive,
)


@keras.saving.register_keras_serializable("keras_segadapter")
class SegAdapter(layers.Layer):
    """Add semantic context to a stage's features: `Y = X + mu * FFN(HSA(X))`.

    `HSA` is `HighOrderSpatialAttention`, `FFN` is Linear, GELU, Linear, and `mu` holds
    one learnable scale per channel (paper, equation 6). With `mu` = 0 the features pass
    unchanged. Pass Y to the next stage of the backbone as well as to the decode head,
    and supervise the scores.

    A block costs 8 C^2 + 3 C K weights, and as many multiply-adds a pixel (kernels,
    norms and biases aside). On wide features that is more than the backbone itself; on
    `width` = w channels it is 5 w^2 + 4 w C + (C + 2 w) K: with half of the channels
    3.25 C^2, with a quarter 1.3 C^2, both without the classes.

    Args:
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K.
        kernel_size: Integer of at least 1. Side of the depthwise kernels in HSA, in
            pixels of the feature map. Defaults to `5`.
        ffn_ratio: Number above 0. Width of the FFN's hidden layer divided by the number
            of channels of its input. Defaults to `3.0`.
        scale_init: Number. Initial value of `mu`. The paper's four stages, shallow to
            deep, start at 1e-5, 1e-4, 1e-3 and 1e-2. Defaults to `1e-2`.
        num_blocks: Integer of at least 1. Number of blocks of equations 3 to 6 in
            sequence. Defaults to `1`.
        width: Integer of at least 1. Channels on which HSA and the FFN work. A linear
            layer in front of HSA brings X to them, and the FFN's last layer goes back
            to C; the scores come from X itself. Defaults to `None`: C, without that
            layer, as in the paper.
        return_scores: Boolean. Whether to return the scores too. Without them the layer
            fits a `keras.Sequential`. Defaults to `True`.
        normalize: Boolean. Whether HSA sees `LayerNorm(X)` instead of X. Stages of MiT
            end in a norm and do not need it. Sums, as in EfficientNet or inside a
            vision transformer, can be large, and since HSA grows with their square,
            adapters then learn badly: `build_segmenter` sets it to True there. Defaults
            to `False`, as in the paper.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Features X `(B, H, W, C)`, channels last, of any height and width. In a
            vision transformer a pair: tokens X `(B, N, C)` and any map `(B, H, W, any)`
            with one pixel per patch, such as the patch convolution's output. The last
            H * W tokens are adapted; class and register tokens, which come before them,
            pass unchanged.

    Returns:
        Pair of adapted features Y in the shape of X and the last block's class scores S
        `(B, H, W, K)`, before softmax; or Y alone if `return_scores` is False.
        In float16 both are computed in float32 and end at float16's largest numbers,
        -65504 and 65504.

    Raises:
        ValueError: If an argument is out of range, if the input is neither `(B, H, W,
            C)` with a known C nor such a pair, or if Keras is set to channels_first.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    features = keras.Input((None, None, 64))
    adapted, scores = ksa.SegAdapter(num_classes=19)(features)
    print(adapted.shape, scores.shape)  # (None, None, None, 64) (None, None, None, 19)

    image = keras.Input((224, 224, 3))
    patches = keras.layers.Conv2D(64, 16, 16)(image)  # (None, 14, 14, 64)
    tokens = keras.layers.Reshape((-1, 64))(patches)
    tokens, scores = ksa.SegAdapter(num_classes=19)([tokens, patches])
    print(tokens.shape, scores.shape)  # (None, 196, 64) (None, 14, 14, 19)
    ```
    """

    def __init__(
        self,
        num_classes,
        kernel_size=5,
        ffn_ratio=3.0,
        scale_init=1e-2,
        num_blocks=1,
        width=None,
        return_scores=True,
        normalize=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = check_num_classes(num_classes)
        self.kernel_size = check_integer("kernel_size", kernel_size)
        self.ffn_ratio = check_positive("ffn_ratio", ffn_ratio)
        self.scale_init = check_number("scale_init", scale_init)
        self.num_blocks = check_integer("num_blocks", num_blocks)
        self.width = None if width is None else check_integer("width", width)
        self.return_scores = check_boolean("return_scores", return_scores)
        self.normalize = check_boolean("normalize", normalize)

    def build(self, input_shape):
        if is_pair(input_shape):
            input_shape = map_shape(self, input_shape)
        check_feature_map(self, input_shape)
        channels = input_shape[-1]
        width = channels if self.width is None else self.width
        hidden = max(1, round(self.ffn_ratio * width))
        # The features grow with their square in each block and leave float16's range.
        low = self.compute_dtype == "float16"
        dtype = "float32" if low else self.dtype_policy
        inner = {"dtype": dtype, "trainable": self.trainable}
        self.norms, self.attentions = [], []
        self.expansions, self.contractions, self.scales = [], [], []
        for _ in range(self.num_blocks):
            norm = layers.Identity(**inner)
            if self.normalize:
                norm = layers.LayerNormalization(epsilon=1e-6, **inner)
                norm.build(input_shape)
            attention = HighOrderSpatialAttention(
                self.num_classes, self.kernel_size, self.width, **inner
            )
            expansion = Dense(hidden, **inner)
            contraction = Dense(channels, **inner)
            attention.build(input_shape)
            expansion.build((*input_shape[:-1], width))
            contraction.build((*input_shape[:-1], hidden))
            scale = self.add_weight(
                shape=(channels,),
                initializer=keras.initializers.Constant(self.scale_init),
                name="mu",
                autocast=False,  # 1e-5 and its gradient are too small for float16
            )
            self.norms.append(norm)
            self.attentions.append(attention)
            self.expansions.append(expansion)
            self.contractions.append(contraction)
            self.scales.append(scale)

    def call(self, inputs):
        is_tokens = isinstance(inputs, (list, tuple))
        if is_tokens:
            leading, features = split_tokens(*inputs)  # (B, N - H*W, C), (B, H, W, C)
        else:
            features = inputs
        low = self.compute_dtype == "float16"
        if low:
            features = ops.cast(features, "float32")
        for norm, attention, expansion, contraction, scale in zip(
            self.norms,
            self.attentions,
            self.expansions,
            self.contractions,
            self.scales,
            strict=True,
        ):
            # (B, H, W, width), (B, H, W, K)
            attended, scores = attention(norm(features))
            hidden = keras.activations.gelu(expansion(attended), approximate=False)
            update = contraction(hidden)  # (B, H, W, C)
            update = update * ops.cast(scale, update.dtype)
            features = features + ops.cast(update, features.dtype)
        if low:
            features, scores = map(_as_float16, (features, scores))
        if is_tokens:
            features = join_tokens(leading, features)  # (B, N, C)
        return (features, scores) if self.return_scores else features

    def compute_output_shape(self, input_shape):
        pair = is_pair(input_shape)
        features_shape = tuple(input_shape[0] if pair else input_shape)
        if not self.return_scores:
            return features_shape
        grid_shape = map_shape(self, input_shape) if pair else input_shape
        return features_shape, (*grid_shape[:-1], self.num_classes)

    def get_config(self):
        config = super().get_config()
        config.update(
            num_classes=self.num_classes,
            kernel_size=self.kernel_size,
            ffn_ratio=self.ffn_ratio,
            scale_init=self.scale_init,
            num_blocks=self.num_blocks,
            width=self.width,
            return_scores=self.return_scores,
            normalize=self.normalize,
        )
        return config


def _as_float16(values):
    """Cast values to float16; those out of its range become its largest numbers."""
    return ops.cast(ops.clip(values, -65504.0, 65504.0), "float16")
