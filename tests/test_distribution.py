"""Tests of the site's recipes for several devices, on virtual ones.

Run as a script, this file is the process that runs a recipe.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import EAGER
from pages import PAGES, blocks

import keras_segadapter as ksa
from keras_segadapter.data.epochs import ShuffledArrays

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.integration
PAGE = "docs/pages/devices.md"
RECIPES = blocks(PAGES[PAGE], "py")
DEVICES = {"jax": 4, "tensorflow": 2, "torch": 2}[BACKEND]
SHARDS = {
    "jax": [],
    "tensorflow": [slice(0, 4), slice(4, 8)],
    "torch": [slice(0, 8, 2), slice(1, 8, 2)],
}[BACKEND]

IMAGES, EVEN = ksa.data.make_scenes(8, size=(16, 16))
EVEN[:, :4] = 255
UNEVEN = EVEN.copy()
UNEVEN[:3, :13] = 255  # in one or two images of each shard


def build(norms, eager=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    backbone = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    head = ksa.MLPHead(8, channels=4, dropout=0.0, name="head")
    model = ksa.build_segmenter(backbone, 8, head=head)
    for norm in (backbone.layers[-1], *head.norms, head.projection_norm):
        norm.trainable = norms
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=eager)
    return model


# Whether norms learn and which masks are used, where the result equals that of one
# device and where it does not.
CASES = {"equal": (False, EVEN), "by_shard": (True, UNEVEN)}
if BACKEND == "jax":
    CASES = {"equal": (True, UNEVEN)}


def run_recipe(case):
    """Run the backend's recipe, and save its model and logs in the current folder."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        virtual = [tf.config.LogicalDeviceConfiguration()] * DEVICES
        tf.config.set_logical_device_configuration(cpu, virtual)
    (recipe,) = (text for text in RECIPES if f"KERAS_BACKEND={BACKEND}" in text)
    norms, masks = CASES[case]
    data = ShuffledArrays((IMAGES, masks), 8, shuffle=False, seed=0)
    names = {"build": functools.partial(build, norms), "data": data}
    exec(compile(recipe, PAGE, "exec"), names)
    rank, model = os.environ.get("RANK", "0"), names["model"]
    if BACKEND == "torch":
        logs = {"loss": [float(names["loss"].detach())]}
    else:
        logs = model.history.history
    model.save(f"{rank}.keras")
    Path(f"{rank}.json").write_text(json.dumps(logs))


def several_devices(case, folder):
    """Run a recipe, and return its models and logs, one of each per process."""
    launch = []
    flags = [os.environ["XLA_FLAGS"], "--xla_force_host_platform_device_count"]
    if BACKEND == "torch":
        launch = ["-m", "torch.distributed.run", "--standalone"]
        launch += [f"--nproc-per-node={DEVICES}"]
    done = subprocess.run(
        [sys.executable, *launch, __file__, case],
        cwd=folder,
        env={
            **os.environ,
            "KERAS_BACKEND": BACKEND,
            "XLA_FLAGS": f"{' '.join(flags)}={DEVICES}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    models = [
        keras.models.load_model(path) for path in sorted(folder.glob("[0-9].keras"))
    ]
    logs = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9].json"))]
    assert len(models) == len(logs) == (DEVICES if BACKEND == "torch" else 1)
    return models, logs


def one_device(case, shard=slice(None)):
    """Train one step on one device, and return the model and its history."""
    norms, masks = CASES[case]
    model = build(norms, EAGER)
    history = model.fit(IMAGES[shard], masks[shard], batch_size=8, verbose=0).history
    return model, history


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def assert_close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Meaning


def test_a_recipe_trains_as_one_device(tmp_path):
    models, logs = several_devices("equal", tmp_path)
    expected, history = one_device("equal")
    start = arrays(build(*CASES["equal"][:1]).trainable_variables)
    moved = arrays(expected.trainable_variables)
    assert all(np.any(a != b) for a, b in zip(start, moved, strict=True))
    for model in models:
        assert_close(model.get_weights(), expected.get_weights())
    for name in logs[0]:
        assert np.mean([log[name] for log in logs]) == pytest.approx(
            history[name][0], rel=1e-4
        )


def test_each_device_has_its_own_mean_and_norms(tmp_path):
    if not SHARDS:
        pytest.skip("JAX uses the mean and the statistics of the whole batch")
    models, logs = several_devices("by_shard", tmp_path)
    shards, histories = zip(*(one_device("by_shard", s) for s in SHARDS), strict=True)
    # With plain gradient descent, the mean gradient leads to the mean of the weights.
    weights = (arrays(shard.trainable_variables) for shard in shards)
    expected = [np.mean(each, axis=0) for each in zip(*weights, strict=True)]
    for model, shard in zip(models, shards, strict=False):  # TensorFlow has one
        assert_close(arrays(model.trainable_variables), expected)
        assert_close(
            arrays(model.non_trainable_variables), arrays(shard.non_trainable_variables)
        )
    losses = [history["loss"] for history in histories]
    found = np.mean([log["loss"] for log in logs])
    assert found == pytest.approx(np.mean(losses), rel=1e-4)
    whole, _ = one_device("by_shard")
    with pytest.raises(AssertionError):
        assert_close(expected, arrays(whole.trainable_variables))


def test_saved_norms_run_on_every_backend():
    model = build(norms=True)
    head = model.get_layer("head")
    norms = [model.backbone.layers[-1], *head.norms, head.projection_norm]
    assert not any(norm.synchronized for norm in norms)
    assert '"synchronized": true' not in model.to_json()


if __name__ == "__main__":
    run_recipe(*sys.argv[1:])
