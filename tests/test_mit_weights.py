"""MiT weights from published files and models, and from files that do not fit."""

import re
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_segadapter as ksa
from keras_segadapter.backbones import weight_files
from keras_segadapter.backbones.mit_weights import assign_mit_weights, read_mit_weights

CHANNELS, HEADS, REDUCTIONS = (32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1)


@pytest.fixture(scope="module")
def openmmlab():
    """Return a random MiT-B0 in PyTorch whose modules are named as OpenMMLab's."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self, width, heads, reduction):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            if reduction > 1:
                self.sr = nn.Conv2d(width, width, reduction, reduction)
                self.norm = nn.LayerNorm(width)

        def forward(self, x, grid):
            source = x
            if hasattr(self, "sr"):
                source = self.norm(tokens(self.sr(grid(x))))
            return self.attn(x, source, source)[0]

    class Block(nn.Module):
        def __init__(self, width, heads, reduction):
            super().__init__()
            self.norm1 = nn.LayerNorm(width, eps=1e-6)
            self.attn = Attention(width, heads, reduction)
            self.norm2 = nn.LayerNorm(width, eps=1e-6)
            self.ffn = nn.Module()
            self.ffn.layers = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width),
                nn.GELU(),
                nn.Dropout(0),
                nn.Conv2d(4 * width, width, 1),
            )

        def forward(self, x, grid):
            x = x + self.attn(self.norm1(x), grid)
            return x + tokens(self.ffn.layers(grid(self.norm2(x))))

    class MiT(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, before = nn.ModuleList(), 3
            for stage, width in enumerate(CHANNELS):
                kernel, stride = (3, 2) if stage else (7, 4)
                embed = nn.Module()
                embed.projection = nn.Conv2d(before, width, kernel, stride, kernel // 2)
                embed.norm = nn.LayerNorm(width, eps=1e-6)
                blocks = nn.ModuleList(
                    Block(width, HEADS[stage], REDUCTIONS[stage]) for _ in range(2)
                )
                norm = nn.LayerNorm(width, eps=1e-6)
                self.layers.append(nn.ModuleList([embed, blocks, norm]))
                before = width

        def forward(self, x):
            for embed, blocks, norm in self.layers:
                x = embed.projection(x)
                size = x.shape[2:]

                def grid(x, size=size):
                    return x.transpose(1, 2).unflatten(2, size)  # (B, C, H, W)

                x = embed.norm(tokens(x))
                for block in blocks:
                    x = block(x, grid)
                x = grid(norm(x))
            return x

    def tokens(x):
        return x.flatten(2).transpose(1, 2)  # (B, H*W, C)

    torch.manual_seed(0)
    model = MiT().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def mit():
    return ksa.MiTB0()


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a file of PyTorch."""

    def write(content, name="mit_b0.pth"):
        torch = pytest.importorskip("torch")
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def as_nvlabs(state):
    """Return OpenMMLab's tensors with the names and shapes of SegFormer's own code."""
    words = {
        "0.projection.": "patch_embed{}.proj.",
        "0.norm.": "patch_embed{}.norm.",
        "1.": "block{}.",
        "2.": "norm{}.",
    }
    tensors = {}
    for key, value in state.items():
        _, stage, rest = key.split(".", 2)
        for start, word in words.items():
            if rest.startswith(start):
                key = word.format(int(stage) + 1) + rest.removeprefix(start)
                break
        key = key.replace("attn.attn.out_proj", "attn.proj")
        key = key.replace("ffn.layers.0", "mlp.fc1").replace("ffn.layers.4", "mlp.fc2")
        key = key.replace("ffn.layers.1", "mlp.dwconv.dwconv")
        if ".fc" in key and key.endswith("weight"):
            value = value[:, :, 0, 0]
        if "in_proj_" in key:
            third = len(value) // 3
            tensors[key.replace("attn.in_proj_", "q.")] = value[:third]
            tensors[key.replace("attn.in_proj_", "kv.")] = value[third:]
        else:
            tensors[key] = value
    return tensors


def as_transformers(state, prefix="segformer.encoder."):
    """Return the same tensors with the names of transformers."""
    tensors = {}
    for key, value in as_nvlabs(state).items():
        stage = int(re.match(r"[a-z_]+(\d)", key)[1]) - 1
        key = re.sub(r"^patch_embed\d", f"patch_embeddings.{stage}", key)
        key = re.sub(r"^block\d", f"block.{stage}", key)
        key = re.sub(r"^norm\d", f"layer_norm.{stage}", key)
        key = re.sub(r"\.norm(\d)", r".layer_norm_\1", key)
        key = key.replace("attn.proj", "attention.output.dense")
        key = key.replace("attn.", "attention.self.").replace("fc", "dense")
        key = prefix + key.replace(".norm.", ".layer_norm.")
        if ".kv." in key:
            half = len(value) // 2
            tensors[key.replace(".kv.", ".key.")] = value[:half]
            tensors[key.replace(".kv.", ".value.")] = value[half:]
        else:
            tensors[key.replace(".q.", ".query.")] = value
    return tensors


def as_transformers_5(state, prefix="segformer."):
    """Return the same tensors with the names that transformers has since version 5."""
    words = {
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
        "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
        "attention.output.dense": "attention.o_proj",
        "mlp.dense": "mlp.fc",
        "layer_norm_1": "layernorm_before",
        "layer_norm_2": "layernorm_after",
    }
    tensors = {}
    for key, value in as_transformers(state, "").items():
        part, stage, rest = key.split(".", 2)
        part = {"block": "blocks"}.get(part, part)
        key = f"{prefix}stages.{stage}.{part}.{rest}"
        for old, new in words.items():
            key = key.replace(old, new)
        tensors[key] = value
    return tensors


@pytest.mark.integration
def test_equals_openmmlabs_encoder(openmmlab, save, mit):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    assign_mit_weights(mit, read_mit_weights(save(openmmlab.state_dict())))
    with torch.no_grad():
        expected = openmmlab(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    # Called directly, since `predict` would compile for one image.
    ours = keras.ops.convert_to_numpy(mit(images))
    np.testing.assert_allclose(ours, expected.transpose(0, 2, 3, 1), atol=1e-4)


def test_every_layout_holds_the_same_weights(openmmlab, save, mit):
    torch = pytest.importorskip("torch")
    state = openmmlab.state_dict()
    expected = read_mit_weights(save(state))
    assign_mit_weights(mit, expected)  # complete
    heads = {
        "decode_head.conv_seg.weight": torch.zeros(2, 3, 1, 1),
        "auxiliary_head.conv_seg.bias": torch.zeros(2),
    }
    segmenter = {f"backbone.{key}": value for key, value in state.items()} | heads
    parameters = {k: torch.nn.Parameter(v) for k, v in as_nvlabs(state).items()}
    head = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    classifier = {"classifier.weight": torch.zeros(1000, 256)}
    smp = {
        "decoder.fuse_stage.0.weight": torch.zeros(2, 3, 1, 1),
        "segmentation_head.0.bias": torch.zeros(2),
    }
    for layout in (
        {"state_dict": segmenter, "meta": {"epoch": 3, "CLASSES": ("wall", "sky")}},
        as_nvlabs(state) | head,
        {"model": parameters | head, "epoch": 300},
        as_transformers(state) | heads,
        as_transformers(state, "encoder.") | {"iteration": 9},
        as_transformers(state) | classifier,
        as_transformers_5(state) | heads,
        as_transformers_5(state, ""),
        {f"encoder.{key}": value for key, value in as_nvlabs(state).items()} | smp,
    ):
        values = read_mit_weights(save(layout))
        assert values.keys() == expected.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(value, expected[name], name)


def test_safetensors_come_first_in_a_folder(openmmlab, save, tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    tensors = as_transformers(openmmlab.state_dict())
    save({k: v + 1 for k, v in tensors.items()}, "pytorch_model.bin")
    name = "norm.3.bias"
    other = read_mit_weights(tmp_path)[name]
    arrays = {k: np.ascontiguousarray(v.numpy()) for k, v in tensors.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    values = read_mit_weights(str(tmp_path))
    np.testing.assert_allclose(values[name] + 1, other, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(openmmlab, save, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    tensors = as_transformers(openmmlab.state_dict())
    halves = {k: v.to(getattr(torch, dtype)).clone() for k, v in tensors.items()}
    save_file(halves, tmp_path / "half.safetensors")
    expected = read_mit_weights(save(tensors))
    for file in (save(halves, "half.bin"), tmp_path / "half.safetensors"):
        values = read_mit_weights(file)
        assert values.keys() == expected.keys()
        for name, value in values.items():
            assert value.dtype == "float32"
            np.testing.assert_allclose(value, expected[name], atol=0.01)


def test_imagenet_weights_come_from_the_hub(openmmlab, save, hub):
    state = openmmlab.state_dict()
    file = save(as_transformers(state))
    asked = hub({"pytorch_model.bin": file})
    backbone = ksa.MiTB0(weights="imagenet", name="other")
    names = ["model.safetensors", "pytorch_model.bin"]
    assert asked == [("nvidia/mit-b0@main", name) for name in names]
    norm = backbone.get_layer("stage4_norm").weights[0]
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(norm), state["layers.3.2.weight"].numpy()
    )


def test_each_size_requests_its_own_repository(hub):
    sizes = [ksa.MiTB0, ksa.MiTB1, ksa.MiTB2, ksa.MiTB3, ksa.MiTB4, ksa.MiTB5]
    asked = hub({})
    for build in sizes:
        with pytest.raises(ValueError, match="EntryNotFoundError"):
            build(weights="imagenet")
    expected = [f"nvidia/mit-b{i}@main" for i in range(6)]
    assert [name for name, _ in asked[::2]] == expected


def test_the_disk_comes_before_the_hub_and_safetensors_first(
    openmmlab, save, hub, tmp_path, monkeypatch
):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    tensors = as_transformers(openmmlab.state_dict())
    arrays = {k: np.ascontiguousarray(v.numpy()) for k, v in tensors.items()}
    folder = tmp_path / "nvidia" / "mit-b3"
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    asked = hub({"model.safetensors": folder / "model.safetensors"})
    name = "nvidia/segformer-b0-finetuned-ade-512-512"
    values = read_mit_weights(name)
    assert asked == [(name, "model.safetensors")]
    monkeypatch.chdir(tmp_path)
    assert read_mit_weights("nvidia/mit-b3").keys() == values.keys()
    assert len(asked) == 1


def test_errors_of_the_hub_raise_as_value_errors(hub):
    errors = pytest.importorskip("huggingface_hub.errors")
    # Without network and cache, the client's error is one of missing files too.
    offline = errors.LocalEntryNotFoundError("not in the cache")
    asked = hub({name: offline for name in ("model.safetensors", "pytorch_model.bin")})
    with pytest.raises(ValueError, match=r"LocalEntryNotFound.*network") as caught:
        read_mit_weights("nvidia/mit-b0")
    assert caught.value.__cause__ is offline
    assert len(asked) == 2
    broken = ConnectionError("reset")
    hub({"model.safetensors": broken})
    with pytest.raises(ValueError, match=r"no such file .*nobody/mit") as caught:
        read_mit_weights("nobody/mit")
    assert caught.value.__cause__ is broken
    assert len(asked) == 3  # the second file is not tried


def keras_hub_encoder(depths=(2, 2, 2, 2)):
    return pytest.importorskip("keras_hub").models.MiTBackbone(
        layerwise_depths=list(depths),
        num_layers=4,
        layerwise_num_heads=list(HEADS),
        layerwise_sr_ratios=list(REDUCTIONS),
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=list(CHANNELS),
        image_shape=(64, 64, 3),
    )


# keras-hub's dependencies warn at import.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_equals_keras_hubs_encoder(mit):
    reference = keras_hub_encoder()
    rng = np.random.default_rng(0)
    for variable in reference.trainable_variables:  # biases and norms too
        noise = rng.normal(0, 0.02, variable.shape)
        variable.assign(keras.ops.convert_to_numpy(variable) + noise)
    assign_mit_weights(mit, read_mit_weights(reference))
    images = rng.normal(size=(1, 64, 64, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(reference(images))
    ours = keras.ops.convert_to_numpy(mit(images))
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_keras_hubs_encoder_of_another_size_raises(mit):
    deeper = keras_hub_encoder((3, 2, 2, 2))
    with pytest.raises(ValueError, match=r"unknown tensors: \['block\.0\.2\.attn"):
        assign_mit_weights(mit, read_mit_weights(deeper))


def test_tensors_that_do_not_fit_raise_and_none_is_assigned(openmmlab, save, mit):
    torch = pytest.importorskip("torch")
    state = as_nvlabs(openmmlab.state_dict())
    del state["norm1.bias"], state["block2.1.attn.q.weight"]
    state |= {"more": torch.zeros(3), "block9.0.norm1.bias": torch.zeros(3)}
    state["block1.0.mlp.fc1.weight"] = torch.zeros(5, 7)
    state["patch_embed1.proj.bias"] = torch.zeros(3)
    before = mit.get_weights()
    with pytest.raises(ValueError) as caught:
        assign_mit_weights(mit, read_mit_weights(save(state)))
    assert (
        "missing tensors: ['block.1.1.attn.q.weight', 'norm.0.bias'], "
        "unknown tensors: ['block.8.0.norm1.bias', 'more'], "
        "other shapes: ['block.0.0.mlp.fc1.weight is (7, 5), expected (32, 128)', "
        "'patch_embed.0.proj.bias is (3,), expected (32,)']"
    ) in str(caught.value)
    for value, old in zip(mit.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


def test_a_joint_tensor_of_another_shape_raises(openmmlab, save, mit):
    torch = pytest.importorskip("torch")
    state = openmmlab.state_dict()
    state["layers.0.1.0.attn.attn.in_proj_bias"] = torch.zeros(7)
    state["layers.0.1.0.ffn.layers.0.weight"] = torch.zeros(128, 32, 3, 3)
    with pytest.raises(ValueError) as caught:
        assign_mit_weights(mit, read_mit_weights(save(state)))
    for part in ("q.bias is (3,)", "k.bias is (2,)", "fc1.weight is (3, 3, 32, 128)"):
        assert part in str(caught.value)


class Malicious:
    """Write a file when a pickle of it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_nothing_in_a_file_is_executed(openmmlab, save, tmp_path, suffix):
    written = tmp_path / "written"
    content = {"state_dict": openmmlab.state_dict(), "meta": Malicious(written)}
    file = save(content, f"model.{suffix}")
    with pytest.raises(ValueError, match="Python objects, which are never") as caught:
        ksa.MiTB0(weights=file)
    assert "weights_only" in str(caught.value.__cause__)
    assert not written.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="text"),
        pytest.param(b"PK\x03\x04 cut off", id="cut off"),
    ],
)
def test_damaged_files_raise(tmp_path, content):
    pytest.importorskip("torch")
    (tmp_path / "mit.pth").write_bytes(content)
    with pytest.raises(ValueError, match="damaged, of another format"):
        read_mit_weights(tmp_path / "mit.pth")
    pytest.importorskip("safetensors")
    (tmp_path / "mit.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="can't be read as safetensors"):
        read_mit_weights(tmp_path / "mit.safetensors")


def test_a_file_without_tensors_raises(save):
    with pytest.raises(ValueError, match=r"a dictionary of tensors.*with a list"):
        read_mit_weights(save([1, 2]))


@pytest.mark.parametrize(
    ("file", "package"),
    [("mit.pth", "torch"), ("mit.safetensors", "safetensors"), (None, "huggingface")],
    ids=["torch", "safetensors", "huggingface_hub"],
)
def test_missing_packages_raise(tmp_path, monkeypatch, file, package):
    for name in ("torch", "safetensors", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    source = "nvidia/mit-b0"
    if file:
        source = tmp_path / file
        source.touch()
    with pytest.raises(ImportError, match=f"needs the package {package}.*pip install"):
        read_mit_weights(source)


def test_wrong_sources_raise(tmp_path):
    with pytest.raises(ValueError, match="There is no such file"):
        ksa.MiTB0(weights=tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"must hold model\.safetensors or"):
        ksa.MiTB0(weights=tmp_path)
    for value in (3, 0.5, True, b"nvidia/mit-b0", ["a.pth"]):
        words = re.escape(f"Received: weights={value!r} of type {type(value).__name__}")
        with pytest.raises(TypeError, match=words):
            ksa.MiTB0(weights=value)
    words = r"MiTBackbone or a SegFormer of keras-hub.*='other'"
    with pytest.raises(ValueError, match=words):
        ksa.MiTB0(weights=keras.Sequential([keras.Input((3,))], name="other"))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "weights/mit_b0.pth",
            "./nothing",
            "no-such-name",
            "a/b/c",
            "weights\\mit_b0",
        ),
        *("weights/mit_b0.h5", "weights/mit_b0.weights.h5", "weights/mit_b0.ckpt"),
        *("weights/mit_b0.Zip", "mit/b0@2x.pth", "", "None", "~/mit_b0", "/mit/b0"),
        *("here/mit_b0", "here/mit_b0.5"),
    ],
)
def test_a_mistyped_path_is_never_asked_of_the_hub(hub, tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    asked = hub({})
    words = re.escape(f"Received: weights={name!r}") + "$"
    with pytest.raises(ValueError, match=rf"There is no such file .*@main.*{words}"):
        ksa.MiTB0(weights=name)
    assert asked == []


def test_a_revision_of_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "nvidia").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = hub({})
    for name in ("nvidia/mit-b0@main", "a/b@0a1b2c3", "a/b.v2@refs/pr/1", "a/b-1.5"):
        with pytest.raises(ValueError, match=rf"the revision, .*weights='{name}'$"):
            ksa.MiTB0(weights=name)
        assert asked[-1] == (name, "pytorch_model.bin")


def zeros(torch, **options):
    return torch.zeros(3, **options)


@pytest.mark.parametrize(
    "make, kind",
    [
        pytest.param(lambda t: t.zeros(10**12, device="meta"), "meta", id="meta"),
        pytest.param(lambda t: t.eye(3).to_sparse(), "torch.sparse_coo", id="sparse"),
        pytest.param(lambda t: zeros(t, dtype=t.bool), "torch.bool", id="bool"),
        pytest.param(lambda t: zeros(t, dtype=t.int64), "torch.int64", id="integers"),
        pytest.param(
            lambda t: zeros(t, dtype=t.complex64), "torch.complex64", id="complex"
        ),
        pytest.param(
            lambda t: t.quantize_per_tensor(zeros(t), 0.1, 0, t.qint8),
            "torch.qint8",
            id="quantized",
        ),
        pytest.param(
            lambda t: zeros(t).half().expand(10**12, 3), "12000.0 GB", id="view"
        ),
    ],
)
# PyTorch warns that quantized tensors are deprecated, and about its own storages.
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_raise(save, make, kind):
    torch = pytest.importorskip("torch")
    tensor = make(torch)
    words = rf"mit_b0.pth'.* {kind}$"
    with pytest.raises(ValueError, match=words):
        ksa.MiTB0(weights=save({"norm.3.bias": tensor}))
    # That of a head is not read.
    assert read_mit_weights(save({"decode_head.bias": tensor})) == {}


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_safetensors_of_other_dtypes_raise(tmp_path, dtype):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"norm.3.bias": np.zeros(3, dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"dense .*a.safetensors' with 'norm.3.bias'"):
        ksa.MiTB0(weights=tmp_path / "a.safetensors")


def test_files_of_absurd_size_raise(tmp_path, save):
    pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    claim = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,%d]}}'
    header = claim % (4 * 10**12)
    path = tmp_path / "claim.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="damaged or of another format"):
        ksa.MiTB0(weights=path)
    path.write_bytes((10**15).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="damaged or of another format"):
        ksa.MiTB0(weights=path)
    for name in ("a.safetensors", "a.pth"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**40)  # sparse
        with pytest.raises(ValueError, match=rf"8.6 GB. .*{name}' of 1099.5 GB$"):
            ksa.MiTB0(weights=tmp_path / name)


def test_a_compressed_file_of_absurd_size_raises(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(10**7))
    monkeypatch.setattr(weight_files, "MAX_BYTES", 10**6)
    assert (tmp_path / "a.pth").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"a.pth' of 0.0 GB$"):
        ksa.MiTB0(weights=tmp_path / "a.pth")
