"""Exported models give Keras' numbers in the runtimes that they are made for."""

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
# jax2onnx takes no open sizes; for the others, a test below has ONNX of open size.
ONNX_SIZE = FIXED if BACKEND == "jax" else OPEN
CASES = [(".onnx", FIXED, BACKEND != "jax"), (".xml", ONNX_SIZE, True)]
if BACKEND == "tensorflow":
    CASES += [(".tflite", OPEN, False), (".tflite", FIXED, True)]
if BACKEND == "torch":
    CASES += [(".tflite", FIXED, False), (".tflite", FIXED, True)]
if BACKEND != "torch":
    CASES += [("", OPEN, False), ("", FIXED, True)]

INT8 = {"size": FIXED, "photos": [0]}

# The converters warn about their own code and Keras'.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLES / "export.py"))


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Trained so far that few pixels are close ties."""
    keras.utils.set_random_seed(0)
    model = ksa.build_segmenter(tiny_backbone(), num_classes=8)
    # XLA compiles for longer than this trains; JAX has nothing else.
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


@pytest.mark.parametrize("ending, size, labels", CASES)
def test_the_runtime_gives_what_keras_gives(
    tmp_path, example, model, ending, size, labels
):
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
def test_int8_agrees_on_nearly_every_pixel(tmp_path, example, model, ending):
    need(ending)
    seen, new = scenes(12, FIXED)[:8], scenes(12, FIXED)[8:]
    paths = [tmp_path / f"{name}{ending}" for name in ("float", "int8")]
    example["export"](model, paths[0], FIXED)
    example["export"](model, paths[1], FIXED, photos=[photo[None] for photo in seen])
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size
    run = example["open_artifact"](paths[1])
    got = np.concatenate([np.asarray(run(image[None])) for image in new])
    want = model.predict_on_batch(new)
    assert np.abs(got - want).max() > 0.0  # it did compute in 8 bits
    assert (got.argmax(-1) == want.argmax(-1)).mean() >= 0.95


def run_here(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def masks_of(monkeypatch, tmp_path, *files):
    """What examples/predict.py makes of a photo that no stride divides."""
    photo = tmp_path / "photo.png"
    Image.fromarray(scenes(1, (51, 75))[0].astype("uint8")).save(photo)
    for file in files:
        run_here(monkeypatch, "predict.py", file, photo, "--out", tmp_path / file.stem)
        with Image.open(tmp_path / file.stem / "photo_mask.png") as mask:
            yield np.asarray(mask)


def test_exporting_and_predicting_from_the_shell(tmp_path, monkeypatch, example, model):
    need(".onnx")
    files = [tmp_path / name for name in ("keras.keras", "onnx.onnx")]
    model.save(files[0])
    size = ["--size", *map(str, FIXED)] if BACKEND == "jax" else []
    # In a process of its own: there, the names of the file's graph could clash with new
    # ones, which count from the start.
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
        return  # predict.py resizes to it, where Keras pads
    check(model, run, False, scenes(1, (96, 64)))
    check(model, run, False, scenes(3, (64, 64)))
    one, other = masks_of(monkeypatch, tmp_path, *files)
    assert one.shape == (51, 75) and len(np.unique(one)) > 1
    assert (one == other).mean() >= 0.999


@pytest.mark.parametrize("labels", [False, True])
def test_predicting_with_the_onnx_file_of_fixed_size(
    tmp_path, monkeypatch, tiny_backbone, labels
):
    need(".onnx")
    model = ksa.build_segmenter(tiny_backbone(size=(64, 64)), num_classes=8)
    files = [tmp_path / name for name in ("keras.keras", "onnx.onnx")]
    model.save(files[0])
    run_here(monkeypatch, "export.py", *files, *(["--labels"] if labels else []))
    one, other = masks_of(monkeypatch, tmp_path, *files)
    assert one.shape == other.shape == (51, 75)
    # Class ids are resized to the nearest, which moves the edges by up to a pixel.
    assert (one == other).mean() >= (0.8 if labels else 0.999)


@pytest.mark.parametrize(
    "ending, options, message",
    [
        (".pb", {}, r"must end with .onnx, .tflite.*model\.pb"),
        *([(".tflite", {}, "KERAS_BACKEND=tensorflow")] * (BACKEND != "tensorflow")),
        *([("", {}, "KERAS_BACKEND=tensorflow")] * (BACKEND == "torch")),
        *([(".tflite", INT8, "no --int8")] * (BACKEND == "torch")),
        *([(".onnx", {}, "Pass --size H W")] * (BACKEND == "jax")),
        *([("", {"photos": [0]}, "Leave --int8 out")] * (BACKEND != "torch")),
    ],
)
def test_what_cannot_be_exported_raises(
    tmp_path, example, model, ending, options, message
):
    if ending == ".onnx":
        need(ending)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        example["export"](model, tmp_path / f"model{ending}", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_photos_raises(tmp_path, example):
    with pytest.raises(ValueError, match=r"no \.jpg or \.png photos"):
        example["load_photos"](tmp_path, FIXED, 8)


@pytest.mark.slow
def test_the_papers_model_in_onnx(tmp_path, example):
    need(".onnx")
    model = ksa.AdaptMiTB0(num_classes=8)
    example["export"](model, tmp_path / "model.onnx", ONNX_SIZE)
    run = example["open_artifact"](tmp_path / "model.onnx")
    check(model, run, False, scenes(1, FIXED))
    if ONNX_SIZE == OPEN:
        check(model, run, False, scenes(2, (160, 96)))
