"""SegFormers equal transformers', and hold the weights of all published files."""

import inspect
import json
import re

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter.data import ADE20K, CITYSCAPES
from keras_segadapter.models import segformer as models
from keras_segadapter.models.segformer_weights import (
    read_class_names,
    read_segformer_weights,
)

# As in the file config.json of nvidia's repositories.
SPELLED = [n.replace("television", "television receiver") for n in ADE20K.class_names]
NAMES = [f"SegFormerB{i}" for i in range(6)]
K = 5
WIDE = {
    "hidden_sizes": [64, 128, 320, 512],
    "depths": [3, 4, 6, 3],
    "decoder_hidden_size": 768,
}


def reference_of(num_classes=K, **options):
    """Return a SegFormer of transformers, B0 by default, with all weights random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=num_classes, **options)
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter.add_(0.05 * torch.randn_like(parameter))
        norm = model.decode_head.batch_norm
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def reference():
    return reference_of(id2label={i: f"class {i}" for i in range(K)})


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    """Return the folder that transformers writes, with the names on the Hub."""
    folder = tmp_path_factory.mktemp("transformers")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ksa.SegFormerB0(weights=folder)


@pytest.fixture
def state(folder):
    """Return the tensors that transformers writes."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a file of PyTorch."""

    def write(content, name="segformer.pth"):
        pytest.importorskip("torch").save(content, tmp_path / name)
        return tmp_path / name

    return write


def as_nvlabs(state):
    """Return transformers' tensors with the names of NVlabs' SegFormer."""
    torch = pytest.importorskip("torch")
    words = {
        ".layer_norm_": ".norm",
        ".layer_norm.": ".norm.",
        "attention.output.dense": "attn.proj",
        "attention.self.query": "attn.q",
        "attention.self.": "attn.",
        "mlp.dense": "mlp.fc",
        "linear_fuse.": "linear_fuse.conv.",
        "batch_norm.": "linear_fuse.bn.",
        "classifier.": "linear_pred.",
    }
    tensors = {}
    for key, value in state.items():
        match = re.match(r"segformer\.encoder\.([a-z_]+)\.(\d)\.(.*)", key)
        if match:
            part = {"patch_embeddings": "patch_embed", "layer_norm": "norm"}
            part = part.get(match[1], match[1])
            key = f"backbone.{part}{int(match[2]) + 1}.{match[3]}"
        key = re.sub(r"linear_c\.(\d)", lambda m: f"linear_c{int(m[1]) + 1}", key)
        for old, new in words.items():
            key = key.replace(old, new)
        tensors[key] = value
    for key in [key for key in tensors if ".attn.key." in key]:
        other = tensors.pop(key.replace(".key.", ".value."))
        both = torch.cat([tensors.pop(key), other])
        tensors[key.replace(".key.", ".kv.")] = both
    unused = {
        "decode_head.conv_seg.weight": torch.zeros(K, 128, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(K),
    }
    return tensors | unused


def as_smp(state):
    """Return the tensors as segmentation_models_pytorch's own script converts them."""
    tensors = {
        key.replace("backbone.", "encoder."): value
        for key, value in as_nvlabs(state).items()
        if "conv_seg" not in key
    }
    head = "decode_head."
    renamed = {"linear_fuse.conv.": "fuse_stage.0.", "linear_fuse.bn.": "fuse_stage.1."}
    for i in range(4):
        renamed[f"linear_c{i + 1}.proj."] = f"mlp_stage.{3 - i}.linear."
    for old, new in renamed.items():
        for key in [key for key in tensors if key.startswith(head + old)]:
            tensors[key.replace(head + old, f"decoder.{new}")] = tensors.pop(key)
    for part in ("weight", "bias"):
        tensors[f"segmentation_head.0.{part}"] = tensors.pop(
            f"{head}linear_pred.{part}"
        )
    return tensors


def logits_of(model, images):
    # Called directly, since `predict` would compile for one image.
    return keras.ops.convert_to_numpy(model(images)["logits"])


def check_logits(model, reference, size):
    """Check that our logits are those of transformers."""
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype("float32")
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = (images / 255 - np.float32(mean)) / np.float32(deviation)
    with torch.no_grad():
        pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        expected = reference(pixels).logits.numpy().transpose(0, 2, 3, 1)
    logits = logits_of(model, images)
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def as_openmmlab_head(state, rng):
    """Return random tensors of OpenMMLab's head for a B0 and its encoder's tensors."""
    torch = pytest.importorskip("torch")
    widths = {f"convs.{i}": c for i, c in enumerate((32, 64, 160, 256))}
    tensors = {k: v for k, v in as_nvlabs(state).items() if "decode_head" not in k}

    def add(name, *shape):
        values = (
            rng.uniform(0.5, 1.5, shape)
            if len(shape) == 1
            else rng.normal(0, shape[1] ** -0.5, shape)
        )
        tensors[f"decode_head.{name}"] = torch.from_numpy(values.astype("float32"))

    for name, width in (widths | {"fusion_conv": 64}).items():
        add(f"{name}.conv.weight", 16, width, 1, 1)
        for part in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.bn.{part}", 16)
        tensors[f"decode_head.{name}.bn.num_batches_tracked"] = torch.tensor(7)
    add("conv_seg.weight", K, 16, 1, 1)
    add("conv_seg.bias", K)
    return tensors


# Contract


def test_all_models_have_the_same_arguments():
    signatures = {str(inspect.signature(getattr(ksa, name))) for name in NAMES}
    assert signatures == {
        "(num_classes=None, weights=None, input_shape=(None, None, 3), drop_path=0.1, "
        "name=None)"
    }


@pytest.mark.parametrize("name", NAMES)
def test_arguments_reach_the_backbone_and_the_head(tiny_backbone, monkeypatch, name):
    calls = []

    def stand_in(*args):
        calls.append(args)
        return tiny_backbone()

    monkeypatch.setattr(models, name.replace("SegFormer", "MiT"), stand_in)
    build = getattr(ksa, name)
    model = build(7, "imagenet", (64, 96, 3), 0.3, "mine")
    assert calls == [("imagenet", (64, 96, 3), 0.3)]
    assert (model.num_classes, model.name, model.adapters) == (7, "mine", [])
    assert build(7).name == name.lower().replace("former", "former_")
    width = 256 if name in ("SegFormerB0", "SegFormerB1") else 768
    assert isinstance(model.head, ksa.SegFormerHead) and model.head.channels == width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [*zip(NAMES, [3.5, 13.5, 25.1, 45.0, 61.7, 82.3], strict=True)],
)
def test_parameters_of_the_docstrings(name, millions):
    assert round(getattr(ksa, name)(150).count_params() / 1e6, 1) == millions


@pytest.mark.integration
def test_saves_and_loads_with_names_and_the_origin_of_the_weights(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.full((1, 64, 64, 3), 100, "uint8")
    np.testing.assert_allclose(
        logits_of(loaded, images), logits_of(model, images), atol=1e-5
    )
    assert loaded.weights_origin == model.weights_origin
    assert loaded.class_names == tuple(f"class {i}" for i in range(K))
    assert loaded.head.channels == model.head.channels == 256


# Meaning


def test_equals_transformers(model, reference):
    check_logits(model, reference, (64, 64))


@pytest.mark.integration
@pytest.mark.parametrize("size", [(512, 512), (333, 501)], ids=["512x512", "333x501"])
def test_b0_equals_transformers(model, reference, size):
    check_logits(model, reference, size)


@pytest.mark.slow
def test_b2_equals_transformers(tmp_path):
    reference = reference_of(150, **WIDE)
    reference.save_pretrained(tmp_path)
    model = ksa.SegFormerB2(weights=tmp_path)
    for size in ((512, 512), (333, 501), (64, 64)):
        check_logits(model, reference, size)


def test_every_layout_holds_the_same_weights(reference, folder, state, save, tmp_path):
    newer = tmp_path / "newer"
    reference.save_pretrained(newer, save_original_format=False)
    expected = read_segformer_weights(folder)
    other = {"auxiliary_head.conv_seg.bias": state["decode_head.classifier.bias"]}
    for source in (
        newer,
        newer / "model.safetensors",
        save(state, "pytorch_model.bin"),
        save({"state_dict": as_nvlabs(state) | other, "meta": {"epoch": 3}}, "n.pth"),
        save(as_nvlabs(state)),
        save(as_smp(state), "smp.pth"),
    ):
        for values, ours in zip(read_segformer_weights(source), expected, strict=True):
            assert values.keys() == ours.keys()
            for name, value in values.items():
                np.testing.assert_array_equal(value, ours[name], name)


def test_the_head_is_as_wide_as_in_the_weights(state, save):
    width = 32
    part = {key: value for key, value in state.items() if "decode_head" not in key}
    for key in state.keys() - part.keys():
        value = state[key]
        if "classifier" in key:
            value = value[:, :width] if key.endswith("weight") else value
        elif "fuse" in key:
            value = value[:width, : 4 * width]
        else:
            value = value[:width] if value.ndim else value
        part[key] = value.clone()
    assert ksa.SegFormerB0(weights=save(part)).head.channels == width


def test_the_hub_has_a_repository_for_each_size_and_dataset(hub):
    asked = hub({})
    for name in NAMES:
        for weights in ("ade20k", "cityscapes"):
            with pytest.raises(ValueError, match="EntryNotFoundError"):
                getattr(ksa, name)(weights=weights)
    expected = []
    for i in range(6):
        size = "640-640" if i == 5 else "512-512"
        expected += [
            f"nvidia/segformer-b{i}-finetuned-ade-{size}@main",
            f"nvidia/segformer-b{i}-finetuned-cityscapes-1024-1024@main",
        ]
    assert [name for name, _ in asked[::2]] == expected


def test_weights_of_a_dataset_bring_its_names_and_colors(hub, tmp_path, capsys):
    reference_of(19).save_pretrained(tmp_path)
    asked = hub({"model.safetensors": tmp_path / "model.safetensors"})
    model = ksa.SegFormerB0(weights="cityscapes")
    name = "nvidia/segformer-b0-finetuned-cityscapes-1024-1024@main"
    assert asked == [(name, "model.safetensors")]
    assert (model.num_classes, model.weights_origin) == (19, name)
    assert model.class_names == CITYSCAPES.class_names
    np.testing.assert_array_equal(model.colors, CITYSCAPES.colors)
    line = f"NVIDIA licenses the weights of {name} for research and evaluation only"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "expected", "colors"),
    [
        (["a", "b ", "c", "d", "e"], ["a", "b", "c", "d", "e"], None),
        ([f"LABEL_{i}" for i in range(5)], None, None),
        (["a", "b"], None, None),
        (CITYSCAPES.class_names, CITYSCAPES.class_names, CITYSCAPES.colors),
        (SPELLED, ADE20K.class_names, ADE20K.colors),
    ],
    ids=["own", "made up", "of another model", "Cityscapes", "ADE20K"],
)
def test_names_and_colors_beside_the_weights(tmp_path, names, expected, colors):
    by_id = {str(i): name for i, name in enumerate(names)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": by_id}))
    source = tmp_path / "model.safetensors"
    source.touch()
    count = 5 if expected is None else len(expected)
    found = models._names_and_colors(source, source, count)
    assert found[0] is expected is None or list(found[0]) == list(expected)
    assert found[1] is colors


def test_names_come_from_the_hub(hub, folder, tmp_path):
    by_id = {str(i): f"class {i}" for i in range(K)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": by_id}))
    files = {"model.safetensors": folder / "model.safetensors"}
    asked = hub(files | {"config.json": tmp_path / "config.json"})
    model = ksa.SegFormerB0(weights="someone/segformer@v1")
    assert model.class_names == tuple(by_id.values())
    expected = ["model.safetensors", "config.json"]
    assert asked == [("someone/segformer@v1", file) for file in expected]
    assert model.weights_origin == "someone/segformer@v1"
    hub(files)
    assert read_class_names("someone/segformer", K) is None


def test_the_encoder_alone_leaves_the_head_at_random(state, save):
    encoder = {key: v for key, v in state.items() if key.startswith("segformer.")}
    source = save(encoder | {"classifier.bias": state["decode_head.classifier.bias"]})
    model = ksa.SegFormerB0(3, weights=source)
    norm = model.backbone.get_layer("stage4_norm").weights[0]
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(norm), state["segformer.encoder.layer_norm.3.weight"]
    )
    assert model.num_classes == 3 and model.class_names is None


def test_segments_images_of_any_size(model):
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), "uint8")
    labels = model.segment(image)
    assert labels.shape == (45, 70) and labels.max() < K


def test_equals_openmmlabs_head(state, save):
    torch = pytest.importorskip("torch")
    nn = torch.nn.functional
    tensors = as_openmmlab_head(state, np.random.default_rng(0))
    model = ksa.SegFormerB0(weights=save({"state_dict": tensors}))

    def block(name, x):
        def get(part):
            return tensors[f"decode_head.{name}.{part}"]

        x = nn.conv2d(x, get("conv.weight"))
        statistics = get("bn.running_mean"), get("bn.running_var")
        x = nn.batch_norm(x, *statistics, get("bn.weight"), get("bn.bias"), eps=1e-5)
        return nn.relu(x)

    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype("float32")
    stages = keras.Model(model.input, model.features["outputs"])(images)
    hidden = []
    for i, features in enumerate(stages):
        features = keras.ops.convert_to_numpy(features).transpose(0, 3, 1, 2)
        x = block(f"convs.{i}", torch.from_numpy(features.copy()))
        hidden.append(nn.interpolate(x, (16, 16), mode="bilinear"))
    x = block("fusion_conv", torch.cat(hidden, 1))
    classifier = (
        tensors[f"decode_head.conv_seg.{part}"] for part in ("weight", "bias")
    )
    expected = nn.conv2d(x, *classifier).numpy().transpose(0, 2, 3, 1)
    difference = np.abs(logits_of(model, images) - expected).max()
    assert difference < 1e-4 * np.abs(expected).max()


@pytest.mark.integration
def test_every_weight_learns(folder):
    model = ksa.SegFormerB0(weights=folder, drop_path=0.0)
    # Without weight decay, and with steps that do not depend on the size of a gradient,
    # exactly the weights with a gradient move.
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-20), run_eagerly=EAGER)
    before = model.get_weights()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3), "uint8")
    model.fit(images, rng.integers(0, K, (2, 64, 64), "uint8"), verbose=0)
    still = [
        variable.path
        for variable, old, new in zip(
            model.weights, before, model.get_weights(), strict=True
        )
        if np.array_equal(old, new) and "seed" not in variable.path
    ]
    # The softmax of the attention does not change with the same constant for all keys.
    assert [path for path in still if "key" not in path] == []


@pytest.mark.integration
def test_adapters_and_other_classes_start_from_a_checkpoint(model):
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), "uint8")
    expected = logits_of(model, images)
    np.testing.assert_array_equal(logits_of(ksa.add_adapters(model), images), expected)
    other = ksa.change_classes(model, ["new", "class 3", "class 0"])
    np.testing.assert_allclose(
        logits_of(other, images)[..., 1:], expected[..., [3, 0]], atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # keras-hub's dependencies warn at import.
def test_equals_keras_hubs_segformer():
    hub = pytest.importorskip("keras_hub").models
    encoder = hub.MiTBackbone(
        layerwise_depths=[2, 2, 2, 2],
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[32, 64, 160, 256],
        image_shape=(64, 64, 3),
    )
    backbone = hub.SegFormerBackbone(image_encoder=encoder, projection_filters=24)
    reference = hub.SegFormerImageSegmenter(backbone=backbone, num_classes=K)
    rng = np.random.default_rng(0)
    for variable in reference.weights:
        if "seed" not in variable.path:  # biases, norms and statistics too
            noise = rng.uniform(0, 0.1, variable.shape)
            variable.assign(keras.ops.convert_to_numpy(variable) + noise)
    model = ksa.SegFormerB0(weights=reference)
    images = rng.integers(0, 256, (1, 64, 64, 3)).astype("float32")
    pixels = model.preprocessing(images)
    # Keras' Resizing layer would put batch norm into training mode.
    expected = keras.ops.convert_to_numpy(reference(pixels, training=False))
    logits = keras.ops.convert_to_numpy(model.for_inference()(images))
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    ksa.MiTB0(weights=reference)  # the encoder of a whole model


# Edges


def test_tensors_that_do_not_fit_are_listed(state, save):
    torch = pytest.importorskip("torch")
    del state["decode_head.linear_c.2.proj.bias"]
    del state["segformer.encoder.layer_norm.0.bias"]
    state |= {"decode_head.more.weight": torch.zeros(3)}
    state["decode_head.linear_fuse.weight"] = torch.zeros(256, 512, 1, 1)
    with pytest.raises(ValueError) as caught:
        ksa.SegFormerB0(weights=save(state))
    assert (
        "missing tensors: ['decode_head.linear_c.2.proj.bias', 'norm.0.bias'], "
        "unknown tensors: ['decode_head.more.weight'], other shapes: "
        "['decode_head.linear_fuse.weight is (512, 256), expected (1024, 256)']"
    ) in str(caught.value)


@pytest.mark.parametrize("part", ["classifier.bias", "batch_norm.weight"])
def test_a_missing_tensor_that_gives_a_size_is_listed(state, save, part):
    del state[f"decode_head.{part}"]
    words = rf"missing tensors: \['decode_head\.{part}'\]"
    with pytest.raises(ValueError, match=words):
        ksa.SegFormerB0(weights=save(state))


def test_another_size_raises(folder):
    words = r"'segformer_b1'\. Build the size.*block.* is \(32, 32\), expected \(64, 64"
    with pytest.raises(ValueError, match=words):
        ksa.SegFormerB1(weights=folder)


def test_another_number_of_classes_raises(folder, hub):
    assert ksa.SegFormerB0(K, weights=folder).num_classes == K
    words = r"change_classes\(model, class_names\).*=19, weights=.* with 5 classes$"
    with pytest.raises(ValueError, match=words):
        ksa.SegFormerB0(19, weights=folder)
    hub({"model.safetensors": folder / "model.safetensors"})
    with pytest.raises(ValueError, match=r"=19, weights='ade20k' with 5 classes$"):
        ksa.SegFormerB0(19, weights="ade20k")


def test_one_class_in_the_weights_raises(state, save):
    for part in ("weight", "bias"):
        key = f"decode_head.classifier.{part}"
        state[key] = state[key][:1].clone()
    with pytest.raises(ValueError, match=r"at least two classes.* with 1 class$"):
        ksa.SegFormerB0(weights=save(state))


def test_num_classes_is_needed_without_a_decode_head(state, save, hub):
    asked = hub({})
    encoder = {key: v for key, v in state.items() if key.startswith("segformer.")}
    for weights in (None, "imagenet", save(encoder)):
        shown = re.escape(repr(weights))
        words = rf"`num_classes` must be given .*=None, weights={shown} without one$"
        with pytest.raises(ValueError, match=words):
            ksa.SegFormerB0(weights=weights)
    assert asked == []


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_raise_before_weights_are_read(monkeypatch, name):
    monkeypatch.setattr(models, "read_segformer_weights", None)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        getattr(ksa, name)(1, weights="a/b")


def test_wrong_sources_raise(tmp_path):
    with pytest.raises(TypeError, match=r"Received: weights=3 of type int$"):
        ksa.SegFormerB0(weights=3)
    with pytest.raises(ValueError, match="There is no such file of weights"):
        ksa.SegFormerB0(weights=tmp_path / "nothing.pth")
    other = keras.Sequential([keras.Input((3,))], name="other")
    with pytest.raises(ValueError, match=r"MiTBackbone or a SegFormer of keras-hub"):
        ksa.SegFormerB0(weights=other)


def test_a_damaged_config_raises(folder, tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json beside the weights"):
        ksa.SegFormerB0(weights=tmp_path)
