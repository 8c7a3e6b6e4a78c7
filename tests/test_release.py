"""Tests of what is published: packages, citation, workflow, SECURITY.md."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

import keras_segadapter as ksa
from keras_segadapter import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = {
    str(path.relative_to(ROOT)) for path in (ROOT / "keras_segadapter").rglob("*.py")
}
BUILD = (
    "import setuptools.build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder with an sdist and a wheel, built without a network."""
    folder = tmp_path_factory.mktemp("checkout")
    # As in a checkout, so that files may get in that should not.
    hidden = shutil.ignore_patterns(".git", "*cache*", "*.egg-info", "build", "dist")
    for path in ROOT.iterdir():
        if path.is_dir() and not hidden(ROOT, [path.name]):
            shutil.copytree(path, folder / path.name, ignore=hidden)
        elif path.is_file():
            shutil.copy(path, folder)
    command = [sys.executable, "-c", BUILD]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def calls():
    """Yield each call in the package: its file, what is called, and its keywords."""
    for name in SOURCES:
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Call):
                keywords = {each.arg: each.value for each in node.keywords}
                yield name, ast.unparse(node.func), keywords


# Contract


@pytest.mark.integration
def test_the_wheel_holds_the_package_and_its_license_alone(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        (info,) = {name.split("/")[0] for name in wheel.namelist()} - {
            "keras_segadapter"
        }
        assert info == f"keras_segadapter-{ksa.__version__}.dist-info"
        modules = {name for name in wheel.namelist() if not name.startswith(info)}
        assert modules == SOURCES
        license_ = wheel.read(f"{info}/licenses/LICENSE").decode()
        assert license_ == (ROOT / "LICENSE").read_text()
        metadata = message_from_string(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Version"] == ksa.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    extras = {*PROJECT["optional-dependencies"]}
    assert (
        {"tensorflow", "jax", "torch"} < extras == {*metadata.get_all("Provides-Extra")}
    )


@pytest.mark.integration
def test_the_sdist_holds_what_builds_the_wheel_and_no_tests_or_data(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {m.name.partition("/")[2] for m in sdist.getmembers() if m.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    names = {n for n in names if ".egg-info/" not in n} - made
    papers = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"}
    assert names == SOURCES | papers | {"MANIFEST.in", "pyproject.toml"}


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == ksa.__version__
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    names = " and ".join(author["family-names"] for author in paper["authors"])
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert names == "Peng and Kameyama"
    assert paper["title"] in readme and f"PMLR {paper['volume']}" in readme


def test_the_workflow_runs_what_ci_runs_with_no_rights_to_write():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] and "permissions" not in job
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each) for each in used)
    (run,) = (step["run"] for step in job["steps"] if "run" in step)
    command, each_week = run.split(maxsplit=1)
    assert command == ".ci/run" and os.access(ROOT / command, os.X_OK)
    assert "event_name == 'schedule' && 'all'" in each_week


def test_issues_ask_for_the_versions():
    forms = [*(ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    assert {form.stem for form in forms} == {"bug", "question"}
    for form in forms:
        form = read_yaml(form)
        assert form["name"] and form["description"] and form["body"]
        asked = [field["attributes"]["description"] for field in form["body"]]
        assert any("segadapter --version" in text for text in asked)


# Meaning: the promises of SECURITY.md. Other tests open such files: `pickled` in
# test_reading.py, `Malicious` in test_mit_weights.py, a lambda in test_saving.py.


def test_nothing_in_the_package_unpickles_or_executes():
    forbidden = {"eval", "exec", "compile", "__import__", "np.load", "numpy.load"}
    forbidden.add("keras.config.enable_unsafe_deserialization")
    for name, called, keywords in calls():
        assert called not in forbidden, name
        assert not {"safe_mode", "allow_pickle"} & keywords.keys(), name
        if called == "torch.load":
            assert ast.unparse(keywords["weights_only"]) == "True", name
    pickles = re.compile(r"import.*\b(pickle|dill|joblib|marshal|shelve)\b")
    assert not [name for name in SOURCES if pickles.search((ROOT / name).read_text())]
    # Before 2.6 torch.load(weights_only=True) could execute code.
    assert PROJECT["optional-dependencies"]["torch"] == ["torch>=2.6"]


# Edges


def test_an_error_names_the_extra_that_brings_a_package(monkeypatch):
    given = PROJECT["optional-dependencies"]
    for module in (*extras._INSTALL, "onnx", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        with pytest.raises(ImportError, match=f"^This needs the package {module}") as e:
            extras.import_extra(module, "This")
        install = re.search(r"pip install (\S+)`", str(e.value))[1]
        named = re.fullmatch(r"keras-segadapter\[(.*)\]", install)
        if module == "litert_torch":
            assert install == "litert-torch"
            continue
        brought = [each for extra in named[1].split(",") for each in given[extra]]
        package = module.replace("_", "-")
        assert any(re.match(rf"{package}\b", each) for each in brought)


@pytest.mark.integration
def test_an_environment_without_the_backend_hears_what_to_do():
    code = "import sys; sys.modules['tensorflow'] = None; import keras_segadapter"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "tensorflow" in last.partition("Received: ")[2]
    assert "pip install keras-segadapter[" in last and "KERAS_BACKEND" in last
