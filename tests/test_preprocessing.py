"""The preprocessing of a backbone equals that of the package it comes from."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_segadapter import build_segmenter
from keras_segadapter.backbones.mit import EfficientSelfAttention
from keras_segadapter.backbones.preprocessing import (
    check_backbone,
    default_preprocessing,
    normalizes,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 3)).astype("float32")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of each family of keras.applications that has a `preprocess_input` of its own: names
# of early layers, and the layer where its model is cut.
FAMILIES = {
    "ResNet50": (
        ["conv1_pad", "conv1_bn", "conv2_block1_1_conv"],
        "resnet",
        "conv4_block6_out",
    ),
    "ResNet50V2": (
        ["conv1_pad", "conv2_block1_preact_bn"],
        "resnet_v2",
        "conv3_block4_out",
    ),
    "VGG16": (
        ["block1_conv1", "block1_conv2", "block1_pool"],
        "vgg16",
        "block3_pool",
    ),
    "Xception": (["block1_conv1_bn", "block2_sepconv1"], "xception", "block4_pool"),
    "MobileNet": (["conv1", "conv_dw_1"], "mobilenet", "conv_pw_6_relu"),
    "MobileNetV2": (
        ["Conv1", "expanded_conv_depthwise"],
        "mobilenet_v2",
        "block_13_expand_relu",
    ),
    "InceptionV3": (["mixed0"], "inception_v3", "mixed2"),
    "InceptionResNetV2": (["mixed_5b"], "inception_resnet_v2", "block35_2_ac"),
    "NASNetMobile": (
        ["stem_conv1", "reduction_conv_1_stem_1"],
        "nasnet",
        "normal_conv_1_3",
    ),
    "DenseNet121": (
        ["conv1_conv", "conv2_block1_0_bn"],
        "densenet",
        "conv3_block4_concat",
    ),
}
# Those that normalize by themselves: their first layer behind that, where they are cut.
INCLUDED = {
    "MobileNetV3Small": ("conv", "expanded_conv_2_add"),
    "EfficientNetV2B0": ("stem_conv", "block3b_add"),
    "EfficientNetV2S": ("stem_conv", "block3b_add"),
    "ConvNeXtTiny": ("convnext_tiny_stem", "convnext_tiny_stage_1_block_0_identity"),
}


def stand_in(*names, size=(None, None), channels=3, name="mine"):
    """Build a backbone with layers of these names, one behind the other."""
    inputs = x = keras.Input((*size, channels))
    for layer in names or ["first"]:
        x = layers.Conv2D(2, 2, 2, name=layer)(x)
    return keras.Model(inputs, x, name=name)


def behind(front, channels=3):
    """Build a backbone that passes its image through a function first."""
    inputs = keras.Input((None, None, channels))
    return keras.Model(inputs, layers.Conv2D(2, 4, 4)(front(inputs)))


def values(layer, images=IMAGES):
    return keras.ops.convert_to_numpy(layer(images))


def variants(backbone, cut):
    """Yield a backbone of keras.applications renamed, cut and nested."""
    inputs = backbone.input
    yield keras.Model(inputs, backbone.output, name="encoder")
    yield keras.Model(inputs, backbone.get_layer(cut).output, name="encoder")
    image = keras.Input((96, 96, 3))
    yield keras.Model(image, backbone(image))
    sequential = keras.Sequential([image, backbone])
    yield keras.Model(sequential.inputs, sequential.outputs)


# Contract


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(None, None), (64, 64)], ids=["open", "fixed"])
def test_a_family_is_recognized_by_its_layers(family, size, capsys):
    names, module, _ = FAMILIES[family]
    layer = default_preprocessing(stand_in(*names, size=size))
    expected = getattr(keras.applications, module).preprocess_input(IMAGES.copy())
    np.testing.assert_allclose(values(layer), expected, rtol=1e-4, atol=1e-4)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_renamed_cut_and_nested(family, capsys):
    _, module, cut = FAMILIES[family]
    backbone = getattr(keras.applications, family)(
        include_top=False, weights=None, input_shape=(96, 96, 3)
    )
    expected = getattr(keras.applications, module).preprocess_input(IMAGES.copy())
    for variant in [backbone, *variants(backbone, cut)]:
        layer = default_preprocessing(variant)
        np.testing.assert_allclose(values(layer), expected, rtol=1e-4, atol=1e-4)
    assert capsys.readouterr().out == ""
    (image,) = backbone.inputs
    prepare = getattr(keras.applications, module).preprocess_input
    assert normalizes(keras.Model(image, backbone(prepare(image))))


@pytest.mark.slow
@pytest.mark.parametrize("family", INCLUDED)
def test_a_family_that_can_normalize_by_itself(family, capsys):
    first, cut = INCLUDED[family]
    whole, bare = (
        getattr(keras.applications, family)(
            include_top=False,
            weights=None,
            input_shape=(None, None, 3),
            include_preprocessing=included,
        )
        for included in (True, False)
    )
    front = keras.Model(whole.input, whole.get_layer(first).input)
    for variant in variants(whole, cut):
        assert normalizes(variant)
        assert default_preprocessing(variant).name == "preprocessing_none"
    for variant in variants(bare, cut):
        assert not normalizes(variant)
        layer = default_preprocessing(variant)
        np.testing.assert_allclose(values(layer), values(front), atol=1e-4)
    assert capsys.readouterr().out == ""


@pytest.mark.integration
def test_efficientnet_normalizes_by_itself(capsys):
    backbone = keras.applications.EfficientNetB0(include_top=False, weights=None)
    for variant in variants(backbone, "block3b_add"):
        assert default_preprocessing(variant).name == "preprocessing_none"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("width", "choice"), [(16, "imagenet"), (24, "efficientnetv2")]
)
def test_the_sizes_of_efficientnetv2_differ(width, choice):
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, 2, name="stem_conv")(inputs)
    x = layers.Conv2D(width, 3, name="block1a_project_conv")(x)
    layer = default_preprocessing(keras.Model(inputs, x))
    assert layer.name == f"preprocessing_{choice}"


@pytest.mark.parametrize(
    ("name", "module", "mean", "deviation"),
    [
        ("ViTBackbone", "keras_hub.models", 0.5, 0.5),
        ("SigLIPVisionEncoder", "keras_hub.models", 0.5, 0.5),
        ("XceptionBackbone", "keras_hub.models", 0.5, 0.5),
        ("VGGBackbone", "keras_hub.models", MEAN, DEVIATION),
        ("ResNetBackbone", "keras_cv.models", 0.0, 1.0),
        ("ResNetBackbone", "mine", MEAN, DEVIATION),
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
    names = FAMILIES["VGG16"][0] if name == "VGGBackbone" else []
    whole = stand_in(*names, size=(32, 32))
    backbone = family(whole.input, whole.output)
    expected = (IMAGES / 255 - np.array(mean)) / np.array(deviation)
    nested = keras.Sequential([keras.Input((32, 32, 3)), backbone])
    for model in (backbone, keras.Model(nested.inputs, nested.outputs)):
        actual = values(default_preprocessing(model))
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_cut_vision_transformer_of_keras_hub_is_recognized_by_its_first_layer():
    first = type(
        "ViTPatchingAndEmbedding", (layers.Conv2D,), {"__module__": "keras_hub"}
    )
    backbone = behind(lambda x: first(3, 1)(x))
    assert default_preprocessing(backbone).name == "preprocessing_minus_one_to_one"


def test_mit_is_known(capsys):
    backbone = behind(lambda x: EfficientSelfAttention(1, 2)(layers.Conv2D(4, 2, 2)(x)))
    assert default_preprocessing(backbone).name == "preprocessing_imagenet"
    assert capsys.readouterr().out == ""


# Meaning


def caffe(x):
    return keras.applications.imagenet_utils.preprocess_input(x, mode="caffe")


class Halve(layers.Layer):
    """A layer of a user's own, without weights."""

    def call(self, x):
        return x / 2


class Block(layers.Layer):
    """A layer of a user's own that scales and convolves."""

    def __init__(self):
        super().__init__()
        self.scale = layers.Rescaling(1 / 255)
        self.conv = layers.Conv2D(3, 1)

    def call(self, x):
        return self.conv(self.scale(x))


def sequential(*inner):
    return keras.Sequential([keras.Input((None, None, 3)), *inner])


def standardize(x):
    mean, deviation = (
        measure(x, axis=(1, 2, 3), keepdims=True)
        for measure in (keras.ops.mean, keras.ops.std)
    )
    return (x - mean) / deviation


ARITHMETIC = {
    "caffe": caffe,
    "torch": lambda x: keras.applications.densenet.preprocess_input(x),
    "operations": lambda x: x / 127.5 - 1,
    "lambda": lambda x: layers.Lambda(lambda y: y / 255)(x),
    "rescaling": lambda x: layers.Rescaling(1 / 255)(x),
    "own_layer": lambda x: Halve()(x),
    "own_layer_with_weights": lambda x: Block()(x),
    "normalization_not_adapted": lambda x: layers.Normalization()(x),
    "batch_normalization": lambda x: layers.BatchNormalization()(x),
    "per_image": standardize,
    "behind_padding": lambda x: layers.ZeroPadding2D(3)(x) / 255,
    "pipeline": lambda x: layers.Pipeline([layers.Rescaling(1 / 255)])(x),
    "sequential": lambda x: sequential(Halve())(x),
    "sequential_with_weights": lambda x: sequential(Halve(), layers.Conv2D(3, 1))(x),
}
NO_ARITHMETIC = {
    "nothing": lambda x: x,
    "padding": lambda x: layers.ZeroPadding2D(3)(x),
    "identity": lambda x: layers.Identity()(x),
    "cast": lambda x: keras.ops.cast(x, "float16"),
    "dropout": lambda x: layers.Dropout(0.5)(x),
    "reshape": lambda x: layers.Reshape((64, 64, 12))(layers.Resizing(128, 128)(x)),
    "resizing": lambda x: layers.Resizing(64, 96)(x),
    "swapped_channels": lambda x: keras.ops.flip(x, axis=-1),
    "random_colors": lambda x: layers.RandomContrast(0.5)(x),
    "arithmetic_behind_weights": lambda x: layers.Conv2D(3, 1)(x) / 255,
    "norm_behind_weights": lambda x: sequential(
        layers.Conv2D(3, 1), layers.LayerNormalization()
    )(x),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_arithmetic_in_front_is_seen(case, capsys):
    backbone = behind(ARITHMETIC[case])
    assert normalizes(backbone)
    assert default_preprocessing(backbone).name == "preprocessing_none"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("case", NO_ARITHMETIC)
def test_what_only_moves_pixels_is_no_arithmetic(case):
    backbone = behind(NO_ARITHMETIC[case])
    assert not normalizes(backbone)
    assert default_preprocessing(backbone).name == "preprocessing_imagenet"


def test_arithmetic_in_front_of_a_known_family_is_seen():
    inputs = keras.Input((None, None, 3))
    family = stand_in(*FAMILIES["ResNet50"][0])
    for model in (
        keras.Model(inputs, family(caffe(inputs))),
        keras.Sequential([inputs, layers.Rescaling(1 / 255), family]),
    ):
        assert normalizes(model)
        backbone = keras.Model(model.inputs, model.outputs)
        assert default_preprocessing(backbone).name == "preprocessing_none"


def test_arithmetic_for_pixels_in_0_to_1_gets_such_pixels(capsys):
    backbone = behind(lambda x: (x - np.float32(0.45)) / 0.225)
    assert not normalizes(backbone)  # not those that it is given
    layer = default_preprocessing(backbone)
    np.testing.assert_allclose(values(layer), IMAGES / 255, atol=1e-6)
    assert capsys.readouterr().out == ""


def test_an_image_of_integers_is_followed_too():
    inputs = keras.Input((None, None, 3), dtype="uint8")
    features = layers.Conv2D(2, 4, 4)(layers.Rescaling(1 / 255)(inputs))
    assert normalizes(keras.Model(inputs, features))


def test_an_unknown_backbone_gets_imagenets_mean_and_deviation(capsys):
    layer = default_preprocessing(stand_in())
    gray = np.full((1, 1, 1, 3), [123.675, 116.28, 103.53], "float32")
    np.testing.assert_allclose(values(layer, gray), 0, atol=1e-5)
    assert capsys.readouterr().out == (
        "Images for the backbone 'mine' are normalized by ImageNet's mean and standard "
        "deviation, because keras_segadapter does not know what it expects. To change "
        "this, pass a layer as preprocessing=, such as "
        "keras.layers.Rescaling(1 / 255).\n"
    )


def test_the_line_is_printed_when_a_model_is_built_and_not_when_it_is_loaded(
    tmp_path, capsys
):
    model = build_segmenter(stand_in(), 2, adapters=False)
    assert capsys.readouterr().out.count("\n") == 1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.preprocessing.name == "preprocessing_imagenet"
    build_segmenter(stand_in(), 2, adapters=False, preprocessing=layers.Identity())
    assert capsys.readouterr().out == ""


def test_the_preprocessing_of_a_caffe_backbone_comes_back_from_a_file(tmp_path):
    model = build_segmenter(stand_in(*FAMILIES["ResNet50"][0]), 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.preprocessing.name == "preprocessing_caffe"
    actual, expected = values(loaded.preprocessing), values(model.preprocessing)
    np.testing.assert_array_equal(actual, expected)


def test_other_numbers_of_channels_are_not_normalized(capsys):
    backbone = stand_in(channels=5)
    model = build_segmenter(backbone, 2)
    assert model.preprocessing.name == "preprocessing_none"
    assert "are not normalized, because they have 5 channels" in capsys.readouterr().out
    assert model.segment(np.zeros((9, 7, 5), "uint8")).shape == (9, 7)
    default_preprocessing(behind(layers.Rescaling(1 / 255), channels=1))
    assert capsys.readouterr().out == ""


def test_a_given_layer_is_used(tiny_backbone):
    scale = layers.Rescaling(1 / 255)
    model = build_segmenter(tiny_backbone(), 2, preprocessing=scale)
    assert scale in model.layers


# Edges


MOVES = {
    "RandomFlip": (),
    "RandomRotation": (0.1,),
    "RandomZoom": (0.1,),
    "RandomTranslation": (0.1, 0.1),
    "RandomCrop": (8, 8),
    "RandomShear": (0.1, 0.1),
    "RandomPerspective": (),
    "RandomElasticTransform": (),
    "MixUp": (),
    "CutMix": (),
    "AugMix": (),
    "RandAugment": (),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_layer_that_moves_pixels_at_random_raises(name):
    layer = getattr(layers, name)(*MOVES[name], name="augment")
    with pytest.raises(ValueError, match=rf"Augmentation.*'augment' \({name}\)"):
        check_backbone(keras.Sequential([keras.Input((32, 32, 3)), layer]))


class Augment(layers.Layer):
    """A layer of a user's own with a random layer inside."""

    def __init__(self):
        super().__init__()
        self.steps = [layers.RandomContrast(0.1), layers.RandomFlip(name="flip")]

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return x


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(Augment, id="own_layer"),
        pytest.param(lambda: layers.Pipeline([Augment()]), id="pipeline"),
        pytest.param(
            lambda: type("Mine", (layers.RandomFlip,), {})(name="flip"), id="subclass"
        ),
        pytest.param(
            lambda: keras.Sequential([keras.Sequential([Augment()])]), id="nested"
        ),
    ],
)
def test_a_random_layer_is_found_inside_others(around):
    inputs = keras.Input((None, None, 3))
    backbone = behind(keras.Model(inputs, around()(inputs)))
    with pytest.raises(ValueError, match=r"'flip' \(RandomFlip\)"):
        check_backbone(backbone)


def test_random_colors_and_fixed_crops_are_fine():
    fine = [layers.RandomContrast(0.1), layers.RandomErasing(), layers.CenterCrop(8, 8)]
    check_backbone(keras.Sequential([keras.Input((32, 32, 3)), *fine]))
