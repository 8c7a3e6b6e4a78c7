"""README and examples do what they say."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa

ROOT = Path(__file__).parents[1]
CAMVID = ROOT.parent / "shared" / "camvid"


def run(*arguments, fails=False):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def write_folder(folder, count=4, size=(64, 96), seed=0):
    images, masks = ksa.data.make_scenes(count, size=size, seed=seed)
    for kind, arrays in (("images", images), ("masks", masks)):
        (folder / kind).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(folder / kind / f"{i}.png")
    return folder


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["labels"].shape == (64, 96)


def test_ci_runs_the_readmes_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    for command in ("python3 -m venv ", "pip install ", "pytest"):
        assert f"\n{command}" in readme.replace(".venv/bin/", "")
        assert re.search(rf"^ *(KERAS_BACKEND=\S+ )?{command}", ci, re.MULTILINE)


def test_training_on_a_folder_then_predicting(tmp_path):
    write_folder(tmp_path / "data/train")
    write_folder(tmp_path / "data/val", count=2, seed=1)
    options = ("--classes", 8, "--epochs", 1, "--batch", 2, "--out", tmp_path / "out")
    printed = run("examples/train.py", "--data", tmp_path / "data", *options)
    assert "device" in printed and "val_mIoU" in printed
    assert "validation mIoU: 0." in printed
    with Image.open(tmp_path / "out/prediction.png") as picture:
        assert picture.width > 4 * 240  # image, truth, prediction, coarse map

    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (75, 50), "gray").save(photo)
    run("examples/predict.py", tmp_path / "out/model.keras", photo)
    with Image.open(tmp_path / "photo_mask.png") as mask:
        assert mask.size == (75, 50) and np.asarray(mask).max() < 8
    with Image.open(tmp_path / "photo_overlay.png") as picture:
        assert picture.size == (75, 50) and picture.mode == "RGB"


def test_the_layer_in_a_model_of_ones_own():
    assert "mask_mIoU" in run("examples/add_layer.py")


def test_a_folder_with_faulty_masks_stops_before_training(tmp_path):
    folder = write_folder(tmp_path / "data")
    Image.fromarray(np.full((64, 96), 99, "uint8")).save(folder / "masks/2.png")
    error = run(
        "examples/train.py", "--data", folder, "--classes", 8, "--epochs", 1, fails=True
    )
    assert "2.png" in error and "99" in error


def test_an_unknown_backbone_gets_a_sentence(tmp_path):
    folder = write_folder(tmp_path / "data")
    options = ("--classes", 8, "--backbone", "ResNet9")
    error = run("examples/train.py", "--data", folder, *options, fails=True)
    assert "keras.applications has no such model" in error


@pytest.mark.slow
@pytest.mark.parametrize("library", ["applications", "keras_hub", "keras_cv"])
def test_backbones_of_three_libraries(tmp_path, library):
    import json

    import test_stages

    # Names of presets need a network; a folder of the same form does not.
    if library == "keras_hub":
        test_stages.hub_resnet().save_to_preset(tmp_path / "preset")
    if library == "keras_cv":
        config = keras.saving.serialize_keras_object(test_stages.cv_resnet())
        (tmp_path / "preset").mkdir()
        (tmp_path / "preset/config.json").write_text(
            json.dumps({**config, "weights": None})
        )
    name = f"{library}:{tmp_path / 'preset'}"
    folder = write_folder(tmp_path / "data")
    options = ("--classes", 8, "--epochs", 1, "--jit", "off", "--weights", "none")
    printed = run(
        "examples/train.py",
        *("--data", folder, "--out", tmp_path / "out", *options),
        *("--backbone", "MobileNetV3Small" if library == "applications" else name),
    )
    assert "validation mIoU" in printed
    assert (tmp_path / "out/model.keras").exists()


@pytest.mark.slow
def test_the_main_job_reaches_a_sensible_miou_in_time(tmp_path):
    started = time.monotonic()
    printed = run("examples/train.py", "--out", tmp_path)
    assert time.monotonic() - started < 300
    assert float(re.search(r"validation mIoU: (\S+)", printed)[1]) > 0.85
    assert (tmp_path / "prediction.png").exists()


def test_camvid_is_read():
    if not CAMVID.is_dir():
        pytest.skip("the folder of street scenes is not beside this checkout")
    report = ksa.data.check_folder(CAMVID / "val", num_classes=11)
    assert report["images"] == 101 and report["sizes"] == [(360, 480)]
    assert report["pixels"].min() > 0
