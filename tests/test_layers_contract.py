"""Every layer of the package fulfills the contract in `contract.py`."""

import math

import keras
import pytest
from contract import check_layer
from numpy_method import (
    depthwise,
    efficient_self_attention,
    high_order_attention,
    linear,
    maps,
    mix_ffn,
    mlp_head,
    patch_convolution,
    patch_transposed_convolution,
    resize_like,
    seg_adapter,
    seg_attention,
    segformer_head,
    simple_feature_pyramid,
    tokens_to_map,
)

import keras_segadapter as ksa
from keras_segadapter.backbones.convnext import LayerScale
from keras_segadapter.backbones.mit import EfficientSelfAttention, MixFFN
from keras_segadapter.layers.faster import (
    Dense,
    DepthwiseConv2D,
    PatchConv2D,
    PatchConv2DTranspose,
)


def one_map(height, width):
    return [(2, height, width, 6)]


def two_stages(height, width):
    return [(2, height, width, 3), (2, -(-height // 2), -(-width // 2), 4)]


def four_taps(height, width):
    return [(2, height, width, 6)] * 4


def map_and_reference(height, width):
    return [(2, height, width, 4), (2, 2 * height - 1, width + 3, 1)]


def tokens_and_grid(height, width):
    return [(2, 2 + height * width, 6), (2, height, width, 1)]


def adapted_map(layer, features):
    adapted, scores = seg_adapter(layer, features)
    return (adapted, scores) if layer.return_scores else adapted


def adapted_tokens(layer, tokens, grid):
    """Adapt the map that the last tokens make, but not the first two tokens."""
    adapted, scores = seg_adapter(layer, tokens_to_map(layer, tokens, grid))
    expected = tokens.astype("float64")
    expected[:, 2:] = adapted.reshape(expected[:, 2:].shape)
    return (expected, scores) if layer.return_scores else expected


def head_scores(layer, *stages):
    return mlp_head(layer, stages)


def segformer_scores(layer, *stages):
    return segformer_head(layer, stages)


def layer_scale(layer, features):
    return features.astype("float64") * keras.ops.convert_to_numpy(layer.gamma)


def feature_pyramid(layer, *taps):
    return simple_feature_pyramid(layer, taps)


def row(cls, shapes, equation, name=None, **arguments):
    return pytest.param(cls, arguments, shapes, equation, id=name or cls.__name__)


def adapter(name, **arguments):
    tokens = name.startswith("tokens")
    shapes = tokens_and_grid if tokens else one_map
    equation = adapted_tokens if tokens else adapted_map
    return row(ksa.SegAdapter, shapes, equation, name, num_classes=4, **arguments)


LAYERS = [
    row(ksa.SegAttention, one_map, seg_attention, filters=5, kernel_size=3),
    row(
        ksa.HighOrderSpatialAttention,
        one_map,
        high_order_attention,
        num_classes=9,
        kernel_size=3,
    ),
    row(
        ksa.HighOrderSpatialAttention,
        one_map,
        high_order_attention,
        "HighOrderSpatialAttention, narrow",
        num_classes=9,
        width=4,
    ),
    adapter("map", kernel_size=3, ffn_ratio=2.5, scale_init=1e-4),
    adapter("map, two blocks", num_blocks=2, normalize=True),
    adapter("map, narrow", num_blocks=2, width=3, normalize=True),
    adapter("map, wide", width=8),
    adapter("map, no scores", return_scores=False),
    adapter("tokens", num_blocks=2, normalize=True),
    adapter("tokens, narrow", width=3),
    adapter("tokens, no scores", return_scores=False),
    row(ksa.MLPHead, two_stages, head_scores, num_classes=5, channels=8, dropout=0.3),
    row(
        ksa.SegFormerHead,
        two_stages,
        segformer_scores,
        num_classes=5,
        channels=8,
        dropout=0.3,
    ),
    row(
        ksa.SimpleFeaturePyramid,
        four_taps,
        feature_pyramid,
        scale_factors=[4, 2, 1, 0.5],
    ),
    row(ksa.ResizeLike, map_and_reference, resize_like),
    row(ksa.TokensToMap, tokens_and_grid, tokens_to_map),
    row(
        EfficientSelfAttention,
        one_map,
        efficient_self_attention,
        num_heads=2,
        reduction=2,
    ),
    row(
        EfficientSelfAttention,
        one_map,
        efficient_self_attention,
        "EfficientSelfAttention, not reduced",
        num_heads=3,
    ),
    row(MixFFN, one_map, mix_ffn, ratio=3),
    row(DepthwiseConv2D, one_map, depthwise, kernel_size=(3, 3), padding="same"),
    row(
        PatchConv2D,
        one_map,
        patch_convolution,
        filters=4,
        kernel_size=(2, 2),
        strides=(2, 2),
    ),
    row(
        PatchConv2DTranspose,
        one_map,
        patch_transposed_convolution,
        filters=4,
        kernel_size=(2, 3),
        strides=(2, 3),
    ),
    row(Dense, one_map, linear, units=5),
    row(LayerScale, one_map, layer_scale, init_value=0.5),
]


@pytest.mark.parametrize(("cls", "arguments", "shapes", "equation"), LAYERS)
def test_contract(cls, arguments, shapes, equation, tmp_path):
    # A product of four factors leaves float16's range.
    wide = [0] if cls is ksa.HighOrderSpatialAttention else []
    check_layer(cls, arguments, shapes, equation, tmp_path, wide)


OF_MAPS = {
    ksa.SegAttention: {"filters": 5},
    ksa.HighOrderSpatialAttention: {"num_classes": 3},
    ksa.SegAdapter: {"num_classes": 3},
    ksa.MLPHead: {"num_classes": 3},
    ksa.SegFormerHead: {"num_classes": 3},
    ksa.SimpleFeaturePyramid: {"scale_factors": [2, 1]},
    EfficientSelfAttention: {"num_heads": 2},
    MixFFN: {},
}
OF_LISTS = (ksa.MLPHead, ksa.SegFormerHead, ksa.SimpleFeaturePyramid)


@pytest.mark.parametrize("cls", OF_MAPS)
@pytest.mark.parametrize(
    "shape",
    [pytest.param((8, 4), id="no map"), pytest.param((8, 8, None), id="open channels")],
)
def test_inputs_that_are_no_feature_maps_raise(cls, shape):
    layer, x = cls(**OF_MAPS[cls], name="odd"), keras.Input(shape)
    words = f"{cls.__name__} 'odd' takes feature maps .* Received: input_shape="
    with pytest.raises(ValueError, match=words):
        layer([keras.Input((8, 8, 4)), x] if cls in OF_LISTS else x)


@pytest.mark.parametrize("cls", OF_MAPS)
def test_channels_first_raises(channels_first, cls):
    layer, x = cls(**OF_MAPS[cls]), maps(1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"set_image_data_format.*channels_first"):
        layer([x] if cls in OF_LISTS else x)


WRONG_ARGUMENTS = [
    (ksa.SegAttention, "filters", 0, "an integer of at least 1"),
    (ksa.SegAttention, "filters", 4.0, "an integer of at least 1"),
    (ksa.SegAttention, "kernel_size", 0, "an integer of at least 1"),
    (ksa.SegAttention, "kernel_size", (3, 3), "an integer of at least 1"),
    (ksa.HighOrderSpatialAttention, "num_classes", 1, "at least 2"),
    (ksa.HighOrderSpatialAttention, "num_classes", 0, "at least 2"),
    (ksa.HighOrderSpatialAttention, "num_classes", True, "at least 2"),
    (ksa.HighOrderSpatialAttention, "num_classes", 2.0, "an integer"),
    (ksa.HighOrderSpatialAttention, "kernel_size", 0, "an integer of at least 1"),
    (ksa.HighOrderSpatialAttention, "width", 0, "an integer of at least 1"),
    (ksa.SegAdapter, "num_classes", 1, "at least 2"),
    (ksa.SegAdapter, "num_classes", 0, "at least 2"),
    (ksa.SegAdapter, "num_classes", True, "at least 2"),
    (ksa.SegAdapter, "num_classes", 2.0, "an integer"),
    (ksa.SegAdapter, "kernel_size", 0, "an integer of at least 1"),
    (ksa.SegAdapter, "ffn_ratio", 0, "a finite number above 0"),
    (ksa.SegAdapter, "ffn_ratio", -1.0, "a finite number above 0"),
    (ksa.SegAdapter, "ffn_ratio", math.nan, "a finite number above 0"),
    (ksa.SegAdapter, "scale_init", math.nan, "a finite number"),
    (ksa.SegAdapter, "scale_init", math.inf, "a finite number"),
    (ksa.SegAdapter, "num_blocks", 0, "an integer of at least 1"),
    (ksa.SegAdapter, "num_blocks", 1.0, "an integer of at least 1"),
    (ksa.SegAdapter, "width", 0, "an integer of at least 1"),
    (ksa.SegAdapter, "width", 0.5, "an integer of at least 1"),
    (ksa.SegAdapter, "width", False, "an integer of at least 1"),
    (ksa.MLPHead, "num_classes", 1, "at least 2"),
    (ksa.MLPHead, "channels", 0, "an integer of at least 1"),
    (ksa.MLPHead, "channels", 8.0, "an integer of at least 1"),
    (ksa.MLPHead, "dropout", 1.0, "a finite number of at least 0 and below 1"),
    (ksa.MLPHead, "dropout", -0.1, "a finite number of at least 0 and below 1"),
    (ksa.MLPHead, "dropout", math.nan, "a finite number of at least 0 and below 1"),
    (ksa.SegFormerHead, "num_classes", 1, "at least 2"),
    (ksa.SegFormerHead, "channels", 0, "an integer of at least 1"),
    (ksa.SegFormerHead, "dropout", 1.0, "a finite number of at least 0 and below 1"),
    (ksa.SimpleFeaturePyramid, "scale_factors", 4, "a list of powers of two"),
    (ksa.SimpleFeaturePyramid, "scale_factors", [], "a list of powers of two"),
    (ksa.SimpleFeaturePyramid, "scale_factors", [4, 3], "a list of powers of two"),
    (ksa.SimpleFeaturePyramid, "scale_factors", [-2], "a list of powers of two"),
    (ksa.SimpleFeaturePyramid, "scale_factors", [True], "a list of powers of two"),
    (ksa.SimpleFeaturePyramid, "scale_factors", [math.nan], "a list of powers of two"),
    (EfficientSelfAttention, "num_heads", 0, "an integer of at least 1"),
    (EfficientSelfAttention, "reduction", 1.0, "an integer of at least 1"),
    (MixFFN, "ratio", 0, "an integer of at least 1"),
]


@pytest.mark.parametrize(
    ("cls", "name", "value", "requirement"),
    WRONG_ARGUMENTS,
    ids=[f"{cls.__name__} {name}={value}" for cls, name, value, _ in WRONG_ARGUMENTS],
)
def test_wrong_arguments_raise(cls, name, value, requirement):
    with pytest.raises(ValueError) as caught:
        cls(**{**OF_MAPS[cls], name: value})
    assert str(caught.value).startswith(f"`{name}` must be {requirement}")
    assert str(caught.value).endswith(f"Received: {name}={value!r}")
