"""Tests of exported files, in the runtimes that they are for."""

import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import keras_segadapter as ksa
from keras_segadapter.inference.export import calibration_images

BACKEND = keras.backend.backend()
RUNTIMES = {
    ".onnx": (
        "onnx",
        "onnxruntime",
        *{"tensorflow": ["tf2onnx"], "jax": ["jax2onnx"]}.get(BACKEND, ["onnxscript"]),
    ),
    ".tflite": ("ai_edge_litert", *(["litert_torch"] * (BACKEND == "torch"))),
    "": ("tensorflow",),
}
RUNTIMES[".xml"] = ("openvino", *RUNTIMES[".onnx"])
OPEN, FIXED = None, (64, 96)
# jax2onnx does not support open sizes. The ONNX file of open size that the other
# backends make is tested in a fresh process.
ONNX_SIZE = FIXED if BACKEND == "jax" else OPEN
CASES = [(".onnx", FIXED, BACKEND != "jax"), (".xml", ONNX_SIZE, True)]
if BACKEND == "tensorflow":
    CASES += [(".tflite", OPEN, False), (".tflite", FIXED, True)]
if BACKEND == "torch":
    CASES += [(".tflite", FIXED, False), (".tflite", FIXED, True)]
if BACKEND != "torch":
    CASES += [("", OPEN, False), ("", FIXED, True)]
NAMES = (*ksa.data.SCENE_CLASSES[:-1], 'bâtiment "Nº 1" <&>')
COLORS = np.arange(24, dtype="uint8").reshape(8, 3)

# The converters warn about their own code and Keras'.
pytestmark = pytest.mark.filterwarnings("ignore")
slow = pytest.mark.integration


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Return a model that is trained enough for few pixels to be close ties."""
    keras.utils.set_random_seed(0)
    model = ksa.build_segmenter(
        tiny_backbone(), num_classes=8, class_names=NAMES, colors=COLORS
    )
    # XLA takes longer to compile than this takes to train, but JAX needs it.
    model.compile(ksa.AdamW(1e-2), jit_compile=BACKEND == "jax")
    images, masks = ksa.data.make_scenes(16, size=(64, 64))
    model.fit(images, masks, batch_size=8, epochs=6, verbose=0)
    return model


def untrained(channels, num_classes=2, size=(32, 32), **options):
    """Return a model of few layers and any number of channels and classes."""
    backbone = keras.Sequential(
        [keras.Input((*size, channels)), keras.layers.Conv2D(4, 4, 4)]
    )
    return ksa.build_segmenter(backbone, num_classes, **options)


def need(ending):
    for package in RUNTIMES[ending]:
        pytest.importorskip(package)


def scenes(count, size):
    return ksa.data.make_scenes(count, size=size, seed=1)[0].astype("float32")


def check(model, exported, labels, images):
    want, got = model.predict_on_batch(images), exported.run(images)
    if labels:
        assert got.dtype == "uint8" and got.shape == images.shape[:3]
    else:
        assert got.dtype == "float32" and got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()
        got = got.argmax(-1)
    assert (got == want.argmax(-1)).mean() >= 0.999


# Contract


@slow
@pytest.mark.parametrize("ending, size, labels", CASES)
def test_runtimes_agree_with_keras(tmp_path, model, ending, size, labels):
    need(ending)
    path = ksa.export_model(
        model, tmp_path / f"new/folder/model{ending}", size=size, labels=labels
    )
    exported = ksa.open_exported(path)
    assert exported.class_names == NAMES and exported.num_classes == 8
    assert (exported.colors == COLORS).all()
    assert (exported.size, exported.stride) == (size, 8)
    assert exported.takes_pixels and exported.channels == 3
    check(model, exported, labels, scenes(1, FIXED))
    if size is OPEN:
        check(model, exported, labels, scenes(1, (96, 64)))
        check(model, exported, labels, scenes(3, (64, 64)))

    # Images of other sizes are padded or resized, as in Keras.
    images = scenes(2, (51, 75)).astype("uint8")
    got = exported(images)
    assert got.dtype == "uint8" and got.shape == (2, 51, 75)
    assert (exported(Image.fromarray(images[0])) == got[0]).all()
    if size is OPEN:
        assert (got == model.segment(images)).mean() >= 0.999


@slow
@pytest.mark.parametrize("ending", sorted({case[0] for case in CASES} - {".xml"}))
def test_the_metadata_can_be_read_without_this_package(tmp_path, ending):
    need(ending)
    model = untrained(3, num_classes=8, class_names=NAMES, colors=COLORS)
    path = ksa.export_model(model, tmp_path / f"model{ending}")
    if ending == ".onnx":
        import onnx

        props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        version = props.pop("keras_segadapter")
        facts = {key: json.loads(value) for key, value in props.items()}
        facts["keras_segadapter"] = version
    elif ending == ".tflite":
        with zipfile.ZipFile(path) as archive:
            (name,) = archive.namelist()
            facts = json.loads(archive.read(name))
    else:
        file = path / "assets.extra/keras_segadapter.json"
        facts = json.loads(file.read_text())
    assert facts == {
        "keras_segadapter": ksa.__version__,
        "stride": 4,
        "num_classes": 8,
        "takes_pixels": True,
        "class_names": [*NAMES],
        "colors": COLORS.tolist(),
    }


# Meaning


@slow
@pytest.mark.parametrize(
    "ending", [".onnx", ".tflite"] if BACKEND == "tensorflow" else [".onnx"]
)
def test_int8_agrees_with_keras_on_nearly_every_pixel(tmp_path, model, ending):
    need(ending)
    seen, new = scenes(12, FIXED)[:8], scenes(12, FIXED)[8:]
    paths = [tmp_path / f"{name}{ending}" for name in ("float", "int8")]
    file = tmp_path / "photo.png"
    Image.fromarray(seen[0].astype("uint8")).save(file)
    ksa.export_model(model, paths[0], size=FIXED)
    paths[1].write_text("A file that exists is overwritten.")
    photos = [file, Image.fromarray(seen[1].astype("uint8")), *seen[2:]]
    ksa.export_model(model, paths[1], size=FIXED, calibration=photos)
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size
    exported = ksa.open_exported(paths[1])
    assert exported.class_names == NAMES
    got = np.concatenate([exported.run(image[None]) for image in new])
    want = model.predict_on_batch(new)
    assert np.abs(got - want).max() > 0.0  # it computes in 8 bits
    assert (got.argmax(-1) == want.argmax(-1)).mean() >= 0.95


@slow
def test_an_export_in_a_fresh_process(tmp_path, model):
    need(".onnx")
    files = [tmp_path / name for name in ("keras.keras", "onnx.onnx")]
    model.save(files[0])
    # In a fresh process names are counted from the start, so those of the loaded graph
    # could clash with new ones.
    script = (
        "import sys, keras, keras_segadapter as ksa\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        f"path = ksa.export_model(model, sys.argv[2], size={ONNX_SIZE})\n"
        "print(ksa.compare_exported(model, path))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, *files],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "agree with Keras' on 100.00% of the pixels" in printed
    assert "of the largest logit" in printed
    exported = ksa.open_exported(files[1])
    check(model, exported, False, scenes(1, FIXED))
    if ONNX_SIZE is OPEN:
        check(model, exported, False, scenes(1, (96, 64)))
        check(model, exported, False, scenes(3, (64, 64)))


@slow
@pytest.mark.parametrize("labels", [False, True], ids=["logits", "labels"])
def test_a_model_of_fixed_size(tmp_path, tiny_backbone, labels):
    need(".onnx")
    model = ksa.build_segmenter(tiny_backbone(size=(64, 64)), num_classes=8)
    path = ksa.export_model(model, tmp_path / "model.onnx", labels=labels)
    exported = ksa.open_exported(path)
    assert exported.size == (64, 64)
    assert exported.class_names is None and exported.colors is None
    image = scenes(1, (51, 75))[0]
    # Nearest-neighbor resizing of class ids moves edges by up to a pixel.
    equal = exported(image) == model.segment(image)
    assert equal.mean() >= (0.8 if labels else 0.999)
    comparison = ksa.compare_exported(model, path, image)
    assert comparison.agreement >= 0.999
    assert (comparison.difference is None) == labels


@slow
@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_other_channels_and_many_classes(tmp_path, channels):
    need(".onnx")
    model = untrained(channels, num_classes=300)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, channels), "uint8")
    for labels in (False, True):
        path = tmp_path / "model.onnx"
        ksa.export_model(model, path, labels=labels, calibration=None)
        ids = ksa.open_exported(path)(image)
        assert ids.dtype == "int32" and (ids == model.segment(image)).mean() >= 0.999
        assert ids.max() > 255
    assert ksa.compare_exported(model, path).agreement >= 0.999


@slow
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_backbone_that_pools(tmp_path, padding):
    need(".onnx")
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, 2, padding="same")(image)
    x = keras.layers.MaxPooling2D(3, 2, padding=padding)(x)
    x = keras.layers.AveragePooling2D(2, padding=padding)(x)
    model = ksa.build_segmenter(keras.Model(image, x), 3, adapters=False)
    path = ksa.export_model(model, tmp_path / "model.onnx", size=(32, 64))
    image = ksa.data.make_scenes(1, size=(32, 64))[0][0]
    assert ksa.compare_exported(model, path, image).difference < 1e-4


def test_calibration_reads_files_as_training_does(tmp_path):
    pixels = np.arange(24 * 32).reshape(24, 32) // 4  # (H, W), up to 191
    turned = Image.Exif()
    turned[0x0112] = 6  # taken with the camera on its side
    Image.fromarray((pixels * 256 + 99).astype("uint16")).save(tmp_path / "deep.png")
    Image.fromarray(pixels.astype("uint8")).save(tmp_path / "turned.png", exif=turned)
    model = untrained(1, size=(None, None))
    photos = [tmp_path / "deep.png", str(tmp_path / "turned.png"), pixels[..., None]]
    deep, turned, array = calibration_images(model, None, photos)
    assert deep.dtype == "float32" and (deep[0, ..., 0] == pixels).all()
    assert (turned[0, ..., 0] == np.rot90(pixels, -1)).all()
    assert (array == deep).all()
    assert calibration_images(model, (8, 12), photos)[0].shape == (1, 8, 12, 1)


@pytest.mark.slow
def test_onnx_of_the_papers_model(tmp_path):
    need(".onnx")
    model = ksa.AdaptMiTB0(num_classes=8)
    path = ksa.export_model(model, tmp_path / "model.onnx", size=ONNX_SIZE)
    exported = ksa.open_exported(path)
    check(model, exported, False, scenes(1, FIXED))
    if ONNX_SIZE is OPEN:
        check(model, exported, False, scenes(2, (160, 96)))


# Edges


IMAGE = np.full((40, 40, 3), 100, "uint8")
INT8 = {"size": FIXED, "calibration": [IMAGE]}
ERRORS = {
    "unknown_ending": (".pb", {}, "must end with .onnx, .tflite.*path="),
    "size_below_the_stride": (".onnx", {"size": (4, 64)}, "at least 8.*size.0.=4"),
    "no_size": (".onnx", {"size": 64}, "must be .height, width.*size=64"),
}
if BACKEND != "tensorflow":
    ERRORS["open_litert"] = (".tflite", {}, "KERAS_BACKEND=tensorflow.*path=")
if BACKEND == "torch":
    ERRORS["saved_model"] = ("", {}, "KERAS_BACKEND=tensorflow.*path=")
    ERRORS["int8_litert"] = (".tflite", INT8, "Leave `calibration` out.*path=")
else:
    ERRORS["int8_saved_model"] = ("", INT8, "Leave `calibration` out.*path=")
if BACKEND == "jax":
    ERRORS["open_onnx"] = (".onnx", {}, "Pass size=.*--size H W.*path=")


@pytest.mark.parametrize("ending, options, message", ERRORS.values(), ids=ERRORS)
def test_unsupported_exports_raise(tmp_path, tiny_backbone, ending, options, message):
    model = ksa.build_segmenter(tiny_backbone(), num_classes=8)
    with pytest.raises(ValueError, match=message):
        ksa.export_model(model, tmp_path / f"new/model{ending}", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "calibration, message",
    [
        pytest.param([], r"must be a list.*calibration=\[\]", id="empty"),
        pytest.param("photos", r"glob\('\*.jpg'\).*'photos'", id="a_folder"),
        pytest.param([IMAGE[None]], "list of images.*1, 40, 40, 3", id="a_batch"),
        pytest.param([IMAGE[..., :1]], r"\(height, width, 3\)", id="channels"),
        pytest.param([IMAGE / 255], r"in 0\.\.1", id="scaled"),
        pytest.param(["missing.jpg"], "cannot be read.*missing.jpg", id="no_file"),
    ],
)
def test_calibration_that_holds_no_images_raises(tmp_path, calibration, message):
    need(".onnx")
    with pytest.raises(ValueError, match=message):
        ksa.export_model(untrained(3), tmp_path / "m.onnx", calibration=calibration)
    assert not list(tmp_path.iterdir())


def test_another_size_than_that_of_the_model_raises(tmp_path):
    with pytest.raises(ValueError, match=r"must be \(32, 32\), the only size.*64"):
        ksa.export_model(untrained(3), tmp_path / "model.onnx", size=(64, 64))


@pytest.mark.parametrize("ending", [".onnx", ""])
def test_a_folder_in_the_place_of_a_file_raises(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    path.mkdir() if ending else path.write_text("")
    with pytest.raises(ValueError, match=r"Choose another one.*model"):
        ksa.export_model(untrained(3), path)


def test_another_model_raises(tmp_path):
    with pytest.raises(TypeError, match="export_model takes a keras_segadapter"):
        ksa.export_model(keras.Sequential(), tmp_path / "model.onnx")


def test_a_missing_package_raises_with_the_way_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"onnx.*keras-segadapter\[export\]"):
        ksa.export_model(untrained(3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, message",
    [
        pytest.param("model.keras", "keras.models.load_model", id="keras_file"),
        pytest.param("model.onnx", "no exported model at this path", id="no_file"),
        pytest.param("model", "no exported model at this path", id="no_folder"),
    ],
)
def test_what_is_no_exported_file_raises(tmp_path, name, message):
    with pytest.raises(ValueError, match=f"{message}.*Received: path=.*{name}"):
        ksa.open_exported(tmp_path / name)


def test_a_damaged_file_raises(tmp_path):
    need(".onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"can't be opened.*Received: path=.*onnx"):
        ksa.open_exported(path)
