"""ConvNeXt equals keras.applications' and transformers' at every stage and any size."""

import json
import re

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter.backbones.convnext import LayerScale, _convnext
from keras_segadapter.backbones.convnext_weights import (
    CLIP,
    IMAGENET,
    assign_convnext_weights,
    read_convnext_weights,
    read_normalization,
)
from keras_segadapter.backbones.preprocessing import normalizes

SIZES = ("Atto", "Femto", "Pico", "Nano", "Tiny", "Small", "Base", "Large", "XLarge")
BUILDERS = {size: getattr(ksa, f"ConvNeXt{size}") for size in SIZES}
DEPTHS, WIDTHS = (1, 1, 2, 1), (8, 16, 32, 64)  # of a narrow model
ODD_SIZES = [(70, 101), (33, 47)]
REFERENCES = ("ConvNext", "DINOv3ConvNext")
# transformers and torch warn at import.
pytestmark = pytest.mark.filterwarnings("ignore")


def images(height, width, channels=3, count=1):
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, channels))
    return pixels.astype("float32")


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def narrow(weights=None, input_shape=(None, None, 3), drop_path=0.1, name="narrow"):
    return _convnext("Tiny", DEPTHS, WIDTHS[0], weights, input_shape, drop_path, name)


def stages_of(model):
    """Return a model from images to the ends of the stages, which are sums."""
    sums = [op.output for op in model.operations if type(op).__name__ == "Add"]
    last = {tensor.shape[-1]: tensor for tensor in sums}
    return keras.Model(model.input, [*last.values(), model.output])


def drops(model):
    """Return the layers of stochastic depth."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def build_reference(kind, depths=DEPTHS, widths=WIDTHS):
    """Build a random model of transformers with biases, norms and scales of size 1."""
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    options = dict(depths=list(depths), hidden_sizes=list(widths))
    config = getattr(transformers, f"{kind}Config")(**options)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if re.search("gamma|layer_scale", name) else 0.05
            parameter.add_(scale * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def references():
    return {kind: build_reference(kind) for kind in REFERENCES}


@pytest.fixture(scope="module")
def folders(references, tmp_path_factory):
    """Return the folders in which transformers saved its models."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in REFERENCES}
    for kind, model in references.items():
        model.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="module")
def tensors(references):
    """Return tensors of PyTorch by their names in transformers' ConvNext."""
    state = references["ConvNext"].state_dict()
    return {key: value.numpy() for key, value in state.items()}


def as_meta(tensors):
    """Return the tensors of transformers with the names of Meta's own code."""
    words = {
        "embeddings.patch_embeddings": "downsample_layers.0.0",
        "embeddings.layernorm": "downsample_layers.0.1",
        ".layernorm": ".norm",
        ".layers": "",
        "layer_scale_parameter": "gamma",
        "encoder.": "",
    }
    renamed = {}
    for key, value in tensors.items():
        for old, new in words.items():
            key = key.replace(old, new)
        key = re.sub(
            r"stages\.(\d)\.downsampling_layer", r"downsample_layers.\1", key
        ).replace("layernorm", "norm")
        renamed[key] = value
    return renamed


def as_timm(tensors, convolutions=False):
    """Return the tensors with timm's names, with `convolutions` for linear layers."""
    renamed = {}
    for key, value in as_meta(tensors).items():
        key = re.sub(r"^stages\.(\d)\.(\d)", r"stages.\1.blocks.\2", key)
        key = re.sub(r"^downsample_layers\.0", "stem", key)
        key = re.sub(r"^downsample_layers\.(\d)", r"stages.\1.downsample", key)
        key = re.sub(r"^norm", "head.norm", key)
        key = key.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
        if convolutions and ".mlp.fc" in key and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[key] = value
    return renamed


@pytest.fixture
def save(tmp_path):
    """Return a function that writes tensors to a file."""

    def write(tensors, name="model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            module = pytest.importorskip("safetensors.numpy")
            arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
            module.save_file(arrays, path)
        else:
            torch = pytest.importorskip("torch")
            torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path)
        return path

    return write


# Contract


@pytest.mark.parametrize("size", SIZES)
def test_arguments_of_all_sizes(size, monkeypatch):
    calls = []
    module = "keras_segadapter.backbones.convnext._convnext"
    monkeypatch.setattr(module, lambda *arguments: calls.append(arguments))
    BUILDERS[size]("imagenet", (64, 96, 3), 0.3)
    ((name, _, _, *others),) = calls
    assert name == size
    assert others == ["imagenet", (64, 96, 3), 0.3, f"convnext_{size.lower()}"]


# With timm's classifier of 1,000 classes, as the sizes are published.
MILLIONS = [3.70, 5.22, 9.05, 15.59, 28.59, 50.22, 88.59, 197.77, 350.20]


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        pytest.param(
            *row, marks=[pytest.mark.integration, pytest.mark.slow][row[0] in SIZES[5:]]
        )
        for row in zip(SIZES, MILLIONS, strict=True)
    ],
)
def test_published_parameters(size, millions):
    model = BUILDERS[size]()
    channels = model.output_shape[-1]
    count = model.count_params() + 1000 * channels + 1000
    assert round(count / 1e6, 2) == millions
    places = [(stage.stride, stage.channels) for stage in ksa.find_stages(model)]
    strides = [(4, 8), (8, 4), (16, 2), (32, 1)]
    assert places == [(stride, channels // part) for stride, part in strides]


def test_stages_end_in_sums_in_front_of_the_norms():
    stages = ksa.find_stages(narrow())
    assert [s.stride for s in stages] == [4, 8, 16, 32]
    assert [s.channels for s in stages] == [*WIDTHS]
    assert all(s.name.startswith("add") for s in stages)


def test_the_last_norm_can_be_tapped():
    # Files with the ConvNeXt of keras.applications, as it was tapped before, do so.
    backbone = narrow()
    taps = [*ksa.find_stages(backbone)[:3], "narrow_layernorm"]
    model = ksa.build_segmenter(backbone, 3, taps=taps)
    again = ksa.Segmenter.from_config(model.get_config())
    assert [m.stages[-1].name for m in (model, again)] == ["narrow_layernorm"] * 2


@pytest.mark.integration
def test_a_backbone_and_a_segmenter_come_back_from_their_files(tmp_path):
    backbone = narrow(drop_path=0.5)
    assert normalizes(backbone)
    backbone.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    pixels = images(64, 64)
    np.testing.assert_array_equal(array(again(pixels)), array(backbone(pixels)))
    assert [drop.rate for drop in drops(again)] == [0, 0.125, 0.25, 0.375, 0.5]
    assert normalizes(again)
    model = ksa.build_segmenter(backbone, 3, head=ksa.MLPHead(3, 8, name="head"))
    assert model.preprocessing.name == "preprocessing_none" and model.takes_pixels
    model.compile(run_eagerly=EAGER)
    model.fit(pixels, np.zeros((1, 64, 64), "uint8"), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    logits, again = (m.predict(pixels, verbose=0) for m in (model, loaded))
    np.testing.assert_allclose(again, logits, atol=1e-5)


def test_layers_are_named_as_in_keras_applications():
    names = {layer.name for layer in narrow().layers}
    assert {
        "narrow_prestem_normalization",
        "narrow_stem",
        "narrow_downsampling_block_0",
        "narrow_stage_2_block_1_depthwise_conv",
        "narrow_stage_2_block_1_layernorm",
        "narrow_stage_2_block_1_pointwise_conv_1",
        "narrow_stage_2_block_1_pointwise_conv_2",
        "narrow_stage_2_block_1_layer_scale",
    } <= names


@pytest.mark.integration
def test_weights_are_recorded(folders):
    model = narrow(folders["ConvNext"])
    assert model.weights_origin == folders["ConvNext"].name


# Meaning


def check_transformers(reference, backbone, sizes):
    import torch

    stages = stages_of(backbone)
    mean, deviation = (255 * np.array(each) for each in IMAGENET)
    for size in sizes:
        pixels = images(*size)
        normalized = (pixels - mean) / deviation
        with torch.no_grad():
            found = reference(
                torch.tensor(normalized.transpose(0, 3, 1, 2), dtype=torch.float32),
                output_hidden_states=True,
            )
        expected = [map.permute(0, 2, 3, 1) for map in found.hidden_states[-4:]]
        # DINOv3 normalizes the patches; in front of them is the class token.
        if found.last_hidden_state.ndim == 3:
            patches = found.last_hidden_state[:, 1:]
            expected.append(patches.reshape(expected[-1].shape))
        for ours, theirs in zip(stages(pixels), expected, strict=False):
            assert np.abs(array(ours) - theirs.numpy()).max() < 1e-4
            assert np.abs(theirs.numpy()).max() > 0.5


@pytest.mark.parametrize("kind", REFERENCES)
def test_equals_transformers(references, folders, kind):
    check_transformers(references[kind], narrow(folders[kind]), ODD_SIZES)


@pytest.mark.integration
@pytest.mark.parametrize("kind", REFERENCES)
def test_tiny_equals_transformers(kind, tmp_path):
    reference = build_reference(kind, (3, 3, 9, 3), (96, 192, 384, 768))
    reference.save_pretrained(tmp_path)
    sizes = [(64, 96), *ODD_SIZES]
    check_transformers(reference, ksa.ConvNeXtTiny(tmp_path), sizes)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["the model", "its file"])
def test_tiny_equals_keras_applications(source, tmp_path):
    plain = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    # A new model's residuals are a millionth of what they are added to.
    rng = np.random.default_rng(0)
    plain.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in plain.get_weights()])
    plain.save_weights(tmp_path / "convnext.weights.h5")
    path = tmp_path / "convnext.weights.h5"
    ours = ksa.ConvNeXtTiny(plain if source == "the model" else path)
    models = [stages_of(plain), stages_of(ours)]
    for size in [(64, 96), *ODD_SIZES]:
        pixels = images(*size)
        for one, other in zip(*(model(pixels) for model in models), strict=True):
            assert np.abs(array(one) - array(other)).max() < 1e-4


def test_every_layout_holds_the_same_weights(tensors, save):
    expected = read_convnext_weights(save(tensors))
    assign_convnext_weights(narrow(), expected)  # complete
    head = {"head.weight": np.zeros((9, 64)), "head.bias": np.zeros(9)}
    classifier = {"classifier.weight": np.zeros((9, 64))}
    timm_head = {"head.fc.weight": np.zeros((9, 64))}
    clip_head = {"head.pre_logits.fc.weight": np.zeros((64, 64))}
    copy = {"norms.3.weight": tensors["layernorm.weight"]}
    tower = {f"visual.trunk.{k}": v for k, v in as_timm(tensors).items()}
    text = {"visual.head.proj.weight": np.zeros((9, 64)), "logit_scale": np.zeros(1)}
    text["transformer.resblocks.0.ln_1.weight"] = text["text_projection"] = np.zeros(9)
    layouts = {
        "transformers": {f"convnext.{k}": v for k, v in tensors.items()} | classifier,
        "Meta": as_meta(tensors) | head,
        "DINOv3": as_meta(tensors) | copy,
        "timm": as_timm(tensors) | timm_head,
        "timm, convolutions": as_timm(tensors, convolutions=True) | clip_head,
        "OpenCLIP": tower | text,
    }
    for name, layout in layouts.items():
        layout = {key: value.astype("float32") for key, value in layout.items()}
        for file in ("a.safetensors", "a.pth"):
            values = read_convnext_weights(save(layout, file))
            assert values.keys() == expected.keys(), name
            for key, value in values.items():
                np.testing.assert_array_equal(value, expected[key], f"{name}: {key}")


def test_metas_checkpoints_hold_the_model_in_a_dict(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.tensor(value) for key, value in as_meta(tensors).items()}
    torch.save({"model": state}, tmp_path / "convnext_tiny_1k_224_ema.pth")
    values = read_convnext_weights(tmp_path / "convnext_tiny_1k_224_ema.pth")
    assert len(values) == len(tensors)


def test_the_rate_rises_linearly_from_block_to_block():
    rates = [drop.rate for drop in drops(narrow(drop_path=0.4))]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


def test_an_images_residual_is_dropped_as_a_whole_or_scaled_up(folders):
    model = narrow(folders["ConvNext"], drop_path=0.5)
    block = "narrow_stage_3_block_0"
    probe = keras.Model(
        model.input,
        [
            model.get_layer(f"{block}_depthwise_conv").input,
            model.get_layer(f"{block}_layer_scale").output,
            model.layers[-1].input,  # of the norm after the last block
        ],
    )
    copies = np.repeat(images(64, 64), 16, axis=0)
    before, residual, after = map(array, probe(copies, training=True))
    assert np.abs(residual).max() > 0.01
    added = after - before
    dropped = np.all(added == 0, axis=(1, 2, 3))
    assert 0 < dropped.sum() < 16
    # The rate of the last block is one half, so the other residuals are doubled.
    np.testing.assert_allclose(
        added[~dropped], 2 * residual[~dropped], rtol=1e-4, atol=1e-4
    )
    still = array(model(copies))
    np.testing.assert_allclose(still, still[:1].repeat(16, 0), atol=1e-4)


def test_more_channels_take_the_weights_of_rgb_in_turn(folders):
    rgb = narrow(folders["ConvNext"])
    six = narrow(folders["ConvNext"], (None, None, 6))
    pixels = images(64, 64)
    twice = np.concatenate([pixels, pixels], axis=-1)
    np.testing.assert_allclose(array(six(twice)), array(rgb(pixels)), atol=1e-4)
    model = ksa.build_segmenter(six, 3)
    assert model.preprocessing.name == "preprocessing_none" and model.takes_pixels


def test_other_channels_without_weights_are_not_normalized(capsys):
    backbone = narrow(input_shape=(None, None, 5))
    assert not normalizes(backbone)
    assert backbone(images(64, 64, 5)).shape == (1, 2, 2, 64)
    ksa.build_segmenter(backbone, 3)
    assert "not normalized, because they have 5 channels" in capsys.readouterr().out


# Where weights and their normalization come from


def test_imagenet_weights_are_those_of_keras_applications(monkeypatch):
    calls = []

    def stand_in(**arguments):
        calls.append(arguments)
        return keras.Sequential([keras.Input((3,))], name="stand_in")

    monkeypatch.setattr(keras.applications, "ConvNeXtBase", stand_in)
    with pytest.raises(ValueError, match="'stand_in'"):
        ksa.ConvNeXtBase("imagenet", (64, 96, 5))
    shape = (None, None, 3)
    assert calls == [dict(include_top=False, weights="imagenet", input_shape=shape)]


@pytest.mark.parametrize("size", SIZES[:4])
def test_imagenet_weights_of_small_sizes_are_timms(hub, size):
    asked = hub({})
    with pytest.raises(ValueError, match="EntryNotFoundError"):
        BUILDERS[size](weights="imagenet")
    name, file = asked[0]
    assert re.fullmatch(rf"timm/convnext_{size.lower()}\.d\w+_in1k@main", name)
    assert file == "model.safetensors"


def test_a_name_of_timm_is_one_on_the_hub(tensors, save, hub, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"pretrained_cfg": {"mean": CLIP[0], "std": CLIP[1]}}))
    files = {"model.safetensors": save(as_timm(tensors)), "config.json": config}
    asked = hub(files)
    model = narrow("timm/convnext_base.laion2b")
    assert [file for _, file in asked] == ["model.safetensors", "config.json"]
    assert {name for name, _ in asked} == {"timm/convnext_base.laion2b"}
    (norm,) = [x for x in model.layers if isinstance(x, keras.layers.Normalization)]
    np.testing.assert_allclose(array(norm.mean).ravel(), 255 * np.array(CLIP[0]))
    deviation = np.sqrt(array(norm.variance).ravel())
    np.testing.assert_allclose(deviation, 255 * np.array(CLIP[1]), rtol=1e-6)


HALF = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        pytest.param(
            "config.json",
            {"pretrained_cfg": {"mean": HALF, "std": HALF}},
            (HALF, HALF),
            id="timm's",
        ),
        pytest.param(
            "preprocessor_config.json",
            {"image_mean": HALF, "image_std": HALF},
            (HALF, HALF),
            id="transformers'",
        ),
        pytest.param("config.json", {"depths": [3, 3]}, IMAGENET, id="another config"),
        pytest.param("config.json", [1, 2], IMAGENET, id="no dict"),
        pytest.param("other.json", {"image_mean": HALF}, IMAGENET, id="none"),
    ],
)
def test_the_normalization_lies_beside_the_weights(tmp_path, file, content, expected):
    (tmp_path / file).write_text(json.dumps(content))
    weights = tmp_path / "model.safetensors"
    weights.touch()
    for source in (tmp_path, str(weights)):
        assert read_normalization(source) == expected


def test_the_normalization_of_a_file_without_a_config(tmp_path, hub):
    (tmp_path / "convnext_base_CLIP.pth").touch()
    assert read_normalization(tmp_path / "convnext_base_CLIP.pth") == CLIP
    asked = hub({})
    assert read_normalization("timm/convnext_base.clip_laion2b@main") == CLIP
    assert read_normalization("timm/convnext_base.fb_in22k") == IMAGENET
    files = ["config.json", "preprocessor_config.json"]
    assert [file for _, file in asked] == 2 * files


# Edges


@pytest.mark.parametrize(
    "mean",
    [[0.5], 0.5, "half", [0.5, 0.5, None]],
    ids=["one value", "a number", "text", "a hole"],
)
def test_a_wrong_normalization_raises(tmp_path, mean):
    content = json.dumps({"image_mean": mean, "image_std": HALF})
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"three numbers each\. Received: weights='"):
        read_normalization(tmp_path)


def test_a_damaged_config_raises(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json beside the weights can't be"):
        read_normalization(tmp_path)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("stages.0.0.grn.gamma", "ConvNeXtV2"),
        ("stages.0.blocks.0.mlp.grn.weight", "ConvNeXtV2"),
        ("convnextv2.encoder.stages.0.layers.0.grn.weight", "ConvNeXtV2"),
        ("norm_pre.weight", "_hnf"),
        ("stem.2.weight", "_ols"),
        (None, "_rms"),
    ],
    ids=["Meta's V2", "timm's V2", "transformers' V2", "hnf", "ols", "rms"],
)
def test_other_networks_raise(tensors, save, name, network):
    layout = as_timm(tensors)
    if name:
        layout[name] = np.zeros(3, "float32")
    else:
        del layout["stem.1.bias"]
    with pytest.raises(
        ValueError, match=rf"first ConvNeXt .*model.safe.* of .*{network}"
    ):
        narrow(save(layout))


def test_tensors_that_do_not_fit_raise_and_none_is_assigned(tensors, save):
    layout = as_timm(tensors)
    del layout["head.norm.bias"], layout["stages.1.blocks.0.gamma"]
    layout |= {"more": np.zeros(3), "stages.0.blocks.7.gamma": np.zeros(8)}
    layout["stages.2.downsample.1.weight"] = np.zeros((5, 7, 2, 2))
    layout = {key: value.astype("float32") for key, value in layout.items()}
    model = narrow()
    before = model.get_weights()
    with pytest.raises(ValueError) as caught:
        assign_convnext_weights(model, read_convnext_weights(save(layout)))
    assert (
        "missing tensors: ['norm.bias', 'stages.1.0.gamma'], "
        "unknown tensors: ['more', 'stages.0.7.gamma'], other shapes: "
        "['downsample_layers.2.1.weight is (2, 2, 7, 5), expected (2, 2, 16, 32)']"
    ) in str(caught.value)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("drop_path", [1, -0.1, float("nan")])
def test_a_rate_out_of_range_raises(drop_path):
    with pytest.raises(ValueError, match=rf"below 1\..*drop_path={drop_path}"):
        ksa.ConvNeXtTiny(drop_path=drop_path)


@pytest.mark.parametrize("value", [None, "small", True, float("nan")], ids=str)
def test_a_wrong_layer_scale_raises(value):
    with pytest.raises(ValueError, match=rf"finite number\..*init_value={value!r}"):
        LayerScale(value)


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
        ksa.ConvNeXtTiny(weights)


def test_another_model_as_weights_raises(tiny_backbone):
    with pytest.raises(ValueError, match=r"ConvNeXt of keras\.app.*weights='tiny' of"):
        ksa.ConvNeXtTiny(tiny_backbone())
