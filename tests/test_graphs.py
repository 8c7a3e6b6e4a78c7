"""Small backbones of every kind of graph: stages, a step, any size, files.

Each is written out with plain layers, and stands below the stages that a practitioner
would name: stride and channels, shallow to deep.
"""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import layers, ops

from keras_segadapter import build_segmenter, find_stages

K = 3
GRAPHS = {}  # by name: the function that builds the backbone, and its stages


def stages(*expected):
    """Return a decorator that adds a backbone to the table, with its stages."""

    def add(build):
        GRAPHS[build.__name__] = build, [*expected]
        return build

    return add


def image(*size, channels=3):
    return keras.Input((*(size or (None, None)), channels))


def block(x, width, stride=1, size=3, **options):
    """Convolve, normalize, and cut off what is negative."""
    x = layers.Conv2D(width, size, stride, padding="same", use_bias=False, **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def depthwise(x, stride=1, size=3):
    x = layers.DepthwiseConv2D(size, stride, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def linear(x, width):
    """Convolve each pixel by itself, without an activation."""
    x = layers.Conv2D(width, 1, use_bias=False)(x)
    return layers.BatchNormalization()(x)


def trunk(x, widths=(8, 12, 16)):
    """Return plain maps at strides 4, 8 and so on."""
    maps = []
    for width in widths:
        x = block(x, width, 2 if maps else 4)
        maps.append(x)
    return maps


def attend(tokens):
    """Let tokens read each other, with a residual path."""
    x = layers.LayerNormalization()(tokens)
    return tokens + layers.MultiHeadAttention(2, 4)(x, x)


def mlp(x):
    """Run a residual MLP on tokens or pixels."""
    y = layers.Dense(2 * x.shape[-1], "gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(x.shape[-1])(y)


# Convolutional networks by the book


@stages((4, 8), (8, 12), (16, 16), (32, 24))
def resnet_basic():
    def residual(x, width, stride=1):
        y = layers.Conv2D(width, 3, stride, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(width, 3, padding="same")(y)
        y = layers.BatchNormalization()(y)
        if stride > 1 or x.shape[-1] != width:
            x = layers.BatchNormalization()(layers.Conv2D(width, 1, stride)(x))
        return layers.ReLU()(layers.Add()([x, y]))

    images = image()
    x = layers.MaxPooling2D(3, 2, padding="same")(block(images, 8, 2))
    for width, stride in ((8, 1), (12, 2), (16, 2), (24, 2)):
        x = residual(residual(x, width, stride), width)
    return keras.Model(images, x)


@stages((4, 16), (8, 24), (16, 32))
def resnet_bottlenecks_with_preactivation():
    def residual(x, width, stride=1):
        before = layers.ReLU()(layers.BatchNormalization()(x))
        y = block(before, width // 4, size=1)
        y = layers.Conv2D(width, 1)(block(y, width // 4, stride))
        if stride > 1 or x.shape[-1] != width:
            x = layers.Conv2D(width, 1, stride)(before)
        return layers.Add()([x, y])

    images = image()
    x = block(images, 8, 4)
    for width, stride in ((16, 1), (24, 2), (32, 2)):
        x = residual(residual(x, width, stride), width)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(images, x)


@stages((4, 12), (8, 16), (16, 16))
def vgg():
    images = image()
    x = images
    for width in (8, 8, 12, 16):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)  # each map is tapped in front of its pooling
    return keras.Model(images, x)


@stages((4, 24), (8, 48))
def inception():
    def mixed(x):
        pooled = layers.AveragePooling2D(3, 1, padding="same")(x)
        branches = [block(x, 8, size=1), block(block(x, 4, size=1), 8)]
        return layers.Concatenate()([*branches, block(pooled, 8, size=1)])

    images = image()
    x = mixed(block(images, 8, 4))
    pooled = layers.MaxPooling2D(2, 2, padding="same")(x)
    x = layers.Concatenate()([block(x, 24, 2), pooled])
    x = layers.Concatenate()([mixed(x), block(x, 24, size=1)])
    return keras.Model(images, x)


@stages((4, 16), (8, 16), (16, 16))
def densenet():
    images = image()
    x = block(images, 8, 4)
    for deeper in (True, True, False):
        for _ in range(2):
            y = layers.ReLU()(layers.BatchNormalization()(x))
            y = block(layers.Conv2D(8, 1)(y), 4)
            x = layers.Concatenate()([x, y])
        x = layers.ReLU()(layers.BatchNormalization()(x))
        if deeper:
            x = layers.AveragePooling2D(2)(layers.Conv2D(8, 1)(x))
    return keras.Model(images, x)


@stages((4, 8), (8, 16), (16, 24))
def csp():
    images = image()
    x = block(images, 8, 2)
    for width in (8, 16, 24):
        x = block(x, width, 2)
        kept, worked = block(x, width, size=1), block(x, width, size=1)
        worked = layers.Add()([worked, block(block(worked, width, size=1), width)])
        x = block(layers.Concatenate()([worked, kept]), width, size=1)
    return keras.Model(images, x)


@stages((4, 8), (8, 12), (16, 16))
def inverted_bottlenecks_with_squeeze_and_excite():
    def inverted(x, width, stride=1):
        y = depthwise(block(x, 4 * x.shape[-1], size=1), stride, 5)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = layers.Conv2D(4, 1, activation="relu")(gate)
        gate = layers.Conv2D(y.shape[-1], 1, activation="sigmoid")(gate)
        y = linear(layers.Multiply()([y, gate]), width)
        return layers.Add()([x, y]) if stride == 1 else y

    images = image()
    x = block(images, 8, 2)
    for width, stride in ((8, 2), (12, 2), (16, 2)):
        x = inverted(inverted(x, width, stride), width)
    return keras.Model(images, block(x, 64, size=1))  # a classifier's wide layer


@stages((4, 8), (8, 16), (16, 24))
def convnext():
    images = image()
    x = layers.LayerNormalization()(layers.Conv2D(8, 4, 4)(images))
    for width in (8, 16, 24):
        if width > 8:
            x = layers.Conv2D(width, 2, 2)(layers.LayerNormalization()(x))
        for _ in range(2):
            y = layers.DepthwiseConv2D(7, padding="same")(x)
            y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(y))
            x = x + layers.Dense(width)(y)
    return keras.Model(images, x)


# Inner tensors that are no ends


@stages((4, 8), (8, 16), (16, 24), (32, 32))
def squeeze_then_expansion():
    images = image()
    x = layers.Conv2D(8, 4, 4)(images)
    for width in (16, 24, 32):
        x = layers.Conv2D(width, 3, 2, padding="same")(x)
        y = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.Concatenate()([x, y])
        x = layers.ReLU()(layers.Conv2D(width // 2, 1)(x))
        x = layers.ReLU()(layers.Conv2D(width, 1)(x))
    return keras.Model(images, x)


@stages((4, 8), (8, 16), (16, 24), (32, 32))
def inverted_bottleneck_behind_a_fusing_convolution():
    images = image()
    x = layers.Conv2D(8, 4, 4)(images)
    for width in (16, 24, 32):
        x = layers.ReLU()(layers.Conv2D(4 * x.shape[-1], 1)(x))
        x = layers.DepthwiseConv2D(3, 2, padding="same")(x)
        x = layers.Conv2D(width, 1)(x)
        x = layers.Concatenate()([x, layers.Conv2D(width, 3, padding="same")(x)])
        x = layers.ReLU()(layers.Conv2D(width, 3, padding="same")(x))
    return keras.Model(images, x)


# Resolutions


# Stages that keep their resolution are one: DeepLab takes its low-level features and
# its end.
@stages((4, 8), (8, 24))
def dilated():
    images = image()
    x = block(block(images, 8, 4), 8)
    x = block(x, 12, 2)
    x = block(x, 16, dilation_rate=2)
    x = layers.Add()([x, block(x, 16, dilation_rate=2)])
    x = block(x, 24, dilation_rate=4)
    return keras.Model(images, layers.Add()([x, block(x, 24, dilation_rate=4)]))


@stages((1, 8))
def never_strided():
    images = image()
    x = block(images, 8)
    for _ in range(2):
        x = layers.Add()([x, block(x, 8)])
    return keras.Model(images, x)


@stages((4, 8), (8, 8), (16, 12), (32, 12), (64, 16))
def five_stages():
    images = image()
    return keras.Model(images, trunk(images, (8, 8, 12, 12, 16))[-1])


@stages((4, 8), (8, 12), (16, 16))
def valid_convolutions_behind_paddings():
    images = image()
    x = layers.Conv2D(8, 7, 2)(layers.ZeroPadding2D(3)(images))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for width in (12, 16):
        x = layers.Conv2D(x.shape[-1], 3)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
        x = layers.Conv2D(width, 3, 2)(layers.ZeroPadding2D(1)(layers.ReLU()(x)))
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(images, x)


@stages((4, 8), (8, 12), (16, 16))
def blurred_before_each_stride():
    images = image()
    x = block(images, 8, 4)
    for width in (12, 16):
        blur = layers.DepthwiseConv2D(
            4, 2, "same", depthwise_initializer=keras.initializers.Constant(1 / 16)
        )
        blur.trainable = False
        x = block(blur(block(x, x.shape[-1])), width)
    return keras.Model(images, x)


@stages((4, 8), (8, 12), (16, 16))
def averaged_before_each_stride():
    images = image()
    x = block(images, 8, 4)
    for width in (12, 16):
        skip = linear(layers.AveragePooling2D(2, padding="same")(x), width)
        x = layers.ReLU()(layers.Add()([skip, linear(block(x, width, 2), width)]))
    return keras.Model(images, x)


# The stride is that of the side that falls faster.
@stages((4, 8), (8, 12), (16, 16))
def tall_strides():
    images = image()
    x = block(block(block(images, 8, 4), 12, (2, 1)), 16, (2, 1))
    return keras.Model(images, x)


@stages((4, 8), (8, 12), (16, 16))
def wide_strides():
    images = image()
    x = block(block(block(images, 8, 4), 12, (1, 2)), 16, (1, 2))
    return keras.Model(images, x)


@stages((4, 8), (8, 12), (16, 16))
def transposed_convolutions_behind():
    images = image()
    x = trunk(images)[-1]
    for width in (12, 8):
        x = layers.Conv2DTranspose(width, 2, 2, activation="relu")(x)
    return keras.Model(images, x)


# Branches of several resolutions, which images must be padded for


@stages((4, 8), (8, 24))
def context_path():
    images = image()
    stem = block(images, 8, 4)
    detail = block(stem, 16, 2)
    context = block(block(block(stem, 16, 2), 16, 2), 16, 2)
    context = layers.Multiply()(
        [context, layers.GlobalAveragePooling2D(keepdims=True)(context)]
    )
    context = layers.UpSampling2D(4)(context)
    return keras.Model(images, block(layers.Concatenate()([detail, context]), 24))


@stages((4, 8), (8, 16))
def two_branches_with_exchanges():
    images = image()
    x = block(images, 8, 4)
    high = block(x, 16, 2)
    low = block(high, 16, 2)
    for _ in range(2):
        up = layers.UpSampling2D(2)(linear(low, 16))
        down = block(high, 16, 2)
        high = layers.ReLU()(layers.Add()([block(high, 16), up]))
        low = layers.ReLU()(layers.Add()([block(low, 16), down]))
    low = layers.UpSampling2D(4)(block(low, 16, 2))
    return keras.Model(images, layers.Add()([high, low]))


def resolutions(images):
    """Return the maps of three resolutions that read each other."""
    s4 = block(images, 8, 4)
    s8 = block(s4, 12, 2)
    up = layers.UpSampling2D(2)
    s4, s8 = s4 + up(linear(s8, 8)), s8 + block(s4, 12, 2)
    s16 = block(s8, 16, 2)
    return (
        s4 + up(linear(s8, 8)),
        s8 + block(s4, 12, 2) + up(linear(s16, 12)),
        s16 + block(s8, 16, 2),
    )


@stages((4, 24))
def resolutions_joined():
    images = image()
    s4, s8, s16 = resolutions(images)
    x = [s4, layers.UpSampling2D(2)(s8), layers.UpSampling2D(4)(s16)]
    return keras.Model(images, block(layers.Concatenate()(x), 24, size=1))


@stages((4, 8))
def unet():
    images = image()
    *skips, x = trunk(images)
    for skip in skips[::-1]:
        x = layers.Concatenate()([layers.UpSampling2D(2)(x), skip])
        x = block(x, skip.shape[-1])
    return keras.Model(images, x)


def pyramid(maps, width=12):
    """Return the maps of a feature pyramid, from coarse to fine."""
    x = layers.Conv2D(width, 1)(maps[-1])
    found = [x]
    for each in maps[-2::-1]:
        x = layers.UpSampling2D(2)(x) + layers.Conv2D(width, 1)(each)
        found.append(x)
    return [layers.Conv2D(width, 3, padding="same")(x) for x in found]


@stages((4, 12))
def feature_pyramid_joined():
    images = image()
    coarse, middle, fine = pyramid(trunk(images))
    x = [layers.UpSampling2D(4)(coarse), layers.UpSampling2D(2)(middle), fine]
    return keras.Model(images, layers.Add()(x))


@stages((4, 8), (8, 12), (16, 24))
def pyramid_pooling():
    images = image()
    x = trunk(images)[-1]
    pooled = [x]
    for size in (2, 4):
        y = layers.AveragePooling2D(size, padding="same")(x)
        pooled.append(layers.UpSampling2D(size)(block(y, 4, size=1)))
    return keras.Model(images, block(layers.Concatenate()(pooled), 24))


# Several outputs


@stages((4, 8), (16, 16))
def dictionary_of_outputs():
    images = image()
    low, _, high = trunk(images)
    return keras.Model(images, {"low": low, "high": high})


# Two of the outputs are off the path to the deepest one; only the head reads them.
@stages((4, 2), (8, 2), (16, 16))
def side_outputs():
    images = image()
    maps = trunk(images)
    return keras.Model(images, [*(layers.Conv2D(2, 1)(x) for x in maps[:2]), maps[2]])


@stages((4, 12), (8, 12), (16, 12))
def feature_pyramid_of_outputs():
    images = image()
    return keras.Model(images, pyramid(trunk(images))[::-1])


@stages((4, 8), (8, 12), (16, 16))
def resolutions_as_outputs():
    images = image()
    return keras.Model(images, [*resolutions(images)])


# How it is written


@stages((4, 8), (8, 8), (16, 8), (32, 8))
def shared_layers():
    images = image()
    x = block(images, 8, 4)
    halve = layers.Conv2D(8, 3, 2, padding="same", activation="relu")
    for _ in range(3):
        x = halve(x)
    return keras.Model(images, x)


@stages((4, 8), (8, 8), (16, 8), (32, 12))
def nested_models():
    def model(channels, width, stride):
        inner = image(channels=channels)
        x = block(inner, width, stride)
        return keras.Model(inner, layers.Add()([x, block(x, width)]))

    images = image()
    twice = model(8, 8, 2)
    x = twice(twice(model(3, 8, 4)(images)))
    # One more level: the last stage is a model in a model.
    inner = image(channels=8)
    last = keras.Model(inner, model(8, 12, 2)(inner))
    return keras.Model(images, last(x))


@stages((4, 8), (8, 12), (16, 16))
def sequential_models_inside():
    images = image()
    x = layers.Conv2D(8, 4, 4)(images)
    for width in (12, 16):
        branch = [
            layers.Conv2D(width, 3, 2, padding="same", activation="relu"),
            layers.Conv2D(width, 3, padding="same"),
        ]
        y = keras.Sequential(branch)(x)
        x = layers.ReLU()(layers.Add()([layers.Conv2D(width, 1, 2)(x), y]))
    return keras.Model(images, x)


@stages((4, 6), (8, 12), (16, 24))
def operations_only():
    images = image()
    x = images / 255.0
    for stride in (4, 2, 2):
        x = ops.average_pool(x, stride, stride, padding="same")
        x = ops.concatenate([x, ops.relu(x - 0.5)], axis=-1)
    return keras.Model(images, x)


@stages((4, 8), (8, 12), (16, 16))
def preprocessing_inside():
    images = image()
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Normalization(mean=[0.5, 0.4, 0.4], variance=[0.1, 0.1, 0.1])(x)
    return keras.Model(images, trunk(x)[-1])


@stages((4, 8), (8, 12), (16, 16))
def four_channels():
    images = image(channels=4)
    return keras.Model(images, trunk(images)[-1])


@stages((4, 8), (8, 12), (16, 16))
def fixed_rectangle():
    images = image(48, 80)
    return keras.Model(images, trunk(images)[-1])


# Tokens


@stages((4, 8), (8, 12), (16, 16))
def tokens_in_between():
    images = image(64, 64)
    x = trunk(images)[-1]
    tokens = mlp(attend(layers.Reshape((16, 16))(x)))
    x = layers.Add()([x, layers.Reshape((4, 4, 16))(tokens)])
    return keras.Model(images, x)


@stages((4, 8), (8, 16), (16, 24), (32, 32))
def folded_patches():
    def unfolded(x):
        _, height, width, channels = x.shape
        half = (height // 2, width // 2)
        y = layers.Reshape((half[0], 2, half[1], 2, channels))(x)
        y = layers.Permute((2, 4, 1, 3, 5))(y)
        y = layers.Reshape((4, half[0] * half[1], channels))(y)  # (B, P, N, C)
        y = mlp(y)
        y = layers.Reshape((2, 2, *half, channels))(y)
        y = layers.Permute((3, 1, 4, 2, 5))(y)
        return layers.Reshape((height, width, channels))(y)

    images = image(128, 128)
    x = block(images, 8, 4)
    for width in (16, 24, 32):
        x = unfolded(block(x, width, 2))
        x = layers.Conv2D(width, 1)(x)
    return keras.Model(images, x)


@stages((4, 8), (8, 16), (16, 32))
def patch_merging():
    images = image()
    x = mlp(layers.Conv2D(8, 4, 4)(images))
    for width in (16, 32):
        x = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = layers.LayerNormalization()(layers.Concatenate()(x))
        x = mlp(layers.Dense(width, use_bias=False)(x))
    return keras.Model(images, x)


@stages((16, 16), (16, 16), (16, 16), (16, 16))
def vision_transformer_with_a_class_token():
    images = image(64, 64)
    patches = layers.Reshape((16, 16))(layers.Conv2D(16, 16, 16)(images))
    token = layers.Dense(16)(ops.zeros_like(patches[:, :1]))
    x = layers.Concatenate(axis=1)([token, patches])
    # A learned bias for each position.
    x = layers.EinsumDense("btc,cd->btd", (17, 16), bias_axes="td")(x)
    for _ in range(4):
        x = mlp(attend(x))
    return keras.Model(images, layers.LayerNormalization()(x))


# Meaning


@pytest.mark.parametrize("name", GRAPHS)
def test_stages_are_those_that_a_practitioner_would_name(name):
    build, expected = GRAPHS[name]
    found = find_stages(build())
    assert [(stage.stride, stage.channels) for stage in found] == expected


def pixels(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, "uint8")


@pytest.mark.integration
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_trains_and_segments_images_of_any_size(name):
    model = build_segmenter(GRAPHS[name][0](), K)
    model.compile(run_eagerly=EAGER)
    _, height, width, channels = model.input_shape
    size = (height or 64, width or 128)
    masks = pixels(2, *size, seed=1) % K
    logs = model.train_on_batch(pixels(2, *size, channels), masks, return_dict=True)
    assert np.isfinite(logs["loss"])
    ids = model.segment(pixels(60, 61, channels))
    assert ids.shape == (60, 61) and ids.max() < K


LOAD = """
import sys
from pathlib import Path
import keras, numpy as np
keras.layers.Add()([keras.Input((4,))] * 2)  # as if another model was built before
import keras_segadapter
for path in sorted(Path(sys.argv[1]).glob("*.keras")):
    model = keras.models.load_model(path)
    logits = model.for_inference()(np.load(path.with_suffix(".npy")))
    np.save(path.with_suffix(".loaded.npy"), keras.ops.convert_to_numpy(logits))
"""


@pytest.mark.slow
def test_graphs_come_back_from_their_files_in_a_fresh_process(tmp_path):
    expected = {}
    for name, (build, _) in GRAPHS.items():
        model = build_segmenter(build(), K)
        _, height, width, channels = model.input_shape
        images = pixels(1, height or 64, width or 128, channels)
        logits = model.for_inference()(images)
        expected[name] = keras.ops.convert_to_numpy(logits)
        np.save(tmp_path / f"{name}.npy", images)
        model.save(tmp_path / f"{name}.keras")
    # One process for all: to start one takes longer than to load a small model.
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    subprocess.run(command, env=environment, check=True)
    for name, logits in expected.items():
        loaded = np.load(tmp_path / f"{name}.loaded.npy")
        np.testing.assert_allclose(loaded, logits, atol=1e-5, err_msg=name)
