"""A training that was stopped or killed resumes as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.data.epochs import ShuffledArrays
from keras_segadapter.training import resume
from keras_segadapter.training.resume import Backup, locked

ROOT = Path(__file__).parents[1]
K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 16, 24, 3), "uint8")
MASKS = RNG.integers(0, K, (4, 16, 24), "uint8")


class Stop(keras.callbacks.Callback):
    """Callback that raises after a batch, or after the epoch."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.stop_epoch, self.stop_batch = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.stop_epoch, self.stop_batch):
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if self.stop_batch is None and epoch == self.stop_epoch:
            raise KeyboardInterrupt


def build(make_backbone):
    keras.utils.set_random_seed(1)
    # Batch statistics, dropout, a schedule and averaged weights all have a state.
    # Adapters add none, and would take seconds to compile.
    head = ksa.MLPHead(K, 4, dropout=0.3)
    model = ksa.build_segmenter(make_backbone((4,)), K, head=head, adapters=False)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 6)
    model.compile(ksa.AdamW(schedule, use_ema=True, ema_overwrite_frequency=None))
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def train(model, *stop, **options):
    options = dict(batch_size=2, epochs=3, verbose=0) | options
    return model.fit(IMAGES, MASKS, callbacks=list(stop), **options)


# Meaning


@pytest.mark.integration
def test_a_stopped_training_resumes_to_the_same_weights(tiny_backbone, tmp_path):
    through = build(tiny_backbone)
    expected = train(through, backup=tmp_path / "through")
    stopped = build(tiny_backbone)
    # Stop twice in the second epoch, and once after it, before the backup.
    for stop in (Stop(1, 0), Stop(1, 1), Stop(1)):
        with pytest.raises(KeyboardInterrupt):
            train(stopped, stop, backup=tmp_path / "stopped")
    resumed = build(tiny_backbone)
    history = train(resumed, backup=tmp_path / "stopped")
    assert_equal(state(resumed), state(through))
    assert history.epoch == [0, 1, 2]
    assert history.history == expected.history
    assert len(history.history["mIoU"]) == 3
    # Another call has nothing left to do.
    assert train(stopped, backup=tmp_path / "stopped").history == expected.history
    assert_equal(state(stopped), state(through))
    with pytest.raises(ValueError, match="can't be loaded") as error:
        stopped.compile(keras.optimizers.SGD())
        train(stopped, backup=tmp_path / "stopped")
    assert "optimizer" in str(error.value)


def backup_of(model, folder):
    """Write a backup of two epochs without training; return the names of its files."""
    backup = Backup(folder)
    backup.set_model(model)
    with locked(folder):
        assert backup.restore(model) == 0
    (folder / LOCK).unlink()
    for epoch in range(2):
        backup.on_epoch_end(epoch, {"loss": np.float32(1 / (epoch + 1))})
    return sorted(path.name for path in folder.iterdir())


LOCK, FIRST, SECOND = (
    ".segmenter_backup.lock",
    "segmenter_backup_0.weights.h5",
    "segmenter_backup_1.weights.h5",
)


def test_a_kill_during_a_backup_costs_at_most_one_epoch(tiny_backbone, tmp_path):
    model, folder = build(tiny_backbone), tmp_path / "backup"
    assert backup_of(model, folder) == [SECOND, "state.json"]
    kept = state(model)
    # Files of the third epoch are incomplete, and its state does not have its name yet.
    whole = (folder / SECOND).read_bytes()
    (folder / FIRST).write_bytes(whole[: len(whole) // 2])
    new = folder / ".state.json.0123abcd.tmp.json"
    new.write_text('{"weights": "epo')
    os.utime(new, (0, 0))
    # Files of a ModelCheckpoint in the same folder are none of its business.
    foreign = ["epoch_0001.weights.h5", "epoch_0003.weights.h5"]
    for name in foreign:
        (folder / name).touch()
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    backup = Backup(folder)
    backup.set_model(model)
    assert backup.restore(model) == 2
    assert backup.history == {"loss": [1.0, 0.5]}
    assert_equal(state(model), kept)
    backup.on_epoch_end(2, {"loss": 0.25})
    assert Backup(folder).restore(model) == 3
    files = sorted(path.name for path in folder.iterdir())
    assert files == [*foreign, FIRST, "state.json"]


def test_the_order_of_arrays_depends_on_seed_and_epoch():
    arrays = (np.arange(7), {"a": np.arange(7) * 10})
    data = ShuffledArrays(arrays, 3, True, seed=5)

    def read():
        xs, ys = zip(*(data[i] for i in range(len(data))), strict=True)
        assert [len(x) for x in xs] == [3, 3, 1]
        x = np.concatenate(xs)
        np.testing.assert_array_equal(np.concatenate([y["a"] for y in ys]), 10 * x)
        return x.tolist()

    first = read()
    data.epoch = 3
    assert sorted(first) == sorted(read()) == list(range(7)) and first != read()
    assert read() == read()
    data.epoch = 0
    assert read() == first
    data = ShuffledArrays(arrays, 3, True, seed=6)
    assert read() != first
    data = ShuffledArrays(arrays, 3, False, seed=5)
    assert read() == list(range(7))


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "keras_segadapter", "train", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        stdout=subprocess.DEVNULL,
    )


def epochs_behind(out):
    path = out / "backup/state.json"
    return len(json.loads(path.read_text())["epochs"]) if path.exists() else 0


@pytest.mark.slow
def test_the_command_killed_three_times_resumes_to_the_same_weights(tmp_path):
    seed = random.SystemRandom().randrange(1000)
    print(f"moments by the seed {seed}")
    moments = random.Random(seed)
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/masks").mkdir()
    for i, (image, mask) in enumerate(zip(*ksa.data.make_scenes(20), strict=True)):
        Image.fromarray(image).save(tmp_path / f"data/images/{i:02}.png")
        Image.fromarray(mask).save(tmp_path / f"data/masks/{i:02}.png")
    options = [tmp_path / "data", "--classes", 8, "--batch", 2, "--epochs", 5]
    # As in `build`: five processes compile the model.
    options += ["--no-adapters", "--size", 48, 48]
    through, killed = tmp_path / "through", tmp_path / "killed"
    assert start(*options, "--out", through).wait() == 0
    written = [through / f"pictures/epoch_000{i}.png" for i in (4, 5)]
    epoch = np.diff([path.stat().st_mtime for path in written])[0]  # seconds
    options += ["--out", killed]
    for kill in range(3):
        before, patience = epochs_behind(killed), time.monotonic() + 300
        # A kill in the first epoch may leave a history without a backup.
        process = start(*options, "--resume" if before else "--overwrite")
        # The first kill is in the first epoch, which compiles. The others come
        # after one more epoch: in training, validation, pictures or backup.
        while time.monotonic() < patience and (
            epochs_behind(killed) == before if kill else not killed.exists()
        ):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, epoch))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        print(f"killed after {epochs_behind(killed)} epochs")
    last = "--resume" if epochs_behind(killed) else "--overwrite"
    assert start(*options, last).wait() == 0
    histories = [(out / "history.csv").read_text() for out in (killed, through)]
    assert histories[0] == histories[1] and histories[0].count("\n") == 6
    models = (keras.models.load_model(out / "model.keras") for out in (killed, through))
    # A model's file does not hold the random states of dropout, but a backup does.
    ours, theirs = ([*m.weights, *m.optimizer.variables] for m in models)
    assert_equal(
        *(map(keras.ops.convert_to_numpy, values) for values in (ours, theirs))
    )
    ours, theirs = (out / "backup/state.json" for out in (killed, through))
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


# Edges


@pytest.mark.parametrize(
    "name, content",
    [
        (SECOND, None),
        (SECOND, "no weights"),
        ("state.json", "{"),
        ("state.json", "{}"),
        ("state.json", "[1]"),
        ("state.json", "[" * 100_000),
        ("state.json", '{"format": "keras_segadapter backup 1"}'),
        ("state.json", '{"format": "keras_segadapter backup 2"}'),
        ("state.json", '{"weights": "epoch_0001.weights.h5", "epochs": [0]}'),
    ],
    ids=[
        *("no weights", "other weights", "no json", "empty state", "a list", "deep"),
        *("no checksum", "a later version", "an earlier version"),
    ],
)
def test_damaged_backups_raise(tiny_backbone, tmp_path, name, content):
    model = build(tiny_backbone)
    backup_of(model, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    words = rf"backup can't be loaded: [^$]*another folder.*backup={tmp_path}"
    with pytest.raises(ValueError, match=words):
        Backup(tmp_path).restore(model)


@pytest.mark.parametrize(
    "change",
    [
        dict(weights="../outside.weights.h5"),
        dict(weights=3),
        dict(weights=None),
        dict(sha256=None),
        dict(epochs=[]),
        dict(epochs="three"),
        dict(seeds=3),
        dict(seeds=[]),
        dict(optimizer=None),
    ],
    ids=lambda change: "{}={!r}".format(*next(iter(change.items()))),
)
def test_foreign_states_raise(tiny_backbone, tmp_path, change):
    model = build(tiny_backbone)
    backup_of(model, tmp_path)
    found = json.loads((tmp_path / "state.json").read_text()) | change
    del found["checksum"]
    found["checksum"] = resume._checksum(found)
    (tmp_path / "state.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="backup can't be loaded"):
        Backup(tmp_path).restore(model)


@pytest.mark.integration
def test_flipped_bits_raise_or_change_nothing(tiny_backbone, tmp_path):
    model = build(tiny_backbone)
    backup_of(model, tmp_path)
    kept, moments, harmless = state(model), random.Random(0), 0
    for name in ["state.json", SECOND] * 16:
        whole = bytearray((tmp_path / name).read_bytes())
        place, bit = moments.randrange(len(whole)), 1 << moments.randrange(8)
        whole[place] ^= bit
        (tmp_path / name).write_bytes(whole)
        backup = Backup(tmp_path)
        try:
            assert backup.restore(model) == 2
        except ValueError as error:
            assert "The backup can't be loaded" in str(error)
        else:
            harmless += 1
            assert backup.history == {"loss": [1.0, 0.5]}
        assert_equal(state(model), kept)
        whole[place] ^= bit
        (tmp_path / name).write_bytes(whole)
    assert harmless < 8  # such as a space that became another one
    assert Backup(tmp_path).restore(model) == 2


FULL = """
import resource, sys
import keras, numpy as np
import keras_segadapter as ksa
backbone = keras.Sequential(
    [keras.Input((None, None, 3)), keras.layers.Conv2D(64, 4, 4)]
)
model = ksa.build_segmenter(backbone, 3, head=ksa.MLPHead(3, 8), adapters=False)
model.compile("sgd", run_eagerly=keras.backend.backend() != "jax")
data = np.zeros((1, 8, 8, 3), "uint8"), np.zeros((1, 8, 8), "uint8")
model.fit(*data, verbose=0, backup=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    model.fit(*data, epochs=2, verbose=0, backup=sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.integration
def test_a_full_disk_is_one_error_and_no_crash(tmp_path):
    pytest.importorskip("resource")
    process = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "backup"],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "File too large" in process.stdout and "MB are free" in process.stdout
    assert "Traceback" not in process.stderr
    assert epochs_behind(tmp_path) == 1
    names = sorted(path.name for path in (tmp_path / "backup").iterdir())
    assert names == [LOCK, FIRST, "state.json"]


HOLD = """
import os, sys, time
from keras_segadapter.training.resume import locked
with locked(sys.argv[1]):
    if not os.fork():  # A worker outlives the process that is killed.
        time.sleep(60)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
def test_a_second_process_in_the_folder_raises(tiny_backbone, tmp_path):
    pytest.importorskip("fcntl")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        words = f"Another process trains.*{tmp_path}.*process {process.pid}"
        with pytest.raises(ValueError, match=words):
            train(build(tiny_backbone), backup=tmp_path)
        process.kill()
        process.wait()
        process.stdout.close()
        for _ in range(2):
            with locked(tmp_path):
                assert (tmp_path / LOCK).read_text() == str(os.getpid())
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "folder, error, words",
    [
        ("", ValueError, r"path of a folder .*backup='', the path is empty"),
        (3, TypeError, "backup=3 of type int"),
        (True, TypeError, "backup=True of type bool"),
        ([], TypeError, r"backup=\[\] of type list"),
        ("file", ValueError, "path of a folder .*no file.*file"),
        ("file/folder", ValueError, "path of a folder .*no file.*file/folder"),
    ],
    ids=["empty", "integer", "boolean", "list", "file", "in a file"],
)
def test_folders_that_are_none_raise(
    tiny_backbone, tmp_path, monkeypatch, folder, error, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(error, match=words):
        train(build(tiny_backbone), backup=folder)


def test_arguments_that_do_not_fit_a_backup_raise(tiny_backbone, tmp_path):
    model = build(tiny_backbone)
    with pytest.raises(ValueError, match="`validation_split` can't be used with"):
        train(model, backup=tmp_path / "folder", validation_split=0.5)


def test_changes_of_the_optimizer_are_said(tiny_backbone, tmp_path, capsys):
    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    schedule = keras.optimizers.schedules.CosineDecay
    model.compile(keras.optimizers.Adam(schedule(0.1, 5)))
    backup_of(model, tmp_path)
    capsys.readouterr()
    model.compile(keras.optimizers.Adam(schedule(0.1, 9), beta_1=0.8))
    assert Backup(tmp_path).restore(model) == 2
    said = capsys.readouterr().out
    assert "The optimizer has changed since the backup: " in said
    assert "beta_1=0.8 (was 0.9)" in said
    assert "learning_rate/decay_steps=9 (was 5)" in said
    assert "learning_rate is" not in said and said.count("\n") == 2
    # AdamW has as many variables as Adam.
    model.compile(keras.optimizers.AdamW())
    words = "written with the optimizer Adam, and the model is compiled with AdamW"
    with pytest.raises(ValueError, match=words):
        Backup(tmp_path).restore(model)


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        "Dropout",
        pytest.param("SpatialDropout2D", marks=pytest.mark.slow),
        pytest.param("GaussianNoise", marks=pytest.mark.slow),
    ],
)
def test_layers_without_a_seed_resume_too(tmp_path, name):
    def make():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(8, 4, 4)(inputs)
        x = getattr(keras.layers, name)(0.2)(x)
        backbone = keras.Model(inputs, keras.layers.Conv2D(8, 2, 2)(x))
        model = ksa.build_segmenter(backbone, K, adapters=False)
        model.compile(keras.optimizers.SGD(0.01))
        return model

    through = make()
    train(through, backup=tmp_path / "through")
    stopped = make()
    with pytest.raises(KeyboardInterrupt):
        train(stopped, Stop(1, 0), backup=tmp_path / "stopped")
    resumed = make()
    train(resumed, backup=tmp_path / "stopped")
    assert_equal(state(resumed), state(through))


@pytest.mark.integration
def test_a_backup_says_what_it_does(tiny_backbone, tmp_path, capsys):
    def fit(rate, epochs):
        model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
        model.compile(keras.optimizers.SGD(rate))
        options = dict(batch_size=4, epochs=epochs, verbose=0, backup=tmp_path)
        capsys.readouterr()
        history = model.fit(IMAGES, MASKS, **options)
        return history, capsys.readouterr().out

    assert "backup" not in fit(1e-3, 1)[1]
    history, said = fit(1e-4, 2)
    assert len(history.epoch) == 2
    assert f"Resuming after epoch 1, from the backup in {tmp_path}." in said
    assert "The learning rate is 0.001, that of the backup, and not 0.0001." in said
    history, said = fit(1e-3, 2)
    assert len(history.epoch) == 2
    assert f"The backup in {tmp_path} holds all 2 epochs: nothing is left" in said
    assert "learning rate" not in said
