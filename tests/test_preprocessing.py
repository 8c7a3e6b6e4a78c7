"""The preprocessing of a backbone equals that of the package it comes from."""

import keras
import numpy as np
import pytest

from keras_segadapter import build_segmenter
from keras_segadapter.backbones.preprocessing import default_preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 3)).astype("float32")


def stand_in(name):
    """Build a backbone of one layer with the name of a family."""
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Conv2D(2, 4, 4)(inputs)
    return keras.Model(inputs, outputs, name=name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("resnet50", "resnet50"),
        ("vgg16", "vgg16"),
        ("resnet_v2", "resnet50v2"),
        ("mobilenet", "mobilenet_1.00_224"),
        ("mobilenet_v2", "mobilenetv2_1.00_224"),
        ("densenet", "densenet121"),
        ("xception", "xception"),
        ("inception_v3", "inception_v3"),
        ("nasnet", "nasnet_mobile"),
    ],
)
def test_equals_preprocess_input_of_the_family(module, name):
    layer = default_preprocessing(stand_in(name))
    expected = getattr(keras.applications, module).preprocess_input(IMAGES.copy())
    actual = keras.ops.convert_to_numpy(layer(IMAGES))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_names_are_those_of_keras_applications():
    for build, name in (
        (keras.applications.MobileNetV2, "mobilenetv2_"),
        (keras.applications.MobileNet, "mobilenet_"),
    ):
        assert build(weights=None, include_top=False).name.startswith(name)


@pytest.mark.parametrize(
    ("name", "module", "mean", "deviation"),
    [
        ("ViTBackbone", "keras_hub.models", 0.5, 0.5),
        ("SigLIPVisionEncoder", "keras_hub.models", 0.5, 0.5),
        ("ViTDetBackbone", "keras_hub.models", 0.0, 1.0),
        ("ResNetBackbone", "keras_cv.models", 0.0, 1.0),
        ("ResNetBackbone", "mine", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (
            "CLIPVisionEncoder",
            "keras_hub.models",
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    ],
)
def test_families_recognized_by_their_class(name, module, mean, deviation):
    family = type(name, (keras.Model,), {"__module__": module})
    inputs = keras.Input((32, 32, 3))
    backbone = family(inputs, keras.layers.Conv2D(2, 4, 4)(inputs))
    actual = keras.ops.convert_to_numpy(default_preprocessing(backbone)(IMAGES))
    expected = (IMAGES / 255 - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_an_unknown_backbone_gets_imagenets_mean_and_deviation():
    layer = default_preprocessing(stand_in("mine"))
    gray = np.full((1, 1, 1, 3), [123.675, 116.28, 103.53], "float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(gray)), 0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3Small",
        pytest.param("EfficientNetV2B0", marks=pytest.mark.integration),
    ],
)
def test_a_backbone_that_normalizes_by_itself_gets_an_identity(name):
    backbone = getattr(keras.applications, name)(include_top=False, weights=None)
    assert isinstance(default_preprocessing(backbone), keras.layers.Identity)


def test_other_numbers_of_channels_get_an_identity():
    inputs = keras.Input((None, None, 5))
    backbone = keras.Model(inputs, keras.layers.Conv2D(4, 4, 4)(inputs))
    assert isinstance(default_preprocessing(backbone), keras.layers.Identity)
    model = build_segmenter(backbone, 2)
    assert model.segment(np.zeros((9, 7, 5), "uint8")).shape == (9, 7)


def test_a_given_layer_is_used(tiny_backbone):
    scale = keras.layers.Rescaling(1 / 255)
    model = build_segmenter(tiny_backbone(), 2, preprocessing=scale)
    assert scale in model.layers
