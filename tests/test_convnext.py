"""ConvNeXt equals keras.applications' in inference and drops residuals in training."""

import re

import keras
import numpy as np
import pytest

from keras_segadapter import find_stages
from keras_segadapter.backbones.convnext import BLOCKS, convnext

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (1, 32, 64, 3)).astype("float32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the model of keras.applications, and ours from its weights file."""
    plain = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    # A new model's residuals are a millionth of what they are added to.
    plain.set_weights([w + 0.1 * RNG.normal(size=w.shape) for w in plain.get_weights()])
    path = tmp_path_factory.mktemp("weights") / "convnext.weights.h5"
    plain.save_weights(path)
    return plain, convnext("Tiny", weights=path, drop_path=0.5)


def drops(model):
    """Return the layers of stochastic depth."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


@pytest.mark.integration
def test_inference_equals_the_plain_model(pair):
    plain, ours = (keras.ops.convert_to_numpy(model(IMAGE)) for model in pair)
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.integration
def test_names_are_the_plain_models(pair):
    # Keras numbers the input and the last norm by the models built before.
    plain, ours = ([layer.name for layer in model.layers[1:-1]] for model in pair)
    assert ours == [name.replace("_identity", "_drop_path") for name in plain]
    assert pair[1].name == "convnext_tiny"


@pytest.mark.integration
def test_the_stages_are_the_four_resolutions(pair):
    stages = find_stages(pair[1])
    assert [s.stride for s in stages] == [4, 8, 16, 32]
    assert [s.channels for s in stages] == [96, 192, 384, 768]
    assert not any("drop_path" in s.name for s in stages)  # but after the addition


@pytest.mark.integration
def test_the_rate_rises_linearly_from_block_to_block(pair):
    rates = [layer.rate for layer in drops(pair[1])]
    np.testing.assert_allclose(rates, np.linspace(0, 0.5, BLOCKS["Tiny"]))


@pytest.mark.integration
def test_an_images_residual_is_dropped_as_a_whole_or_scaled_up(pair):
    _, model = pair
    block = "convnext_tiny_stage_3_block_2"
    probe = keras.Model(
        model.input,
        [
            model.get_layer(f"{block}_depthwise_conv").input,
            model.get_layer(f"{block}_layer_scale").output,
            model.layers[-1].input,  # of the norm after the last block
        ],
    )
    images = np.repeat(IMAGE, 16, axis=0)
    before, residual, after = map(
        keras.ops.convert_to_numpy, probe(images, training=True)
    )
    assert np.abs(residual).max() > 0.01
    added = after - before
    dropped = np.all(added == 0, axis=(1, 2, 3))
    assert 0 < dropped.sum() < 16
    # The rate of the last block is one half, so the other residuals are doubled.
    np.testing.assert_allclose(
        added[~dropped], 2 * residual[~dropped], rtol=1e-4, atol=1e-3
    )


def stand_in(names):
    """Return a function that builds a model with layers of these names."""

    def build(**arguments):
        build.arguments = arguments
        inputs = x = keras.Input((None, None, 3))
        for name in names:
            x = x + keras.layers.Activation("linear", name=name)(x)
        return keras.Model(inputs, x, name="stand_in")

    return build


@pytest.mark.parametrize("size", BLOCKS)
def test_arguments_are_passed_to_keras_applications(monkeypatch, size):
    build = stand_in([f"block_{i}_identity" for i in range(BLOCKS[size])])
    monkeypatch.setattr(keras.applications, f"ConvNeXt{size}", build)
    model = convnext(size, "imagenet", (64, 96, 3), drop_path=0.4)
    assert build.arguments == dict(
        include_top=False, weights="imagenet", input_shape=(64, 96, 3)
    )
    assert drops(model)[-1].rate == 0.4


def test_other_layer_names_in_keras_raise(monkeypatch):
    monkeypatch.setattr(keras.applications, "ConvNeXtTiny", stand_in(["a_identity"]))
    with pytest.raises(ValueError, match=r"18 blocks.*with 1 such layers"):
        convnext("Tiny")


@pytest.mark.parametrize("drop_path", [1, -0.1, float("nan")])
def test_a_rate_out_of_range_raises(drop_path):
    with pytest.raises(ValueError, match=rf"below 1\..*drop_path={drop_path}"):
        convnext("Tiny", drop_path=drop_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["Small", "Base"])
def test_larger_sizes_are_built(size):
    assert len(drops(convnext(size))) == BLOCKS[size]


@pytest.mark.parametrize(
    "weights, error",
    [
        *((3, TypeError), (0.5, TypeError), (True, TypeError), (b"a.h5", TypeError)),
        *(("None", ValueError), ("", ValueError), ("weights/tiny.h5", ValueError)),
    ],
    ids=str,
)
def test_wrong_weights_raise(weights, error):
    with pytest.raises(error, match=re.escape(f"Received: weights={weights!r}")):
        convnext("Tiny", weights)
