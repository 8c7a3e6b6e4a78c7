"""Tests of the commands of the paper, on small folders of the shape of its data."""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import EAGER
from PIL import Image

import keras_segadapter as ksa

PAPER = Path(__file__).parents[1] / "benchmarks/paper"
BACKEND = keras.backend.backend()
# As little as goes through the whole of a command.
SMALL = ["--weights", "none", "--precision", "float32", "--steps", "2", "--crop", "32"]
# Ids in masks, and the classes that they stand for.
IDS = {
    "ade20k": ([0, 1, 150], [255, 0, 149]),
    "cityscapes": ([0, 7, 33, 9], [255, 0, 18, 255]),
    "coco_stuff": ([255, 0, 181, 12], [255, 0, 170, 11]),
}
# Folders of images and masks, with the part of the split.
PLACES = {
    "ade20k": ("images/{}/ADE_{}.jpg", "annotations/{}/ADE_{}.png"),
    "cityscapes": (
        "leftImg8bit/{}/ulm/ulm_{}_leftImg8bit.png",
        "gtFine/{}/ulm/ulm_{}_gtFine_labelIds.png",
    ),
    "coco_stuff": ("images/{}/{}.jpg", "annotations/{}/{}.png"),
}
SPLITS = {
    "ade20k": ("training", "validation"),
    "cityscapes": ("train", "val"),
    "coco_stuff": ("train2017", "val2017"),
}
rows = pytest.mark.parametrize(
    "dataset", ["ade20k", "cityscapes", "coco_stuff"], ids=str
)


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a module of benchmarks/paper."""
    monkeypatch.syspath_prepend(PAPER)
    return importlib.import_module


@pytest.fixture
def command(load, monkeypatch):
    """Return a function that runs the command in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        try:
            load("train").main()
        finally:
            keras.config.set_dtype_policy("float32")

    return run


def write_folder(folder, dataset, count=17):
    """Write a folder as the dataset is unpacked, of images of 64 x 96 pixels."""
    rng = np.random.default_rng(0)
    for split, images in zip(SPLITS[dataset], (count, 2), strict=True):
        for i in range(images):
            image, mask = (
                folder / name.format(split, f"{i:012}") for name in PLACES[dataset]
            )
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (64, 96, 3), "uint8")
            Image.fromarray(pixels).save(image)
            ids = rng.permutation(np.resize(IDS[dataset][0], (64, 96)).ravel())
            Image.fromarray(ids.reshape(64, 96).astype("uint8")).save(mask)
    return folder


# Contract


@pytest.mark.parametrize(
    "model, dataset",
    [
        pytest.param("adapt_mit_b0", "ade20k", marks=pytest.mark.integration),
        pytest.param("mit_b0", "cityscapes", marks=pytest.mark.slow),
        pytest.param("adapt_mit_b0", "coco_stuff", marks=pytest.mark.slow),
        pytest.param("mit_b0", "ade20k", marks=pytest.mark.slow),
        pytest.param("adapt_mit_b0", "cityscapes", marks=pytest.mark.slow),
        pytest.param("mit_b0", "coco_stuff", marks=pytest.mark.slow),
    ],
)
def test_a_command_trains_and_scores(
    tmp_path, monkeypatch, capsys, command, load, dataset, model
):
    # The next tests compile.
    compiled = functools.partialmethod(ksa.Segmenter.compile, run_eagerly=EAGER)
    monkeypatch.setattr(ksa.Segmenter, "compile", compiled)
    folder = write_folder(tmp_path / "data", dataset)
    command(model, dataset, folder, "--out", tmp_path, *SMALL)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == model and result["images"] == 2
    assert 0 <= result["miou"] <= 1 and len(result["iou"]) == classes_of(dataset)
    paper = load("protocol").published(model, dataset)
    assert f"in the paper {paper} %" in capsys.readouterr().out
    trained = keras.models.load_model(tmp_path / "model.keras")
    assert bool(trained.adapters) == model.startswith("adapt_")
    assert trained.num_classes == classes_of(dataset) == len(trained.class_names)


def classes_of(dataset):
    return {"ade20k": 150, "cityscapes": 19, "coco_stuff": 171}[dataset]


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_model(
    tmp_path, monkeypatch, capsys, command, load
):
    folder = write_folder(tmp_path / "data", "cityscapes", count=9)
    arguments = ["adapt_mit_b0", "cityscapes", folder, *SMALL]
    command(*arguments, "--out", tmp_path / "whole")
    steps, read = load("train").Steps, load("train").Steps.__getitem__

    def fail(self, index):
        if self.epoch == 1:
            raise KeyboardInterrupt("killed")
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "__getitem__", fail)
        with pytest.raises((KeyboardInterrupt, Exception), match="killed"):
            command(*arguments, "--out", tmp_path / "killed")
    assert not (tmp_path / "killed/model.keras").exists()
    command(*arguments, "--out", tmp_path / "killed")
    assert "Resuming after epoch 1" in capsys.readouterr().out
    whole, killed = (
        keras.models.load_model(tmp_path / out / "model.keras").get_weights()
        for out in ("whole", "killed")
    )
    for one, other in zip(whole, killed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    # Once more, there is nothing to train, and the score is the same.
    result = (tmp_path / "killed/result.json").read_text()
    command(*arguments, "--out", tmp_path / "killed")
    assert "nothing is left to train" in capsys.readouterr().out
    assert (tmp_path / "killed/result.json").read_text() == result


DEVICES = """
import sys
backend = sys.argv.pop(1)
if backend == "tensorflow":
    import tensorflow as tf
    (cpu,) = tf.config.list_physical_devices("CPU")
    virtual = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, virtual)
import keras, keras_segadapter, train
fit = keras_segadapter.Segmenter.fit

def watched(*arguments, **options):
    if backend == "jax":
        print("devices:", keras.distribution.distribution().device_mesh.shape[0])
    else:
        print("devices:", tf.distribute.get_strategy().num_replicas_in_sync)
    return fit(*arguments, **options)

keras_segadapter.Segmenter.fit = watched
train.main()
"""


@pytest.mark.slow
def test_a_command_trains_on_all_devices(tmp_path):
    if BACKEND == "torch":
        pytest.skip("on PyTorch a command trains on one GPU")
    folder = write_folder(tmp_path / "data", "cityscapes", count=9)
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
    arguments = ["mit_b0", "cityscapes", folder, "--out", tmp_path, *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, BACKEND, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": BACKEND,
            "PYTHONPATH": str(PAPER),
            "XLA_FLAGS": flags,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "devices: 2" in done.stdout
    assert 0 <= json.loads((tmp_path / "result.json").read_text())["miou"] <= 1


# Meaning


@rows
def test_crops_hold_classes_and_void(tmp_path, load, dataset):
    folder = write_folder(tmp_path, dataset)
    settings = load("protocol").DATASETS[dataset]
    settings = load("protocol").shrink(settings, 64)
    data = load("train").training_data(dataset, folder, settings)
    images, masks = data[0]
    batch = 8 if dataset == "cityscapes" else 16
    assert images.shape == (batch, 64, 64, 3) and masks.shape == (batch, 64, 64)
    assert {*np.unique(masks)} == {*IDS[dataset][1]}
    assert data.num_classes == classes_of(dataset)
    first = ksa.data.open_folder(folder, "val", layout=dataset, batch_size=1)
    ids = np.asarray(Image.open(first.mask_paths[0]))
    classes = dict(zip(*IDS[dataset], strict=True))
    expected = np.vectorize(classes.get)(ids)
    np.testing.assert_array_equal(first[0][1][0], expected)


def test_steps_are_full_batches_of_one_pass_after_the_other(tmp_path, load):
    folder = write_folder(tmp_path, "cityscapes", count=5)
    data = ksa.data.open_folder(folder, "train", batch_size=2, shuffle=True)
    steps = load("train").Steps(data, 3)
    assert len(steps) == 3
    found = []
    for steps.epoch in (0, 1):
        found += [steps[index][0] for index in range(3)]
    assert all(len(images) == 2 for images in found)
    for epoch in range(3):  # of the data, of two full batches
        data.epoch = epoch
        for index in range(2):
            np.testing.assert_array_equal(found[2 * epoch + index], data[index][0])


def groups_of(load, model, dataset):
    """Return the groups of a model's optimizer: factor on the rate, decay."""
    train, settings = load("train"), load("protocol").settings_of(model, dataset)
    model = train.build(model, {**settings, "weights": None})
    optimizer = train.optimizer_of(model, settings)
    optimizer.build(model.trainable_variables)
    groups = set()
    for group in optimizer.optimizers:
        config = group.get_config()
        schedule = config["learning_rate"]["config"]
        assert schedule["warmup_steps"] == 1500
        assert schedule["steps"] == settings["steps"]
        factor = schedule["learning_rate"] / settings["learning_rate"]
        groups.add((round(factor, 6), config["weight_decay"]))
    return groups


@pytest.mark.integration
def test_mit_has_factors_for_head_and_adapters(load):
    expected = {(factor, decay) for factor in (1, 10) for decay in (0.01, None)}
    assert groups_of(load, "mit_b0", "ade20k") == expected
    expected |= {(7, 0.01), (7, None)}
    assert groups_of(load, "adapt_mit_b0", "ade20k") == expected


@pytest.mark.slow
def test_convnext_has_factors_for_stages(load):
    depth = {"convnext_tiny": 7, "convnext_small": 13}
    for base, last in depth.items():
        factors = {1.0, *(round(0.9 ** (last - stage), 6) for stage in range(5))}
        expected = {(factor, decay) for factor in factors for decay in (0.05, None)}
        for model in (base, f"adapt_{base}"):
            assert groups_of(load, model, "cityscapes") == expected


def test_models_are_built_as_the_settings_say(load, monkeypatch):
    train, protocol = load("train"), load("protocol")
    built = []

    def record(name):
        return lambda *arguments, **options: built.append((name, arguments, options))

    for size in ("MiTB0", "MiTB1", "MiTB2", "MiTB3"):
        monkeypatch.setattr(ksa, f"Adapt{size}", record(size))
    for size in ("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase"):
        monkeypatch.setattr(ksa, f"Adapt{size}", record(size))
    expected = []
    for dataset, classes in (("ade20k", 150), ("cityscapes", 19), ("coco_stuff", 171)):
        for model in protocol.MODELS:
            _, family, adapted = protocol.parts_of(model)
            if adapted or family == "mit":
                train.build(model, protocol.settings_of(model, dataset))
                ade = dataset == "ade20k"
                name = model.removeprefix("adapt_")
                width = {"convnext_small": 384, "convnext_base": 512}.get(name, 256)
                drop = {"convnext_tiny": 0.4, "convnext_base": 0.2}.get(name, 0.1)
                source = "facebook/convnext-base-224@main"
                options = {
                    "weights": source if name == "convnext_base" else "imagenet",
                    "drop_path": drop if ade else 0.1,
                    "head_channels": width if ade else 256,
                    "adapters": adapted,
                }
                expected.append(((classes,), options))
    assert [(arguments, options) for _, arguments, options in built] == expected
    assert len(built) == 33 and {name for name, *_ in built} == {
        *("MiTB0", "MiTB1", "MiTB2", "MiTB3"),
        *("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase"),
    }


@pytest.mark.slow
def test_the_baseline_of_a_convnext_has_an_auxiliary_head(tmp_path, command):
    folder = write_folder(tmp_path / "data", "cityscapes", count=9)
    command("convnext_tiny", "cityscapes", folder, "--out", tmp_path, *SMALL)
    model = keras.models.load_model(tmp_path / "model.keras")
    assert not model.adapters and [*model.output] == ["logits", "aux"]
    assert model.head.activation is keras.activations.relu
    # The auxiliary head reads stage 3, and learns.
    (kernel,) = (
        v
        for v in model.aux.trainable_variables
        if len(v.shape) == 4 and v.shape[0] == 3
    )
    assert kernel.shape == (3, 3, 384, 256)
    weights = {
        loss: model.get_compile_config()["loss_weights"][loss] for loss in model.output
    }
    assert weights == {"logits": 1.0, "aux": 0.4}


@pytest.mark.slow
def test_a_convnext_goes_through_a_command(tmp_path, command):
    folder = write_folder(tmp_path / "data", "ade20k")
    command("adapt_convnext_tiny", "ade20k", folder, "--out", tmp_path, *SMALL)
    assert len(keras.models.load_model(tmp_path / "model.keras").adapters) == 4


def test_baselines_are_trained_as_their_models_with_adapters(load):
    protocol = load("protocol")
    assert len(protocol.MODELS) == 14
    for dataset in protocol.DATASETS:
        for base in protocol.PUBLISHED:
            settings = protocol.settings_of(base, dataset)
            assert settings == protocol.settings_of(f"adapt_{base}", dataset)
            assert settings["batch"] == (8 if dataset == "cityscapes" else 16)
            assert settings["crop"] == (768 if dataset == "cityscapes" else 512)
            assert settings["learning_rate"] == (6e-5 if "mit" in base else 1e-4)
            assert protocol.published(base, dataset) < protocol.published(
                f"adapt_{base}", dataset
            )


@pytest.mark.parametrize(
    "model, dataset, expected",
    [
        ("adapt_mit_b0", "ade20k", (512, None, None)),
        ("mit_b3", "coco_stuff", (512, None, None)),
        ("adapt_mit_b2", "cityscapes", (None, 1024, 768)),
        ("convnext_base", "cityscapes", (None, 1024, 768)),
        ("convnext_tiny", "ade20k", (512, None, None)),
        ("adapt_convnext_small", "ade20k", (512, 512, 341)),
        ("convnext_base", "ade20k", (512, 512, 341)),
        ("convnext_base", "coco_stuff", (512, None, None)),
    ],
)
def test_images_are_scored_in_the_windows_of_the_paper(
    tmp_path, monkeypatch, load, model, dataset, expected
):
    folder = write_folder(tmp_path, dataset, count=1)
    asked = {}

    def evaluate(model, data, **options):
        asked.update(options, images=len(data.image_paths), size=data[0][0].shape)

    monkeypatch.setattr(keras.models, "load_model", lambda path: path)
    monkeypatch.setattr(ksa, "evaluate_images", evaluate)
    settings = load("protocol").settings_of(model, dataset)
    load("train").score(dataset, folder, settings, tmp_path)
    found = tuple(asked[key] for key in ("short_side", "crop", "stride"))
    assert found == expected
    assert asked["images"] == 2 and asked["size"] == (1, 64, 96, 3)


def test_a_smaller_crop_makes_all_sizes_smaller(load):
    protocol = load("protocol")
    settings = protocol.settings_of("convnext_base", "ade20k")
    small = protocol.shrink(settings, 128)
    sizes = ("crop", "base", "short_side", "window", "stride")
    assert [small[size] for size in sizes] == [128, (128, 512), 128, 128, 85]
    others = {key for key in settings if key not in sizes}
    assert all(small[key] is settings[key] for key in others)
    assert protocol.shrink(settings, 512) == settings


def rows_of_the_readme():
    """Return the rows of commands as lists of cells, by model and dataset."""
    lines = (PAPER / "README.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if " FOLDER` |" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    return {tuple(row[0].strip("`").split()[:2]): row for row in rows}


def test_the_readme_has_each_command_with_the_papers_figure(load):
    protocol, rows = load("protocol"), rows_of_the_readme()
    assert [*rows] == [(m, d) for d in protocol.DATASETS for m in protocol.MODELS]
    for (model, dataset), row in rows.items():
        assert row[1] == str(protocol.published(model, dataset))


def test_the_tables_of_the_readme_are_those_of_the_script(load, monkeypatch, tmp_path):
    tables, rows, readme = load("tables"), rows_of_the_readme(), PAPER / "README.md"
    copy = tmp_path / "README.md"
    text = readme.read_text()
    copy.write_text(text.replace("40.3", "").replace("| 180,000 |", "| 1 |"))
    monkeypatch.setattr(tables, "README", copy)
    # Counting all of them takes minutes; another test counts some.
    monkeypatch.setattr(tables, "products", lambda *key: float(rows[key][3]) * 1e9)
    tables.main()
    assert copy.read_text() == text


@pytest.mark.parametrize(
    "model, dataset",
    [
        pytest.param("adapt_mit_b0", "ade20k", marks=pytest.mark.integration),
        pytest.param("mit_b1", "cityscapes", marks=pytest.mark.slow),
        pytest.param("adapt_mit_b2", "coco_stuff", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "ade20k", marks=pytest.mark.slow),
    ],
)
def test_the_multiply_adds_of_the_readme_are_counted(load, model, dataset):
    found = load("tables").products(model, dataset)
    assert f"{found / 1e9:.1f}" == rows_of_the_readme()[model, dataset][3]


def test_hours_are_those_of_three_times_the_operations(load):
    # 16 images and 180,000 steps, 6 operations a multiply-add, 5 % of 989 TFLOP/s.
    found = load("tables").hours("adapt_mit_b0", "ade20k", 7e9)
    assert found == pytest.approx(7e9 * 6 * 16 * 180_000 / (0.05 * 989e12) / 3600)


# Edges


def test_a_training_needs_a_full_batch(tmp_path, load):
    folder = write_folder(tmp_path, "cityscapes", count=7)
    data = load("train").training_data(
        "cityscapes", folder, load("protocol").DATASETS["cityscapes"]
    )
    with pytest.raises(SystemExit, match=r"A batch is 8 images.*Received: 7 images"):
        load("train").Steps(data, 1)


def test_a_folder_of_another_dataset_is_refused(tmp_path, command):
    folder = write_folder(tmp_path, "ade20k")
    with pytest.raises(ValueError, match=r"leftImg8bit"):
        command("mit_b0", "cityscapes", folder, "--out", tmp_path / "out", *SMALL)
