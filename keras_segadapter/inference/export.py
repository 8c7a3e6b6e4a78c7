"""Export of a segmenter to files that run without Keras."""

import json
import os
import tempfile
import zipfile
from pathlib import Path

import keras

from keras_segadapter.data.disk import as_path
from keras_segadapter.data.reading import read_image
from keras_segadapter.extras import import_extra
from keras_segadapter.inference.exported import (
    FACTS_FILE,
    encoded_facts,
    fit_image,
)
from keras_segadapter.inference.onnx_files import (
    pool_without_the_batch,
    quantize_onnx,
    resize_to_whole_pixels,
    teach_erfc,
)
from keras_segadapter.inference.predict import as_array, check_input
from keras_segadapter.inference.rows import label_dtype
from keras_segadapter.layers.native import library_convolutions
from keras_segadapter.lora import lora_merged
from keras_segadapter.validation import check_segmenter, check_size
from keras_segadapter.version import __version__

# The packages that write each format, for each backend that can.
_WRITERS = {
    ".onnx": {
        "tensorflow": ("onnx", "tf2onnx"),
        "torch": ("onnx", "onnxscript"),
        "jax": ("onnx", "jax2onnx"),
    },
    ".tflite": {"tensorflow": (), "torch": ("litert_torch",)},
    "": {"tensorflow": (), "jax": ("tensorflow",)},
}
_WRITERS[".xml"] = {on: (*w, "openvino") for on, w in _WRITERS[".onnx"].items()}
_FIXED_SIZE = {("jax", ".onnx"), ("jax", ".xml"), ("torch", ".tflite")}
_NO_INT8 = {("torch", ".tflite"), ("tensorflow", ""), ("jax", "")}


def export_model(model, path, *, size=None, labels=False, calibration=None):
    """Write a segmenter to a file that runs without Keras.

    The ending of `path` chooses the format:

    | ending | format | backends | `calibration` |
    |---|---|---|---|
    | `.onnx` | ONNX | TensorFlow, torch; JAX at a fixed size | yes |
    | `.xml` | OpenVINO | TensorFlow, torch; JAX at a fixed size | yes |
    | `.tflite` | LiteRT | TensorFlow; torch at a fixed size | on TensorFlow |
    | none | folder with a SavedModel | TensorFlow, JAX | no |

    The file takes images, float32 `(B, H, W, C)` in the range that the model takes, of
    any size that is a multiple of the model's deepest stride, or one image of a fixed
    size. Folders are created as needed, and files that exist are overwritten.

    `class_names` and `colors` of the model (null where it has none), `stride`,
    `num_classes`, `takes_pixels` (whether images lie in 0..255) and the version of
    `keras_segadapter` are kept in the file as JSON: in `metadata_props` of ONNX, in
    `rt_info` of OpenVINO, in `keras_segadapter.json` in the zip archive at the end of a
    LiteRT file, where it has room for files, and in `assets.extra` of a SavedModel.

    Args:
        model: A `Segmenter`.
        path: Path of the file or folder to write.
        size: Pair of integers. Height and width of the images. Defaults to `None`: any
            size, or the one that the model takes.
        labels: Boolean. Whether the file returns class ids `(B, H, W)` (uint8 up to 256
            classes, int32 beyond) instead of logits `(B, H, W, K)`. Defaults to
            `False`.
        calibration: Iterable of images, as arrays `(H, W, C)`, Pillow images or paths
            of files. The export then computes in 8 bits, with the ranges of values that
            these images lead to; a hundred are plenty. Defaults to `None`, which keeps
            float32.

    Returns:
        The `pathlib.Path` of the file or folder.

    Raises:
        TypeError: If `model` is not a `Segmenter`.
        ValueError: If an argument is not as described, or if this backend can't write
            such a file.
        ImportError: If a package that this takes is not installed.

    Example:

    ```python
    import keras
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=8)
    path = ksa.export_model(model, "exports/model.onnx", size=(64, 96))
    print(ksa.compare_exported(model, path))
    deployed = ksa.open_exported(path)
    photo = ksa.data.make_scenes(1, size=(50, 75))[0][0]
    print(deployed(photo).shape)  # (50, 75)
    ```
    """
    check_segmenter(model, "export_model")
    path, size = as_path("path", path), _checked_size(model, size)
    _check_format(path, size, calibration is not None)
    images = calibration_images(model, size, calibration)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _plain_model(model, path.suffix, labels)
    shape = (1 if size else None, *(size or (None, None)), model.input_shape[-1])
    spec = keras.InputSpec(shape=shape, dtype="float32", name="image")
    facts = {
        "keras_segadapter": __version__,
        "stride": model.size_divisor,
        "num_classes": model.num_classes,
        "takes_pixels": model.takes_pixels,
        "class_names": model.class_names,
        "colors": None if model.colors is None else model.colors.tolist(),
    }
    write = _write_onnx if path.suffix in (".onnx", ".xml") else _write_with_keras
    with lora_merged(plain), library_convolutions():
        write(plain, spec, path, images, facts)
    return path


def _checked_size(model, size):
    """Return the height and width of all images; None for any."""
    fixed = None if None in model.input_shape[1:3] else model.input_shape[1:3]
    if size is None:
        return fixed
    size = check_size("size", size, least=model.size_divisor)
    if fixed not in (None, size):
        raise ValueError(
            f"`size` must be {fixed}, the only size that the model '{model.name}' "
            f"takes, or None. Received: size={size}"
        )
    return size


def _check_format(path, size, int8):
    """Validate that such a file can be written on this backend."""
    ending, on = path.suffix, keras.backend.backend()
    if ending not in _WRITERS:
        raise ValueError(
            "`path` must end with .onnx, .tflite (LiteRT) or .xml (OpenVINO), or have "
            f"no ending (the folder of a SavedModel). Received: path='{path}'"
        )
    if path.exists() and path.is_dir() == bool(ending):
        raise ValueError(
            f"There is a {'folder' if ending else 'file'} of this name. Choose another "
            f"one. Received: path='{path}'"
        )
    elsewhere = "set KERAS_BACKEND=tensorflow, where the same .keras file loads"
    fault = None
    if on not in _WRITERS[ending]:
        fault = f"This format can't be written on {on}. To write it, {elsewhere}"
    elif size is None and (on, ending) in _FIXED_SIZE:
        fault = (
            f"On {on} this format needs a fixed size. Pass size=(height, width) "
            f"(--size H W on the command line), or {elsewhere}"
        )
    elif int8 and (on, ending) in _NO_INT8:
        fault = (
            f"On {on} this format can't compute in 8 bits. Leave `calibration` out, or "
            "choose .onnx or .xml"
        )
    if fault is not None:
        raise ValueError(f"{fault}. Received: path='{path}'")
    for package in _WRITERS[ending][on]:
        import_extra(package, f"Writing {ending or 'a SavedModel'}")
    if int8 and ending != ".tflite":
        import_extra("onnxruntime", "Writing 8 bits")


def calibration_images(model, size, calibration):
    """Return the images as batches of one, float32 `(1, h, w, C)`, that the file takes.

    Raises:
        ValueError: If they are not images that the model takes, or if there are none.
    """
    if calibration is None:
        return []
    paths = str, os.PathLike
    images = [] if isinstance(calibration, paths) else [*calibration]
    for i, image in enumerate(images):
        if isinstance(image, paths):
            image = read_image(image, model.input_shape[-1])
        images[i] = as_array(model, image)
    shapes = [image.shape for image in images]
    if not images or any(len(shape) != 3 for shape in shapes):
        raise ValueError(
            "`calibration` must be a list of images (height, width, channels) or of "
            "paths of files. For those in a folder, pass "
            "sorted(pathlib.Path(folder).glob('*.jpg')). Received: "
            + (f"images of shapes {shapes[:5]}" if shapes else f"{calibration=!r}")
        )
    for image in images:
        check_input(model, image)
    return [fit_image(image, size, model.size_divisor) for image in images]


def _plain_model(model, ending, labels):
    """Return a functional model from images to logits, or to class ids."""
    argmax = (keras.backend.backend(), ending) == ("jax", "")
    plain = model.for_inference(labels=labels and argmax)
    if not labels or argmax:
        return plain
    # tf2onnx, LiteRT and OpenVINO do not support the bitcast in Keras' argmax, and
    # TensorFlow 2.21 does not support JAX's top_k.
    logits = keras.Input(plain.output.shape[1:])
    _, ids = keras.ops.top_k(logits, 1)  # (B, H, W, 1)
    ids = keras.ops.squeeze(ids, -1)  # (B, H, W)
    ids = keras.ops.cast(ids, label_dtype(model.num_classes))
    ids = keras.Model(logits, ids, name="labels")(plain.output)
    return keras.Model(plain.input, ids)


def _write_onnx(plain, spec, path, images, facts):
    """Write an ONNX file, or an OpenVINO file by way of one."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "model.onnx"
        on = keras.backend.backend()
        if on == "torch":
            _write_with_torch(plain, spec, draft, facts["stride"])
        else:
            if on == "tensorflow":
                teach_erfc()
            options = {"input_signature": [spec], "opset_version": 18}
            plain.export(draft, format="onnx", verbose=False, **options)
            mend = pool_without_the_batch if on == "jax" else resize_to_whole_pixels
            mend(draft)
        if images:
            quantize_onnx(draft, images)
        if path.suffix == ".onnx":
            file = onnx.load(draft)
            onnx.helper.set_model_props(file, encoded_facts(facts))
            onnx.save(file, path)
            return
        import openvino

        converted = openvino.convert_model(draft)
        for key, value in encoded_facts(facts).items():
            converted.set_rt_info(value, ["keras_segadapter", key])
        openvino.save_model(converted, path, compress_to_fp16=False)


def _write_with_torch(plain, spec, path, stride):
    """Write an ONNX file on torch; Keras' own export would make open sizes fixed."""
    import torch

    shape, axes = spec.shape, None
    if None in shape:
        sides = {1: "height", 2: "width"}
        axes = {axis: stride * torch.export.Dim(sides[axis]) for axis in sides}
        axes = (({0: torch.export.Dim("batch"), **axes},),)
        shape = (2, 4 * stride, 6 * stride, shape[-1])
    image = keras.ops.zeros(shape)
    names = {"input_names": ["image"], "dynamic_shapes": axes}
    options = {"dynamo": True, "verbose": False}
    torch.onnx.export(plain.eval(), (image,), **options, **names).save(path)


def _write_with_keras(plain, spec, path, images, facts):
    """Write a LiteRT file, or the folder of a SavedModel, by Keras' own export."""
    options = {}
    if path.suffix:
        options["format"] = "litert"
    elif keras.backend.backend() == "jax":
        # JAX can't trace the gradient of open sizes.
        options["jax2tf_kwargs"] = {"with_gradient": False}
    if images:
        import tensorflow as tf

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
        options["representative_dataset"] = lambda: ([image] for image in images)
    plain.export(path, verbose=False, input_signature=[spec], **options)
    if path.suffix:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(FACTS_FILE, json.dumps(facts))
    else:
        (path / "assets.extra").mkdir(exist_ok=True)
        (path / "assets.extra" / FACTS_FILE).write_text(json.dumps(facts))
