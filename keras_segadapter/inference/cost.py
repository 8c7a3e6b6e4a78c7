"""cost_report: parameters and multiply-adds of a segmenter, part by part."""

import dataclasses
import math
from typing import NamedTuple

import keras

from keras_segadapter.graph.replay import as_functional
from keras_segadapter.graph.splice import run_neck, splice
from keras_segadapter.graph.stages import stage_keys
from keras_segadapter.inference.multiply_adds import Tally
from keras_segadapter.layers import ResizeLike
from keras_segadapter.validation import check_segmenter, check_size


class Cost(NamedTuple):
    """One row of a `CostReport`: a part of the model at one stage."""

    part: str
    stage: str
    parameters: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True, repr=False)
class CostReport:
    """Parameters and multiply-adds of a model, which print as a table.

    Attributes:
        title: String. The model's name and the size of the image.
        rows: Tuple of rows (part, stage, parameters, multiply_adds).
        parameters: Integer. Sum over the rows.
        multiply_adds: Integer. Sum over the rows.
        not_counted: Tuple of the names of layers whose multiply-adds are not known.

    Example: see `cost_report`.
    """

    title: str
    rows: tuple
    not_counted: tuple = ()

    @property
    def parameters(self):
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self):
        return sum(row.multiply_adds for row in self.rows)

    def __str__(self):
        total = Cost("total", "", self.parameters, self.multiply_adds)
        lines = [
            self.title,
            f"{'part':<10}{'stage':<8}{'parameters, M':>14}{'multiply-adds, G':>18}",
        ]
        lines += [
            f"{row.part:<10}{row.stage:<8}"
            f"{row.parameters / 1e6:>14.3f}{row.multiply_adds / 1e9:>18.3f}"
            for row in (*self.rows, total)
        ]
        return "\n".join(lines + [f"not counted: {name}" for name in self.not_counted])

    __repr__ = __str__


def cost_report(model, image_size):
    """Count parameters and multiply-adds of one image at inference, part by part.

    Matrix products, convolutions and the two products of attention are counted, and
    four multiply-adds per value of a bilinear resize, in a row of their own. Norms,
    activations, pooling, additions and elementwise products are not, as in the paper.
    Left out are the auxiliary path, which is for training only, and what follows the
    last tap in the backbone. A stage ends with its tap. Parameters are counted as Keras
    does, statistics of batch norms included.

    A layer made of other layers is counted by running its `call` on symbolic tensors. A
    layer that can't run on them is listed as not counted: use `keras.ops` in your own
    layers, and write `x * weight` rather than `weight * x`.

    Args:
        model: A `Segmenter`.
        image_size: Integer or pair of integers. Height and width of the image.

    Returns:
        A `CostReport` to print, with the totals `.parameters` and `.multiply_adds`,
        `.rows` of (part, stage, parameters, multiply_adds), and the names
        `.not_counted`.

    Raises:
        TypeError: If `model` is not a `Segmenter`.
        ValueError: If `image_size` is neither an integer nor a pair of integers, is
            below the deepest stride, or is a size that the model does not take.

    Example:

    ```python
    import keras_segadapter as ksa

    model = ksa.build_segmenter(ksa.MiTB0(), num_classes=150)
    print(ksa.cost_report(model, 512))  # total 4.793 M, 6.903 G
    ```

    Source: paper, sections 2 and 4.
    """
    check_segmenter(model, "cost_report")
    size = _checked_size(model, image_size)
    rows, seen, tallies = [], set(), []
    for part, key, piece in _pieces(model, size):
        tally = Tally(piece)
        new = {id(w): math.prod(w.shape) for w in piece.weights if id(w) not in seen}
        seen.update(new)
        tallies.append(tally)
        rows.append(Cost(part, key, sum(new.values()), tally.counts["products"]))
    rows.append(
        Cost("resizes", "", 0, sum(tally.counts["resizes"] for tally in tallies))
    )
    return CostReport(
        f"{model.name}, one image of {size[0]} x {size[1]}",
        tuple(rows),
        tuple(dict.fromkeys(name for tally in tallies for name in tally.not_counted)),
    )


def _checked_size(model, image_size):
    """Return the image's height and width as a pair, checked against the model."""
    pair = isinstance(image_size, (tuple, list))
    size = check_size(
        "image_size",
        image_size if pair else (image_size, image_size),
        least=model.size_divisor,
    )
    fixed = model.input_shape[1:3]
    if any(side not in (None, given) for side, given in zip(fixed, size, strict=True)):
        raise ValueError(
            f"`image_size` must be {fixed}, the only size that the model "
            f"'{model.name}' takes. Received: image_size={image_size}"
        )
    return size


def _pieces(model, size):
    """Yield the model in pieces: part, key of the stage, functional model."""
    shape, dtype = (1, *size, model.input_shape[-1]), model.inputs[0].dtype
    image = keras.Input(batch_shape=shape, dtype=dtype)
    ends, maps = [], []

    def collect(index, features):
        ends.append(features)  # X: (1, h, w, C), or tokens (1, N, C)
        if len(features.shape) == 3:
            stride = model.stages[index].stride
            shape = (1, size[0] // stride, size[1] // stride, features.shape[-1])
            maps.append(keras.Input(batch_shape=shape, dtype=features.dtype))
        else:
            maps.append(features)
        return features

    backbone = as_functional(model.backbone)
    splice(backbone, model.preprocessing(image), model.stages, collect)
    keys = stage_keys(model.stages)
    for index, key in enumerate(keys):
        # Rotary positions are made of the image and not of the stage before.
        yield "backbone", key, keras.Model([image, *ends[:index]], ends[index])
    if model.adapters:
        for key, adapter, x, grid in zip(keys, model.adapters, ends, maps, strict=True):
            inputs = x if x is grid else [x, grid]
            yield "adapter", key, keras.Model(inputs, adapter(inputs))
    pyramid = run_neck(model.neck, backbone, model.stages, maps)
    if model.neck is not None:
        yield "neck", "", keras.Model(maps, pyramid)
    scores = model.head(pyramid)  # (1, h, w, K)
    logits = ResizeLike(dtype="float32")([scores, image])  # (1, H, W, K)
    yield "head", "", keras.Model([*pyramid, image], logits)
