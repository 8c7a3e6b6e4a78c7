"""Tests of examples/export.py, in the runtimes that the exported files are for."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKEND = keras.backend.backend()
RUNTIMES = {
    ".onnx": (
        "onnx",
        "onnxruntime",
        *{"tensorflow": ["tf2onnx"], "jax": ["jax2onnx"]}.get(BACKEND, ["onnxscript"]),
    ),
    ".tflite": ("ai_edge_litert", *(["litert_torch"] * (BACKEND == "torch"))),
    "": ("tensorflow",),
}
RUNTIMES[".xml"] = ("openvino", *RUNTIMES[".onnx"])
OPEN, FIXED = (None, None), (64, 96)
# jax2onnx does not support open sizes. The ONNX file of open size that the other
# backends make is tested from the shell.
ONNX_SIZE = FIXED if BACKEND == "jax" else OPEN
CASES = [(".onnx", FIXED, BACKEND != "jax"), (".xml", ONNX_SIZE, True)]
if BACKEND == "tensorflow":
    CASES += [(".tflite", OPEN, False), (".tflite", FIXED, True)]
if BACKEND == "torch":
    CASES += [(".tflite", FIXED, False), (".tflite", FIXED, True)]
if BACKEND != "torch":
    CASES += [("", OPEN, False), ("", FIXED, True)]

# The converters warn about their own code and Keras'.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLES / "export.py"))


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Return a model that is trained enough for few pixels to be close ties."""
    keras.utils.set_random_seed(0)
    model = ksa.build_segmenter(tiny_backbone(), num_classes=8)
    # XLA takes longer to compile than this takes to train, but JAX needs it.
    model.compile(ksa.AdamW(1e-2), jit_compile=BACKEND == "jax")
    images, masks = ksa.data.make_scenes(16, size=(64, 64))
    model.fit(images, masks, batch_size=8, epochs=6, verbose=0)
    return model


def need(ending):
    for package in RUNTIMES[ending]:
        pytest.importorskip(package)


def scenes(count, size):
    return ksa.data.make_scenes(count, size=size, seed=1)[0].astype("float32")


def check(model, run, labels, images):
    want = model.predict_on_batch(images)
    got = np.asarray(run(images))
    if labels:
        assert got.dtype == "uint8" and got.shape == images.shape[:3]
    else:
        assert got.dtype == "float32" and got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()
        got = got.argmax(-1)
    assert (got == want.argmax(-1)).mean() >= 0.999


# Meaning


@pytest.mark.parametrize("ending, size, labels", CASES)
def test_runtimes_agree_with_keras(tmp_path, example, model, ending, size, labels):
    need(ending)
    out = tmp_path / f"model{ending}"
    example["export"](model, out, size, labels)
    run = example["open_artifact"](out)
    check(model, run, labels, scenes(1, FIXED))
    if size == OPEN:
        check(model, run, labels, scenes(1, (96, 64)))
        check(model, run, labels, scenes(3, (64, 64)))


@pytest.mark.parametrize(
    "ending", [".onnx", ".tflite"] if BACKEND == "tensorflow" else [".onnx"]
)
def test_int8_agrees_with_keras_on_nearly_every_pixel(tmp_path, example, model, ending):
    need(ending)
    seen, new = scenes(12, FIXED)[:8], scenes(12, FIXED)[8:]
    paths = [tmp_path / f"{name}{ending}" for name in ("float", "int8")]
    example["export"](model, paths[0], FIXED)
    example["export"](model, paths[1], FIXED, photos=[photo[None] for photo in seen])
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size
    run = example["open_artifact"](paths[1])
    got = np.concatenate([np.asarray(run(image[None])) for image in new])
    want = model.predict_on_batch(new)
    assert np.abs(got - want).max() > 0.0  # it computes in 8 bits
    assert (got.argmax(-1) == want.argmax(-1)).mean() >= 0.95


def run_here(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def masks_of(monkeypatch, tmp_path, *files):
    """Yield the masks of examples/predict.py for a photo that no stride divides."""
    photo = tmp_path / "photo.png"
    Image.fromarray(scenes(1, (51, 75))[0].astype("uint8")).save(photo)
    for file in files:
        run_here(monkeypatch, "predict.py", file, photo, "--out", tmp_path / file.stem)
        with Image.open(tmp_path / file.stem / "photo_mask.png") as mask:
            yield np.asarray(mask)


def test_export_and_predict_from_the_shell(tmp_path, monkeypatch, example, model):
    need(".onnx")
    files = [tmp_path / name for name in ("keras.keras", "onnx.onnx")]
    model.save(files[0])
    size = ["--size", *map(str, FIXED)] if BACKEND == "jax" else []
    # In a fresh process names are counted from the start, so those of the loaded graph
    # could clash with new ones.
    printed = subprocess.run(
        [sys.executable, EXAMPLES / "export.py", *files, *size],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "agree with Keras' on 100.00% of the pixels" in printed
    run = example["open_artifact"](files[1])
    check(model, run, False, scenes(1, FIXED))
    if size:
        return  # For a file of fixed size predict.py resizes, where Keras pads.
    check(model, run, False, scenes(1, (96, 64)))
    check(model, run, False, scenes(3, (64, 64)))
    one, other = masks_of(monkeypatch, tmp_path, *files)
    assert one.shape == (51, 75) and len(np.unique(one)) > 1
    assert (one == other).mean() >= 0.999


@pytest.mark.parametrize("labels", [False, True])
def test_predict_with_an_onnx_file_of_fixed_size(
    tmp_path, monkeypatch, tiny_backbone, labels
):
    need(".onnx")
    model = ksa.build_segmenter(tiny_backbone(size=(64, 64)), num_classes=8)
    files = [tmp_path / name for name in ("keras.keras", "onnx.onnx")]
    model.save(files[0])
    run_here(monkeypatch, "export.py", *files, *(["--labels"] if labels else []))
    one, other = masks_of(monkeypatch, tmp_path, *files)
    assert one.shape == other.shape == (51, 75)
    # Nearest-neighbor resizing of class ids moves edges by up to a pixel.
    assert (one == other).mean() >= (0.8 if labels else 0.999)


@pytest.mark.slow
def test_onnx_of_the_papers_model(tmp_path, example):
    need(".onnx")
    model = ksa.AdaptMiTB0(num_classes=8)
    example["export"](model, tmp_path / "model.onnx", ONNX_SIZE)
    run = example["open_artifact"](tmp_path / "model.onnx")
    check(model, run, False, scenes(1, FIXED))
    if ONNX_SIZE == OPEN:
        check(model, run, False, scenes(2, (160, 96)))


# Edges


INT8 = {"size": FIXED, "photos": [0]}
ERRORS = {"unknown_ending": (".pb", {}, "must end with .onnx, .tflite")}
if BACKEND != "tensorflow":
    ERRORS["open_litert"] = (".tflite", {}, "KERAS_BACKEND=tensorflow")
if BACKEND == "torch":
    ERRORS["saved_model"] = ("", {}, "KERAS_BACKEND=tensorflow")
    ERRORS["int8_litert"] = (".tflite", INT8, "no --int8")
else:
    ERRORS["int8_saved_model"] = ("", {"photos": [0]}, "Leave --int8 out")
if BACKEND == "jax":
    ERRORS["open_onnx"] = (".onnx", {}, "Pass --size H W")


@pytest.mark.parametrize("ending, options, message", ERRORS.values(), ids=ERRORS)
def test_unsupported_exports_raise(tmp_path, example, model, ending, options, message):
    if ending == ".onnx":
        need(ending)
    with pytest.raises(ValueError, match=f"{message}.*Received: OUT=.*model{ending}"):
        example["export"](model, tmp_path / f"model{ending}", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_photos_raises(tmp_path, example):
    with pytest.raises(ValueError, match=r"must hold .jpg or .png photos.*--int8 "):
        example["load_photos"](tmp_path, FIXED, 8)
