"""Tests of the examples, and of the tables that the benchmarks write."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import time

import keras
import pytest
from pages import README, ROOT, rows_of

import keras_segadapter as ksa

RESULTS = ROOT / "benchmarks/results"
CAMVID = ROOT.parent / "shared" / "camvid"


def run(*arguments, folder=ROOT):
    """Run a script in a fresh process, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
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


# Contract


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci/run").read_text()
    for command in ("python3 -m venv ", "pip install ", "pytest"):
        assert f"\n{command}" in README.replace(".venv/bin/", "")
        assert re.search(rf"^ *(KERAS_BACKEND=\S+ )?{command}", ci, re.MULTILINE)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_the_table_of_costs_is_that_of_the_benchmark():
    readme = rows_of(README)
    costs = rows_of((RESULTS / "costs.md").read_text())
    adapted = [row for row in costs if row[0].startswith("Adapt-")]
    adapted = [row for row in adapted if row[1:3] == ["ADE20K, 512", "256"]]
    assert len(adapted) == 7
    for name, _, _, parameters, _, ours, concatenated, published, *_ in adapted:
        assert [name, parameters, ours, concatenated, published] in readme


def test_what_adapters_add_is_what_the_benchmark_found():
    table = README.split("95 %")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    written = (RESULTS / "evidence.md").read_text().splitlines()
    assert len(rows) > 2 and set(rows) <= set(written)


def test_tables_of_speed_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    written = []
    for path in RESULTS.glob("*.json"):
        if path.stem in ("speed", "smp", "gpu"):
            benchmark = importlib.import_module(path.stem)
            written.append(path.with_suffix(".md").read_text())
            assert written[-1] == benchmark.tables(json.loads(path.read_text()))
    section = README.split("## Speed")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 10 and set(rows) <= set("\n".join(written).splitlines())


@pytest.mark.integration
def test_add_layer(monkeypatch, capsys):
    run_here(monkeypatch, "examples/add_layer.py")
    assert "mask_mIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_a_frozen_transformer_learns_the_scenes_in_time(tmp_path):
    started = time.monotonic()
    printed = run(ROOT / "examples/frozen_vit.py", folder=tmp_path)
    assert time.monotonic() - started < 300
    assert float(re.search(r"validation mIoU: (\S+)", printed)[1]) > 0.5
    assert "a mask of the loaded model: (112, 112)" in printed


def test_without_keras_hub_the_frozen_transformer_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)  # An import of it fails.
    with pytest.raises(SystemExit, match="pip install keras-hub"):
        run_here(monkeypatch, "examples/frozen_vit.py")


@pytest.mark.slow
def test_training_on_the_scenes_reaches_its_miou_in_time(tmp_path):
    started = time.monotonic()
    printed = run(ROOT / "examples/train.py", folder=tmp_path)
    assert time.monotonic() - started < 300
    assert float(re.search(r"validation mIoU: (\S+)", printed)[1]) > 0.85
    assert (tmp_path / "runs/train/pictures/epoch_0016_features.png").exists()
    model = keras.models.load_model(tmp_path / "runs/train/model.keras")
    assert model.class_names == ksa.data.SCENE_CLASSES


def test_camvid_is_read():
    if not CAMVID.is_dir():
        pytest.skip("the street scenes are not beside this checkout")
    report = ksa.data.inspect_folder(CAMVID / "val", num_classes=11).check()
    assert report.images == 101 and report.sizes == {(360, 480): 101}
    assert report.class_pixels.min() > 0
