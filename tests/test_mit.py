"""MiT equals transformers' encoder at every stage and any size."""

import keras
import numpy as np
import pytest

import keras_segadapter as ksa
from keras_segadapter.backbones.mit import EfficientSelfAttention

BUILDERS = [ksa.MiTB0, ksa.MiTB1, ksa.MiTB2, ksa.MiTB3, ksa.MiTB4, ksa.MiTB5]


def transformers_encoder(depths, channels, folder):
    """Build a random SegFormer encoder of transformers and save it to a folder."""
    torch = pytest.importorskip("torch")  # which the reference needs
    from transformers import SegformerConfig, SegformerModel

    torch.manual_seed(0)
    config = SegformerConfig(
        depths=depths, hidden_sizes=channels, num_attention_heads=[1, 2, 5, 8]
    )
    model = SegformerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def assert_equal_at_every_stage(build, depths, channels, sizes, folder):
    reference = transformers_encoder(depths, channels, folder)  # skips without torch
    import torch

    backbone = build(weights=folder)
    outputs = [backbone.get_layer(f"stage{i}_norm").output for i in (1, 2, 3, 4)]
    stages = keras.Model(backbone.input, outputs)
    for size in sizes:
        images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")
        with torch.no_grad():
            expected = reference(
                torch.from_numpy(images.transpose(0, 3, 1, 2)),
                output_hidden_states=True,
            ).hidden_states
        for ours, theirs in zip(
            stages.predict(images, verbose=0), expected, strict=True
        ):
            theirs = theirs.numpy().transpose(0, 2, 3, 1)
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


# transformers and torch warn at import.
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_equals_transformers(tmp_path):
    channels = [32, 64, 160, 256]
    sizes = [(64, 96), (75, 101)]
    assert_equal_at_every_stage(ksa.MiTB0, [2, 2, 2, 2], channels, sizes, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "depths", "channels"),
    [
        (ksa.MiTB0, [2, 2, 2, 2], [32, 64, 160, 256]),
        (ksa.MiTB2, [3, 4, 6, 3], [64, 128, 320, 512]),
    ],
)
def test_equals_transformers_at_the_sizes_of_photographs(
    tmp_path, build, depths, channels
):
    sizes = [(512, 512), (360, 480), (333, 501)]
    assert_equal_at_every_stage(build, depths, channels, sizes, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("build", "millions"),
    [(ksa.MiTB0, 3.319), (ksa.MiTB1, 13.151), (ksa.MiTB2, 24.196)],
)
def test_published_parameters(build, millions):
    assert round(build().count_params() / 1e6, 3) == millions


def test_the_stages_are_the_four_closing_norms():
    stages = ksa.find_stages(ksa.MiTB0())
    assert [s.name for s in stages] == [f"stage{i}_norm" for i in (1, 2, 3, 4)]
    assert [s.stride for s in stages] == [4, 8, 16, 32]


@pytest.mark.integration
def test_stochastic_depth_drops_whole_images_in_training_only():
    backbone = ksa.MiTB0(drop_path=0.9, input_shape=(32, 32, 3))
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    images = np.repeat(image, 8, axis=0)
    still = keras.ops.convert_to_numpy(backbone(images))
    np.testing.assert_allclose(still, still[:1].repeat(8, 0), atol=1e-5)
    dropped = keras.ops.convert_to_numpy(backbone(images, training=True))
    assert np.abs(dropped - dropped[:1]).max() > 1e-3


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match="drop_path=1"):
        ksa.MiTB0(drop_path=1)
    with pytest.raises(ValueError, match=r"`num_heads` must divide .*num_heads=4"):
        EfficientSelfAttention(4)(np.zeros((1, 2, 2, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDERS)
def test_all_sizes_are_built(build):
    assert build(input_shape=(64, 64, 3)).output_shape[1:3] == (2, 2)
