"""Tests that a model goes to others with what they need to know about it."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import keras
import local_hub
import numpy as np
import pytest
import yaml
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter import saving
from keras_segadapter.backbones import convnext, mit
from keras_segadapter.backbones.convnext_weights import CLIP
from keras_segadapter.backbones.origin import name_origin

K = 3
NAMES = ("road", "tree", "sky")
COLORS = [[128, 64, 128], [0, 128, 0], [0, 0, 255]]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), "uint8")


def shared_model(backbone):
    """Build a model of which a file must keep every fact."""
    return ksa.build_segmenter(
        backbone,
        K,
        preprocessing=keras.layers.Rescaling(0.01, -0.5),
        class_names=NAMES,
        colors=COLORS,
        weights_origin="nvidia/mit-b0@main",
        name="streets",
    )


def logits(model):
    return keras.ops.convert_to_numpy(model.for_inference()(IMAGES))


def assert_same_facts(model, expected):
    assert model.class_names == expected.class_names == NAMES
    assert model.colors.tolist() == expected.colors.tolist() == COLORS
    assert model.weights_origin == expected.weights_origin == "nvidia/mit-b0@main"
    config, again = (m.preprocessing.get_config() for m in (expected, model))
    assert config == again


FRESH = """
import json, sys
import keras, numpy as np
import local_hub
import keras_segadapter
folder = sys.argv[1]
local_hub.serve(folder)
for address in (folder + "/model.keras", "hf://someone/streets"):
    model = keras.saving.load_model(address)
    facts = {
        "class_names": model.class_names,
        "colors": model.colors.tolist(),
        "weights_origin": model.weights_origin,
        "scale": model.preprocessing.scale,
        "takes_pixels": model.takes_pixels,
        "logits": model.predict(np.load(folder + "/images.npy"), verbose=0).tolist(),
    }
    print("FACTS" + json.dumps(facts))
"""


# Contract


@pytest.mark.integration
def test_the_hub_gets_and_gives_back_the_whole_model(
    tiny_backbone, tmp_path, monkeypatch
):
    local_hub.serve(tmp_path, monkeypatch.setattr)
    model = shared_model(tiny_backbone())
    model.compile()
    model.save("hf://someone/streets")
    files = {path.name for path in (tmp_path / "someone/streets").iterdir()}
    expected = {"README.md", "config.json", "metadata.json", "model.weights.h5"}
    assert files - {"assets"} == expected  # and a plot where there is Graphviz
    keras.layers.Add()([keras.Input((4,))] * 2)  # gives operations other names
    loaded = keras.saving.load_model("hf://someone/streets")
    assert isinstance(loaded, ksa.Segmenter) and loaded.compiled
    assert_same_facts(loaded, model)
    np.testing.assert_array_equal(logits(loaded), logits(model))


@pytest.mark.integration
def test_a_fresh_process_knows_classes_colors_normalization_and_origin(
    tiny_backbone, tmp_path, monkeypatch
):
    local_hub.serve(tmp_path, monkeypatch.setattr)
    model = shared_model(tiny_backbone())
    model.save(tmp_path / "model.keras")
    model.save("hf://someone/streets")
    np.save(tmp_path / "images.npy", IMAGES)
    printed = subprocess.run(
        [sys.executable, "-c", FRESH, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    found = [json.loads(part.split("\n")[0]) for part in printed.split("FACTS")[1:]]
    assert len(found) == 2
    for facts in found:
        np.testing.assert_allclose(facts.pop("logits"), logits(model), atol=1e-5)
        assert facts == {
            "class_names": list(NAMES),
            "colors": COLORS,
            "weights_origin": "nvidia/mit-b0@main",
            "scale": 0.01,
            "takes_pixels": True,
        }


@pytest.mark.integration
def test_training_and_loading_weights_leave_the_origin(tiny_backbone, tmp_path):
    model = shared_model(tiny_backbone((4,)))
    model.compile(run_eagerly=keras.backend.backend() != "jax")
    model.fit(IMAGES, np.zeros((2, 32, 48), "uint8"), verbose=0)
    model.save_weights(tmp_path / "a.weights.h5")
    other = ksa.build_segmenter(tiny_backbone((4,)), K)
    other.load_weights(tmp_path / "a.weights.h5")
    assert model.weights_origin == "nvidia/mit-b0@main"
    assert other.weights_origin is None


def test_named_models_tell_where_their_weights_came_from(monkeypatch):
    for family in (mit, convnext):
        name = family.__name__.rpartition(".")[2]
        for function in (f"read_{name}_weights", f"assign_{name}_weights"):
            monkeypatch.setattr(family, function, lambda *args: {})
    monkeypatch.setattr(convnext, "read_normalization", lambda source: CLIP)
    model = ksa.AdaptMiTB0(K, weights="imagenet", adapters=False)
    assert model.weights_origin == "nvidia/mit-b0@main"
    hub = ksa.ConvNeXtAtto("imagenet")
    assert hub.weights_origin == "timm/convnext_atto.d2_in1k@main"
    monkeypatch.setattr(convnext, "IMAGENET_ON_THE_HUB", {})
    monkeypatch.setattr(keras.applications, "ConvNeXtAtto", lambda **_: hub, False)
    backbone = ksa.ConvNeXtAtto("imagenet")
    assert backbone.weights_origin == "keras.applications.ConvNeXtAtto, imagenet"
    assert ksa.ConvNeXtAtto(hub).weights_origin == "the Keras model 'convnext_atto'"
    assert not hasattr(ksa.ConvNeXtAtto(), "weights_origin")


def test_adapters_and_other_classes_leave_the_origin(tiny_backbone):
    options = {"class_names": NAMES, "weights_origin": "a/b"}
    trained = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False, **options)
    assert ksa.add_adapters(trained).weights_origin == "a/b"
    assert ksa.change_classes(trained, ["road", "sea"]).weights_origin == "a/b"


def test_an_origin_is_a_name_without_the_folders_above_it(tmp_path):
    (tmp_path / "mine.pth").touch()
    assert name_origin(tmp_path / "mine.pth") == "mine.pth"
    assert name_origin(str(tmp_path)) == tmp_path.name
    assert name_origin("nvidia/mit-b0") == "nvidia/mit-b0"
    model = keras.Sequential([keras.Input((4,))], name="mit_preset")
    assert name_origin(model) == "the Keras model 'mit_preset'"


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_card_holds_what_the_hub_reads(tiny_backbone):
    model = shared_model(tiny_backbone((4,)))
    assert front_matter(ksa.model_card(model, license="apache-2.0")) == {
        "library_name": "keras",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "keras_segadapter"],
        "license": "apache-2.0",
        "base_model": "nvidia/mit-b0",
    }
    plain = ksa.model_card(ksa.build_segmenter(tiny_backbone((4,)), K))
    assert not {"license", "base_model"} & front_matter(plain).keys()
    assert "No pretrained weights are on record for this model." in plain


@pytest.mark.integration
def test_a_card_tells_parts_classes_figures_and_origin(tiny_backbone):
    model = shared_model(tiny_backbone())
    labels = model.segment(IMAGES)
    result = ksa.evaluate_images(model, zip(IMAGES, labels, strict=True))
    options = {"dataset": "Cityscapes val", "image_size": 64}
    card = ksa.model_card(model, result, **options)
    report = ksa.cost_report(model, 64)
    assert f"{report.parameters / 1e6:.2f} M parameters" in card
    assert f"{report.multiply_adds / 1e9:.2f} G multiply-adds for one image" in card
    parts = (
        "the backbone `tiny`, a `SegAdapter` behind each stage and the head `MLPHead`"
    )
    assert parts in card
    assert "| 4 | 4 | 5 x 5 | 0.001 |\n| 8 | 6 | 5 x 5 | 0.01 |" in card
    assert "3 channels, pixels in 0..255; normalization: Rescaling." in card
    assert "[`nvidia/mit-b0@main`](https://huggingface.co/nvidia/mit-b0)" in card
    assert "non-commercial" in card
    assert "Measured on 2 images of Cityscapes val: mIoU 100.00 %" in card
    for row, name in enumerate(NAMES):
        share = "100.00" if row in labels else "-"
        color = bytes(COLORS[row]).hex()
        assert f"| {row} | {name} | `#{color}` | {share} | {share} |\n" in card
    assert f"keras_segadapter {ksa.__version__}, Keras {keras.__version__}" in card
    assert card == ksa.model_card(model, result, **options)


@pytest.mark.parametrize("size", [(None, None), (32, 64)], ids=["any", "fixed"])
@pytest.mark.parametrize("channels", [3, 5])
def test_the_code_on_a_card_runs(tmp_path, monkeypatch, channels, size):
    monkeypatch.chdir(tmp_path)
    stem = keras.layers.Conv2D(4, 4, 4)
    backbone = keras.Sequential([keras.Input((*size, channels)), stem])
    model = ksa.build_segmenter(backbone, K, adapters=False)
    model.save("model.keras")
    Image.fromarray(IMAGES[0]).save("photo.jpg")
    np.save("image.npy", np.zeros((32, 48, channels), "uint8"))
    card = ksa.model_card(model)
    found = {}
    exec(card.split("```python\n")[1].split("```")[0], found)
    assert found["labels"].shape == (32, 48)
    sizes = "resizes images to 32 x 64" if all(size) else "Images may be of any size"
    assert sizes in card
    counted = "32 x 64" if all(size) else "512 x 512"
    assert f"multiply-adds for one image of {counted}" in card


def test_a_card_replaces_the_one_that_keras_wrote(tiny_backbone, tmp_path, monkeypatch):
    local_hub.serve(tmp_path, monkeypatch.setattr)
    model = shared_model(tiny_backbone((4,)))
    model.save("hf://someone/streets")
    upload = re.search(r"```text\n(.*?)```", ksa.model_card.__doc__, re.DOTALL)[1]
    code = textwrap.dedent(upload).replace("owner/name", "someone/streets")
    exec(code, {"ksa": ksa, "model": model, "huggingface_hub": huggingface_hub})
    card = (tmp_path / "someone/streets/README.md").read_text()
    assert card == ksa.model_card(model, path="hf://someone/streets")
    assert keras.saving.load_model("hf://someone/streets").class_names == NAMES


def test_a_card_names_the_neck(tiny_backbone):
    neck = ksa.SimpleFeaturePyramid((2,))
    backbone = tiny_backbone((4,))
    model = ksa.build_segmenter(backbone, K, adapters=False, neck=neck)
    parts = "`tiny`, the neck `SimpleFeaturePyramid` and the head `MLPHead`"
    assert parts in ksa.model_card(model)


# Edges


def test_names_of_classes_do_not_break_the_table(tiny_backbone):
    model = ksa.build_segmenter(tiny_backbone((4,)), K, adapters=False)
    model.name_classes(["a|b", "two\nlines", "c"])
    assert "| 0 | a\\|b | `#" in ksa.model_card(model)
    assert "| 1 | two lines | `#" in ksa.model_card(model)


@pytest.mark.parametrize(
    "given, error, words",
    [
        pytest.param(
            {"evaluation": 0.76}, TypeError, "result of .*evaluate_images", id="number"
        ),
        pytest.param(
            {"evaluation": "other"},
            ValueError,
            "has 3 classes.*Received: an evaluation of 2 classes",
            id="other_classes",
        ),
        pytest.param(
            {"license": "Apache 2.0"},
            ValueError,
            "identifier .*Received: license='Apache 2.0'",
            id="license_as_a_title",
        ),
        pytest.param({"license": "mit\ntags: x"}, ValueError, "identifier", id="lines"),
    ],
)
def test_bad_arguments_of_a_card_raise(tiny_backbone, given, error, words):
    if given.get("evaluation") == "other":
        other = ksa.build_segmenter(tiny_backbone((4,)), 2, adapters=False)
        pairs = zip(IMAGES, np.zeros(IMAGES.shape[:3], int), strict=True)
        given = {"evaluation": ksa.evaluate_images(other, pairs)}
    with pytest.raises(error, match=words):
        ksa.model_card(ksa.build_segmenter(tiny_backbone((4,)), K), **given)


def test_a_card_of_another_model_raises():
    with pytest.raises(TypeError, match=r"model_card takes a keras_segadapter"):
        ksa.model_card(keras.Sequential())


def test_a_file_without_an_origin_loads(tiny_backbone):
    config = ksa.build_segmenter(tiny_backbone((4,)), K).get_config()
    del config["weights_origin"]
    assert ksa.Segmenter.from_config(config).weights_origin is None


def test_a_new_model_on_a_loaded_backbone_has_its_origin(tiny_backbone):
    model = shared_model(tiny_backbone((4,)))
    loaded = ksa.Segmenter.from_config(model.get_config())
    other = ksa.build_segmenter(loaded.backbone, 5)
    assert other.weights_origin == "nvidia/mit-b0@main"


@pytest.mark.parametrize("origin", [3, Path("a"), b"a"], ids=repr)
def test_an_origin_that_is_no_string_raises(tiny_backbone, origin):
    with pytest.raises(TypeError, match=r"must be a string.*Received: weights_origin="):
        ksa.build_segmenter(tiny_backbone((4,)), K, weights_origin=origin)


def test_what_the_hub_can_not_load_is_named_on_saving(tmp_path, monkeypatch):
    local_hub.serve(tmp_path, monkeypatch.setattr)
    layer = keras.layers.Lambda(lambda x: x / 2, name="mine")
    stem = keras.layers.Conv2D(4, 4, 4)
    backbone = keras.Sequential([keras.Input((None, None, 3)), layer, stem])
    model = ksa.build_segmenter(backbone, K, adapters=False)
    with pytest.warns(UserWarning, match="a Python lambda in 'mine'"):
        model.save("hf://someone/streets")


def test_a_path_on_the_hub_is_not_a_local_file():
    assert not saving.is_local("hf://someone/streets")
