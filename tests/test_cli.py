"""Tests of the command `segadapter`."""

import contextlib
import csv
import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.backbones.convnext import LayerScale
from keras_segadapter.cli import backbones, main, train
from keras_segadapter.cli.predict import _list_shares
from keras_segadapter.cli.record import Record, read_history
from keras_segadapter.data.reading import read_mask
from keras_segadapter.layers.faster import DepthwiseConv2D

ROOT = Path(__file__).parents[1]
COMMANDS = ("inspect", "train", "predict", "evaluate", "export", "demo")
SMALL_BACKBONE = backbones.small_backbone
NAMES = ("background", "leaf", "stem")
COLORS = np.array([(0, 0, 0), (0, 200, 0), (200, 100, 0)], "uint8")
QUICK = ("--epochs", 1, "--batch", 2, "--jit", "off")


def write_pairs(folder, image, mask, stems, encode=lambda ids: ids):
    """Write images of three classes and their masks by two patterns of names."""
    random = np.random.default_rng(0)
    for stem in stems:
        ids = np.repeat(random.integers(0, 3, (4, 6), "uint8"), 8, axis=0)
        ids = np.repeat(ids, 8, axis=1)  # (32, 48)
        pixels = COLORS[ids] // 2 + random.integers(0, 100, (32, 48, 3), "uint8")
        for pattern, array in ((image, pixels), (mask, encode(ids))):
            path = folder / pattern.format(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return folder


def stems(count, start=0):
    return [f"plant_{i:02}" for i in range(start, start + count)]


def write_classes(folder, ids=True):
    """Write a file of names and colors, and ids if those are what the masks hold."""
    lines = ["name,r,g,b" + ",id" * ids]
    for id_, (name, color) in enumerate(zip(NAMES, COLORS.tolist(), strict=True)):
        lines.append(",".join(map(str, [name, *color, id_][: 5 if ids else 4])))
    (folder / "classes.csv").write_text("\n".join(lines))


def run(*arguments):
    """Run the command in this process and return its exit code."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # of argparse
        return stop.code


@pytest.fixture(scope="module", autouse=True)
def quick_backbone():
    """Put a backbone of two layers in the place of the small one."""

    def build(channels=3):
        inputs = keras.Input((None, None, channels))
        fine = keras.layers.Conv2D(4, 4, 4, activation="relu")(inputs)
        deep = keras.layers.Conv2D(6, 2, 2, activation="relu")(fine)
        return keras.Model(inputs, deep, name="small")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "small_backbone", build)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder of images and masks with a training in `out` beside it."""
    folder = tmp_path_factory.mktemp("cli")
    write_pairs(folder / "data", "images/{}.png", "masks/{}.png", stems(5))
    write_classes(folder / "data")
    assert run("train", folder / "data", *QUICK, "--out", folder / "out") == 0
    return folder


@pytest.fixture
def saved(tiny_backbone, tmp_path):
    """Return the path of a model, in a folder with `data` of images and masks."""
    write_pairs(tmp_path / "data", "images/{}.png", "masks/{}.png", stems(5))
    classes = {"class_names": NAMES, "colors": COLORS}
    model = ksa.build_segmenter(tiny_backbone(), 3, weights_origin="a/b", **classes)
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


# Contract


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_describes_each_flag(command, capsys):
    assert run(command, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: segadapter {command} ")
    examples = re.findall(rf"^  segadapter {command} .+$", printed, re.MULTILINE)
    assert len(examples) >= 2
    flags = set(re.findall(r"^  (--[\w-]+)", printed, re.MULTILINE))
    used = {word for line in examples for word in shlex.split(line) if word[:2] == "--"}
    assert used <= flags
    # A switch, or a file that is written, has no value when it is left out.
    body = printed.partition("options:")[2].partition("\nDATA is")[0]
    described = re.split(r"^  (?=-)", body, flags=re.MULTILINE)[1:]
    without = {d.split()[0] for d in described if "default" not in d}
    assert without <= {"-h,", "--masks", "--images", "--ids", "--resume", "--out"}


def test_the_command_is_declared_and_runs_as_a_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"segadapter": "keras_segadapter.cli:main"}


@pytest.mark.integration
def test_python_runs_the_package():
    command = [sys.executable, "-m", "keras_segadapter", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"keras_segadapter {ksa.__version__}, Keras ")


@pytest.mark.integration
def test_a_training_writes_models_history_curves_and_pictures(trained):
    out = trained / "out"
    written = {path.name for path in out.iterdir()}
    assert written == {
        *("backup", "pictures", "history.csv", "curves.png"),
        *("best.keras", "model.keras"),
    }
    (row,) = read_history(out)
    assert row["epoch"] == 1 and 0 <= row["val_mIoU"] <= 1 and row["loss"] > 0
    with Image.open(out / "curves.png") as curves:
        assert curves.size == (900, 400)
    assert len([*out.glob("pictures/epoch_0001*.png")]) == 2
    with Image.open(out / "pictures/epoch_0001.png") as picture:
        assert picture.width > 6 * 240  # image, mask, result, coarse map, 2 stages
    model = keras.models.load_model(out / "best.keras")
    assert model.class_names == NAMES
    assert np.array_equal(model.colors, COLORS)


# Meaning


def as_rgba(ids):
    return np.dstack([COLORS[ids], np.full(ids.shape, 255, "uint8")])


def write_shape(folder, shape):
    """Write data in one of the shapes in which people have it; return the flags."""
    if shape == "color-coded RGBA, lists, classes.csv":
        write_pairs(folder, "images/{}.png", "labels/{}.png", stems(6), as_rgba)
        write_classes(folder, ids=False)
        for split, names in (("train", stems(4)), ("val", stems(2, 4))):
            (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    elif shape == "_image and _mask":
        write_pairs(folder, "{}_image.png", "{}_mask.png", stems(6))
    elif shape == "SegNet":
        for split, names in (("train", stems(4)), ("val", stems(2))):
            write_pairs(folder, split + "/{}.png", split + "annot/{}.png", names)
    else:
        black_and_white = lambda ids: (ids == 1).astype("uint8") * 255  # noqa: E731
        write_pairs(folder, "image/{}.png", "label/{}.png", stems(6), black_and_white)
        return ["--labels", "binary"]
    return []


@pytest.mark.integration
@pytest.mark.parametrize(
    "shape, classes",
    [
        ("color-coded RGBA, lists, classes.csv", 3),
        pytest.param("_image and _mask", 3, marks=pytest.mark.slow),
        pytest.param("SegNet", 3, marks=pytest.mark.slow),
        ("0/255 in image and label", 2),
    ],
)
def test_a_folder_as_people_have_it_trains_by_one_command(
    tmp_path, shape, classes, capsys
):
    flags = write_shape(tmp_path / "data", shape)
    before = {p: p.stat().st_mtime for p in (tmp_path / "data").rglob("*")}
    command = ["train", tmp_path / "data", *flags, *QUICK, "--out", tmp_path / "out"]
    assert run(*command) == 0
    printed = capsys.readouterr().out
    print("segadapter", shlex.join(map(str, command)))
    assert re.search(r"validation mIoU: 0\.\d+ \(best: 0\.\d+ after epoch 1\)", printed)
    assert "train: 4 images" in printed or "train: 5 images" in printed
    assert before == {p: p.stat().st_mtime for p in (tmp_path / "data").rglob("*")}
    model = keras.models.load_model(tmp_path / "out/model.keras")
    assert model.num_classes == classes


@pytest.mark.slow
def test_a_process_reads_the_files_and_ends_with_the_training(trained, tmp_path):
    command = [sys.executable, "-m", "keras_segadapter", "train", trained / "data"]
    command += [*QUICK, "--processes", 1, "--out", tmp_path]
    training = subprocess.Popen([*map(str, command)])
    tasks, readers = Path(f"/proc/{training.pid}/task"), set()
    while training.poll() is None:
        for children in tasks.glob("*/children"):
            with contextlib.suppress(OSError):  # a thread or process has ended
                for child in children.read_text().split():
                    called = Path(f"/proc/{child}/cmdline").read_text()
                    readers.update([child] if "spawn_main" in called else [])
        time.sleep(0.1)
    assert training.returncode == 0
    assert len(read_history(tmp_path)) == len(readers) == 1
    assert not Path(f"/proc/{readers.pop()}").exists()


@pytest.mark.parametrize(
    "momentum, steps, told",
    [(0.999, 16, "0.999, 98% of"), (0.999, 1000, None), (0.9, 16, None)],
)
def test_statistics_that_hardly_move_are_told(momentum, steps, told, capsys):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    norm = keras.layers.BatchNormalization(momentum=momentum)
    model = ksa.build_segmenter(keras.Model(inputs, norm(x)), 3)
    capsys.readouterr()
    train._tell_of_slow_norms(model, steps)
    printed = capsys.readouterr().out
    assert told in printed if told else not printed
    norm.trainable = False
    train._tell_of_slow_norms(model, steps)
    assert not capsys.readouterr().out


@pytest.mark.integration
def test_resume_goes_on_and_keeps_the_history(trained, tmp_path, capsys):
    flags = ("--batch", 2, "--jit", "off", "--no-adapters", "--out", tmp_path)
    data = trained / "data"
    assert run("train", data, "--epochs", 1, *flags) == 0
    capsys.readouterr()
    assert run("train", data, "--epochs", 2, *flags, "--resume") == 0
    printed = capsys.readouterr().out
    assert "Resuming after epoch 1" in printed
    assert "steps: 2 an epoch, 4 in all; that is few" in printed
    assert [row["epoch"] for row in read_history(tmp_path)] == [1, 2]
    assert run("train", data, "--epochs", 1, *flags, "--overwrite") == 0
    assert [row["epoch"] for row in read_history(tmp_path)] == [1]
    assert not (tmp_path / "pictures/epoch_0002.png").exists()


@pytest.mark.integration
def test_crops_weights_freezing_and_tensorboard(trained, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    weights = tmp_path / "mobile.weights.h5"
    backbones.build_backbone("MobileNetV3Small", "none").save_weights(weights)
    flags = ("--backbone", "MobileNetV3Small", "--weights", weights)
    flags += ("--crop", 32, 32, "--class-weights", "balanced", "--freeze")
    flags += ("--rare-classes", 1, 2, "--loss", "ohem+dice")
    flags += ("--no-adapters", "--ema", 0.5, "--tensorboard", tmp_path / "logs")
    assert run("train", trained / "data", *QUICK, *flags, "--out", tmp_path / "o") == 0
    printed = capsys.readouterr().out
    assert len(re.search(r"class weights, .* masks: (.*)", printed)[1].split(", ")) == 3
    model = keras.models.load_model(tmp_path / "o/model.keras")
    assert not model.adapters and not model.backbone.trainable
    mined, _ = model.loss["logits"].losses
    assert mined.ohem_threshold == 0.7
    assert model.optimizer.use_ema and model.optimizer.ema_momentum == 0.5
    assert np.mean(mined.class_weight) != 1 and len(mined.class_weight) == 3
    assert [*(tmp_path / "logs").rglob("events*")]


@pytest.mark.integration
def test_a_list_with_other_validation_data_and_augmentation(trained, tmp_path, capsys):
    names = tmp_path / "names.txt"
    pairs = [f"images/{stem}.png masks/{stem}.png" for stem in stems(5)]
    write_pairs(tmp_path, "images/{}.png", "masks/{}.png", stems(5))
    names.write_text("\n".join(pairs))
    flags = ("--val", trained / "data", "--augment", "--classes", 3, "--channels", 1)
    flags += ("--no-adapters",)
    assert run("train", names, *flags, *QUICK, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.count(", all: 5 images") == 2
    model = keras.models.load_model(tmp_path / "out/model.keras")
    assert model.input_shape == (None, None, None, 1)


@pytest.mark.integration
def test_a_coco_file_is_inspected_divided_and_trained_on(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    write_pairs(tmp_path, "{}.png", "masks/{}.png", stems(5))
    square = [4, 4, 20, 4, 20, 20, 4, 20]  # x, y of the corners
    content = {"images": [], "categories": [{"id": 3, "name": "crop"}]}
    content["annotations"] = [
        {"image_id": i, "category_id": 3, "segmentation": [square]} for i in range(5)
    ]
    for i, stem in enumerate(stems(5)):
        row = {"id": i, "file_name": f"{stem}.png", "height": 32, "width": 48}
        content["images"].append(row)
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    assert run("inspect", path) == 0
    assert "all: 5 images" in capsys.readouterr().out
    assert run("train", path, *QUICK, "--no-adapters", "--out", tmp_path / "out") == 0
    assert "train: 4 images" in capsys.readouterr().out
    model = tmp_path / "out/best.keras"
    assert keras.models.load_model(model).class_names == ("background", "crop")
    assert run("evaluate", model, path) == 0
    assert "1 images" in capsys.readouterr().out


class Stub:
    """A model that counts how often it is saved."""

    stop_training = False
    saved = 0

    def save(self, path):
        self.saved += 1
        Path(path).touch()


def record(folder, figures, first=0, **options):
    """Record epochs with the given validation mIoU; return the model and the epochs."""
    callback, model = Record(folder, **options), Stub()
    callback.set_model(model)
    for epoch, figure in enumerate(figures, first):
        logs = {"loss": 1.0, "mIoU": 0.5, "val_loss": 2.0, "val_mIoU": figure}
        callback.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    return model, [row["epoch"] for row in read_history(folder)]


def test_the_record_keeps_the_best_model_and_each_epoch_once(tmp_path):
    model, epochs = record(tmp_path, [0.3, 0.2, 0.3, 0.4])
    assert model.saved == 2 and epochs == [1, 2, 3, 4]
    # After a kill, epochs 3 and 4 are trained again: 0.35 is now better.
    model, epochs = record(tmp_path, [0.35, 0.1], first=2)
    assert model.saved == 1 and epochs == [1, 2, 3, 4]
    assert [row["val_mIoU"] for row in read_history(tmp_path)] == [0.3, 0.2, 0.35, 0.1]
    with (tmp_path / "history.csv").open(newline="") as file:
        assert next(csv.reader(file)) == [
            "epoch",
            "loss",
            "mIoU",
            "val_loss",
            "val_mIoU",
        ]
    assert {p.name for p in tmp_path.iterdir()} == {
        *("best.keras", "history.csv", "curves.png"),
    }


def test_early_stopping_waits_for_a_better_epoch_and_outlives_a_kill(tmp_path, capsys):
    model, epochs = record(tmp_path, [0.3, 0.2, 0.4, 0.1, 0.4, 0.5], patience=2)
    assert epochs == [1, 2, 3, 4, 5] and model.stop_training
    assert "Stopping after epoch 5" in capsys.readouterr().out
    model, _ = record(tmp_path, [0.35], first=4, patience=2)
    assert model.stop_training


def test_predict_writes_masks_and_overlays(saved, tmp_path, capsys):
    path, out = tmp_path / "data/images/plant_00.png", tmp_path / "out"
    assert run("predict", saved, path, "--out", out) == 0
    printed = capsys.readouterr().out
    photo = np.asarray(Image.open(path))
    labels = keras.models.load_model(saved).segment(photo)
    assert np.array_equal(read_mask(out / "plant_00_mask.png"), labels)
    overlay = ksa.visualization.overlay(photo, labels, colors=COLORS)
    with Image.open(out / "plant_00_overlay.png") as picture:
        assert np.array_equal(np.asarray(picture), overlay)
    for i in np.unique(labels):
        assert f"{NAMES[i]} {(labels == i).mean():.1%}" in printed
    assert re.search(r"peak memory: \d+\.\d\d GB, \d+\.\d\d GB above", printed)
    assert "pretrained weights: a/b; their license applies" in printed


def test_predict_takes_several_inputs_once_and_not_its_own_pictures(
    saved, tmp_path, capsys
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.JPG", "b.png"):
        Image.new("RGB", (24, 16)).save(photos / name)
    (photos / "notes.txt").touch()
    assert run("predict", saved, photos, photos / "a.png") == 0
    assert ": 3 each" in capsys.readouterr().out
    written = {"a_png_mask.png", "b_JPG_mask.png", "b_png_mask.png"}
    assert {path.name for path in photos.glob("*_mask.png")} == written
    assert run("predict", saved, photos) == 1
    assert "a_png_mask.png, which exists" in capsys.readouterr().err
    assert run("predict", saved, photos, "--overwrite", "--tile", 16) == 0
    assert ": 3 each" in capsys.readouterr().out


def test_small_shares_are_counted():
    shares = np.array([0.0992, 0, 0.9, 0.0005])
    listed = "sky 90.0%, sea 9.9%, 1 more below 0.1%"
    assert _list_shares(shares, ("sea", "ship", "sky", "buoy")) == listed
    assert _list_shares(shares[:3], None) == "class 2 90.0%, class 0 9.9%"


def test_predict_does_not_replace_masks_that_it_did_not_write(saved, tmp_path, capsys):
    write_pairs(tmp_path, "{}.jpg", "{}_mask.png", stems(1))
    before = (tmp_path / "plant_00_mask.png").read_bytes()
    assert run("predict", saved, tmp_path / "plant_00.jpg") == 1
    assert "Pass --out FOLDER" in capsys.readouterr().err
    assert (tmp_path / "plant_00_mask.png").read_bytes() == before


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of the converters, about their own code
def test_export_and_predict_with_the_exported_file(saved, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    out, size = tmp_path / "model.onnx", ("--size", 32, 64)
    photo = tmp_path / "data/images/plant_00.png"
    assert run("export", saved, out, *size) == 0
    assert "class ids agree with Keras' on 100.00%" in capsys.readouterr().out
    assert run("predict", out, photo, "--out", tmp_path) == 0
    assert any(name in capsys.readouterr().out for name in NAMES)
    assert read_mask(tmp_path / "plant_00_mask.png").shape == (32, 48)
    int8 = ("--int8", tmp_path / "data/images", "--ids")
    assert run("export", saved, out, *int8, *size) == 0
    assert run("predict", out, photo, "--tile", 32) == 2
    assert "--tile and --overlap" in capsys.readouterr().err


@pytest.mark.integration
def test_evaluate_prints_the_table_and_draws_the_matrix(saved, tmp_path, capsys):
    data, figure = tmp_path / "data", tmp_path / "pictures/matrix.png"
    assert run("evaluate", saved, data, "--out", figure) == 0
    printed = capsys.readouterr().out
    pairs = ksa.data.open_folder(data, "val", num_classes=3, batch_size=1)
    table = ksa.evaluate_images(keras.models.load_model(saved), pairs)
    assert str(table) in printed and "leaf" in printed and figure.exists()
    flags = ("--crop", 32, "--stride", 24, "--scales", 0.5, 1, "--flip")
    assert run("evaluate", saved, data, "--split", "train", *flags) == 0
    assert "4 images" in capsys.readouterr().out


def test_inspect_prints_each_split_and_finds_faults(tmp_path, capsys):
    for split, count in (("train", 3), ("val", 2)):
        pattern = split + "/{}s/{{}}.png"
        image, mask = (pattern.format(kind) for kind in ("image", "mask"))
        write_pairs(tmp_path / "data", image, mask, stems(count))
    flags = ("--out", tmp_path / "shown.png")
    assert run("inspect", tmp_path / "data", *flags) == 0
    printed = capsys.readouterr().out
    assert "train: 3 images" in printed and "val: 2 images" in printed
    assert {p.name for p in tmp_path.glob("*.png")} == {
        *("shown_train.png", "shown_val.png"),
    }
    assert run("inspect", tmp_path / "data", "--classes", 2, "--split", "val") == 1
    printed = capsys.readouterr().out
    assert "train" not in printed.partition("\n")[0] and "Fault" in printed


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
def test_a_dataset_as_unpacked_trains_by_its_name_alone(tmp_path, layout, capsys):
    write_dataset(tmp_path / layout, layout)
    options = (*QUICK, "--crop", 32, 32, "--out", tmp_path / "out")
    assert run("train", tmp_path / layout, *options) == 0
    printed = capsys.readouterr().out
    assert "train: 4 images" in printed and "val: 2 images" in printed
    assert "validation mIoU: 0." in printed
    model, data = tmp_path / "out/best.keras", tmp_path / layout
    assert run("evaluate", model, data) == 0
    assert "2 images" in capsys.readouterr().out
    assert run("inspect", data) == 0
    printed = capsys.readouterr().out
    assert "train: 4 images" in printed and "val: 2 images" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # tensorflow-datasets warns about itself
def test_a_dataset_of_tensorflow_datasets_trains(tmp_path, capsys):
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

    data, out = "tfds:oxford_iiit_pet", tmp_path / "out"
    sizes = ("--size", 32, 48, "--crop", 32, 32, "--class-weights", "balanced")
    with tfds.testing.mock_data(as_dataset_fn=pets, data_dir=tmp_path):
        assert run("train", data, *sizes, *QUICK, "--out", out) == 0
        printed = capsys.readouterr().out
        assert run("evaluate", out / "best.keras", data, "--size", 32, 48) == 0
    assert "validation mIoU: 0." in printed and "the pixels of 6 masks: " in printed
    printed = capsys.readouterr().out
    assert "2 images" in printed and "background" in printed


def train_eagerly(monkeypatch):
    """Spare the few steps of large models the time in which they become a graph."""
    compile_ = ksa.Segmenter.compile

    def compile_eagerly(self, *args, **kwargs):
        compile_(self, *args, **{**kwargs, "run_eagerly": EAGER})

    monkeypatch.setattr(ksa.Segmenter, "compile", compile_eagerly)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("MiTB0", "ConvNeXtAtto", "MobileNetV3Small"),
        *("keras_hub", "keras_hub ViT", "keras_cv"),
    ],
)
def test_a_backbone_of_each_library_trains(tmp_path, monkeypatch, name):
    import test_stages

    monkeypatch.setattr(backbones, "small_backbone", SMALL_BACKBONE)
    train_eagerly(monkeypatch)

    # A preset's name needs the network; a folder of the same form does not.
    if name == "keras_hub":
        test_stages.hub_efficientnet().save_to_preset(tmp_path / "preset")
    if name == "keras_hub ViT":
        from keras_hub.models import ViTBackbone

        vit = ViTBackbone((64, 64, 3), (16, 16), 4, 2, 8, 16)
        vit.save_to_preset(tmp_path / "preset")
    if name == "keras_cv":
        config = keras.saving.serialize_keras_object(test_stages.cv_resnet())
        (tmp_path / "preset").mkdir()
        (tmp_path / "preset/config.json").write_text(
            json.dumps({**config, "weights": None})
        )
    library, *vit = name.split()
    backbone = f"{library}:{tmp_path / 'preset'}" if "_" in name else name
    data, out = tmp_path / "data", tmp_path / "out"
    write_pairs(data, "images/{}.png", "masks/{}.png", stems(5))
    flags = ("--backbone", backbone, "--weights", "none", "--size", 64, 64)
    flags += ("--neck",) * bool(vit)
    assert run("train", data, *flags, *QUICK, "--out", out) == 0
    model = keras.models.load_model(out / "model.keras")
    assert (model.neck is not None) == bool(vit)


@pytest.mark.integration
def test_published_weights_segment_a_photo(saved, tmp_path, hub, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=19)  # of B0
    network = transformers.SegformerForSemanticSegmentation(config)
    network.save_pretrained(tmp_path / "hub")
    hub({path.name: path for path in (tmp_path / "hub").iterdir()})
    photo = tmp_path / "data/images/plant_00.png"
    assert run("predict", "SegFormerB0:cityscapes", photo, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "pretrained weights: nvidia/segformer-b0-finetuned-cityscapes" in printed
    assert any(name in printed for name in ksa.data.CITYSCAPES.class_names)
    assert read_mask(tmp_path / "plant_00_mask.png").shape == (32, 48)


def test_a_backbone_tells_where_its_weights_came_from(tmp_path, monkeypatch):
    def build(**options):
        return keras.Sequential([keras.Input((4,))])

    monkeypatch.setattr(keras.applications, "Own", build, raising=False)
    (tmp_path / "mine.weights.h5").touch()
    for weights, origin in (
        ("imagenet", "keras.applications.Own, imagenet"),
        (str(tmp_path / "mine.weights.h5"), "keras.applications.Own, mine.weights.h5"),
        ("none", None),
    ):
        backbone = backbones.build_backbone("Own", weights)
        assert getattr(backbone, "weights_origin", None) == origin
    monkeypatch.setattr(backbones, "_preset", lambda library, preset: build)
    backbone = backbones.build_backbone("keras_hub:resnet_50_imagenet")
    assert backbone.weights_origin == "keras_hub:resnet_50_imagenet"


def test_convnext_is_the_packages_own():
    backbone = backbones.build_backbone("ConvNeXtAtto", "none", channels=4)
    assert backbone.input_shape == (None, None, None, 4)
    kinds = {type(layer) for layer in backbone.layers}
    assert DepthwiseConv2D in kinds and LayerScale in kinds


# Edges


@pytest.mark.parametrize(
    "command, message",
    [
        pytest.param("train nowhere", "no file or folder", id="missing folder"),
        pytest.param("train . --val nowhere", "no file or folder", id="missing val"),
        pytest.param("train . --val scenes", "can't be the built-in", id="val scenes"),
        pytest.param("train scenes --crop 32 32", "--crop has no effect", id="crop"),
        pytest.param("train scenes --classes 8", "--classes has no", id="classes"),
        pytest.param("train scenes --split a b", "--split has no", id="split"),
        pytest.param("train scenes --resize-masks", "--resize-masks", id="resize"),
        pytest.param(
            "train tfds:pets --layout plain --size 9 9", "--layout", id="tfds"
        ),
        pytest.param(
            "train tfds:pets", "Pass --size or --crop", id="tfds without size"
        ),
        pytest.param("train . --layout other", "invalid choice", id="layout"),
        pytest.param("train . --loss dice+focal", "or a sum such as", id="loss"),
        pytest.param("train . --labels none", "must be a file or one of", id="labels"),
        pytest.param(
            "train . --labels binary --classes 2", "Leave --classes out", id="both"
        ),
        pytest.param(
            "train . --crop 9 9 --augment", "Leave --augment out", id="augment"
        ),
        pytest.param("train . --rare-classes 1", "Pass --crop or --aug", id="rare"),
        pytest.param(
            "train . --resume --overwrite", "Pass one", id="resume, overwrite"
        ),
        pytest.param("train . --resume --out x", "nothing to resume", id="no backup"),
        pytest.param("train . --early-stopping 0", "at least 1", id="early stopping"),
        pytest.param("train . --lr 0", "above 0", id="rate"),
        pytest.param("train . --ema 1", "at least 0 and below 1", id="averages"),
        pytest.param("train . --epoch 2", "unrecognized", id="abbreviation"),
        pytest.param("train . --weights imagenet", "no pretrained", id="small"),
        pytest.param("train . --freeze", "never learn", id="small and frozen"),
        pytest.param(
            "train . --backbone MiTB0 --weights none --freeze",
            "never learn",
            id="untrained and frozen",
        ),
        pytest.param("inspect scenes", "takes folders and files", id="inspect"),
        pytest.param("", "required", id="no command"),
    ],
)
def test_flags_without_effect_and_wrong_ones_raise(
    command, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(*command.split()) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") <= 3


def test_a_list_has_no_layout(tmp_path, capsys):
    (tmp_path / "names.txt").touch()
    assert run("train", tmp_path / "names.txt", "--layout", "plain") == 2
    assert "--layout has no effect" in capsys.readouterr().err


def test_a_folder_named_scenes_is_not_the_built_in_ones(tmp_path, monkeypatch, capsys):
    (tmp_path / "scenes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("train", "scenes") == 2
    assert "write ./scenes" in capsys.readouterr().err


def test_a_training_is_not_replaced_unasked(tmp_path, capsys):
    (tmp_path / "history.csv").touch()
    assert run("train", tmp_path, "--out", tmp_path) == 2
    printed = capsys.readouterr().err
    assert "--resume" in printed and "--overwrite" in printed


def write_faulty(folder, fault):
    """Write five pairs, with a fault; return the flags."""
    write_pairs(folder, "images/{}.png", "masks/{}.png", stems(5))
    if fault == "id":
        return ("--classes", 2)
    if fault == "sizes":
        for kind in ("images", "masks"):
            path = folder / kind / "plant_00.png"
            Image.open(path).resize((64, 64), Image.Resampling.NEAREST).save(path)
    if fault == "colors":
        write_pairs(folder, "images/{}.png", "masks/{}.png", stems(5), as_rgba)
    if fault == "backbone":
        return ("--backbone", "ResNet9")
    return ()


@pytest.mark.parametrize(
    "fault, message",
    [
        ("id", "faults were found"),
        ("sizes", "Pass --size H W to resize them, or --crop"),
        ("colors", "Pass --labels"),
        ("backbone", "no such model.*Received: --backbone ResNet9"),
    ],
)
def test_faults_end_in_one_line_before_training(tmp_path, fault, message, capsys):
    flags = write_faulty(tmp_path / "data", fault)
    out = tmp_path / "out"
    assert run("train", tmp_path / "data", *flags, *QUICK, "--out", out) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and re.search(
        f"^segadapter: error: .*{message}", printed[0]
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "segadapter: stopped by Ctrl-C."),
        (RuntimeError("KeyboardInterrupt: "), 130, "segadapter: stopped by Ctrl-C."),
        (RuntimeError("out of\nmemory"), 1, "segadapter: error: out of memory."),
    ],
    ids=["Ctrl-C", "Ctrl-C in TensorFlow's reader", "error"],
)
def test_a_stopped_training_says_how_to_resume(
    tmp_path, monkeypatch, capsys, error, code, line
):
    write_pairs(tmp_path / "data", "images/{}.png", "masks/{}.png", stems(5))

    def fit(model, *args, backup, **kwargs):
        backup.mkdir(parents=True)
        (backup / "state.json").touch()
        raise error

    monkeypatch.setattr(ksa.Segmenter, "fit", fit)
    command = ["train", tmp_path / "data", *QUICK, "--out", tmp_path / "out"]
    assert run(*command, "--overwrite") == code
    printed = capsys.readouterr().err
    resume = f"segadapter {shlex.join(map(str, command))} --resume"
    assert printed == f"{line} To go on after the last epoch: {resume}\n"


def test_an_error_that_tensorflow_quotes_is_one_line(tmp_path, monkeypatch, capsys):
    message = "Masks must hold only the ids 0 to 1. Received: mask of pets"
    quoted = f"ValueError: {message}\nTraceback (most recent call last):\n\n  File"
    quoted += (
        f' "x.py", line 1, in f\n\nValueError: {message}\n\n\t [[{{{{node PyFunc}}}}]]'
    )

    def fail(*args, **kwargs):
        raise RuntimeError(f"{{{{function_node g}}}} {quoted} [Op:IteratorGetNext]")

    monkeypatch.setattr(ksa.data, "inspect_folder", fail)
    assert run("inspect", tmp_path) == 1
    assert capsys.readouterr().err == f"segadapter: error: {message}.\n"


@pytest.mark.parametrize(
    "model, message",
    [
        ("nowhere.keras", "must be a .keras file"),
        ("broken.keras", "can't be loaded"),
        ("plain.keras", "must hold a keras_segadapter.Segmenter"),
        ("nowhere.onnx", "no exported model"),
    ],
)
def test_a_model_that_can_not_be_used_raises(tmp_path, model, message, capsys):
    (tmp_path / "broken.keras").write_bytes(b"not a zip file")
    inputs = keras.Input((4,))
    keras.Model(inputs, inputs).save(tmp_path / "plain.keras")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run("predict", tmp_path / model, tmp_path / "a.png") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("inputs", ["nowhere.jpg", "empty"])
def test_inputs_without_photos_raise(tmp_path, inputs, capsys):
    (tmp_path / "empty").mkdir()
    assert run("predict", "model.keras", tmp_path / inputs) == 1
    assert inputs in capsys.readouterr().err


def test_traceback_shows_where_an_error_arose(tmp_path, capsys):
    assert run("--traceback", "predict", "model.keras", tmp_path / "nowhere.jpg") == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.splitlines()[-1].startswith("segadapter:")
