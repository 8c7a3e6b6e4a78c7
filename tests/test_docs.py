"""Tests of the README and the site: what pages show runs, and what they name exists."""

import ast
import operator
import re
import shlex
from xml.etree import ElementTree

import keras
import pytest
from conftest import EAGER
from pages import PAGES, ROOT, SITE, blocks, rows_of, run_python
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.cli.parser import parse

RESULTS = ROOT / "benchmarks/results"
CONFIG = (ROOT / "docs/mkdocs.yml").read_text()
# The converters warn about their own code.
MARKS = {"docs/pages/deploy.md": pytest.mark.filterwarnings("ignore")}
RUNNING = [
    pytest.param(name, marks=MARKS.get(name, ()))
    for name, text in PAGES.items()
    if blocks(text, "python")
]
WRITERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
NEEDED = {
    "docs/pages/deploy.md": ("onnxruntime", WRITERS[keras.backend.backend()]),
    "docs/pages/frozen.md": ("keras_hub",),
}


# Contract


@pytest.fixture
def published(hub, tmp_path):
    """Serve a SegFormer with random weights for the published one: tests are offline.

    Returns:
        List of the names and files that were asked for.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=150)  # of B0
    segformer = transformers.SegformerForSemanticSegmentation(config)
    segformer.save_pretrained(tmp_path / "hub")
    return hub({path.name: path for path in (tmp_path / "hub").iterdir()})


@pytest.mark.integration
@pytest.mark.parametrize("page", RUNNING)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch, request):
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package)
    downloads = '(weights="ade20k")' in "".join(blocks(PAGES[page], "python"))
    asked = request.getfixturevalue("published") if downloads else []
    # Tracing takes longer than the few steps of a page.
    compile_model, eager = ksa.Segmenter.compile, {"run_eagerly": EAGER}
    monkeypatch.setattr(
        ksa.Segmenter,
        "compile",
        lambda *args, **options: compile_model(*args, **{**eager, **options}),
    )
    monkeypatch.chdir(tmp_path)
    Image.fromarray(ksa.data.make_scenes(1, size=(60, 90))[0][0]).save("photo.jpg")
    run_python(page)
    if downloads:
        ade20k = "nvidia/segformer-b0-finetuned-ade-512-512@main"
        assert {name for name, _ in asked} == {ade20k}
        with Image.open("overlay.png") as overlay:
            assert overlay.size == (90, 60)


def test_what_does_not_run_here_is_python():
    found = [block for text in PAGES.values() for block in blocks(text, "py")]
    assert len(found) > 3
    for block in found:
        compile(block, "page", "exec")


@pytest.mark.parametrize("page", PAGES)
def test_names_on_a_page_exist(page):
    for name in set(re.findall(r"\bksa\.([A-Za-z_][\w.]*\w)", PAGES[page])):
        operator.attrgetter(name)(ksa)


def test_commands_on_the_pages_have_flags_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FOLDER", "FILE.json"):  # data must exist
        (tmp_path / name).mkdir()
    text = "".join("".join(blocks(text, "sh")) for text in PAGES.values())
    commands = re.findall(r"^(?:\S+=\S+ |\S+/)*segadapter (\w.*)", text, re.MULTILINE)
    assert len(commands) > 15
    for command in commands:
        parse(shlex.split(command))


# Meaning


def test_the_reference_holds_every_public_name():
    text = "".join(text for name, text in PAGES.items() if "/api/" in name)
    objects = {
        name.removeprefix("inference.exported.").rpartition(".")[2]
        for name in re.findall(r"^::: keras_segadapter\.(\S+)$", text, re.MULTILINE)
    }
    tables = set(re.findall(r"^\| `ksa\.data\.(\w+)`", text, re.MULTILINE))
    offered = {*ksa.__all__, *ksa.data.__all__} - {"__version__", "data"}
    painters = {
        name
        for name, value in vars(ksa.visualization).items()
        if getattr(value, "__module__", "") == ksa.visualization.__name__
        and not name.startswith("_")
    }
    offered = (offered - {"visualization"}) | painters
    assert offered - objects - tables == set()


def test_messages_on_the_page_of_errors_are_those_of_the_package():
    messages = []
    for path in (ROOT / "keras_segadapter").rglob("*.py"):
        messages += [
            constant_text(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
        ]
    page = PAGES["docs/pages/errors.md"]
    quoted = [
        quote.replace("...", "\0") for quote in re.findall(r"^> (.+)$", page, re.M)
    ]
    assert len(quoted) > 15
    for quote in quoted:
        assert any(quote in message for message in messages), quote


def constant_text(node):
    """Return the text of a string, with a \\0 for each part that is not known."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(constant_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return constant_text(node.left) + constant_text(node.right)
    return "\0"


def test_tables_of_results_are_included_and_not_repeated():
    results = {tuple(row) for path in RESULTS.glob("*.md") for row in figures(path)}
    assert len(results) > 100
    for name, text in PAGES.items():
        if name != "README.md":  # whose rows test_examples.py compares
            rows = {tuple(row) for row in rows_of(text)}
            assert not rows & results, name
    included = set(
        re.findall(r"benchmarks/results/(\w+)\.md\"", "".join(PAGES.values()))
    )
    assert included == {path.stem for path in RESULTS.glob("*.md")}


def figures(path):
    """Return the rows of a file of results that hold figures."""
    return [row for row in rows_of(path.read_text()) if re.search(r"\d", "".join(row))]


# Edges


def test_the_navigation_holds_every_page_and_no_other():
    listed = re.findall(r": ([\w/]+\.md)$", CONFIG, re.MULTILINE)
    files = [*SITE.rglob("*.md"), *SITE.glob("notebooks/*.ipynb")]
    pages = [str(path.relative_to(SITE).with_suffix(".md")) for path in files]
    assert sorted(listed) == sorted(pages)


def anchors(text):
    """Return the anchors of a page: its headings, and the objects of the package."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    slugs = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    objects = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    return {*(re.sub(r"[\s-]+", "-", slug) for slug in slugs), *objects}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.S)
    )
    for link in links:
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / page if not path else (ROOT / page).parent / path
        assert target.exists(), link
        if anchor:
            text = target.read_text()
            for included in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE):
                text += (ROOT / included).read_text()
            assert anchor in anchors(text), link


def test_drawings_are_well_formed_and_described():
    drawings = list((SITE / "images").glob("*.svg"))
    assert drawings
    for path in drawings:
        assert ElementTree.parse(path).getroot().get("aria-label")


def test_the_site_builds_by_the_command_that_ci_runs():
    command = "mkdocs build --strict -f docs/mkdocs.yml"
    for path in (".ci/run", "docs/mkdocs.yml"):
        assert command in (ROOT / path).read_text(), path
