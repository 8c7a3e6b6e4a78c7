"""Tests of the README, the examples and the tables of the benchmarks."""

import json
import operator
import os
import re
import runpy
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
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
RESULTS = ROOT / "benchmarks/results"
CAMVID = ROOT.parent / "shared" / "camvid"


def run(*arguments):
    """Run a script in a fresh process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_here(monkeypatch, *arguments):
    """Run a script in this process, which saves the time of its imports."""
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def write_folder(folder, count=4, size=(64, 96), seed=0):
    """Write scenes and their masks into a folder as the examples read it."""
    images, masks = ksa.data.make_scenes(count, size=size, seed=seed)
    for kind, arrays in (("images", images), ("masks", masks)):
        (folder / kind).mkdir(parents=True)
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(folder / kind / f"{i}.png")
    return folder


# Contract


@pytest.mark.integration
def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), names)
    assert names["labels"].shape == (64, 96)


def test_names_in_the_readme_exist():
    names = set(re.findall(r"\bksa\.([\w.]*\w)", README))
    assert len(names) > 10
    for name in names:
        operator.attrgetter(name)(ksa)


def test_the_readmes_layer_runs():
    (block,) = (block for block in PYTHON if "ksa.SegAdapter(" in block)
    names = {"keras": keras, "ksa": ksa}
    exec(compile(block, "README.md", "exec"), names)
    assert names["adapted"].shape == (None, None, None, 64)
    assert names["scores"].shape == (None, None, None, 8)


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci/run").read_text()
    for command in ("python3 -m venv ", "pip install ", "pytest"):
        assert f"\n{command}" in README.replace(".venv/bin/", "")
        assert re.search(rf"^ *(KERAS_BACKEND=\S+ )?{command}", ci, re.MULTILINE)


@pytest.mark.integration
def test_train_on_a_folder_and_predict(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "data/train")
    write_folder(tmp_path / "data/val", count=2, seed=1)
    options = ("--classes", 8, "--epochs", 1, "--batch", 2, "--out", tmp_path / "out")
    run_here(monkeypatch, "examples/train.py", "--data", tmp_path / "data", *options)
    printed = capsys.readouterr().out
    assert "device" in printed and "val_mIoU" in printed
    assert "validation mIoU: 0." in printed
    with Image.open(tmp_path / "out/pictures/epoch_0001.png") as picture:
        assert picture.width > 8 * 240  # image, mask, result, coarse map, stages

    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (75, 50), "gray").save(photo)
    run("examples/predict.py", tmp_path / "out/model.keras", photo)
    with Image.open(tmp_path / "photo_mask.png") as mask:
        assert mask.size == (75, 50) and np.asarray(mask).max() < 8
    with Image.open(tmp_path / "photo_overlay.png") as picture:
        assert picture.size == (75, 50) and picture.mode == "RGB"


def rows_of(text):
    """Return the rows of the tables in a Markdown text as lists of cells."""
    cells = [line.split("|")[1:-1] for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in cells if row]


def test_tables_of_costs_and_backbones_are_those_of_the_benchmarks():
    readme = rows_of(README)
    costs = rows_of((RESULTS / "costs.md").read_text())
    adapted = [row for row in costs if row[0].startswith("Adapt-")]
    adapted = [row for row in adapted if row[1:3] == ["ADE20K, 512", "256"]]
    assert len(adapted) == 7
    for name, _, _, parameters, _, ours, concatenated, published, *_ in adapted:
        assert [name, parameters, ours, concatenated, published] in readme
    backbones = rows_of((RESULTS / "backbones.md").read_text())
    assert len(backbones) > 40 and all(row in readme for row in backbones)


def test_the_table_of_accuracy_holds_every_arm_and_seed():
    camvid = runpy.run_path(str(ROOT / "benchmarks/camvid.py"))
    runs = json.loads((RESULTS / "camvid.json").read_text())["runs"]
    planned = [(arm, seed) for arm in camvid["ARMS"] for seed in camvid["SEEDS"]]
    assert [(run["arm"], run["seed"]) for run in runs] == planned
    assert all(run["settings"] == camvid["SETTINGS"] for run in runs)
    table = [*camvid["by_arm"](runs), "", *camvid["differences"](runs)]
    written = (RESULTS / "camvid.md").read_text()
    assert written == "\n".join(table) + "\n"
    readme = rows_of(README)
    assert all(row in readme for row in rows_of(written))


def test_tables_of_speed_are_those_of_the_benchmark():
    speed = runpy.run_path(str(ROOT / "benchmarks/speed.py"))
    written = (RESULTS / "speed.md").read_text()
    measured = json.loads((RESULTS / "speed.json").read_text())
    assert written == speed["tables"](measured)
    section = README.split("## Speed")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 10 and set(rows) <= set(written.splitlines())


@pytest.mark.integration
def test_add_layer(monkeypatch, capsys):
    run_here(monkeypatch, "examples/add_layer.py")
    assert "mask_mIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_vision_transformer():
    printed = run("examples/vision_transformer.py")
    assert "mask_mIoU" in printed and "logits_loss" in printed


def write_dataset(folder, layout):
    """Write four training and two validation images in a public dataset's layout."""
    image_folder, mask_folder, endings, ids = {
        "ade20k": ("images/{}", "annotations/{}", (".jpg", ".png"), (0, 150)),
        "cityscapes": (
            "leftImg8bit/{}/ulm",
            "gtFine/{}/ulm",
            ("_leftImg8bit.png", "_gtFine_labelIds.png"),
            (7, 33),
        ),
        "pascal_voc": ("JPEGImages", "SegmentationClass", (".jpg", ".png"), (0, 20)),
    }[layout]
    names = {"ade20k": ("training", "validation")}.get(layout, ("train", "val"))
    random = np.random.default_rng(0)
    for split, count in zip(names, (4, 2), strict=True):
        stems = [f"{split}_{i}" for i in range(count)]
        for kind, ending in zip((image_folder, mask_folder), endings, strict=True):
            (folder / kind.format(split)).mkdir(parents=True, exist_ok=True)
            for stem in stems:
                if kind == image_folder:
                    pixels = random.integers(0, 256, (32, 48, 3), "uint8")
                else:
                    pixels = random.choice(np.array(ids, "uint8"), (32, 48))
                path = folder / kind.format(split) / f"{stem}{ending}"
                Image.fromarray(pixels).save(path)
        if layout == "pascal_voc":
            lists = folder / "ImageSets/Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ade20k", "cityscapes", "pascal_voc"])
def test_train_on_a_dataset_as_unpacked(tmp_path, layout):
    write_dataset(tmp_path / layout, layout)
    options = ("--epochs", 1, "--batch", 2, "--crop", 32, 32, "--out", tmp_path / "out")
    printed = run("examples/train.py", "--data", tmp_path / layout, *options)
    assert "train: 4 images" in printed and "val: 2 images" in printed
    assert "validation mIoU: 0." in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # tensorflow-datasets warns about itself
def test_train_on_a_dataset_of_tensorflow_datasets(tmp_path, monkeypatch, capsys):
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf

    def pets(builder, split, **_):
        count = 6 if split == "train" else 2
        random = np.random.default_rng(0)
        return tf.data.Dataset.from_tensor_slices(
            {
                "image": random.integers(0, 256, (count, 40, 30, 3), "uint8"),
                "segmentation_mask": random.integers(1, 4, (count, 40, 30, 1), "uint8"),
            }
        )

    options = ["--tfds", "oxford_iiit_pet", "--size", "32", "48", "--epochs", "1"]
    options += ["--crop", "32", "32", "--batch", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    with tfds.testing.mock_data(as_dataset_fn=pets, data_dir=tmp_path):
        runpy.run_path(str(ROOT / "examples/train.py"), run_name="__main__")
    assert "validation mIoU: 0." in capsys.readouterr().out
    assert (tmp_path / "out/model.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "library", ["applications", "keras_segadapter", "keras_hub", "keras_cv"]
)
def test_train_a_backbone_of_each_library(tmp_path, library):
    import test_stages

    # A preset's name needs the network; a folder of the same form does not.
    if library == "keras_hub":
        test_stages.hub_resnet().save_to_preset(tmp_path / "preset")
    if library == "keras_cv":
        config = keras.saving.serialize_keras_object(test_stages.cv_resnet())
        (tmp_path / "preset").mkdir()
        (tmp_path / "preset/config.json").write_text(
            json.dumps({**config, "weights": None})
        )
    name = f"{library}:{tmp_path / 'preset'}"
    plain = {"applications": "MobileNetV3Small", "keras_segadapter": "MiTB0"}
    folder = write_folder(tmp_path / "data")
    options = ("--classes", 8, "--epochs", 1, "--jit", "off", "--weights", "none")
    printed = run(
        "examples/train.py",
        *("--data", folder, "--out", tmp_path / "out", *options),
        *("--backbone", plain.get(library, name)),
    )
    assert "validation mIoU" in printed
    assert (tmp_path / "out/model.keras").exists()


@pytest.mark.slow
def test_training_on_the_scenes_reaches_its_miou_in_time(tmp_path):
    started = time.monotonic()
    printed = run("examples/train.py", "--out", tmp_path)
    assert time.monotonic() - started < 300
    assert float(re.search(r"validation mIoU: (\S+)", printed)[1]) > 0.85
    assert (tmp_path / "pictures/epoch_0016_features.png").exists()


def test_camvid_is_read():
    if not CAMVID.is_dir():
        pytest.skip("the street scenes are not beside this checkout")
    report = ksa.data.inspect_folder(CAMVID / "val", num_classes=11).check()
    assert report.images == 101 and report.sizes == {(360, 480): 101}
    assert report.class_pixels.min() > 0


# Edges


def test_wrong_masks_raise_before_training(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    Image.fromarray(np.full((64, 96), 99, "uint8")).save(folder / "masks/2.png")
    options = ("--data", folder, "--classes", 8, "--epochs", 1)
    with pytest.raises(ValueError, match=r"(?s)2\.png.*99"):
        run_here(monkeypatch, "examples/train.py", *options)


def test_an_unknown_backbone_stops_the_example(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    options = ("--data", folder, "--classes", 8, "--backbone", "ResNet9")
    message = "has no such model.*Received: --backbone ResNet9"
    with pytest.raises(SystemExit, match=message):
        run_here(monkeypatch, "examples/train.py", *options)
