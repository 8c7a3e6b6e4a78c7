"""The paper's models by name: sizes, arguments, training, frozen backbones."""

import inspect

import keras
import numpy as np
import pytest
from conftest import EAGER

from keras_segadapter import MLPHead, SegAdapter, build_segmenter
from keras_segadapter.models import adapted as models

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 32, 32, 3), "uint8")
MASKS = RNG.integers(0, K, (2, 32, 32), "uint8")
MIT = [f"AdaptMiTB{i}" for i in range(6)]
CONVNEXT = [f"AdaptConvNeXt{s}" for s in ("Tiny", "Small", "Base", "Large", "XLarge")]


def build(name, *args, **kwargs):
    return getattr(models, name)(*args, **kwargs)


def adapters_of(model):
    return [layer for layer in model.layers if isinstance(layer, SegAdapter)]


def arrays(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "millions"),
    [("AdaptMiTB0", 4.8), ("AdaptMiTB1", 17.3), ("AdaptMiTB2", 28.4)],
)
def test_published_parameters(name, millions):
    assert round(build(name, 150).count_params() / 1e6, 1) == millions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("AdaptMiTB3", 48.2),
        ("AdaptMiTB4", 65.0),
        ("AdaptMiTB5", 85.6),
        ("AdaptConvNeXtTiny", 35.5),
        ("AdaptConvNeXtSmall", 57.1),
        ("AdaptConvNeXtBase", 100.5),
    ],
)
def test_parameters_of_the_docstrings(name, millions):
    assert round(build(name, 150).count_params() / 1e6, 1) == millions


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("AdaptConvNeXtTiny", 6.987),
        pytest.param("AdaptConvNeXtSmall", 6.987, marks=pytest.mark.slow),
        pytest.param("AdaptConvNeXtBase", 12.096, marks=pytest.mark.slow),
    ],
)
def test_published_parameters_of_the_adapters(name, millions):
    adapters = adapters_of(build(name, 150))
    assert round(sum(a.count_params() for a in adapters) / 1e6, 3) == millions


def test_all_models_have_the_same_arguments():
    signatures = {str(inspect.signature(getattr(models, n))) for n in MIT + CONVNEXT}
    assert signatures == {
        "(num_classes, weights=None, input_shape=(None, None, 3), adapters=True, "
        "head_channels=256, drop_path=0.1, name=None)"
    }


@pytest.mark.parametrize("name", MIT + CONVNEXT)
def test_arguments_reach_the_backbone_and_the_head(tiny_backbone, monkeypatch, name):
    calls = []

    def stand_in(*args):
        calls.append(args)
        return tiny_backbone((4, 4, 6, 6))

    monkeypatch.setattr(models, name.removeprefix("Adapt"), stand_in)
    model = build(name, 5, "imagenet", (64, 96, 3), True, 8, 0.3, "mine")
    assert calls == [("imagenet", (64, 96, 3), 0.3)]
    assert (model.num_classes, model.name) == (5, "mine")
    assert model.get_layer("head").channels == 8
    assert not any(adapter.normalize for adapter in model.adapters)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "adapted", "baseline"),
    [
        ("AdaptMiTB0", "adapt_mit_b0", "mit_b0_mlp"),
        ("AdaptConvNeXtTiny", "adapt_convnext_tiny", "convnext_tiny_mlp"),
    ],
)
def test_the_baseline_is_the_same_model_without_adapters(name, adapted, baseline):
    model, plain = build(name, K), build(name, K, adapters=False)
    assert (model.name, plain.name) == (adapted, baseline)
    assert len(adapters_of(model)) == 4 and not adapters_of(plain)
    added = sum(adapter.count_params() for adapter in adapters_of(model))
    assert plain.count_params() == model.count_params() - added
    config, other = (m.get_layer("head").get_config() for m in (model, plain))
    assert config == other


def test_given_adapters_are_used():
    adapters = [SegAdapter(K, kernel_size=3) for _ in range(4)]
    model = models.AdaptMiTB0(K, adapters=adapters)
    assert adapters_of(model) == adapters
    assert model.name == "adapt_mit_b0"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdaptMiTB0", "AdaptConvNeXtTiny"])
def test_trains_saves_and_loads(name, tmp_path):
    model = build(name, K, head_channels=8, drop_path=0.5)
    model.compile(run_eagerly=EAGER)
    before = arrays(model.trainable_variables)
    model.fit(IMAGES, MASKS, verbose=0)
    moved = [
        np.any(old != new)
        for old, new in zip(before, arrays(model.trainable_variables), strict=True)
    ]
    assert np.mean(moved) > 0.8  # not all: stochastic depth dropped whole blocks
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.name == model.name
    logits, again = (m.predict(IMAGES, verbose=0) for m in (model, loaded))
    np.testing.assert_allclose(again, logits, atol=1e-5)
    rates, again = (
        [layer.rate for layer in m.backbone.layers if hasattr(layer, "noise_shape")]
        for m in (model, loaded)
    )
    assert rates[-1] == 0.5 and again == rates


@pytest.mark.parametrize(
    "kind", ["batch norms", pytest.param("MiT", marks=pytest.mark.integration)]
)
def test_a_frozen_backbone_stays_and_everything_else_moves(tiny_backbone, kind):
    if kind == "MiT":
        model = models.AdaptMiTB0(K, head_channels=8)
    else:
        model = build_segmenter(tiny_backbone(), K, head=MLPHead(K, 8, name="head"))
    model.backbone.trainable = False
    # Without weight decay, and with steps that do not depend on the size of a gradient,
    # exactly the weights with a gradient move.
    model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-20), run_eagerly=EAGER)
    before = arrays(model.backbone.weights)
    free = [*adapters_of(model), model.get_layer("head")]
    trainable = [v for layer in free for v in layer.trainable_variables]
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in trainable}
    free_before = arrays(trainable)
    model.fit(IMAGES, MASKS, verbose=0)
    for old, new in zip(before, arrays(model.backbone.weights), strict=True):
        np.testing.assert_array_equal(old, new)  # the norms' statistics among them
    still = [
        v.path
        for v, old, new in zip(trainable, free_before, arrays(trainable), strict=True)
        if np.array_equal(old, new)
    ]
    assert still == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet",), "`num_classes` must be an integer"),
        ((1,), "`num_classes` must be at least 2"),
        ((K, None, (None, None, 3), True, 0), "`channels` must be an integer"),
    ],
    ids=["text", "one class", "no channels"],
)
@pytest.mark.parametrize("name", MIT + CONVNEXT)
def test_wrong_arguments_raise_before_weights_are_read(
    monkeypatch, name, arguments, message
):
    # A call would be a TypeError.
    monkeypatch.setattr(models, name.removeprefix("Adapt"), None)
    with pytest.raises(ValueError, match=message):
        build(name, *arguments)


@pytest.mark.parametrize("name", ["AdaptMiTB0", "AdaptConvNeXtTiny"])
def test_wrong_arguments_of_the_backbone_raise(name, tmp_path):
    with pytest.raises(ValueError, match="drop_path=1"):
        build(name, K, drop_path=1)
    with pytest.raises(ValueError, match=r"weights"):
        build(name, K, weights=str(tmp_path / "nothing"))
