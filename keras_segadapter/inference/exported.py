"""Exported files in their own runtimes: class ids of images, comparison with Keras."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from keras_segadapter.data.disk import as_path
from keras_segadapter.data.reading import picture_pixels
from keras_segadapter.data.scenes import make_scenes
from keras_segadapter.data_validation import check_images
from keras_segadapter.extras import import_extra
from keras_segadapter.inference.rows import fit_images, label_dtype, resize
from keras_segadapter.validation import (
    check_segmenter,
)

# What LiteRT files and SavedModels keep, where other formats have metadata.
FACTS_FILE = "keras_segadapter.json"


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported file in its runtime: a function from images to class ids.

    Called with an image `(H, W, C)`, a batch `(B, H, W, C)` or a Pillow image, of any
    size, it returns class ids `(H, W)` or `(B, H, W)`, as `Segmenter.segment` does:
    images are padded to a multiple of the stride by repeating the border, or resized to
    the size of a file of fixed size.

    Attributes:
        run: Function from float32 images `(B, h, w, C)` of a size that the file takes
            to what it returns, as a NumPy array.
        channels: Integer. Channels C of the images.
        size: Height and width that the file takes; None for any multiples of `stride`.
        stride: Integer. The model's deepest stride.
        takes_pixels: Boolean. Whether images lie in 0..255; False where unknown.
        num_classes: Integer. Number of classes K; None where unknown.
        class_names: Tuple of K names, or None.
        colors: uint8 array `(K, 3)`, or None.

    Example: see `export_model`.
    """

    run: Callable
    channels: int
    size: tuple | None
    stride: int = 32
    takes_pixels: bool = False
    num_classes: int | None = None
    class_names: tuple | None = None
    colors: np.ndarray | None = None

    def __call__(self, images):
        images = self.checked(images)
        if images.ndim == 4:
            return np.stack([self(image) for image in images])
        height, width, _ = images.shape
        output = self.run(fit_image(images, self.size, self.stride))[0]
        if output.ndim == 2:  # class ids
            if self.size:
                rows, columns = map(_nearest, (height, width), self.size)
                output = output[rows][:, columns]
            return output[:height, :width]
        if self.size:
            output = resize(output[None], (height, width))[0]
        labels = output[:height, :width].argmax(-1)
        return labels.astype(label_dtype(output.shape[-1]))

    def checked(self, images):
        """Return an image or a batch as an array, checked to fit the file."""
        if isinstance(images, Image.Image):
            images = picture_pixels(images, self.channels)
        images = np.asarray(images)
        check_images(images, self.channels, self.takes_pixels)
        return images


def open_exported(path):
    """Open a file that `export_model` wrote, in the runtime that it is for.

    Files from elsewhere work too where they take images `(B, H, W, C)` and return
    logits or class ids. Their stride is taken to be 32.

    Args:
        path: Path of an .onnx, .xml or .tflite file, or of the folder of a SavedModel.

    Returns:
        An `ExportedModel`: a function from an image `(H, W, C)` of any size to class
        ids `(H, W)`, with attributes such as `class_names` and `colors`.

    Raises:
        ValueError: If there is no such file, or if it can't be opened.
        ImportError: If its runtime is not installed.

    Example: see `export_model`.
    """
    path = as_path("path", path)
    file = path if path.suffix else path / "saved_model.pb"
    if path.suffix not in _RUNTIMES or not file.is_file():
        raise ValueError(
            "There is no exported model at this path: neither an .onnx, .xml or "
            ".tflite file nor the folder of a SavedModel. Correct the path; open a "
            f".keras file with keras.models.load_model. Received: path='{path}'"
        )
    package, open_file = _RUNTIMES[path.suffix]
    runtime = import_extra(package, "This file")
    try:
        run, shape, facts = open_file(runtime, path)
    except Exception as error:  # each runtime raises errors of its own
        raise ValueError(
            f"The exported model can't be opened: {error}. Export it again. Received: "
            f"path='{path}'"
        ) from error
    _, *size, channels = shape
    size = None if None in size else tuple(size)
    return ExportedModel(run, channels, size, **_decoded_facts(facts))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An exported file beside Keras, which prints as two lines.

    Attributes:
        agreement: Float. Share of pixels with the same class id.
        difference: Float. Largest difference of logits, as a share of the largest
            logit; None for a file that returns class ids.

    Example: see `export_model`.
    """

    agreement: float
    difference: float | None

    def __str__(self):
        text = f"class ids agree with Keras' on {self.agreement:.2%} of the pixels"
        if self.difference is None:
            return text
        return (
            f"logits differ from Keras' by at most {self.difference:.1e} of the "
            f"largest logit\n{text}"
        )


def compare_exported(model, path, image=None):
    """Run an exported file in its own runtime, and compare it with Keras.

    Args:
        model: The `Segmenter` that was exported.
        path: Path of the file, as in `open_exported`.
        image: Array `(H, W, C)` or Pillow image. The image to compare on, best one like
            those that the model was trained on. Defaults to a drawn scene.

    Returns:
        A `Comparison` to print, with `.agreement` and `.difference`.

    Raises:
        TypeError: If `model` is not a `Segmenter`.
        ValueError: If the file can't be opened, or if the image does not fit it.
        ImportError: If its runtime is not installed.

    Example: see `export_model`.
    """
    check_segmenter(model, "compare_exported")
    exported = open_exported(path)
    if image is None:
        size = exported.size or (8 * exported.stride, 8 * exported.stride)
        scene = make_scenes(1, size=size)[0][0]
        image = scene[..., np.arange(exported.channels) % 3]
    image = fit_image(exported.checked(image), exported.size, exported.stride)
    got, want = exported.run(image), model.predict_on_batch(image)
    difference = None
    if got.ndim == 4:
        difference = float(np.abs(got - want).max() / np.abs(want).max())
        got = got.argmax(-1)
    return Comparison(float((got == want.argmax(-1)).mean()), difference)


def fit_image(image, size, stride):
    """Return an image `(H, W, C)` as a float32 batch of one that a file takes.

    It is resized to `size`, or padded to multiples of `stride` where that is None.
    """
    return fit_images(image.astype("float32")[None], size, stride)


def encoded_facts(facts):
    """Return what a file says of itself as strings, for metadata of strings only."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


def _decoded_facts(facts):
    """Return the attributes of an `ExportedModel` that metadata hold."""
    known = ("stride", "takes_pixels", "num_classes", "class_names", "colors")
    facts = {key: facts[key] for key in known if facts.get(key) is not None}
    for key, value in facts.items():
        facts[key] = json.loads(value) if isinstance(value, str) else value
    if facts.get("class_names"):
        facts["class_names"] = tuple(facts["class_names"])
    if facts.get("colors"):
        facts["colors"] = np.array(facts["colors"], "uint8")
    return facts


def _open_onnx(onnxruntime, path):
    """Return a function that runs the file, the shape of its input, and its facts."""
    session = onnxruntime.InferenceSession(path)
    (image,) = session.get_inputs()
    shape = [side if isinstance(side, int) else None for side in image.shape]
    facts = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {image.name: images})[0], shape, facts


def _open_openvino(openvino, path):
    """Return the same of an OpenVINO file."""
    model = openvino.Core().read_model(path)
    known = model.has_rt_info("keras_segadapter")
    facts = model.get_rt_info("keras_segadapter").value if known else {}
    sides = model.input(0).partial_shape
    shape = [side.get_length() if side.is_static else None for side in sides]
    # By default OpenVINO computes in bfloat16 on CPUs that can.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(model, "CPU", exact)
    return lambda images: compiled(images)[0], shape, facts


def _open_litert(interpreter, path):
    """Return the same of a LiteRT file."""
    loaded = interpreter.Interpreter(str(path), num_threads=os.cpu_count())
    runner = loaded.get_signature_runner()
    ((name, image),) = runner.get_input_details().items()  # "image" only on TensorFlow
    shape = [None if side < 0 else int(side) for side in image["shape_signature"]]
    facts = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if FACTS_FILE in archive.namelist():
                facts = json.loads(archive.read(FACTS_FILE))
    return lambda images: next(iter(runner(**{name: images}).values())), shape, facts


def _open_saved_model(tensorflow, path):
    """Return the same of the folder of a SavedModel."""
    loaded = tensorflow.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    ((name, image),) = serve.structured_input_signature[1].items()
    file = path / "assets.extra" / FACTS_FILE
    facts = json.loads(file.read_text()) if file.is_file() else {}

    def run(images, loaded=loaded):  # whose variables must live as long as `serve`
        (output,) = serve(**{name: tensorflow.constant(images)}).values()
        return output.numpy()

    return run, image.shape.as_list(), facts


_RUNTIMES = {
    ".onnx": ("onnxruntime", _open_onnx),
    ".xml": ("openvino", _open_openvino),
    ".tflite": ("ai_edge_litert.interpreter", _open_litert),
    "": ("tensorflow", _open_saved_model),
}


def _nearest(length, old_length):
    """Return the index of the nearest of `old_length` cells for each new one."""
    return (2 * np.arange(length) + 1) * old_length // (2 * length)
