"""Spatial attention, alone and of high order (paper, equations 3 to 5)."""

import keras
from keras import layers, ops

from keras_segadapter.layers.faster import Dense, DepthwiseConv2D
from keras_segadapter.validation import (
    check_feature_map,
    check_integer,
    check_num_classes,
)


@keras.saving.register_keras_serializable("keras_segadapter")
class SegAttention(layers.Layer):
    """Spatial attention that gates a linear value with a large-kernel convolution.

    `SegAttention(X) = LayerNorm(DSConv(X)) * Linear(X)`, where `DSConv` is a depthwise
    `kernel_size` x `kernel_size` convolution followed by a pointwise one (paper,
    equation 3).

    Args:
        filters: Integer of at least 1. Number of channels of the output.
        kernel_size: Integer of at least 1. Side of the depthwise kernel, in pixels of
            the feature map. Defaults to `5`.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Features `(B, H, W, C)`, channels last, of any height and width.

    Returns:
        Attended features `(B, H, W, filters)`.

    Raises:
        ValueError: If `filters` or `kernel_size` is not a positive integer, if the
            input is not `(B, H, W, C)` with a known C, or if Keras is set to
            channels_first.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    features = np.random.rand(2, 15, 20, 64).astype("float32")
    print(ksa.SegAttention(filters=32)(features).shape)  # (2, 15, 20, 32)
    ```
    """

    def __init__(self, filters, kernel_size=5, **kwargs):
        super().__init__(**kwargs)
        self.filters = check_integer("filters", filters)
        self.kernel_size = check_integer("kernel_size", kernel_size)
        # Keras would leave the layers inside a frozen one trainable.
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.depthwise = DepthwiseConv2D(
            self.kernel_size, padding="same", data_format="channels_last", **inner
        )
        self.pointwise = Dense(self.filters, **inner)
        self.norm = layers.LayerNormalization(epsilon=1e-6, **inner)
        self.value = Dense(self.filters, **inner)

    def build(self, input_shape):
        check_feature_map(self, input_shape)
        self.depthwise.build(input_shape)
        self.pointwise.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))
        self.value.build(input_shape)

    def call(self, inputs):
        gate = self.norm(self.pointwise(self.depthwise(inputs)))  # (B, H, W, filters)
        return gate * self.value(inputs)  # (B, H, W, filters)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        config = super().get_config()
        config.update(filters=self.filters, kernel_size=self.kernel_size)
        return config


@keras.saving.register_keras_serializable("keras_segadapter")
class HighOrderSpatialAttention(layers.Layer):
    """High-order Spatial Attention: visual attention times semantic attention.

    A classifier scores the features, `S = Cls(X)`. One `SegAttention` attends to the
    features, another to the scores, and their product `Z = F1 * F2` is a fourth-order
    interaction of the two (paper, equations 4 and 5).

    Args:
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K.
        kernel_size: Integer of at least 1. Side of the depthwise kernels, in pixels of
            the feature map. Defaults to `5`.
        width: Integer of at least 1. Channels of Z. A linear layer brings X to them,
            and F1 attends to its output. Defaults to `None`: as many as X has, without
            that layer.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Features X `(B, H, W, C)`, channels last, of any height and width.

    Returns:
        Pair of attended features Z `(B, H, W, width)` and class scores S `(B, H, W,
        K)`, before softmax. Where the layer computes in float16, Z is float32: the
        product of four factors leaves float16's range (65504).

    Raises:
        ValueError: If `num_classes` is less than 2, `width` is not a positive integer,
            and as in `SegAttention`.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    features = np.random.rand(2, 15, 20, 64).astype("float32")
    attended, scores = ksa.HighOrderSpatialAttention(num_classes=19)(features)
    print(attended.shape, scores.shape)  # (2, 15, 20, 64) (2, 15, 20, 19)
    ```
    """

    def __init__(self, num_classes, kernel_size=5, width=None, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = check_num_classes(num_classes)
        self.kernel_size = check_integer("kernel_size", kernel_size)
        self.width = None if width is None else check_integer("width", width)

    def build(self, input_shape):
        check_feature_map(self, input_shape)
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        attended_shape, scores_shape = self.compute_output_shape(input_shape)
        self.classifier = Dense(self.num_classes, **inner)
        self.reduction = layers.Identity(**inner)
        if self.width is not None:
            self.reduction = Dense(self.width, **inner)
        self.visual, self.semantic = (
            SegAttention(attended_shape[-1], self.kernel_size, **inner)
            for _ in range(2)
        )
        self.classifier.build(input_shape)
        self.reduction.build(input_shape)
        self.visual.build(attended_shape)
        self.semantic.build(scores_shape)

    def call(self, inputs):
        scores = self.classifier(inputs)  # (B, H, W, K)
        visual = self.visual(self.reduction(inputs))  # (B, H, W, width)
        semantic = self.semantic(scores)  # (B, H, W, width)
        dtype = self._product_dtype
        return ops.cast(visual, dtype) * ops.cast(semantic, dtype), scores

    def compute_output_shape(self, input_shape):
        *leading, channels = input_shape
        width = channels if self.width is None else self.width
        return (*leading, width), (*leading, self.num_classes)

    def compute_output_spec(self, inputs):
        attended, scores = super().compute_output_spec(inputs)
        return keras.KerasTensor(attended.shape, self._product_dtype), scores

    def get_config(self):
        config = super().get_config()
        config.update(
            num_classes=self.num_classes,
            kernel_size=self.kernel_size,
            width=self.width,
        )
        return config

    @property
    def _product_dtype(self):
        return "float32" if self.compute_dtype == "float16" else self.compute_dtype
