"""SimpleFeaturePyramid: several resolutions from a plain vision transformer's one."""

import math
from numbers import Real

import keras
from keras import layers

from keras_segadapter.layers.faster import PatchConv2DTranspose
from keras_segadapter.validation import check_feature_maps


@keras.saving.register_keras_serializable("keras_segadapter")
class SimpleFeaturePyramid(layers.Layer):
    """Turn the features of a plain vision transformer into a pyramid.

    All blocks of a plain ViT work at one stride, 16 or 14, at which a decode head gives
    coarse masks. This neck resizes the map of each tap by a factor of its own: with the
    default factors, maps of stride 16 become maps of strides 4, 8, 16 and 32. A
    transposed convolution (kernel 2, stride 2) doubles height and width and halves the
    channels, with layer norm and GELU between two of them; max pooling makes maps
    smaller, and a factor of 1 leaves a map as it is.

    Pass it to `build_segmenter` as `neck`, which puts the backbone's final norm in
    front of it.

    Args:
        scale_factors: List of powers of two, one per feature map, shallow to deep.
            What height and width are multiplied by. Defaults to `(4, 2, 1, 0.5)`.
        **kwargs: `name`, `dtype` and `trainable`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: List of feature maps `(B, H_i, W_i, C_i)`, as many as scale factors.

    Returns:
        List of feature maps `(B, f * H_i, f * W_i, C_i / f)` for factors f above 1, and
        `(B, f * H_i, f * W_i, C_i)` for others, where odd sizes are rounded up.

    Raises:
        ValueError: If a factor is not a power of two, if the input is not a list of as
            many feature maps `(B, H, W, C)` with a known C, or if Keras is set to
            channels_first.

    Example:

    ```python
    import numpy as np
    import keras_segadapter as ksa

    taps = [np.ones((1, 14, 14, 384), "float32") for _ in range(4)]
    for features in ksa.SimpleFeaturePyramid()(taps):
        print(features.shape)  # (1, 56, 56, 96), then (1, 28, 28, 192) and so on
    ```

    Source: Y. Li et al., Exploring Plain Vision Transformer Backbones for Object
    Detection, ECCV 2022, section 3; H. Bao et al., BEiT, ICLR 2022, for the four taps.
    """

    def __init__(self, scale_factors=(4, 2, 1, 0.5), **kwargs):
        super().__init__(**kwargs)
        self.scale_factors = _check_factors(scale_factors)

    def build(self, input_shape):
        check_feature_maps(self, input_shape)
        if len(input_shape) != len(self.scale_factors):
            raise ValueError(
                f"{type(self).__name__} '{self.name}' takes one feature map for each "
                "scale factor. Pass as many `scale_factors` as there are maps. "
                f"Received: scale_factors={self.scale_factors} and {len(input_shape)} "
                "maps"
            )
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.branches = []
        for factor, shape in zip(self.scale_factors, input_shape, strict=True):
            branch = layers.Identity(**inner)
            if factor > 1:
                branch = Upsampling(round(math.log2(factor)), **inner)
            elif factor < 1:
                branch = layers.MaxPooling2D(
                    round(1 / factor),
                    padding="same",
                    data_format="channels_last",
                    **inner,
                )
            branch.build(shape)
            self.branches.append(branch)

    def call(self, inputs):
        maps = zip(self.branches, inputs, strict=True)
        return [branch(features) for branch, features in maps]

    def compute_output_shape(self, input_shape):
        shapes = []
        for factor, shape in zip(self.scale_factors, input_shape, strict=True):
            batch, *size, channels = shape
            size = [None if side is None else math.ceil(side * factor) for side in size]
            for _ in range(round(math.log2(factor))):
                channels = _halved(channels)
            shapes.append((batch, *size, channels))
        return shapes

    def get_config(self):
        config = super().get_config()
        config.update(scale_factors=list(self.scale_factors))
        return config


class Upsampling(layers.Layer):
    """Double height and width several times; the channels are halved each time."""

    def __init__(self, times, **kwargs):
        super().__init__(**kwargs)
        self.times = times

    def build(self, input_shape):
        inner = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.deconvolutions, self.norms = [], []
        for index in range(self.times):
            if index > 0:
                norm = layers.LayerNormalization(epsilon=1e-6, **inner)
                norm.build(input_shape)
                self.norms.append(norm)
            deconvolution = PatchConv2DTranspose(
                _halved(input_shape[-1]), 2, 2, data_format="channels_last", **inner
            )
            deconvolution.build(input_shape)
            self.deconvolutions.append(deconvolution)
            input_shape = (*input_shape[:-1], deconvolution.filters)

    def call(self, inputs):
        first, *others = self.deconvolutions
        features = first(inputs)  # (B, 2H, 2W, C/2)
        for norm, deconvolution in zip(self.norms, others, strict=True):
            hidden = keras.activations.gelu(norm(features), approximate=False)
            features = deconvolution(hidden)  # (B, 4H, 4W, C/4), and so on
        return features


def _halved(channels):
    return max(1, channels // 2)


def _check_factors(factors):
    """Return `scale_factors` as a tuple, validated to be powers of two."""
    fit = isinstance(factors, (list, tuple)) and factors
    for factor in factors if fit else ():
        number = isinstance(factor, Real) and not isinstance(factor, bool)
        fit = fit and number and factor > 0 and math.frexp(factor)[0] == 0.5
    if not fit:
        raise ValueError(
            "`scale_factors` must be a list of powers of two, such as (4, 2, 1, 0.5), "
            f"one per feature map. Received: scale_factors={factors!r}"
        )
    return tuple(factors)
