"""Tests of the benchmarks: tasks in turns, and their tables."""

import importlib
import json
import os
import sys
from pathlib import Path

import keras
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from pathlib import Path
import os, turns

def plan():
    tasks = [{{"name": name, "on": "torch", "threads": 1}} for name in "abc"]
    yield "first", 3, tasks
    yield "second", 1, tasks[:1]

def prepare(task):
    cores = len(os.sched_getaffinity(0))
    yield "train", lambda: print("called"), {{"cores": cores}}
    if task["name"] == "b":
        raise SystemExit("it fails")
    yield "infer", lambda: sum(range(100000)), {{}}

def tables(results):
    return "".join(run["name"] for run in results["runs"])

turns.run("", Path(sys.argv[0]).with_suffix(".json"), plan, prepare, tables)
"""


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a benchmark by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


# Meaning


def test_tasks_take_turns_phase_by_phase_and_are_not_measured_twice(
    load, tmp_path, monkeypatch
):
    turns = load("turns")
    script = tmp_path / "bench.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(script)])
    names = {"__name__": "bench"}
    exec(SCRIPT, names)
    results = json.loads(script.with_suffix(".json").read_text())
    a, b, c, second = results["runs"]
    assert [run["section"] for run in results["runs"]] == ["first"] * 3 + ["second"]
    assert len(a["train"]) == len(b["train"]) == len(c["infer"]) == 3
    assert len(second["train"]) == 1 and "infer" not in b
    assert {run["cores"] for run in results["runs"]} == {1}
    assert all(x > 0 for x in a["infer"] + a["cpu_infer"]) and a["memory_mb"] > 1
    assert script.with_suffix(".md").read_text() == "abca"
    before = os.stat(script.with_suffix(".json")).st_mtime_ns
    turns.measure(script.with_suffix(".json"), names["plan"]())
    assert os.stat(script.with_suffix(".json")).st_mtime_ns == before


def test_the_table_beside_smp_has_ratios_to_the_first_row_of_an_encoder(load):
    smp = load("smp")
    shared = {"section": "ResNet-50, 1", "encoder": "ResNet-50", "threads": 1}
    measured = {"cpu_train": [2, 4, 3], "cpu_infer": [1, 1, 1], "parameters": 26.1e6}
    # On one core the seconds that passed are not looked at.
    measured |= {"memory_mb": 900, "start_mb": 400, "train": [9], "infer": [9]}
    ours = {**measured, "cpu_train": [6, 6, 6], "cpu_infer": [0.5, 0.5]}
    runs = [
        {**shared, **measured, "model": "FPN", "on": "torch"},
        {**shared, **ours, "model": "adapters", "on": "jax"},
        {**shared, "model": "plain", "on": "torch"},
    ]
    results = {"command": "", "machine": "", "versions": {}, "runs": runs}
    lines = [*filter(None, smp.tables(results).splitlines())]
    assert lines[-9:-6] == [
        "| ResNet-50 | smp FPN | 26.1 | 1.00 = 1000 ms | 1.00 = 3000 ms | 900 |",
        "|  | ours, adapters | 26.1 | 0.50 | 2.00 | 900 |",
        "|  | ours, plain |  | failed | failed | failed |",
    ]
    assert lines[-3:] == [
        "| ResNet-50 | smp FPN | torch | 26.1 | 1.00 = 1000 ms | 1.00 = 3000 ms "
        "| 900 | 400 |",
        "|  | ours, adapters | jax | 26.1 | 0.50 | 2.00 | 900 | 400 |",
        "|  | ours, plain | torch |  | failed | failed | failed |  |",
    ]


def test_every_encoder_is_measured_on_one_core_and_on_two(load):
    smp = load("smp")
    sections = {section: tasks for section, _, tasks in smp.plan()}
    assert len(sections) == 2 * len(smp.SMP)
    for tasks in sections.values():
        # The first row is smp's; ours follow on each backend.
        assert tasks[0]["model"] in smp.SMP[tasks[0]["encoder"]]
        assert {t["on"] for t in tasks if t["model"] == "adapters"} == {
            *("tensorflow", "jax", "torch")
        }


def test_tables_of_gpus_have_rates_and_the_share_of_the_pipeline(load):
    gpu = load("gpu")
    step = {"section": "s", "do": "step", "model": "AdaptMiTB0", "on": "torch"}
    step |= {"batch": 16, "loss": "smp", "xla": "auto", "infer": [0.1]}
    ours = {"loss": "whole", "on": "tensorflow", "xla": False, "train": [0.1, 0.1]}
    epoch = {"section": "e", "do": "epoch", "on": "jax", "images": 64}
    runs = [
        {**step, "train": [0.4, 0.2, 0.2], "device_mb": 2000},
        {**step, **ours},
        {**step, "loss": "tiles", "infer": []},
        {**epoch, "arrays": [3.0], "folder": [4.0]},
        {**epoch, "arrays": [3.0]},
    ]
    results = {"command": "", "machine": "", "versions": {}, "runs": runs}
    rows = [line for line in gpu.tables(results).splitlines() if line.startswith("| ")]
    assert rows == [
        "| what | on | step, ms | ratio | images a second | inference, ms | ratio "
        "| images a second | memory, MB |",
        "| smp Segformer | torch | 200.0 | 1.00 | 80 | 100.0 | 1.00 | 160 | 2000 |",
        "| AdaptMiTB0, whole logits, no XLA | tensorflow | 100.0 | 0.50 | 160 "
        "| 100.0 | 1.00 | 160 |  |",
        "| AdaptMiTB0 | torch | failed |  |  | failed |  |  |  |",
        "| on | images | s from arrays | s from a folder | its share |",
        "| jax | 64 | 3.00 | 4.00 | 25% |",
        "| jax | failed |  |  |  |",
    ]


@pytest.mark.slow
def test_tasks_of_gpus_run(load, monkeypatch):
    gpu, turns = load("gpu"), load("turns")
    monkeypatch.setattr(gpu, "backends", lambda: [])  # so that they run on the CPU
    tasks = [task for _, _, tasks in gpu.plan() for task in tasks]
    ours = [
        task | turns.TINY
        for task in tasks
        if task["on"] == keras.backend.backend() and task.get("loss") != "smp"
    ]
    ran = []
    for kind in ("step", "epoch"):
        task = next(task for task in ours if task["do"] == kind)
        try:
            for name, call, _ in gpu.prepare(task):
                call()
                ran.append(name)
        finally:
            keras.config.set_dtype_policy("float32")
    assert ran == ["train", "infer", "arrays", "folder"]


# Edges


def test_without_a_gpu_nothing_is_measured(load, monkeypatch, capsys):
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "backends", lambda: [])
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.turns, "run", lambda *arguments: pytest.fail("it runs"))
    gpu.main()
    assert "No GPU was found" in capsys.readouterr().out
