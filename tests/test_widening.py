"""Backbones widened to other numbers of channels than three."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import layers
from numpy_method import assert_close, set_random_weights

import keras_segadapter as ksa
from keras_segadapter.backbones.mit_weights import read_mit_weights
from keras_segadapter.backbones.preprocessing import default_preprocessing
from keras_segadapter.backbones.widening import widen_input, widen_kernel

RGB = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("float32")
GRAY = RGB[..., :1]
FAMILIES = (
    *("ResNet50", "MobileNetV2", "MobileNetV3Small", "DenseNet121", "ConvNeXtTiny"),
    *("EfficientNetB0", "EfficientNetV2B0"),
)


def small(*front, size=(None, None), **kwargs):
    """Build a backbone of two convolutions behind some layers."""
    inputs = x = keras.Input((*size, 3))
    for layer in front:
        x = layer(x)
    x = layers.Conv2D(4, 3, 2, padding="same", name="stem", **kwargs)(x)
    x = layers.Conv2D(8, 2, 2, activation="relu", name="next")(x)
    model = keras.Model(inputs, x, name="small")
    set_random_weights(model)
    return model


def nested():
    inputs = keras.Input((64, 64, 3))
    scale = keras.Sequential([layers.Rescaling(1 / 255), layers.ZeroPadding2D(2)])
    return keras.Model(inputs, small(size=(68, 68))(scale(inputs)), name="outer")


def sequential():
    return keras.Sequential(
        [keras.Input((None, None, 3)), layers.Rescaling(1 / 255), *small().layers[1:]],
        name="sequential",
    )


def features(model, images):
    return keras.ops.convert_to_numpy(model(images))


def repeated(images, channels):
    return np.take(images, np.arange(channels) % images.shape[-1], axis=-1)


# Contract


def check_widening(backbone, folder):
    """Check a backbone on channels that repeat RGB, and its files."""
    expected = features(backbone, RGB)
    six = widen_input(backbone, 6)
    assert_close(features(six, repeated(RGB, 6)), expected, 1e-4)
    assert six.name == backbone.name
    names = {layer.name for layer in backbone.layers[1:]}
    assert names <= {layer.name for layer in six.layers}
    assert_close(features(backbone, RGB), expected, 1e-6)  # it is not changed
    for channels in (1, 4, 5):
        wide = widen_input(backbone, channels)
        assert features(wide, repeated(RGB, channels)).shape == expected.shape
    wide.save(folder / "wide.keras")
    loaded = keras.models.load_model(folder / "wide.keras")
    images = repeated(RGB, 5)
    assert_close(features(loaded, images), features(wide, images), 1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("build", [small, sequential, nested, ksa.MiTB0])
def test_channels_that_repeat_rgb_give_its_features(build, tmp_path):
    check_widening(build(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_keras_applications(family, tmp_path):
    backbone = getattr(keras.applications, family)(
        include_top=False, weights=None, input_shape=(64, 64, 3)
    )
    check_widening(backbone, tmp_path)


def test_the_layers_behind_the_convolution_are_shared():
    backbone = small(layers.Rescaling(1 / 255, name="scale"))
    wide = widen_input(backbone, 4)
    assert wide.get_layer("next") is backbone.get_layer("next")
    assert wide.get_layer("stem") is not backbone.get_layer("stem")
    assert wide.get_layer("stem").kernel.shape == (3, 3, 4, 4)


def test_a_backbone_of_three_channels_stays_as_it_is():
    backbone = small()
    assert widen_input(backbone, 3) is backbone


def test_the_origin_of_the_weights_is_kept():
    backbone = small()
    backbone.weights_origin = "somewhere"
    assert widen_input(backbone, 5).weights_origin == "somewhere"


@pytest.mark.integration
def test_a_widened_backbone_is_trained_saved_and_loaded_in_a_segmenter(tmp_path):
    wide = widen_input(small(), 13)
    model = ksa.build_segmenter(wide, num_classes=3)
    model.compile(run_eagerly=EAGER)
    images = repeated(RGB, 13)
    before = keras.ops.convert_to_numpy(wide.get_layer("stem").kernel)
    model.fit(images, np.zeros((1, 64, 64), "int32"), verbose=0)
    after = keras.ops.convert_to_numpy(wide.get_layer("stem").kernel)
    assert np.abs(after - before).max(axis=(0, 1, 3)).all()  # every channel learns
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded(images)["logits"], model(images)["logits"], 1e-6)


# Meaning


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
def test_kernels_are_repeated_as_in_timm(channels):
    kernel = np.random.default_rng(0).normal(size=(3, 2, 3, 5)).astype("float32")
    wide = widen_kernel(kernel, channels)
    assert wide.shape == (3, 2, channels, 5) and wide.dtype == "float32"
    for index in range(channels):
        expected = kernel[:, :, index % 3] * 3 / channels
        expected = kernel.sum(axis=2) if channels == 1 else expected
        np.testing.assert_allclose(wide[:, :, index], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "front", [[], [layers.Rescaling(1 / 255)], [layers.ZeroPadding2D(3)]], ids=str
)
def test_a_gray_image_of_one_channel_gives_the_features_of_gray_rgb(front):
    backbone = small(*front)
    expected = features(backbone, repeated(GRAY, 3))
    assert_close(features(widen_input(backbone, 1), GRAY), expected, 1e-5)


def test_scales_of_colors_are_repeated():
    scale, offset, mean, variance = [1, 2, 3], [0.1, 0.2, 0.3], [9, 8, 7], [4, 5, 6]
    backbone = small(
        layers.Rescaling(scale, offset, name="scale"),
        layers.Normalization(mean=mean, variance=variance, name="normal"),
    )
    wide = widen_input(backbone, 4)
    assert list(wide.get_layer("scale").scale) == [1, 2, 3, 1]
    assert list(wide.get_layer("scale").offset) == [0.1, 0.2, 0.3, 0.1]
    assert wide.get_layer("normal").get_config()["mean"] == [9, 8, 7, 9]
    gray = widen_input(backbone, 1)
    assert list(gray.get_layer("scale").scale) == [2]
    assert gray.get_layer("normal").get_config()["variance"] == [5]


def test_one_scale_for_all_colors_stays_one():
    backbone = small(layers.Rescaling([0.5], name="scale"))
    assert widen_input(backbone, 4).get_layer("scale").scale == [0.5]


def test_an_adapted_normalization_keeps_its_statistics():
    normal = layers.Normalization()
    normal.adapt(RGB)
    backbone = small(normal)
    expected = features(backbone, RGB)
    assert_close(features(widen_input(backbone, 6), repeated(RGB, 6)), expected, 1e-5)


@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (["conv1_pad", "conv1_bn", "conv2_block1_1_conv"], "caffe"),
        (["Conv1", "expanded_conv_depthwise"], "minus_one_to_one"),
        (["conv1_conv", "conv2_block1_0_bn"], "imagenet"),
        (["unknown"], "imagenet"),
    ],
    ids=["ResNet", "MobileNetV2", "DenseNet", "unknown"],
)
def test_a_widened_family_is_normalized_as_on_three_channels(names, choice, capsys):
    inputs = x = keras.Input((None, None, 3))
    for name in names:
        x = layers.Conv2D(2, 2, 2, name=name)(x)
    backbone = keras.Model(inputs, x, name="mine")
    expected = features(default_preprocessing(backbone), RGB)
    capsys.readouterr()
    six = default_preprocessing(widen_input(backbone, 6))
    assert six.name == f"preprocessing_{choice}"
    assert "repeated for 6 channels" in capsys.readouterr().out
    assert_close(features(six, repeated(RGB, 6)), repeated(expected, 6), 1e-5)
    five = features(default_preprocessing(widen_input(backbone, 5)), repeated(RGB, 5))
    assert_close(five[..., :3], expected, 1e-5)
    gray = default_preprocessing(widen_input(backbone, 1))
    assert "averaged for one channel" in capsys.readouterr().out
    # The mean of the colors in the place of each of them.
    images = repeated(GRAY, 3)
    expected = features(default_preprocessing(backbone), images).mean(-1, keepdims=True)
    assert_close(features(gray, GRAY), expected, 0.02)


def test_a_widened_backbone_is_known_after_loading_and_in_another(tmp_path, capsys):
    wide = widen_input(small(), 5)
    wide.save(tmp_path / "wide.keras")
    inputs = keras.Input((None, None, 5))
    loaded = keras.models.load_model(tmp_path / "wide.keras")
    for backbone in (loaded, keras.Model(inputs, loaded(inputs))):
        assert default_preprocessing(backbone).name == "preprocessing_imagenet"
    assert "repeated for 5 channels" in capsys.readouterr().out


def test_a_backbone_that_normalizes_by_itself_does_so_when_widened(capsys):
    backbone = small(layers.Rescaling(1 / 255))
    layer = default_preprocessing(widen_input(backbone, 5))
    assert layer.name == "preprocessing_none"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("channels", [1, 5])
def test_weights_of_mit_are_repeated(channels, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig()  # MiT-B0
    reference = transformers.SegformerModel(config)
    torch.save(reference.state_dict(), tmp_path / "mit.pth")
    model = ksa.MiTB0(tmp_path / "mit.pth", (None, None, channels))
    kernel = read_mit_weights(tmp_path / "mit.pth")["patch_embed.0.proj.weight"]
    stem = model.get_layer("stage1_embed")
    assert_close(stem.kernel, widen_kernel(kernel, channels), 1e-6)
    assert default_preprocessing(model).name == "preprocessing_imagenet"
    assert "by the values for RGB, " in capsys.readouterr().out
    default_preprocessing(ksa.MiTB0(None, (None, None, channels)))  # of random weights
    assert "not normalized" in capsys.readouterr().out


@pytest.mark.integration
def test_a_whole_segformer_gives_the_same_logits_where_rgb_is_repeated(
    tmp_path, capsys
):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    config = transformers.SegformerConfig(num_labels=4)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    capsys.readouterr()
    three = ksa.SegFormerB0(weights=tmp_path)
    six = ksa.SegFormerB0(weights=tmp_path, input_shape=(None, None, 6))
    assert "repeated for 6 channels" in capsys.readouterr().out
    assert six.weights_origin == three.weights_origin
    expected = three(RGB)["logits"]
    assert_close(six(repeated(RGB, 6))["logits"], expected, 1e-4)
    six.save(tmp_path / "six.keras")
    loaded = keras.models.load_model(tmp_path / "six.keras")
    assert_close(loaded(repeated(RGB, 6))["logits"], expected, 1e-4)


def test_weights_of_mit_for_the_same_channels_are_loaded_as_they_are(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.SegformerModel(
        transformers.SegformerConfig(num_channels=5)
    )
    torch.save(reference.state_dict(), tmp_path / "mit.pth")
    model = ksa.MiTB0(tmp_path / "mit.pth", (None, None, 5))
    default_preprocessing(model)
    assert "not normalized" in capsys.readouterr().out
    assert model.input_shape[-1] == 5


# Edges


def flipped(x):
    return keras.ops.flip(x, axis=-1)


FRONTS = {
    "a flip": flipped,
    "a choice": lambda x: keras.ops.concatenate([x[..., :1], x[..., :2]], axis=-1),
    "a mean": lambda x: keras.ops.mean(x, axis=-1, keepdims=True) + 0 * x,
    "values by channel": lambda x: x - keras.ops.convert_to_tensor([1.0, 2.0, 3.0]),
    "patches": lambda x: keras.ops.reshape(x, (-1, 32, 32, 12)),
    "caffe": keras.applications.resnet.preprocess_input,
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_operations_that_mix_channels_raise(front):
    with pytest.raises(ValueError, match=r"treat its channels alike.*'small' with '"):
        widen_input(small(front, size=(64, 64)), 5)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Dense(3),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3),
        layers.Conv2D(3, 1, groups=3),
    ],
    ids=lambda layer: layer.name,
)
def test_other_first_layers_raise(layer):
    message = f"must be keras.layers.Conv2D.*layer '{layer.name}'"
    with pytest.raises(ValueError, match=message):
        widen_input(small(layer), 5)


def test_other_backbones_and_numbers_raise():
    with pytest.raises(ValueError, match=r"must take RGB images.*with 5 channels"):
        widen_input(widen_input(small(), 5), 8)
    with pytest.raises(ValueError, match=r"`channels` must be .*channels=0"):
        widen_input(small(), 0)
    with pytest.raises(TypeError, match=r"must be a functional keras.Model"):
        widen_input(layers.Conv2D(3, 3), 5)


def test_a_convolution_that_is_called_twice_is_widened_once():
    inputs, stem = keras.Input((64, 64, 3)), layers.Conv2D(4, 4, 4)
    turned = keras.ops.flip(inputs, axis=1)
    backbone = keras.Model(inputs, stem(inputs) + stem(turned))
    wide = widen_input(backbone, 6)
    assert len(wide.weights) == 2
    assert_close(features(wide, repeated(RGB, 6)), features(backbone, RGB), 1e-5)
