"""cost_report: parameters and multiply-adds of a segmenter, part by part."""

import dataclasses
import math
from typing import NamedTuple

import keras

from keras_segadapter.validation import check_segmenter, check_size
from keras_segadapter.inference.predict import deepest_stride
from keras_segadapter.inference.multiply_adds import Tally
from keras_segadapter.layers.resize import ResizeLike
from keras_segadapter.graph.replay import as_functional
from keras_segadapter.graph.splice import splice
from keras_segadapter.graph.stages import stage_keys


class Cost(NamedTuple):
    """A row of the table."""

    part: str
    stage: str
    parameters: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True, repr=False)
class CostReport:
    """What a model costs; printed, it is a table.

    Attributes:
        title: The model's name and the size of the image.
        rows: Tuple of (part, stage, parameters, multiply_adds).
        parameters: Sum of the rows' parameters.
        multiply_adds: Sum of the rows' multiply-adds.
        not_counted: Names of layers whose multiply-adds are not known.

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

    Matrix products, convolutions and attention's two products count, and four
    multiply-adds for each value that a bilinear resize gives, in a row of their own.
    Norms, activations, pooling, additions and elementwise products count nothing, as in
    the paper. The coarse path, for training only, is left out, and so is what the
    backbone has behind its last tap. A stage ends with its tap. Parameters are Keras'
    count, statistics of batch norms among them.

    Layers made of others are looked into by their `call` on symbolic tensors. One that
    can't run so is listed as not counted: in a layer of your own use `keras.ops`, and
    write `x * weight`, not `weight * x`.

    Args:
        model: A `Segmenter`.
        image_size: Height and width of the image: an integer, or a pair of them.

    Returns:
        A report to be printed. It has `.parameters` and `.multiply_adds`, the totals;
        `.rows` of (part, stage, parameters, multiply_adds); and `.not_counted`, names.

    Raises:
        TypeError: If `model` is no `Segmenter`.
        ValueError: If `image_size` is not one or two integers, is below the deepest
            stride, or is a size that the model does not take.

    Example:

    ```python
    import keras_segadapter as ksa

    model = ksa.build_segmenter(ksa.MiTB0(), num_classes=150)
    print(ksa.cost_report(model, 512))  # total 4.793 M, 6.903 G
    ```

    Source: paper, sections 2 and 4.
    """
    size = _check(model, image_size)
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


def _check(model, image_size):
    """Height and width as a pair."""
    check_segmenter(model, "cost_report")
    pair = isinstance(image_size, (tuple, list))
    size = check_size(
        "image_size",
        image_size if pair else (image_size, image_size),
        least=deepest_stride(model),
    )
    fixed = model.input_shape[1:3]
    if any(side not in (None, given) for side, given in zip(fixed, size, strict=True)):
        raise ValueError(
            f"The model '{model.name}' takes images of {fixed} only. Received: "
            f"image_size={image_size}"
        )
    return size


def _pieces(model, size):
    """The model in pieces, each a functional model on one image: (part, key, piece)."""
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
    for key, start, end in zip(keys, [image, *ends[:-1]], ends, strict=True):
        yield "backbone", key, keras.Model(start, end)
    if model.adapters:
        for key, adapter, x, grid in zip(keys, model.adapters, ends, maps, strict=True):
            inputs = x if x is grid else [x, grid]
            yield "adapter", key, keras.Model(inputs, adapter(inputs))
    scores = model.head(maps)  # (1, h, w, K)
    logits = ResizeLike(dtype="float32")([scores, image])  # (1, H, W, K)
    yield "head", "", keras.Model([*maps, image], logits)
