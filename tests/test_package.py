"""Tests of the package as a whole: its order, its documentation, its names."""

import ast
import inspect
import re
from pathlib import Path

import keras
import pytest

import keras_segadapter as ksa

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_segadapter"
READING_ORDER = [
    "version",
    "extras",
    "validation",
    "data_validation",
    "saving",
    "layers.shifted",
    "layers.native",
    "layers.faster",
    "layers.resize",
    "layers.tokens",
    "layers.attention",
    "layers.adapter",
    "layers.neck",
    "layers.head",
    "layers.segformer_head",
    "layers",
    "graph.inside",
    "graph.replay",
    "graph.probe",
    "graph.blocks",
    "graph.stages",
    "graph.splice",
    "graph.adapters",
    "graph.assemble",
    "graph",
    "backbones.origin",
    "backbones.weight_sources",
    "backbones.weight_files",
    "backbones.widening",
    "backbones.mit_weights",
    "backbones.mit",
    "backbones.convnext_weights",
    "backbones.convnext",
    "backbones.preprocessing",
    "backbones",
    "lora",
    "visualization",
    "data.scenes",
    "data.disk",
    "data.label_files",
    "data.labels",
    "data.label_table",
    "data.decoding",
    "data.reading",
    "data.resizing",
    "data.pairs",
    "data.counting",
    "data.distortion",
    "data.files",
    "data.matching",
    "data.pairing",
    "data.layouts",
    "data.epochs",
    "data.augmentation_checks",
    "data.augmentation",
    "data.ahead",
    "data.sources",
    "data.folders",
    "data.coco",
    "data.opening",
    "data.contents",
    "data.notes",
    "data.report",
    "data.inspection",
    "data.tfds",
    "data",
    "losses.labels",
    "losses.tiles",
    "losses.class_weight",
    "losses.crossentropy",
    "losses.lovasz",
    "losses.accepted",
    "losses.mask_loss",
    "losses.named",
    "losses.resized",
    "losses",
    "metrics",
    "inference.threads",
    "inference.rows",
    "inference.predict",
    "inference.views",
    "inference.evaluate",
    "inference.multiply_adds",
    "inference.cost",
    "inference.exported",
    "inference.onnx_files",
    "inference.export",
    "inference",
    "model_card",
    "training.optimizers",
    "training.schedules",
    "training.paper_optimizer",
    "training.data_checks",
    "training.watch",
    "training.balance",
    "training.averages",
    "training.compiling",
    "training.resume",
    "training.pictures",
    "training",
    "segmenter",
    "transfer",
    "models.adapted",
    "models.segformer_weights",
    "models.segformer",
    "models",
    "cli.sources",
    "cli.arguments",
    "cli.models",
    "cli.backbones",
    "cli.record",
    "cli.inspect",
    "cli.train_arguments",
    "cli.train",
    "cli.predict",
    "cli.demo",
    "cli.evaluate",
    "cli.export",
    "cli.parser",
    "cli",
    "__main__",
]


# Their examples train in a graph, which takes seconds.
SLOW_EXAMPLES = (
    *("AdaptConvNeXtTiny", "AdaptMiTB0", "ConvNeXtTiny", "MiTB0", "SegFormerB0"),
    *("Segmenter", "TrainingPictures", "build_segmenter", "cost_report"),
    *("enable_lora", "find_stages", "widen_input"),
)


def module_path(name):
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# Contract


def test_modules_import_only_what_stands_above_them():
    for index, name in enumerate(READING_ORDER):
        imported = re.findall(
            r"^from keras_segadapter\.([\w.]+) import",
            module_path(name).read_text(),
            re.MULTILINE,
        )
        assert set(imported) <= set(READING_ORDER[:index]), name


def test_the_reading_order_names_every_module():
    found = {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
        for path in PACKAGE.rglob("*.py")
    }
    found = {name.removesuffix(".__init__") for name in found} - {"__init__"}
    assert found == set(READING_ORDER)


def test_only_four_files_depend_on_the_backend():
    knows = re.compile(r"backend\.backend\(|(import|from) (tensorflow|torch|jax)\b")
    files = [p.name for p in PACKAGE.rglob("*.py") if knows.search(p.read_text())]
    # Whichever backend trains, tfds.py opens datasets of tf.data and pictures.py writes
    # files for TensorBoard. Each backend has converters of its own for export.py.
    assert sorted(files) == ["export.py", "native.py", "pictures.py", "tfds.py"]


def test_only_public_names_of_keras_and_no_assert_are_used():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), path
            module = getattr(node, "module", None) or ""
            assert not module.startswith("keras.src"), path
            assert not getattr(node, "attr", "").startswith("_keras"), path


def public_objects():
    """Yield what the package offers, by name."""
    for holder in (ksa, ksa.data):
        for name in holder.__all__:
            if callable(getattr(holder, name)):
                yield name, getattr(holder, name)
    for name, value in vars(ksa.visualization).items():
        if getattr(value, "__module__", "") == ksa.visualization.__name__:
            if not name.startswith("_"):
                yield name, value
    for name in ("compile", "fit", "segment", "for_inference"):
        yield f"Segmenter.{name}", getattr(ksa.Segmenter, name)


PUBLIC = dict(public_objects())


def examples(name):
    return re.findall(r"```python\n(.*?)```", inspect.getdoc(PUBLIC[name]), re.DOTALL)


def marks(name):
    if name == "export_model":  # whose converters warn about their own code
        return [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]
    return [pytest.mark.integration] if name in SLOW_EXAMPLES else []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name)) for name in PUBLIC]
)
def test_a_public_docstring_has_an_example_that_runs(name, tmp_path, monkeypatch):
    blocks = examples(name)
    if not blocks:
        other = re.search(r"Example: see `(\w+)`\.", inspect.getdoc(PUBLIC[name]))
        assert other and examples(other[1])
    if name == "export_model":
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize(
    "name", ["ResizeLike", "SegAttention", "SegAdapter", "MeanIoU", "Segmenter"]
)
def test_classes_are_registered_under_the_packages_name(name):
    registered = keras.saving.get_registered_name(getattr(ksa, name))
    assert registered == f"keras_segadapter>{name}"
