"""MLPHead: the cheap decode head (paper, section 2)."""

import keras
from keras import layers, ops

from keras_segadapter.layers.faster import BatchNormalization, Dense
from keras_segadapter.layers.native import resize_bilinear
from keras_segadapter.validation import (
    check_feature_maps,
    check_integer,
    check_num_classes,
    check_rate,
)


@keras.saving.register_keras_serializable("keras_segadapter")
class MLPHead(layers.Layer):
    """Fuse the features of all stages into class scores at the finest stride.

    Each stage goes through a linear layer, batch norm and GELU; all are resized to the
    finest one, concatenated, projected (linear, batch norm, GELU), and after dropout
    classified (paper, section 2). Since resizing and linear layers commute, the
    projection runs on every stage at its own size and the results are added: the same
    numbers without the wide concatenated tensor. `projection` holds the weights of the
    linear layer over the concatenation, with the stages in the order of the inputs.

    Args:
        num_classes: Integer of at least 2 (two classes are binary). Number of classes
            K.
        channels: Integer of at least 1. Width C_d of the head. Defaults to `256`.
        dropout: Number in [0, 1). Rate at which whole channels are dropped before the
            classifier in training. Defaults to `0.1`.
        activation: String or function. Activation behind each batch norm, as in
            `keras.layers.Activation`. Defaults to `"gelu"`, the paper's. With `"relu"`
            this is the SegformerHead of OpenMMLab's mmsegmentation.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: List of stage features `(B, H_i, W_i, C_i)`, shallow (largest) to deep.
        training: Boolean. Whether batch norm and dropout are in training mode.

    Returns:
        Class scores `(B, H_1, W_1, K)` at the size of the first input, before softmax.

    Raises:
        ValueError: If an argument is out of range, if the input is not a list of
            feature maps `(B, H, W, C)` with a known C, or if Keras is set to
            channels_first.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    stages = [np.ones((1, 64 // s, 96 // s, 8 * s), "float32") for s in (4, 8, 16)]
    print(ksa.MLPHead(num_classes=19)(stages).shape)  # (1, 16, 24, 19)
    ```
    """

    def __init__(
        self, num_classes, channels=256, dropout=0.1, activation="gelu", **kwargs
    ):
        super().__init__(**kwargs)
        self.num_classes = check_num_classes(num_classes)
        self.channels = check_integer("channels", channels)
        self.dropout = check_rate("dropout", dropout)
        self.activation = keras.activations.get(activation)
        # Keras would leave the layers inside a frozen one trainable.
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.projection_norm = _norm(**inner)
        self.drop = layers.SpatialDropout2D(
            dropout, data_format="channels_last", dtype=self.dtype_policy
        )
        self.classifier = Dense(self.num_classes, **inner)

    def build(self, input_shape):
        check_feature_maps(self, input_shape)
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.linears, self.norms = [], []
        for shape in input_shape:
            linear = Dense(self.channels, use_bias=False, **inner)
            norm = _norm(**inner)
            linear.build(shape)
            norm.build((*shape[:-1], self.channels))
            self.linears.append(linear)
            self.norms.append(norm)
        self.projection = self.add_weight(
            shape=(len(input_shape) * self.channels, self.channels),
            initializer="glorot_uniform",
            name="projection",
        )
        fused_shape = (*input_shape[0][:-1], self.channels)
        self.projection_norm.build(fused_shape)
        self.classifier.build(fused_shape)

    def call(self, inputs, training=None):
        _, height, width, _ = ops.shape(inputs[0])
        shape = (len(inputs), self.channels, self.channels)
        weights = ops.unstack(ops.reshape(self.projection, shape))  # n of (C_d, C_d)
        parts = (
            self._project(*part, training=training)
            for part in zip(inputs, self.linears, self.norms, weights, strict=True)
        )
        fused = next(parts)
        for part in parts:
            part = resize_bilinear(part, height, width)
            fused = fused + ops.cast(part, fused.dtype)  # (B, H_1, W_1, C_d)
        fused = self.activation(self.projection_norm(fused, training=training))
        if training:
            # A product with 0 or 1 / (1 - rate) a channel, where the layer by itself
            # would make a quotient and a choice of the whole map.
            fused = fused * self.drop(ops.ones_like(fused[:, :1, :1]), training=True)
        return self.classifier(fused)  # (B, H_1, W_1, K)

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.num_classes)

    def get_config(self):
        config = super().get_config()
        config.update(
            num_classes=self.num_classes,
            channels=self.channels,
            dropout=self.dropout,
            activation=keras.activations.serialize(self.activation),
        )
        return config

    def _project(self, features, linear, norm, weight, training):
        """Return what a stage adds to the projection, at its own size."""
        hidden = norm(linear(features), training=training)  # (B, H_i, W_i, C_d)
        hidden = self.activation(hidden)
        return ops.matmul(hidden, ops.cast(weight, hidden.dtype))


def _norm(**inner):
    # Momentum 0.9 is PyTorch's 0.1, with which the paper's models were trained.
    return BatchNormalization(epsilon=1e-6, momentum=0.9, **inner)
