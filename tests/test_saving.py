"""Tests that files bring models back whole, in any process and on any backend."""

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
from keras_segadapter import build_segmenter

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


def test_a_frozen_backbone_stays_frozen(tiny_backbone, tmp_path):
    backbone = tiny_backbone()
    backbone.trainable = False
    model = build_segmenter(backbone, K)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    assert len(model.trainable_variables) < len(model.variables) - 10
    loaded.backbone.trainable = True
    assert len(loaded.trainable_variables) > len(model.trainable_variables)


@pytest.mark.parametrize(
    "name", ["tiny", pytest.param("MiTB0", marks=pytest.mark.slow)]
)
def test_layers_frozen_after_building_come_back_frozen(tmp_path, tiny_backbone, name):
    backbone = ksa.MiTB0() if name == "MiTB0" else tiny_backbone()
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
