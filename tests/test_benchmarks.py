"""Tests of the benchmarks: tasks in turns, and their tables."""

import importlib
import json
import os
import sys
from pathlib import Path

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
    measured = {"train": [2, 4, 3], "infer": [1, 1, 1], "parameters": 26.1e6}
    measured |= {"memory_mb": 900, "start_mb": 400}
    ours = {**measured, "train": [6, 6, 6], "infer": [0.5, 0.5]}
    runs = [
        {**shared, **measured, "model": "FPN", "on": "torch"},
        {**shared, **ours, "model": "adapters", "on": "jax"},
        {**shared, "model": "plain", "on": "torch"},
    ]
    results = {"command": "", "machine": "", "versions": {}, "runs": runs}
    lines = smp.tables(results).splitlines()
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
