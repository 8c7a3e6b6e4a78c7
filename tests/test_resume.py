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
from keras_segadapter.training.resume import Backup

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
    assert backup.restore(model) == 0
    for epoch in range(2):
        backup.on_epoch_end(epoch, {"loss": np.float32(1 / (epoch + 1))})
    return sorted(path.name for path in folder.iterdir())


def test_a_kill_during_a_backup_costs_at_most_one_epoch(tiny_backbone, tmp_path):
    model, folder = build(tiny_backbone), tmp_path / "backup"
    assert backup_of(model, folder) == ["epoch_0002.weights.h5", "state.json"]
    kept = state(model)
    # Files of the third epoch are incomplete, and its state does not have its name yet.
    whole = (folder / "epoch_0002.weights.h5").read_bytes()
    (folder / "epoch_0003.weights.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "state.json.new").write_text('{"weights": "epo')
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
    assert files == ["epoch_0003.weights.h5", "state.json"]


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
        ("epoch_0002.weights.h5", None),
        ("epoch_0002.weights.h5", "no weights"),
        ("state.json", "{"),
        ("state.json", "{}"),
    ],
    ids=["no weights", "other weights", "no json", "empty state"],
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


def test_arguments_that_do_not_fit_a_backup_raise(tiny_backbone, tmp_path):
    model = build(tiny_backbone)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"path of a folder .*file, which is a file"):
        train(model, backup=tmp_path / "file")
    with pytest.raises(ValueError, match="`validation_split` can't be used with"):
        train(model, backup=tmp_path / "folder", validation_split=0.5)


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
