"""Tests of benchmarks/evidence.py: its arms, its records and its tables."""

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("evidence")


@pytest.fixture
def tables(evidence):
    return importlib.import_module("evidence_tables")


@pytest.fixture
def stand_in(monkeypatch, tiny_backbone):
    """Put a tiny backbone in the place of the pretrained one, which needs a package."""
    module = types.ModuleType("efficientnet_lite")
    module.efficientnet_lite0 = lambda: tiny_backbone((4, 4, 6, 6))
    module.rescaling = lambda: keras.layers.Rescaling(1 / 128, -127 / 128)
    monkeypatch.setitem(sys.modules, "efficientnet_lite", module)


def write_scenes(folder):
    """Write scenes in the layout of the two sets: 8 to train on, 2 to score on."""
    images, masks = ksa.data.make_scenes(10, size=(48, 64))
    for index, pair in enumerate(zip(images, masks, strict=True)):
        part = folder / ("train" if index < 8 else "val")
        for kind, pixels in zip(("images", "masks"), pair, strict=True):
            (part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(part / kind / f"{index}.png")


def record(evidence, dataset, arm, seed, miou, **changed):
    return {
        **{"dataset": dataset, "arm": arm, "seed": seed, "val_miou": miou},
        **{"settings": {**evidence.START, **changed}, "across_miou": miou / 2},
        "val_iou": dict.fromkeys(evidence.CLASSES[dataset], miou),
        **{"trained_parameters": 2e6, "multiply_adds": 3e9},
        **{"seconds": 90, "peak_mb": 1000, "history": {"loss": [1.0]}},
    }


# Contract


def test_all_that_was_planned_is_recorded_once_with_the_settings_taken(evidence):
    runs = json.loads(evidence.FINAL.read_text())["runs"]
    keys = ("dataset", "arm", "seed", "settings")
    planned, recorded = (
        sorted(str([one[key] for key in keys]) for one in all_)
        for all_ in (evidence.planned(), runs)
    )
    assert recorded == planned and len(planned) == 7 * (8 + 5) + 4 * 5
    assert {run["scored_on"] for run in runs} == {"val"}


SCORE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.modules["efficientnet_lite"] = sys  # whose backbone these models do not have
import evidence
evidence.score(Path(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.slow
def test_each_arm_is_trained_scored_saved_and_scored_again(
    evidence, stand_in, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence, "CROP", 32)
    for dataset in ("camvid", "facade"):
        write_scenes(tmp_path / dataset)
    settings, learned = {**evidence.START, "epochs": 2}, {}
    for arm in evidence.ARMS:
        task = {"dataset": "camvid", "arm": arm, "seed": 0, "held_back": False}
        task |= {"settings": settings, "data": str(tmp_path)}
        task["runs"] = str(evidence.RUNS)
        evidence.train(task)
        run = json.loads(capsys.readouterr().out.splitlines()[-1])["run"]
        learned[arm] = run["trained_parameters"]
        assert run["scored_on"] == "val" and 0 <= run["val_miou"] <= 1
        assert 0 <= run["across_miou"] <= 1 and run["seconds"] >= 0
        assert len(run["history"]["loss"]) == 2 and run["peak_mb"] > 100
    assert learned["frozen_plain"] < learned["frozen_adapters"] < learned["adapters"]
    assert learned["fcn"] > learned["plain"] > learned["frozen_plain"]
    evidence.train({**task, "dataset": "few", "arm": "plain"})
    folder = tmp_path / "others"
    (tmp_path / "camvid/val").rename(folder)
    # In a process that has imported nothing of what the files hold.
    command = [sys.executable, "-c", SCORE, BENCHMARKS, evidence.RUNS, folder]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.count(": mIoU ") == len(evidence.ARMS)


# Meaning


def test_what_is_held_back_is_not_trained_on(evidence, tmp_path):
    write_scenes(tmp_path)
    train, last = evidence.split(tmp_path, held_back=True)
    assert [len(files) for files in (*train, *last)] == [7, 7, 1, 1]
    assert not {*train[0]} & {*last[0]} and last[0][0].parent.parent.name == "train"
    whole, val = evidence.split(tmp_path, held_back=False)
    assert whole[0] == train[0] + last[0] and val[0][0].parent.parent.name == "val"
    few, same = evidence.split(tmp_path, held_back=False, every=3)
    assert few == [files[::3] for files in whole] and len(few[0]) == 3 and same == val


def test_across_domains_only_the_shared_classes_count(evidence, tmp_path, monkeypatch):
    names = evidence.CLASSES
    facade, camvid = (names[name].index for name in ("facade", "camvid"))
    for kind in ("images", "masks"):
        for part in ("train", "val"):
            (tmp_path / part / kind).mkdir(parents=True)
    mask = np.array([[facade("door"), facade("road")], [facade("vegetation"), 255]])
    image = np.zeros((2, 2, 3), "uint8")
    Image.fromarray(image).save(tmp_path / "val/images/a.png")
    Image.fromarray(mask.astype("uint8")).save(tmp_path / "val/masks/a.png")
    seen = []

    def evaluate(model, pairs):
        seen.extend(pairs)
        iou = np.full(len(names["camvid"]), 0.0)
        iou[[camvid("road"), camvid("tree"), camvid("fence")]] = 0.5, 1.0, 1.0
        return types.SimpleNamespace(iou=iou)

    monkeypatch.setattr(evidence, "evaluate", evaluate)
    assert evidence.score_across(None, tmp_path) == pytest.approx(1.5 / 6)
    ((_, ids),) = seen
    assert ids.tolist() == [[255, camvid("road")], [camvid("tree"), 255]]


def test_differences_are_of_the_same_seed_with_students_interval(evidence, tables):
    scores = {
        "plain": [0.60, 0.62, 0.61, 0.70],
        "adapters": [0.62, 0.63, 0.64],
    }
    runs = [
        record(evidence, "camvid", arm, seed, miou)
        for arm, values in scores.items()
        for seed, miou in enumerate(values)
    ]
    gains = tables.paired(runs, "adapters", "plain", "val_miou")
    assert gains == pytest.approx([0.02, 0.01, 0.03])
    # 2 points, plus and minus 4.303 (Student's for two degrees) times 1 / sqrt(3).
    assert tables.interval(gains) == "+2.0 (-0.5 to +4.5)"
    *_, row = tables.differences(runs)
    claim, camvid, across = row.strip("| ").split(" | ")
    assert claim == "all learns: adapters over none"
    assert camvid == "+2.0 (-0.5 to +4.5)" and across.startswith("+1.0 ")
    assert tables.interval([0.02, 0.01, 0.03, 0.02]).startswith("**+2.0 (+0.7 to ")


def test_choices_start_from_one_setting_and_change_what_they_name(evidence, tables):
    start = evidence.START
    for changes in evidence.CHOICES.values():
        assert changes[0] == {} and len({str(changed) for changed in changes}) > 1
        assert all(changed.keys() <= start.keys() for changed in changes)
    runs = [
        record(evidence, "camvid", "plain", seed, miou + gain, **settings)
        for settings, gain in ((start, 0.0), ({**start, "learning_rate": 5e-4}, 0.02))
        for seed, miou in enumerate((0.5, 0.6, 0.7))
    ]
    choices = {"plain": ({}, {"learning_rate": 5e-4})}
    first, second = list(tables.by_choice(runs, choices, start))[-2:]
    assert first == "| plain |  | 3 | 60.0 ± 10.0 |  |"
    assert second == (
        "| plain | learning_rate 0.0005 | 3 | 62.0 ± 10.0 | **+2.0 (+2.0 to +2.0)** |"
    )


def test_the_tables_are_those_of_the_records(evidence, tables, tmp_path):
    pytest.importorskip("scipy")
    for path in (evidence.FINAL, evidence.CHOSEN):
        if path.exists():
            (tmp_path / path.name).write_text(path.read_text())
    final, chosen = (tmp_path / p.name for p in (evidence.FINAL, evidence.CHOSEN))
    plan = (evidence.CHOICES, evidence.START, evidence.TAKEN)
    tables.report(final, chosen, evidence.ARMS, *plan)
    written = evidence.FINAL.with_suffix(".md").read_text()
    assert final.with_suffix(".md").read_text() == written
