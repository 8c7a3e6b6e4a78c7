"""Tests of what adapters get by themselves: widths on wide stages, and norms."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_segadapter as ksa
from keras_segadapter.graph.adapters import default_adapters

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), "uint8")


def bottlenecks(*stages):
    """Build a backbone of stages (channels, filters of the convolution inside)."""
    x = inputs = keras.Input((None, None, 3))
    for index, (channels, filters) in enumerate(stages):
        x = layers.Conv2D(filters, 3, 2 if index else 4, "same")(x)
        x = layers.Conv2D(channels, 1, activation="relu", name=f"end_{index}")(x)
    return keras.Model(inputs, x, name="narrow")


def widths(model):
    return [adapter.width for adapter in model.adapters]


def weights_of(model):
    return sum(layer.count_params() for layer in model.adapters)


def normed(features):
    """Build a backbone of two stages, each ending in what `features` makes of it."""
    inputs = keras.Input((32, 48, 3))
    x = features(layers.Conv2D(8, 4, 4)(inputs), (8, 12, 8))
    return keras.Model(inputs, features(layers.Conv2D(8, 2, 2)(x), (4, 6, 8)))


NORMED = {
    "layer norm": (lambda x, shape: layers.LayerNormalization()(x), False),
    "tokens": (
        lambda x, shape: layers.Reshape(shape)(
            layers.LayerNormalization()(layers.Reshape((-1, 8))(x))
        ),
        False,
    ),
    "ReLU": (lambda x, shape: layers.ReLU()(x), False),
    "activation": (lambda x, shape: layers.Conv2D(8, 1, activation="relu")(x), False),
    "pool": (lambda x, shape: layers.MaxPooling2D(1)(keras.ops.relu(x)), False),
    "ReLUs": (lambda x, shape: layers.Concatenate()([keras.ops.relu6(x)] * 2), False),
    "ReLU and another": (
        lambda x, shape: layers.Concatenate()([layers.ReLU()(x), x]),
        True,
    ),
    "silu": (lambda x, shape: layers.Activation("silu")(x), True),
    "batch norm": (lambda x, shape: layers.BatchNormalization()(x), True),
    "sum": (lambda x, shape: x + layers.LayerNormalization()(x), True),
}


# Contract


@pytest.mark.parametrize(("features", "expected"), NORMED.values(), ids=NORMED)
def test_adapters_begin_with_a_norm_where_stages_end_in_sums_and_the_like(
    features, expected, capsys
):
    model = ksa.build_segmenter(normed(features), 3)
    assert [adapter.normalize for adapter in model.adapters] == [expected] * 2
    line = "adapters that begin with a layer norm (normalize=True): s4, s8.\n"
    assert (line in capsys.readouterr().out) == expected


def test_a_line_names_the_narrow_adapters(capsys):
    ksa.build_segmenter(bottlenecks((16, 8), (136, 8)), 3)
    assert capsys.readouterr().out.startswith(
        "Adapters in the backbone 'narrow' work on fewer channels where the paper's "
        "would have more than two fifths of the weights of their stage: 17 of 136 at "
        "s8. "
        "For the paper's, pass a list of SegAdapter as `adapters`.\n"
    )
    ksa.build_segmenter(bottlenecks((16, 8), (128, 8)), 3)
    assert "Adapters" not in capsys.readouterr().out


def test_a_model_comes_back_with_its_widths_and_without_the_line(capsys, tmp_path):
    model = ksa.build_segmenter(bottlenecks((16, 8), (136, 8)), 3)
    model.save(tmp_path / "model.keras")
    capsys.readouterr()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert widths(loaded) == widths(model) == [None, 17]
    assert "Adapters" not in capsys.readouterr().out
    for actual, expected in zip(
        loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_model_of_the_papers_width_comes_back_with_it(tmp_path):
    """As those do that were saved before there were widths."""
    adapters = [ksa.SegAdapter(3), ksa.SegAdapter(3)]
    model = ksa.Segmenter(bottlenecks((16, 8), (136, 8)), 3, adapters=adapters)
    config = model.get_config()
    for adapter in config["adapters"]:
        del adapter["config"]["width"]
    assert widths(ksa.Segmenter.from_config(config)) == [None, None]


def test_adapters_that_are_added_later_have_the_same_widths(capsys):
    plain = ksa.build_segmenter(bottlenecks((136, 8)), 3, adapters=False)
    assert "Adapters" not in capsys.readouterr().out
    model = ksa.add_adapters(plain)
    assert "17 of 136" in capsys.readouterr().out
    assert widths(model) == [17]
    assert widths(ksa.change_classes(model, 4)) == [17]
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(m(IMAGES)["logits"]) for m in (plain, model))
    )


# Meaning


@pytest.mark.parametrize(
    ("filters", "width"),
    [(2255, None), (2254, 68), (916, 68), (915, 34), (370, 34), (369, 17), (1, 17)],
)
def test_the_width_is_the_largest_of_at_most_two_fifths_of_the_stage(filters, width):
    # Without classes an adapter has 8 * 136^2 = 147,968 weights, or 60,112, 24,276 and
    # 10,693 on 68, 34 and 17 channels.
    channels, count = 136, 164 * filters + 136
    model = ksa.build_segmenter(bottlenecks((channels, filters)), 3)
    assert model.backbone.count_params() == count
    assert widths(model) == [width]


def test_weights_count_once_for_the_stage_that_has_them_first():
    inputs = keras.Input((None, None, 3))
    inside = layers.Conv2D(2255, 3, padding="same")
    x = layers.Conv2D(136, 1, name="fine")(inside(layers.AveragePooling2D(4)(inputs)))
    x = layers.MaxPooling2D(2, name="pooled")(x)  # a stage without weights
    x = layers.Conv2D(3, 2, 2)(x)
    x = layers.Conv2D(136, 1, name="coarse")(inside(x))  # used before
    taps = ["fine", "pooled", "coarse"]
    model = ksa.build_segmenter(keras.Model(inputs, x), 3, taps=taps)
    assert widths(model) == [None, 17, 68]


APPLICATIONS = {
    "ResNet50": [64, 128, 256, 512],
    "DenseNet121": [64, 128, 128, 128],
    "Xception": [None, 32, None, 256],
    "InceptionV3": [48, 144, 384, 256],
    "VGG16": [None, None, None, 64],
    "MobileNetV3Small": [None] * 4,
    "EfficientNetB0": [None] * 4,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), APPLICATIONS.items())
def test_families_gain_at_most_half_their_parameters(name, expected):
    build = getattr(keras.applications, name)
    backbone = build(include_top=False, weights=None, input_shape=(None, None, 3))
    model = ksa.build_segmenter(backbone, 21)
    assert widths(model) == expected
    assert weights_of(model) <= (model.count_params() - weights_of(model)) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MiTB0", "MiTB1", "ConvNeXtTiny", "ConvNeXtBase", "ConvNeXtXLarge"]
)
def test_the_papers_series_keeps_its_width(name):
    # Without drawing values: the largest one has 348 M weights.
    with keras.StatelessScope(initialize_variables=False):
        backbone = getattr(ksa, name)()
    keras.utils.clear_session()
    stages = ksa.find_stages(backbone)
    adapters = default_adapters(backbone, stages, 150, [{}] * 4)
    assert [adapter.width for adapter in adapters] == [None] * 4
