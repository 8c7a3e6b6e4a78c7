"""Tests of the notebooks: they run, and hold what came of running all of it.

tests/test_docs.py tests the names, links and commands in them, as on any page.
"""

import re

import keras
import pytest
from pages import NOTEBOOKS, ROOT

import keras_segadapter as ksa

WRITERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
DEPLOY = "docs/pages/notebooks/deploy.ipynb"
NEEDED = {DEPLOY: ("onnxruntime", WRITERS[keras.backend.backend()])}
# The converters warn about their own code.
MARKS = {DEPLOY: pytest.mark.filterwarnings("ignore")}
RUNNING = [pytest.param(name, marks=MARKS.get(name, ())) for name in NOTEBOOKS]


def code(name):
    return [cell for cell in NOTEBOOKS[name] if cell["cell_type"] == "code"]


def printed(cell):
    """Return what a cell printed in the notebook."""
    outputs = [out for out in cell["outputs"] if out["output_type"] == "stream"]
    assert all(out["name"] == "stdout" for out in outputs)
    return "".join("".join(out["text"]) for out in outputs)


def without_numbers(text):
    return re.sub(r"[\d.,]*\d(e-\d+)?", "0", re.sub(r" +", " ", text))


# Contract


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_the_outputs_of_one_whole_run(name):
    cells = code(name)
    counts = [cell["execution_count"] for cell in cells]
    assert counts == [*range(1, len(cells) + 1)]
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert "error" not in {out["output_type"] for out in outputs}
    assert any("image/png" in out.get("data", ()) for out in outputs)
    # Nothing that differs in each run.
    assert not any(cell["metadata"] for cell in cells)


# Meaning


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:unclosed file")  # Jupyter shows the pictures.
@pytest.mark.parametrize("name", RUNNING)
def test_a_notebook_runs_and_prints_what_it_shows(name, tmp_path, monkeypatch, capsys):
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for cell in code(name):
        exec(compile("".join(cell["source"]), name, "exec"), names)
        shown = without_numbers(printed(cell))
        assert without_numbers(capsys.readouterr().out) == shown
    scenes = zip(*ksa.data.make_scenes(20, size=(64, 64), seed=3), strict=True)
    assert ksa.evaluate_images(names["model"], scenes).miou > 0.65


# Edges


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_says_nothing_of_the_machine(name):
    assert (ROOT / name).stat().st_size < 300_000
    for cell in code(name):
        for out in cell["outputs"]:
            data = out.get("data", {"text/plain": out.get("text", [])})
            text = "".join(data["text/plain"])
            assert not re.search(r"(^|[^\w.])/\w|\b0x[0-9a-f]", text)
