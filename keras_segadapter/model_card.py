"""model_card: what others need to know about a model, as a README for the Hub."""

import json
import re

import keras
import numpy as np

from keras_segadapter.backbones.weight_sources import HUB_NAME, NON_COMMERCIAL
from keras_segadapter.inference.cost import cost_report
from keras_segadapter.inference.evaluate import Evaluation, percent
from keras_segadapter.validation import check_segmenter
from keras_segadapter.version import __version__
from keras_segadapter.visualization import palette

_LOAD = """\
```python
import keras
import keras_segadapter  # makes the layers of the model known to Keras
{imports}

model = keras.saving.load_model({path})
labels = model.segment({image})  # class ids (height, width)
```"""


def model_card(
    model,
    evaluation=None,
    *,
    dataset=None,
    path="model.keras",
    license=None,
    image_size=None,
):
    """Describe a segmenter in Markdown, for those who are to use it.

    The card holds how to load the model, its input, parts, cost and versions, where its
    pretrained weights came from, and its classes with their colors and, if they were
    measured, their figures. It begins with the metadata that the Hugging Face Hub
    reads. Add to the text what the model does not know: its data and its limits.

    `model.save("hf://owner/name")` writes a short card of Keras' own, in place of one
    that was there. Upload this one after it:

    ```text
    card = ksa.model_card(model, path="hf://owner/name").encode()
    huggingface_hub.upload_file(
        path_or_fileobj=card, path_in_repo="README.md", repo_id="owner/name"
    )
    ```

    Args:
        model: A `Segmenter`.
        evaluation: The `Evaluation` that `evaluate_images` returned for the model, or
            None. Defaults to `None`.
        dataset: String. What was measured in `evaluation`, such as "Cityscapes val".
            Defaults to `None`.
        path: String. The path, or "hf://owner/name", that the example loads. Defaults
            to `"model.keras"`.
        license: String. The Hub's identifier of the model's license, such as
            "apache-2.0". Defaults to `None`: the card names none.
        image_size: Integer or pair of integers. Height and width of the image of which
            the multiply-adds are counted. Defaults to `None`: the size that the model
            takes, or 512 if it takes any.

    Returns:
        A string: the text of a README.md. It is the same for the same model.

    Raises:
        TypeError: If `model` is not a `Segmenter` or `evaluation` not an `Evaluation`.
        ValueError: If `evaluation` is of another number of classes, if `license` does
            not look like an identifier, or if `image_size` is none that the model
            takes.

    Example:

    ```python
    from pathlib import Path
    import keras
    import keras_segadapter as ksa

    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    model = ksa.build_segmenter(backbone, num_classes=8)
    model.name_classes(ksa.data.SCENE_CLASSES)
    evaluation = ksa.evaluate_images(model, zip(*ksa.data.make_scenes(4)))
    card = ksa.model_card(model, evaluation, dataset="the built-in scenes")
    Path("README.md").write_text(card)
    ```
    """
    check_segmenter(model, "model_card")
    _check(model, evaluation, license)
    origin = model.weights_origin
    hub_name = HUB_NAME.fullmatch(origin or "")
    sections = [
        _metadata(license, hub_name and hub_name[1]),
        f"# {model.name}",
        _summary(model),
        "## Use",
        _use(model, path),
        f"Input: {describe_input(model)}. {_size_of_images(model)}",
        "## Parts",
        _parts(model),
        _cost(model, image_size),
        "## Weights",
        _weights(origin, hub_name),
        "## Classes",
        *([_figures(evaluation, dataset)] if evaluation else []),
        _classes(model, evaluation),
        f"Versions: keras_segadapter {__version__}, Keras {keras.__version__}.",
    ]
    return "\n\n".join(sections) + "\n"


def describe_input(model):
    """Return what a segmenter takes and how its first layer normalizes that."""
    values = "pixels in 0..255" if model.takes_pixels else "values as they are"
    layer = model.preprocessing
    chosen = type(layer).__name__
    if layer.name.startswith("preprocessing_"):
        chosen = layer.name.removeprefix("preprocessing_").replace("_", " ")
    if isinstance(layer, keras.layers.Identity):
        chosen = "in the backbone" if model.takes_pixels else "none"
    return f"{model.input_shape[-1]} channels, {values}; normalization: {chosen}"


def _check(model, evaluation, license):
    if evaluation is not None and not isinstance(evaluation, Evaluation):
        raise TypeError(
            "`evaluation` must be the result of keras_segadapter.evaluate_images. "
            f"Received: evaluation={evaluation!r} of type {type(evaluation).__name__}"
        )
    if evaluation is not None and len(evaluation.iou) != model.num_classes:
        raise ValueError(
            f"`evaluation` must be of this model, which has {model.num_classes} "
            "classes. Call keras_segadapter.evaluate_images(model, ...) again. "
            f"Received: an evaluation of {len(evaluation.iou)} classes"
        )
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(license)):
        raise ValueError(
            "`license` must be an identifier of the Hugging Face Hub, such as "
            "'apache-2.0' or 'other': lowercase letters, digits, dots and hyphens. "
            f"Received: license={license!r}"
        )


def _metadata(license, base_model):
    """Return the YAML that the Hub reads."""
    lines = [
        "library_name: keras",
        "pipeline_tag: image-segmentation",
        "tags:\n- semantic-segmentation\n- keras_segadapter",
    ]
    lines += [f"license: {license}"] if license else []
    lines += [f"base_model: {base_model}"] if base_model else []
    return "\n".join(["---", *lines, "---"])


def _summary(model):
    parts = [f"the backbone `{model.backbone.name}`"]
    parts += ["a `SegAdapter` behind each stage"] * bool(model.adapters)
    layers = [("neck", model.neck)] * bool(model.neck) + [("head", model.head)]
    parts += [f"the {part} `{type(layer).__name__}`" for part, layer in layers]
    return (
        "A Keras model that predicts the class of each pixel of an image, one of "
        f"{model.num_classes}. It was built with keras_segadapter, of "
        f"{', '.join(parts[:-1])} and {parts[-1]}."
    )


def _use(model, path):
    """Return code that loads the model and segments an image."""
    imports, image = "from PIL import Image", 'Image.open("photo.jpg")'
    if model.input_shape[-1] not in (1, 3, 4):  # no picture
        imports, image = "import numpy as np", 'np.load("image.npy")'
    return _LOAD.format(imports=imports, path=json.dumps(str(path)), image=image)


def _size_of_images(model):
    if None in model.input_shape[1:3]:
        return "Images may be of any size."
    height, width = model.input_shape[1:3]
    return f"`segment` resizes images to {height} x {width} pixels."


def _parts(model):
    """Return a table of the stages and their adapters."""
    titles = ["stride", "channels"]
    rows = [[stage.stride, stage.channels] for stage in model.stages]
    if model.adapters:
        titles += ["adapter's kernel", "its scale at the start"]
        for row, adapter in zip(rows, model.adapters, strict=True):
            side = adapter.kernel_size
            row += [f"{side} x {side}", f"{adapter.scale_init:g}"]
    return _table(titles, rows)


def _cost(model, image_size):
    if image_size is None:
        fixed = model.input_shape[1:3]
        any_size = max(512, model.size_divisor)
        image_size = tuple(side or any_size for side in fixed)
    report = cost_report(model, image_size)
    head = getattr(model.head, "channels", None)
    text = f"The head is {head} channels wide. " if head else ""
    text += f"The model has {report.parameters / 1e6:.2f} M parameters and takes "
    text += f"{report.multiply_adds / 1e9:.2f} G multiply-adds for "
    return text + report.title.removeprefix(f"{model.name}, ") + "."


def _weights(origin, hub_name):
    if origin is None:
        return "No pretrained weights are on record for this model."
    shown = f"`{origin}`"
    if hub_name:
        shown = f"[{shown}](https://huggingface.co/{hub_name[1]})"
    text = f"Pretrained weights: {shown}. Their license applies to this model too."
    if origin.startswith(NON_COMMERCIAL):
        text += " NVIDIA licenses them for non-commercial research only."
    return text


def _figures(evaluation, dataset):
    place = f" of {dataset}" if dataset else ""
    return (
        f"Measured on {evaluation.images} images{place}: mIoU "
        f"{percent(evaluation.miou)} %, mean accuracy "
        f"{percent(evaluation.mean_accuracy)} %, accuracy of all pixels "
        f"{percent(evaluation.accuracy)} %."
    )


def _classes(model, evaluation):
    """Return a table of the classes, with their figures where they were measured."""
    count = model.num_classes
    names = model.class_names or getattr(evaluation, "class_names", range(count))
    colors = palette(count) if model.colors is None else np.asarray(model.colors)
    titles = ["id", "class", "color"]
    rows = [
        [index, _cell(name), f"`#{bytes(color).hex()}`"]
        for index, (name, color) in enumerate(zip(names, colors, strict=True))
    ]
    if evaluation:
        titles += ["IoU, %", "accuracy, %"]
        figures = zip(rows, evaluation.iou, evaluation.class_accuracy, strict=True)
        for row, iou, accuracy in figures:
            row += [percent(iou), percent(accuracy)]
    return _table(titles, rows)


def _cell(name):
    """Return a name in one line, as a cell of a table takes it."""
    return " ".join(str(name).split()).replace("|", r"\|")


def _table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
