"""Moving averages: `fit` validates, saves and ends with them, the raw weights learn."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import EAGER
from numpy_method import array

import keras_segadapter as ksa
from keras_segadapter.training.averages import Averages, with_averages
from keras_segadapter.training.resume import Backup, locked

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 8, 12, 3), "uint8")
MASKS = RNG.integers(0, K, (4, 8, 12), "uint8")
EMA = 0.25  # few batches, and nothing to print about


def build(kind="paper", ema=EMA):
    """Build equal models with an optimizer of a kind."""
    keras.utils.set_random_seed(1)
    dtype = "mixed_float16" if kind == "loss scale" else "float32"
    keras.config.set_dtype_policy(dtype)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    x = keras.layers.BatchNormalization()(x)
    backbone = keras.Model(inputs, keras.layers.Dense(4, "relu", name="mix")(x))
    head = ksa.MLPHead(K, 4, dropout=0.0)
    # Adapters would add groups, and seconds to compile them.
    model = ksa.build_segmenter(backbone, K, head=head, adapters=False)
    if kind == "lora":
        ksa.enable_lora(model, "mix", rank=1)
    if kind == "plain":
        keys = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
        optimizer = ksa.AdamW(0.01, **keys)
    else:
        options = {"gradient_accumulation_steps": 2} if kind == "sums" else {}
        optimizer = ksa.paper_optimizer(
            model, 9, 0.01, warmup_steps=0, ema=ema, **options
        )
    model.compile(optimizer, run_eagerly=EAGER)
    keras.config.set_dtype_policy("float32")
    return model


class Watch(keras.callbacks.Callback):
    """Callback that records the weights after each batch, in validation and after."""

    def __init__(self, stop=None):
        super().__init__()
        self.raw, self.tested, self.ended, self.stop = [], [], [], stop

    def on_train_batch_end(self, batch, logs=None):
        self.raw.append(values(self.model))

    def on_test_begin(self, logs=None):
        self.tested.append(values(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(values(self.model))
        self.model.stop_training = epoch == self.stop


class Raise(keras.callbacks.Callback):
    """Callback that raises in a method of its second epoch, or the epoch given."""

    def __init__(self, method, epoch=1):
        super().__init__()
        self.stop_epoch = epoch
        setattr(self, method, self.interrupt)

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def interrupt(self, *args, **kwargs):
        if self.now == self.stop_epoch:
            raise KeyboardInterrupt


def values(model):
    return [array(v).copy() for v in model.trainable_variables]


def averages(model):
    """Return the averages in the optimizer, in the order of the weights."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    found = {}
    for part in getattr(optimizer, "optimizers", [optimizer]):
        kept = [v for v in part.variables if v.path.endswith("_average")]
        assert len(kept) == len(part._trainable_variables)
        found.update(zip(map(id, part._trainable_variables), kept, strict=True))
    return [array(found[id(v)]) for v in model.trainable_variables]


def train(model, *callbacks, epochs=3, **options):
    return model.fit(
        IMAGES,
        MASKS,
        **dict(batch_size=2, verbose=0, shuffle=False) | options,
        epochs=epochs,
        callbacks=list(callbacks),
        validation_data=(IMAGES[::2], MASKS[::2]),
    )


def recursion(recorded, start=1):
    """Return the averages after each batch; the weights of the first steps start."""
    results = recorded[:start]
    for new in recorded[start:]:
        pairs = zip(results[-1], new, strict=True)
        results.append([EMA * old + (1 - EMA) * value for old, value in pairs])
    return results


def assert_equal(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, **dict(rtol=0, atol=0) | tolerance)


def differ(ours, theirs):
    return any(np.any(a != b) for a, b in zip(ours, theirs, strict=True))


# Contract


def test_ema_sets_the_options_of_each_group():
    groups = build().optimizer.get_config()["optimizers"]
    found = {(g["config"]["use_ema"], g["config"]["ema_momentum"]) for g in groups}
    assert found == {(True, EMA)} and len(groups) > 1
    groups = build(ema=None).optimizer.get_config()["optimizers"]
    assert not any(group["config"]["use_ema"] for group in groups)


# Meaning


def measured(model):
    return model.evaluate(IMAGES[::2], MASKS[::2], verbose=0, return_dict=True)


KINDS = ("plain", "sums", "loss scale", "lora")


@pytest.mark.parametrize(
    "kind", ["paper", *(pytest.param(k, marks=pytest.mark.integration) for k in KINDS)]
)
def test_fit_measures_and_saves_averages(tmp_path, kind):
    model, watch, path = build(kind), Watch(), tmp_path / "{epoch}.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    history = train(model, watch, checkpoint, epochs=2).history
    # After each epoch, of two batches, which are one step with accumulation.
    expected = recursion(watch.raw, 2 if kind == "sums" else 1)[1::2]
    for seen in (watch.tested, watch.ended):
        for ours, theirs in zip(seen, expected, strict=True):
            assert_equal(ours, theirs, atol=1e-6)
    assert differ(watch.ended[-1], watch.raw[-1])
    for ours in (values(model), averages(model)):
        assert_equal(ours, watch.ended[-1])
    saved = keras.models.load_model(tmp_path / "1.keras")
    for ours in (values(saved), averages(saved)):
        assert_equal(ours, watch.ended[0])
    for each, epoch in ((saved, 0), (model, 1)):
        for key, value in measured(each).items():
            assert value == pytest.approx(history[f"val_{key}"][epoch], rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(
    "kind", ["paper", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)]
)
def test_the_raw_weights_learn_as_without_averages(tmp_path, kind):
    model, watch, plain, other = build(kind), Watch(), build(kind, ema=None), Watch()
    train(model, watch, epochs=2)
    train(plain, other, epochs=2)
    for ours, theirs in zip(watch.raw, other.raw, strict=True):
        assert_equal(ours, theirs)
    # Statistics of batch norms are not averaged.
    both = ([array(v) for v in m.non_trainable_variables] for m in (model, plain))
    assert_equal(*both)
    # Another fit starts from the averages, whatever was done in between.
    start = values(model)
    before = measured(model)
    model.save(tmp_path / "model.keras")
    assert measured(keras.models.load_model(tmp_path / "model.keras")) == before
    with pytest.raises(KeyboardInterrupt):
        train(model, Raise("on_train_batch_begin", epoch=0))
    assert_equal(values(model), start)
    again = Watch()
    train(model, again, epochs=1)
    assert_equal(again.ended[0], recursion([start, *again.raw])[-1], atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("stop", ["callback", "best", "frequency"])
def test_a_training_that_stops_early_ends_with_averages(stop):
    model, watch = build(), Watch(stop=0 if stop == "callback" else None)
    options = {"validation_freq": 2} if stop == "frequency" else {}
    best = keras.callbacks.EarlyStopping(
        "val_loss", patience=1, mode="max", restore_best_weights=True
    )  # The loss falls, so the first epoch is the best.
    train(model, watch, *[best] * (stop == "best"), **options)
    epochs = {"callback": 1, "best": 2, "frequency": 3}[stop]
    assert len(watch.ended) == epochs
    expected = recursion(watch.raw)[1::2]
    for ours, theirs in zip(watch.ended, expected, strict=True):
        assert_equal(ours, theirs, atol=1e-6)
    assert_equal(values(model), watch.ended[0 if stop == "best" else -1])
    assert_equal(averages(model), values(model))


METHODS = ["on_train_batch_end", "on_test_batch_end", "on_epoch_end"]


@pytest.mark.integration
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_ends_with_averages(method):
    model, watch = build(), Watch()
    with pytest.raises(KeyboardInterrupt):
        train(model, watch, Raise(method))
    assert_equal(values(model), recursion(watch.raw)[-1], atol=1e-6)
    assert_equal(averages(model), values(model))


@pytest.mark.integration
def test_without_a_batch_weights_stay_as_they_are():
    model = build()
    before = values(model)
    with pytest.raises(KeyboardInterrupt):
        train(model, Raise("on_train_batch_begin", epoch=0))
    assert_equal(values(model), before)
    train(model, epochs=1, initial_epoch=1)
    assert_equal(values(model), before)


def backed_up(model, folder):
    """Return the raw weights and the averages in a backup."""
    with locked(folder):
        assert Backup(folder).restore(model)
    return values(model), averages(model)


BATCH, TEST, EPOCH = METHODS
STOPS = {"plain": BATCH, "sums": EPOCH, "loss scale": TEST}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("paper", TEST),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in STOPS.items()),
    ],
)
def test_a_resumed_training_has_the_same_raw_weights_and_averages(
    tmp_path, kind, method
):
    options = dict(batch_size=2, shuffle=True)
    through, watch = build(kind), Watch()
    expected = train(through, watch, backup=tmp_path / "through", **options)
    with pytest.raises(KeyboardInterrupt):
        train(build(kind), Raise(method), backup=tmp_path / "resumed", **options)
    resumed = build(kind)
    history = train(resumed, backup=tmp_path / "resumed", **options)
    assert history.history == expected.history
    assert_equal(values(resumed), values(through))
    assert_equal(averages(resumed), averages(through))
    # The raw weights are in the backup, to go on from with more epochs.
    for folder in ("through", "resumed"):
        raw, kept = backed_up(resumed, tmp_path / folder)
        assert_equal(raw, watch.raw[-1])
        assert_equal(kept, watch.ended[-1])


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
import test_averages as test
model = test.build()
stop = [test.Raise("on_test_batch_end")] if sys.argv[3] == "stop" else []
try:
    test.train(model, *stop, backup=sys.argv[2], shuffle=True)
except KeyboardInterrupt:
    sys.exit(0)
np.savez(sys.argv[2] + "/end.npz", *test.values(model), *test.averages(model))
"""


@pytest.mark.slow
def test_resumed_in_a_fresh_process_it_ends_with_the_same_weights(tmp_path):
    through = build()
    train(through, backup=tmp_path / "through", shuffle=True)
    for what in ("stop", "resume"):
        command = [sys.executable, "-c", PROCESS, Path(__file__).parent, tmp_path, what]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
    ends = np.load(tmp_path / "end.npz")
    assert_equal(ends.values(), [*values(through), *averages(through)])


# Edges


def test_the_callback_of_keras_is_left_out(capsys):
    model, other = build(), keras.callbacks.Callback()
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    assert with_averages(model, [swap, other])[1:-1] == [other]
    assert "SwapEMAWeights is left out" in capsys.readouterr().out
    assert with_averages(model, [other])[1:-1] == [other]
    assert with_averages(build(ema=None), [swap, other]) == [swap, other]
    assert "SwapEMAWeights" not in capsys.readouterr().out


@pytest.mark.parametrize(("epochs", "said"), [(3, True), (30, False)])
def test_averages_that_reach_back_to_the_start_are_named(capsys, epochs, said):
    callback = Averages()
    callback.set_model(build(ema=0.9))
    capsys.readouterr()
    for steps in (2, None):
        callback.set_params({"epochs": epochs, "steps": steps})
        callback.on_train_begin()
    expected = (
        "After 6 batches, averages with a momentum of 0.9 still hold 53% of the "
        "weights at the start. To leave 1%, set it to 0.4642.\n"
    )
    assert capsys.readouterr().out == expected * said


@pytest.mark.parametrize("ema", [-0.1, 1.0, float("nan"), "0.9", True])
def test_bad_momenta_raise(ema):
    with pytest.raises(ValueError, match=r"`ema` must be .* below 1. Received: ema="):
        build(ema=ema)


@pytest.mark.parametrize("option", [{"use_ema": False}, {"ema_momentum": 0.9}])
def test_options_that_ema_sets_raise(option):
    model = build()
    with pytest.raises(TypeError, match=r"Leave these out. Received: ema=0.9 and "):
        ksa.paper_optimizer(model, 9, warmup_steps=0, ema=0.9, **option)
