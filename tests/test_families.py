"""Tests that stages are those that timm publishes for the same families."""

import importlib
import runpy
from pathlib import Path

import keras
import pytest

from keras_segadapter import find_stages

BENCHMARK = Path(__file__).parents[1] / "benchmarks/backbones.py"

# Channels by stride, as in `feature_info` of timm 1.0.31 (reduction and channels):
#     timm.create_model(name, features_only=True, pretrained=False).feature_info
TIMM = {
    "convnext_tiny": {4: 96, 8: 192, 16: 384, 32: 768},
    "cspdarknet53": {1: 32, 2: 64, 4: 128, 8: 256, 16: 512, 32: 1024},
    "cspresnet50": {2: 64, 4: 128, 8: 256, 16: 512, 32: 1024},
    "darknet53": {1: 32, 2: 64, 4: 128, 8: 256, 16: 512, 32: 1024},
    "densenet121": {2: 64, 4: 256, 8: 512, 16: 1024, 32: 1024},
    "efficientnet_b0": {2: 16, 4: 24, 8: 40, 16: 112, 32: 320},
    "efficientnet_lite0": {2: 16, 4: 24, 8: 40, 16: 112, 32: 320},
    "hgnetv2_b0": {4: 64, 8: 256, 16: 512, 32: 1024},
    "inception_resnet_v2": {2: 64, 4: 192, 8: 320, 16: 1088, 32: 1536},
    "inception_v3": {2: 64, 4: 192, 8: 288, 16: 768, 32: 2048},
    "legacy_xception": {2: 64, 4: 128, 8: 256, 16: 728, 32: 2048},
    "mobilenetv1_100": {2: 64, 4: 128, 8: 256, 16: 512, 32: 1024},
    "mobilenetv2_100": {2: 16, 4: 24, 8: 32, 16: 96, 32: 320},
    # PVT v2 B0 has the widths of MiT-B0, which timm does not have.
    "pvt_v2_b0": {4: 32, 8: 64, 16: 160, 32: 256},
    "resnet18": {2: 64, 4: 64, 8: 128, 16: 256, 32: 512},
    "resnet18d": {2: 64, 4: 64, 8: 128, 16: 256, 32: 512},
    "resnet50": {2: 64, 4: 256, 8: 512, 16: 1024, 32: 2048},
    "resnetv2_18": {2: 64, 4: 64, 8: 128, 16: 256, 32: 512},
    "resnetv2_50": {2: 64, 4: 256, 8: 512, 16: 1024, 32: 2048},
    "swin_tiny_patch4_window7_224": {4: 96, 8: 192, 16: 384, 32: 768},
    "tf_efficientnetv2_b0": {2: 16, 4: 32, 8: 48, 16: 112, 32: 192},
    "tf_mobilenetv3_large_100": {2: 16, 4: 24, 8: 40, 16: 112, 32: 960},
    "tf_mobilenetv3_small_100": {2: 16, 4: 16, 8: 24, 16: 48, 32: 576},
    "vgg16": {1: 64, 2: 128, 4: 256, 8: 512, 16: 512, 32: 512},
}
# timm takes the wide convolution of MobileNetV3's classifier for the deepest stage, but
# for MobileNetV2 and EfficientNet the last block. The block is right for all.
BLOCKS = {
    "tf_mobilenetv3_large_100": {32: 160},
    "tf_mobilenetv3_small_100": {32: 96},
}

# Not compared: NASNet, whose cells read the two before them, so that only the end is on
# every path (timm's taps are inside cells); plain vision transformers, of which timm
# hands out the last three blocks (here: four, a fourth of the depth apart).
APPLICATIONS = {
    "ConvNeXtTiny": "convnext_tiny",
    "DenseNet121": "densenet121",
    "EfficientNetB0": "efficientnet_b0",
    "EfficientNetV2B0": "tf_efficientnetv2_b0",
    "InceptionResNetV2": "inception_resnet_v2",
    "InceptionV3": "inception_v3",
    "MobileNet": "mobilenetv1_100",
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3Large": "tf_mobilenetv3_large_100",
    "MobileNetV3Small": "tf_mobilenetv3_small_100",
    "ResNet50": "resnet50",
    "ResNet50V2": "resnetv2_50",
    "VGG16": "vgg16",
    "Xception": "legacy_xception",
}
# Rows of the benchmark, and how many times as wide timm's network is.
OTHERS = {
    ("keras-hub", "CSPNet CSPDarkNet"): ("cspdarknet53", 4),
    ("keras-hub", "CSPNet CSPResNet"): ("cspresnet50", 4),
    ("keras-hub", "CSPNet DarkNet"): ("darknet53", 4),
    ("keras-hub", "EfficientNet V2 B0"): ("tf_efficientnetv2_b0", 1),
    ("keras-hub", "HGNetV2 B0"): ("hgnetv2_b0", 1),
    ("keras-hub", "MiT B0"): ("pvt_v2_b0", 1),
    ("keras-hub", "MobileNet V3 Small"): ("tf_mobilenetv3_small_100", 1),
    ("keras-hub", "ResNet 18"): ("resnet18", 1),
    ("keras-hub", "ResNet 18 V2"): ("resnetv2_18", 1),
    ("keras-hub", "ResNet 18 vd"): ("resnet18d", 1),
    ("keras-hub", "SwinTransformer thin"): ("swin_tiny_patch4_window7_224", 4),
    ("keras-cv", "EfficientNetLite B0"): ("efficientnet_lite0", 1),
    ("keras-cv", "MobileNetV3 Small"): ("tf_mobilenetv3_small_100", 1),
    ("keras-cv", "ResNet 18"): ("resnet18", 1),
    ("keras_segadapter", "MiTB0"): ("pvt_v2_b0", 1),
}


def published(name):
    """Return timm's stages of stride 4 and more, which find_stages hands out."""
    channels = TIMM[name] | BLOCKS.get(name, {})
    return {stride: width for stride, width in channels.items() if stride >= 4}


def channels_by_stride(backbone):
    found = find_stages(backbone)
    channels = {stage.stride: stage.channels for stage in found}
    assert len(channels) == len(found)
    return channels


# Meaning


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_stages_of_keras_applications_are_those_of_timm(name):
    build = getattr(keras.applications, name)
    backbone = build(include_top=False, weights=None, input_shape=(None, None, 3))
    assert channels_by_stride(backbone) == published(APPLICATIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), OTHERS, ids=map(" ".join, OTHERS))
# keras-hub and keras-cv warn at import about things of their own.
@pytest.mark.filterwarnings("ignore")
def test_stages_of_other_libraries_are_those_of_timm(library, name):
    benchmark = runpy.run_path(str(BENCHMARK))
    rows = {
        (row[0], benchmark["family_name"](row)): row for row in benchmark["FAMILIES"]
    }
    _, build, _, _, arguments, _ = rows[library, name]
    module, shared = benchmark["LIBRARIES"][library]
    backbone = getattr(importlib.import_module(module), build)(**shared | arguments)
    of, times = OTHERS[library, name]
    found = channels_by_stride(backbone)
    assert {stride: times * width for stride, width in found.items()} == published(of)
