"""SegAdapter: HSA and a feed-forward network beside the path (equation 6)."""

import math

import keras
from keras import layers, ops

from keras_segadapter.layers.attention import HighOrderSpatialAttention
from keras_segadapter.validation import (
    check_feature_map,
    check_integer,
    check_num_classes,
)
from keras_segadapter.layers.native import Dense
from keras_segadapter.layers.tokens import is_pair, join_tokens, map_shape, split_tokens


@keras.saving.register_keras_serializable("keras_segadapter")
class SegAdapter(layers.Layer):
    """Add semantic context to a stage's features: `Y = X + mu * FFN(HSA(X))`.

    `FFN` is Linear, GELU, Linear, and `mu` one learnable scale a channel (paper,
    equation 6). With `mu` = 0 the features pass unchanged. Hand Y on to the next stage
    of the backbone as well as to the decode head; supervise the scores.

    Args:
        num_classes: Number of classes K, at least 2 (two classes are binary).
        kernel_size: Side of the depthwise kernels in HSA, in feature pixels.
        ffn_ratio: Width of the FFN's hidden layer over the number of channels.
        scale_init: Value of `mu` at the start. The paper's four stages, shallow to
            deep: 1e-5, 1e-4, 1e-3, 1e-2.
        num_blocks: Blocks of equations 3 to 6 in sequence.
        return_scores: Whether to return the scores too. False makes the layer fit a
            `keras.Sequential`.
        normalize: Whether HSA sees `LayerNorm(X)`. The paper's backbones end their
            stages in a norm and have no need of it. Elsewhere X can be large, HSA grows
            with its square and the scores with X, and the adapters learn badly.
        **kwargs: Keras' layer arguments (`name`, `dtype`, `trainable`).

    Call arguments:
        inputs: Features X `(B, H, W, C)`, channels last, any height and width. In a
            vision transformer a pair: tokens X `(B, N, C)`, and any map `(B, H, W,
            any)` with a pixel for each patch, such as the patch convolution's output.
            The last H * W tokens are adapted; class and register tokens, which come
            before them, pass through untouched.

    Returns:
        A pair: adapted features Y in the shape of X and the last block's class scores S
        `(B, H, W, K)`, before softmax; or Y alone where `return_scores` is False.

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
        return_scores=True,
        normalize=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = check_num_classes(num_classes)
        self.kernel_size = check_integer("kernel_size", kernel_size)
        if not 0 < ffn_ratio < math.inf:
            raise ValueError(
                "`ffn_ratio` must be above 0 and finite. Received: "
                f"ffn_ratio={ffn_ratio}"
            )
        if not math.isfinite(scale_init):
            raise ValueError(
                f"`scale_init` must be finite. Received: scale_init={scale_init}"
            )
        self.ffn_ratio = float(ffn_ratio)
        self.scale_init = float(scale_init)
        self.num_blocks = check_integer("num_blocks", num_blocks)
        self.return_scores = return_scores
        self.normalize = normalize

    def build(self, input_shape):
        if is_pair(input_shape):
            input_shape = map_shape(self, input_shape)
        check_feature_map(self, input_shape)
        channels = input_shape[-1]
        hidden = max(1, round(self.ffn_ratio * channels))
        # HSA's product leaves float16's range, so what reads it must be wider.
        policy = "float32" if self.compute_dtype == "float16" else self.dtype_policy
        self.norms, self.attentions = [], []
        self.expansions, self.contractions, self.scales = [], [], []
        for _ in range(self.num_blocks):
            norm = layers.Identity(dtype=self.dtype_policy)
            if self.normalize:
                norm = layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy)
                norm.build(input_shape)
            attention = HighOrderSpatialAttention(
                self.num_classes, self.kernel_size, dtype=self.dtype_policy
            )
            expansion = Dense(hidden, dtype=policy)
            contraction = Dense(channels, dtype=policy)
            attention.build(input_shape)
            expansion.build(input_shape)
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
        tokens = isinstance(inputs, (list, tuple))
        if tokens:
            leading, features = split_tokens(*inputs)  # (B, N - H*W, C), (B, H, W, C)
        else:
            features = inputs
        for norm, attention, expansion, contraction, scale in zip(
            self.norms,
            self.attentions,
            self.expansions,
            self.contractions,
            self.scales,
            strict=True,
        ):
            attended, scores = attention(norm(features))  # (B, H, W, C), (B, H, W, K)
            hidden = keras.activations.gelu(expansion(attended), approximate=False)
            update = contraction(hidden)  # (B, H, W, C)
            update = update * ops.cast(scale, update.dtype)
            features = features + ops.cast(update, features.dtype)
        if tokens:
            features = join_tokens(leading, features)  # (B, N, C)
        return (features, scores) if self.return_scores else features

    def compute_output_shape(self, input_shape):
        if is_pair(input_shape):
            features_shape = tuple(input_shape[0])
            scores_shape = (*map_shape(self, input_shape)[:-1], self.num_classes)
        else:
            features_shape = tuple(input_shape)
            scores_shape = (*input_shape[:-1], self.num_classes)
        return (features_shape, scores_shape) if self.return_scores else features_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            num_classes=self.num_classes,
            kernel_size=self.kernel_size,
            ffn_ratio=self.ffn_ratio,
            scale_init=self.scale_init,
            num_blocks=self.num_blocks,
            return_scores=self.return_scores,
            normalize=self.normalize,
        )
        return config
