"""Tests that files bring models back whole, in any process and on any backend."""

import errno
import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter import build_segmenter, saving, segmenter
from keras_segadapter.backbones.mit import EfficientSelfAttention, MixFFN

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 32, 48, 3), "uint8")
MASKS = RNG.integers(0, K, (4, 32, 48), "uint8")


def trained(backbone):
    """Build a model on a backbone and train it for one step."""
    model = build_segmenter(backbone, K)
    model.compile(ksa.AdamW(1e-3), run_eagerly=EAGER)
    model.fit(IMAGES, MASKS, verbose=0)
    return model


def logits(model):
    return keras.ops.convert_to_numpy(model.for_inference()(IMAGES))


def arrays(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


LOAD = """
import sys, json
import keras, numpy as np
keras.layers.Add()([keras.Input((4,))] * 2)  # as if another model was built before
import keras_segadapter
folder = sys.argv[1]
model = keras.models.load_model(folder + "/model.keras")
logits = model.predict(np.load(folder + "/images.npy"), verbose=0)
optimizer = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
np.savez(folder + f"/{keras.backend.backend()}.npz", logits, *optimizer)
model.fit(np.load(folder + "/images.npy"), np.load(folder + "/masks.npy"), verbose=0)
print(keras.backend.backend(), model.jit_compile)
"""


@pytest.fixture(scope="module")
def saved(tiny_backbone, tmp_path_factory):
    """Save a model, and start a process per backend that loads it."""
    model, folder = trained(tiny_backbone()), tmp_path_factory.mktemp("saved")
    model.save(folder / "model.keras")
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "masks.npy", MASKS)
    processes = {
        backend: subprocess.Popen(
            [sys.executable, "-c", LOAD, folder],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in ("tensorflow", "jax", "torch")
        if importlib.util.find_spec(backend)
    }
    yield model, folder, processes
    for process in processes.values():
        process.kill()
        process.communicate()


# Contract


@pytest.mark.parametrize(
    "options",
    [dict(), dict(aux="per_stage"), dict(aux=None), dict(adapters=False)],
    ids=["default", "aux_per_stage", "no_aux", "no_adapters"],
)
def test_a_loaded_model_is_the_saved_one(tiny_backbone, tmp_path, options):
    model = build_segmenter(tiny_backbone(), K, name="mine", **options)
    model.compile(ignore_class=[255, 7], aux_weight=0.3, run_eagerly=EAGER)
    model.save(tmp_path / "model.keras")
    keras.layers.Add()([keras.Input((4,))] * 2)  # gives operations other names
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, ksa.Segmenter)
    config, again = model.get_config(), loaded.get_config()
    assert json.dumps(config, sort_keys=True) == json.dumps(again, sort_keys=True)
    assert_equal([logits(model)], [logits(loaded)])
    loaded.run_eagerly = EAGER
    expected = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    assert loaded.evaluate(IMAGES, MASKS, verbose=0, return_dict=True) == expected


@pytest.mark.integration
def test_a_file_of_weights_restores_the_weights(tiny_backbone, tmp_path):
    model = trained(tiny_backbone())
    model.save_weights(tmp_path / "model.weights.h5")
    other = build_segmenter(tiny_backbone(), K)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_equal([logits(model)], [logits(other)])


@pytest.mark.integration
def test_mixed_precision_comes_back_with_its_loss_scale(tiny_backbone, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = trained(tiny_backbone())
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == "mixed_float16"
    assert type(loaded.optimizer) is type(model.optimizer)
    assert_equal(arrays(model.optimizer.variables), arrays(loaded.optimizer.variables))
    loaded.run_eagerly = EAGER
    loaded.fit(IMAGES, MASKS, verbose=0)


def test_jit_compile_auto_is_saved_as_auto(tiny_backbone):
    # What "auto" means on this machine must not be forced on the next one.
    model = build_segmenter(tiny_backbone(), K)
    model.compile()
    assert model.get_compile_config()["jit_compile"] == "auto"


@pytest.mark.integration
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_fresh_process_of_any_backend_loads_a_file(saved, backend):
    model, folder, processes = saved
    if backend not in processes:
        pytest.skip(f"{backend} is not installed here")
    printed, errors = processes[backend].communicate()
    assert processes[backend].returncode == 0, errors
    assert printed.startswith(backend)
    result, *optimizer = np.load(folder / f"{backend}.npz").values()
    np.testing.assert_allclose(result, model.predict(IMAGES, verbose=0), atol=1e-4)
    for loaded, kept in zip(optimizer, arrays(model.optimizer.variables), strict=True):
        np.testing.assert_allclose(loaded, kept, rtol=1e-6)


# Edges


@keras.saving.register_keras_serializable("tests")
class Packaged(keras.Model):
    """A backbone as of keras-cv or keras-hub, whose config leaves out the layers."""

    def __init__(self, **kwargs):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 4, 4)(inputs))
        super().__init__(inputs, keras.layers.Conv2D(8, 2, 2)(x), **kwargs)

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize("packaged", [False, True])
def test_a_frozen_backbone_stays_frozen(tiny_backbone, tmp_path, packaged):
    backbone = Packaged() if packaged else tiny_backbone()
    backbone.trainable = False
    model = build_segmenter(backbone, K)
    model.compile(ksa.paper_optimizer(model, 9, warmup_steps=2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    assert len(model.trainable_variables) < len(model.variables) - 10
    learning = {id(weight) for weight in loaded.trainable_variables}
    assert not learning & {id(weight) for weight in loaded.backbone.weights}
    loaded.backbone.trainable = True
    assert len(loaded.trainable_variables) > len(model.trainable_variables)


def nested_layers():
    """Build a backbone of the layers of a MiT, which hold other layers."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 4, 4)(inputs)
    x = x + EfficientSelfAttention(num_heads=2, reduction=2)(x)
    return keras.Model(inputs, x + MixFFN(ratio=2)(x))


@pytest.mark.integration
@pytest.mark.parametrize("nested", [False, True])
def test_layers_frozen_after_building_come_back_frozen(tmp_path, tiny_backbone, nested):
    backbone = nested_layers() if nested else tiny_backbone()
    model = build_segmenter(backbone, K, head=ksa.MLPHead(K, 8))
    backbone.trainable = model.adapters[0].trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    shapes, expected = (
        [tuple(v.shape) for v in m.trainable_variables] for m in (loaded, model)
    )
    assert shapes == expected
    assert len(model.non_trainable_variables) == len(loaded.non_trainable_variables)


def test_a_nested_backbone_and_custom_preprocessing_come_back(tiny_backbone, tmp_path):
    inputs = keras.Input((None, None, 3))
    nested = keras.Model(
        inputs, tiny_backbone()(keras.layers.Rescaling(0.01)(inputs)), name="resnet50"
    )
    model = build_segmenter(nested, K, preprocessing=keras.layers.Rescaling(0.5))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal([logits(model)], [logits(loaded)])


def test_what_lies_behind_the_last_tap_is_no_part_but_is_kept(tiny_backbone, tmp_path):
    backbone = tiny_backbone((4, 6, 8))
    model = build_segmenter(backbone, K, taps=ksa.find_stages(backbone)[:2])
    tail = backbone.get_layer("reduce_3")
    assert tail not in model.layers
    assert not {id(v) for v in tail.weights} & {id(v) for v in model.weights}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(
        arrays(loaded.backbone.get_layer("reduce_3").weights), arrays(tail.weights)
    )


KILLS = """
import os, random, signal, sys, time, zipfile
import h5py, keras, numpy as np
import keras_segadapter as ksa

folder, count = sys.argv[1], int(sys.argv[2])
backbone = keras.Sequential(
    [keras.Input((None, None, 3)), keras.layers.Conv2D(64, 4, 4)]
)
model = ksa.build_segmenter(backbone, 3, head=ksa.MLPHead(3, 64), adapters=False)
path, weights_path = folder + "/model.keras", folder + "/model.weights.h5"


def save(version):
    for weight in model.weights:
        weight.assign(np.full(weight.shape, version))
    model.save(path)
    model.save_weights(weights_path)


def versions():
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extract("model.weights.h5", folder + "/inside")
    for file in (folder + "/inside/model.weights.h5", weights_path):
        found = set()
        with h5py.File(file) as weights:
            weights.visititems(
                lambda name, item: found.update(np.unique(item[()]))
                if isinstance(item, h5py.Dataset) else None
            )
        (version,) = found  # and not a mixture
        yield version


save(0)
start = time.perf_counter()
save(0)
seconds = time.perf_counter() - start
chance, last = random.Random(int(sys.argv[3])), [0, 0]
for kill in range(count):
    process = os.fork()
    if not process:
        version = max(last)
        while True:
            version += 1
            save(version)
    time.sleep(chance.uniform(0.5, 3) * seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    now = [*versions()]
    assert all(a >= b for a, b in zip(now, last)), (now, last)
    last = now
left = [name for name in os.listdir(folder) if ".tmp" in name]
for name in left:
    os.utime(folder + "/" + name, (0, 0))  # as if killed a while ago
save(0)
keras.models.load_model(path)
print(len(left), *sorted(os.listdir(folder)), sep=",")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="It forks.")
def test_fifty_kills_while_saving_lose_no_file(tmp_path):
    pytest.importorskip("h5py")
    seed = int.from_bytes(os.urandom(2), "big")
    print(f"moments by the seed {seed}")
    # Keras' NumPy backend has no threads, which would not survive a fork.
    printed = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, "50", str(seed)],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    left, *files = printed.split("\n")[-2].split(",")
    assert int(left) > 0  # Some of the kills were amid a write.
    assert files == ["inside", "model.keras", "model.weights.h5"]


@pytest.fixture
def small_files():
    """Let no file grow beyond 20 kB, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_a_full_disk_raises_and_leaves_the_old_file(
    tiny_backbone, tmp_path, request, name
):
    model = build_segmenter(tiny_backbone(), K)
    save = model.save if name.endswith(".keras") else model.save_weights
    save(tmp_path / name)
    old = (tmp_path / name).read_bytes()
    assert len(old) > 20_000
    request.getfixturevalue("small_files")
    words = rf"File too large.*MB are needed, and .*MB are free.*{tmp_path / name}"
    with pytest.raises(OSError, match=words) as error:
        save(tmp_path / name)
    assert error.value.errno == errno.EFBIG
    assert (tmp_path / name).read_bytes() == old
    assert os.listdir(tmp_path) == [name]


def test_a_missing_folder_raises(tiny_backbone, tmp_path):
    model = build_segmenter(tiny_backbone(), K)
    for save, name in ((model.save, "a.keras"), (model.save_weights, "a.weights.h5")):
        with pytest.raises(FileNotFoundError, match=r"no folder .*none.*filepath="):
            save(tmp_path / "none" / name)


def test_a_link_and_the_mode_of_a_file_stay(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "target").chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    saving.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o640


def test_leftovers_are_removed_unless_another_process_writes_them(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    for name in (
        ".a.keras.1.tmp.keras",
        ".a.keras.2.tmp.keras",
        ".b.keras.3.tmp.keras",
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".a.keras.4.tmp.keras").touch()  # just begun
    with open(tmp_path / ".a.keras.2.tmp.keras", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        saving.write(tmp_path / "a.keras", b"new")
    left = sorted(path.name.split(".")[3] for path in tmp_path.glob(".*"))
    assert left == ["2", "3", "4"]


@pytest.mark.parametrize("answers, kept", [("xn", True), ("y", False)])
def test_overwrite_false_asks_as_keras_does(
    tiny_backbone, tmp_path, monkeypatch, answers, kept
):
    model = build_segmenter(tiny_backbone(), K)
    for save, name in ((model.save, "a.keras"), (model.save_weights, "a.weights.h5")):
        given = iter(answers)
        monkeypatch.setattr("builtins.input", lambda text, given=given: next(given))
        (tmp_path / name).write_text("old")
        save(tmp_path / name, overwrite=False)
        assert ((tmp_path / name).read_bytes() == b"old") == kept
        assert next(given, None) is None


def test_other_targets_are_left_to_keras(tiny_backbone, tmp_path):
    model = build_segmenter(tiny_backbone(), K)
    model.save(tmp_path / "folder", zipped=False)
    assert isinstance(keras.models.load_model(tmp_path / "folder"), ksa.Segmenter)
    model.save_weights(tmp_path / "a.weights.json", max_shard_size=1)
    assert (tmp_path / "a.weights.json").exists()
    with pytest.raises(ValueError, match="extension"):
        model.save(tmp_path / "model.zip")
    remote = ["gs://a/b.keras", "hf://a/b", "/gcs/b.keras", os.devnull, tmp_path]
    assert not any(map(saving.is_local, remote))
    assert saving.is_local("b.keras") and saving.is_local(tmp_path / "b.keras")


def test_model_checkpoint_writes_whole_files(tiny_backbone, tmp_path, monkeypatch):
    written = []
    replacing = saving.replacing
    for module in (saving, segmenter):
        monkeypatch.setattr(
            module, "replacing", lambda *args: written.append(args) or replacing(*args)
        )
    model = build_segmenter(tiny_backbone((4,)), K, adapters=False)
    for only_weights, name in ((False, "a.keras"), (True, "a.weights.h5")):
        callback = keras.callbacks.ModelCheckpoint(
            tmp_path / name, save_weights_only=only_weights
        )
        callback.set_model(model)
        callback.on_epoch_end(0, {})
        assert (tmp_path / name).exists()
    assert len(written) == 2


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def halve(inputs):
    return inputs / 2


def with_layer(layer):
    inputs = keras.Input((None, None, 3))
    inner = keras.Sequential([keras.Input((None, None, 4)), layer], name="inner")
    features = keras.layers.Conv2D(4, 4, 4)(inputs)
    features = keras.layers.Conv2D(4, 1)(inner(features))
    return build_segmenter(keras.Model(inputs, features), K, adapters=False)


@pytest.mark.parametrize(
    "layer, words, error",
    [
        (
            lambda: Unregistered(name="mine"),
            "'mine' of class Unregistered",
            "Keras does not know the class Unregistered",
        ),
        (
            lambda: keras.layers.Lambda(lambda x: x / 2, name="mine"),
            "a Python lambda in 'mine'",
            "lambda",
        ),
        (
            lambda: keras.layers.Lambda(halve, name="mine"),
            "the function halve in 'mine'",
            "Keras does not know the function halve",
        ),
    ],
    ids=["class", "lambda", "function"],
)
def test_what_keras_cannot_load_is_named_on_saving(tmp_path, layer, words, error):
    model = with_layer(layer())
    with pytest.warns(UserWarning, match=words) as warned:
        model.save(tmp_path / "model.keras")
    said = [one for one in warned if "register_keras_serializable" in str(one.message)]
    assert len(said) == 1
    with pytest.raises(ValueError, match=error) as raised:
        keras.models.load_model(tmp_path / "model.keras")
    assert len(str(raised.value)) < 500
    objects = {"Unregistered": Unregistered, "halve": halve}
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects=objects, safe_mode=False
    )
    assert_equal([logits(model)], [logits(loaded)])


@pytest.mark.integration
def test_what_keras_can_load_is_not_warned_of(tmp_path, recwarn):
    with_layer(keras.layers.Lambda(keras.ops.relu)).save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras")
    with keras.saving.custom_object_scope({"Unregistered": Unregistered}):
        with_layer(Unregistered()).save(tmp_path / "model.keras")
    model = ksa.build_segmenter(ksa.MiTB0(), K)
    model.compile(keras.optimizers.Adam())
    assert saving.unknown_objects(model) == []
    assert not [one for one in recwarn if "register_keras" in str(one.message)]
