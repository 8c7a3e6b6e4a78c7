"""Properties of layers, losses, metric and data, on examples that Hypothesis draws.

`--property-examples N` sets how many examples each test draws.
"""

import csv
import json
import math
import tempfile
from pathlib import Path

import keras
import numpy as np
import numpy_method as method
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from numpy_method import dtypes, set_random_weights

import keras_segadapter as ksa
from keras_segadapter.data import Labels
from keras_segadapter.data.files import describe
from keras_segadapter.data.label_table import LabelTable
from keras_segadapter.data.matching import match_splits

VOID = 255
flatten = keras.tree.flatten
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 9)
channels = st.integers(1, 6)
# Layer norm of a single channel is 0, of which Keras leaves rounding errors only.
several = st.integers(2, 6)
class_counts = st.integers(2, 6)
kernel_sizes = st.integers(1, 7)
ratios = st.floats(0.01, 4.0)
widths = st.none() | several

DTYPES = ["float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
if keras.backend.backend() != "jax":  # which has no float64 unless told
    DTYPES.append("float64")


@st.composite
def shapes_of_maps(draw, count=1, channels=channels):
    """Draw `count` shapes `(B, H, W, C)` of one batch size."""
    batch = draw(st.integers(1, 3))
    return [(batch, draw(sides), draw(sides), draw(channels)) for _ in range(count)]


@st.composite
def tokens_and_grids(draw, channels=channels):
    """Draw the shapes of tokens, with 0 to 3 leading ones, and of their grid."""
    ((batch, height, width, _),) = draw(shapes_of_maps())
    count = draw(st.integers(0, 3)) + height * width
    return [(batch, count, draw(channels)), (batch, height, width, draw(channels))]


several_maps = st.integers(1, 4).flatmap(shapes_of_maps)


@st.composite
def adapters(draw, channels=channels):
    """Draw the arguments of a `SegAdapter`, and the shapes of a map or of a pair."""
    arguments = {
        "num_classes": draw(class_counts),
        "kernel_size": draw(kernel_sizes),
        "ffn_ratio": draw(ratios),
        "scale_init": draw(st.floats(-1, 1)),
        "num_blocks": draw(st.integers(1, 3)),
        "width": draw(widths),
        "return_scores": draw(st.booleans()),
        "normalize": draw(st.booleans()),
    }
    maps, tokens = shapes_of_maps(channels=channels), tokens_and_grids(channels)
    return arguments, draw(st.one_of(maps, tokens))


attentions = st.fixed_dictionaries({"filters": several, "kernel_size": kernel_sizes})
high_orders = st.fixed_dictionaries(
    {"num_classes": class_counts, "kernel_size": kernel_sizes, "width": widths}
)
heads = st.fixed_dictionaries(
    {
        "num_classes": class_counts,
        "channels": channels,
        "dropout": st.floats(0, 1, exclude_max=True),
    }
)
nothing = st.just({})
ANY_LAYER = st.one_of(
    st.tuples(st.just(ksa.SegAttention), attentions, shapes_of_maps()),
    st.tuples(st.just(ksa.HighOrderSpatialAttention), high_orders, shapes_of_maps()),
    adapters().map(lambda drawn: (ksa.SegAdapter, *drawn)),
    st.tuples(st.just(ksa.MLPHead), heads, several_maps),
    st.tuples(st.just(ksa.ResizeLike), nothing, shapes_of_maps(2)),
    st.tuples(st.just(ksa.TokensToMap), nothing, tokens_and_grids()),
)


def single(cls, values):
    """Return a list as a layer of this class takes it."""
    return values if len(values) > 1 or cls is ksa.MLPHead else values[0]


def drawn_inputs(shapes, seed, scale=1.0):
    """Return normal arrays of the shapes, float32, with this deviation."""
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=shape)).astype("float32") for shape in shapes]


def built(cls, arguments, shapes, seed, **kwargs):
    """Return a layer with random weights, built for inputs of these shapes."""
    layer = cls(**arguments, **kwargs)
    layer.build(single(cls, shapes))
    set_random_weights(layer, seed)
    return layer


def check_equation(layer, equation, inputs):
    """Check a layer against NumPy, to what rounding of its inputs would change."""
    actual = flatten(layer(single(type(layer), inputs)))
    exact = [x.astype("float64") for x in inputs]
    rng = np.random.default_rng(0)
    rounded = [x + 1e-5 * np.abs(x).max() * rng.normal(size=x.shape) for x in exact]
    expected, shifted = flatten(equation(layer, *exact)), equation(layer, *rounded)
    for value, reference, other in zip(actual, expected, flatten(shifted), strict=True):
        value = method.array(value)
        assert value.shape == reference.shape
        change = np.abs(other - reference).max()
        allowed = max(1e-5 * np.abs(reference).max(), 10 * change)
        assert np.abs(value - reference).max() <= allowed


def check_round_trip(thing, of):
    """Check that a config gives an object of the same config, also through JSON."""
    config = thing.get_config()
    assert type(thing).from_config(config).get_config() == config
    copy = of.deserialize(json.loads(json.dumps(of.serialize(thing))))
    assert type(copy) is type(thing)
    # JSON has no tuples, such as the `axis` of Keras' Dice.
    assert json.dumps(copy.get_config()) == json.dumps(config)


def adapted(layer, *inputs):
    """Compute a `SegAdapter` of a map, or of tokens and a grid, in NumPy."""
    features = inputs[0] if len(inputs) == 1 else method.tokens_to_map(None, *inputs)
    features, scores = method.seg_adapter(layer, features)
    if len(inputs) == 2:
        tokens, (batch, height, width, _) = inputs[0], features.shape
        patches = features.reshape(batch, height * width, -1)
        features = np.concatenate([tokens[:, : -height * width], patches], axis=1)
    return (features, scores) if layer.return_scores else features


# Contract


@given(ANY_LAYER, st.sampled_from(DTYPES), seeds)
def test_layers_have_the_shape_and_dtype_that_they_tell(drawn, dtype, seed):
    cls, arguments, shapes = drawn
    layer = cls(**arguments, dtype=dtype)
    inputs = drawn_inputs(shapes, seed)
    outputs = flatten(layer(single(cls, inputs)))
    told = layer.compute_output_shape(single(cls, shapes))
    told = list(told) if isinstance(told[0], tuple) else [told]
    assert [tuple(output.shape) for output in outputs] == told

    # Of a graph whose sizes are open, only the number of channels is known.
    open_shapes = [(*[None] * (len(shape) - 1), shape[-1]) for shape in shapes]
    symbolic = [keras.KerasTensor(shape, layer.compute_dtype) for shape in open_shapes]
    specs = flatten(layer(single(cls, symbolic)))
    assert [spec.shape[-1] for spec in specs] == [shape[-1] for shape in told]
    assert dtypes(outputs) == dtypes(specs)


@given(ANY_LAYER, st.sampled_from(DTYPES), st.booleans())
def test_configs_of_layers_survive_a_round_trip(drawn, dtype, trainable):
    cls, arguments, _ = drawn
    layer = cls(**arguments, dtype=dtype, trainable=trainable)
    assert arguments.items() <= layer.get_config().items()
    check_round_trip(layer, keras.layers)


# Meaning


@given(attentions, shapes_of_maps(), seeds)
def test_seg_attention_equals_numpy(arguments, shapes, seed):
    layer = built(ksa.SegAttention, arguments, shapes, seed)
    check_equation(layer, method.seg_attention, drawn_inputs(shapes, seed))


@given(high_orders, shapes_of_maps(channels=several), seeds)
def test_high_order_attention_equals_numpy(arguments, shapes, seed):
    layer = built(ksa.HighOrderSpatialAttention, arguments, shapes, seed)
    check_equation(layer, method.high_order_attention, drawn_inputs(shapes, seed))


@given(adapters(several), seeds)
def test_seg_adapter_equals_numpy(drawn, seed):
    arguments, shapes = drawn
    layer = built(ksa.SegAdapter, arguments, shapes, seed)
    check_equation(layer, adapted, drawn_inputs(shapes, seed))


@given(heads, several_maps, seeds)
def test_head_equals_numpy(arguments, shapes, seed):
    layer = built(ksa.MLPHead, arguments, shapes, seed)
    inputs = drawn_inputs(shapes, seed)
    check_equation(layer, lambda layer, *maps: method.mlp_head(layer, maps), inputs)


@given(shapes_of_maps(2), seeds)
def test_resize_equals_numpy(shapes, seed):
    inputs = drawn_inputs(shapes, seed)
    check_equation(ksa.ResizeLike(), method.resize_like, inputs)


@given(tokens_and_grids(), seeds)
def test_tokens_to_map_equals_numpy(shapes, seed):
    tokens, grid = drawn_inputs(shapes, seed)
    expected = method.tokens_to_map(None, tokens, grid)
    actual = ops.convert_to_numpy(ksa.TokensToMap()([tokens, grid]))
    np.testing.assert_array_equal(actual, expected)


# Edges


@given(ANY_LAYER, st.integers(-30, 8), st.sampled_from(["normal", "constant"]), seeds)
def test_layers_are_finite_on_any_finite_input(drawn, exponent, kind, seed):
    cls, arguments, shapes = drawn
    # Each block squares its input, and float32 ends at 3e38.
    blocks = arguments.get("num_blocks", 1)
    scale = 10.0 ** min(exponent, 32 / 2**blocks)
    layer = built(cls, arguments, shapes, seed)
    inputs = drawn_inputs(shapes, seed, scale)
    if kind == "constant":
        inputs = [np.full_like(x, scale) for x in inputs]
    # Keras' batch norm (up to 3.15.1) trains on PyTorch with the variance
    # E[x^2] - E[x]^2, which rounding makes negative where features are constant.
    trains = cls is ksa.MLPHead and keras.backend.backend() != "torch"
    for options in [{}, {"training": True}] if trains else [{}]:
        for output in flatten(layer(single(cls, inputs), **options)):
            assert np.isfinite(ops.convert_to_numpy(output)).all()


@given(
    ANY_LAYER, st.sampled_from(["mixed_float16", "mixed_bfloat16"]), st.floats(0, 10)
)
def test_layers_are_finite_in_half_precision(drawn, dtype, scale):
    cls, arguments, shapes = drawn
    arguments = {**arguments}
    if cls is ksa.SegAdapter:  # whose blocks square their inputs
        arguments["num_blocks"] = 1
    layer = cls(**arguments, dtype=dtype)
    for output in flatten(layer(single(cls, drawn_inputs(shapes, 0, scale)))):
        assert np.isfinite(method.array(ops.cast(output, "float32"))).all()


# Losses and metric


@st.composite
def batches(draw, num_classes, void=(VOID,), same_size=False):
    """Draw masks `(B, H, W)`, in part void, and logits of the same or another size."""
    ((batch, height, width, _), (_, low_height, low_width, _)) = draw(shapes_of_maps(2))
    if same_size or draw(st.booleans()):
        low_height, low_width = height, width
    ids = st.sampled_from([*range(num_classes), *void])
    masks = draw(arrays("int32", (batch, height, width), elements=ids))
    shape = (batch, low_height, low_width, num_classes)
    scale = 10.0 ** draw(st.integers(-3, 4))
    (logits,) = drawn_inputs([shape], draw(seeds), scale)
    if num_classes < VOID and min(void, default=0) >= 0:
        dtype = st.sampled_from(["uint8", "int16", "int32", "int64", "float32"])
        masks = masks.astype(draw(dtype))
    return (masks[..., None] if draw(st.booleans()) else masks), logits


def at_full_size(masks, logits):
    """Return masks `(B, H, W)` and logits of that size, float64, in NumPy."""
    masks = masks.reshape(masks.shape[:3]).astype("int64")
    return masks, method.resize(logits.astype("float64"), *masks.shape[1:])


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cross_entropy(masks, logits, ignored, class_weight=None, sample_weight=1.0):
    """Return `sum(w * ce) / sum(w)` over the pixels that count, 0 without any."""
    table = np.array(class_weight or [1.0] * logits.shape[-1])
    known = np.where(np.isin(masks, ignored), 0, masks)
    weights = table[known] * ~np.isin(masks, ignored)
    losses = -np.take_along_axis(log_softmax(logits), known[..., None], -1)[..., 0]
    total = (weights * losses * sample_weight).sum()
    return total / weights.sum() if weights.any() else 0.0


IGNORED = {"auto": [VOID], None: [], 255: [VOID], (254, 255): [254, VOID], -1: [-1]}
class_weights = st.one_of(st.sampled_from([0.0, 1e-9]), st.floats(1e-9, 1e6))


@st.composite
def cross_entropies(draw):
    """Draw a `SegmentationCrossentropy`, its weight of each class, and its ids."""
    num_classes = draw(class_counts)
    option = draw(st.sampled_from([*IGNORED]))
    table = draw(
        st.lists(class_weights, min_size=num_classes, max_size=num_classes).filter(any)
    )
    given = draw(st.sampled_from(["none", "list", "dict"]))
    weights = {"none": None, "list": table, "dict": dict(enumerate(table))}[given]
    if given == "dict":  # in which missing classes weigh 1
        weights.pop(draw(st.integers(0, num_classes - 1)))
        table = [weights.get(class_, 1.0) for class_ in range(num_classes)]
    ids = list(option) if isinstance(option, tuple) else option
    loss = ksa.SegmentationCrossentropy(ids, weights)
    return loss, table if weights is not None else None, num_classes, IGNORED[option]


@given(st.data())
def test_cross_entropy_equals_numpy(data):
    loss, class_weight, num_classes, ignored = data.draw(cross_entropies())
    masks, logits = data.draw(batches(num_classes, ignored))
    shape = data.draw(st.sampled_from([None, masks.shape[:1], masks.shape[:3]]))
    sample_weight = None
    if shape is not None:
        rng = np.random.default_rng(data.draw(seeds))
        sample_weight = rng.uniform(0, 2, shape).astype("float32")
    actual = float(loss(masks, logits, sample_weight))
    assert math.isfinite(actual)
    if sample_weight is None:
        factor = 1.0
    else:
        factor = sample_weight.reshape(*shape, *[1] * (3 - len(shape)))
    labels, full = at_full_size(masks, logits)
    expected = cross_entropy(labels, full, ignored, class_weight, factor)
    # Differences of logits are as exact as the logits are.
    slack = 2e-6 * float(np.abs(logits).max())
    assert actual == pytest.approx(expected, rel=2e-5, abs=1e-6 + slack)


@given(cross_entropies())
def test_config_of_cross_entropy_survives_a_round_trip(drawn):
    loss, _, num_classes, _ = drawn
    check_round_trip(loss, keras.losses)
    copy = keras.losses.deserialize(
        json.loads(json.dumps(keras.losses.serialize(loss)))
    )
    masks = np.arange(num_classes).reshape(1, 1, -1)
    logits = method.maps(1, 1, num_classes, num_classes)
    assert float(copy(masks, logits)) == float(loss(masks, logits))


@st.composite
def mask_losses(draw):
    """Draw a `MaskLoss` and its value in NumPy, a function of masks and logits."""
    axis = draw(st.sampled_from([None, (1, 2), (0, 1, 2)]))
    alpha, beta = draw(st.floats(0.1, 2)), draw(st.floats(0.1, 2))
    gamma, smoothing = draw(st.floats(0.5, 3)), draw(st.floats(0, 0.5))
    epsilon = keras.config.epsilon()

    def regions(masks, logits):
        counted = (masks != VOID)[..., None]
        return np.eye(256)[masks][..., : logits.shape[-1]], softmax(logits) * counted

    def dice(masks, logits):
        truth, shares = regions(masks, logits)
        size = truth.sum(axis) + shares.sum(axis) + epsilon
        return np.mean(1 - 2 * (truth * shares).sum(axis) / size)

    def tversky(masks, logits):
        truth, shares = regions(masks, logits)
        hits = (truth * shares).sum(axis)
        missed, wrong = truth.sum(axis) - hits, shares.sum(axis) - hits
        return np.mean(1 - hits / (hits + alpha * missed + beta * wrong + epsilon))

    def of_pixels(values, masks):
        return values[masks != VOID].mean() if (masks != VOID).any() else 0.0

    def focal(masks, logits):
        truth, _ = regions(masks, logits)
        shares = softmax(logits).clip(epsilon, 1 - epsilon)
        losses = -truth * alpha * (1 - shares) ** gamma * np.log(shares)
        return of_pixels(losses.sum(-1), masks)

    def smoothed(masks, logits):
        truth = regions(masks, logits)[0] * (1 - smoothing)
        truth = truth + smoothing / logits.shape[-1]
        return of_pixels(-(truth * log_softmax(logits)).sum(-1), masks)

    choices = [
        (keras.losses.Dice(axis=axis), dice),
        (keras.losses.Tversky(alpha=alpha, beta=beta, axis=axis), tversky),
        (keras.losses.CategoricalFocalCrossentropy(alpha, gamma), focal),
        (
            keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=smoothing
            ),
            smoothed,
        ),
        (
            ksa.SegmentationCrossentropy(),
            lambda masks, logits: cross_entropy(masks, logits, [VOID]),
        ),
    ]
    chosen = draw(st.lists(st.sampled_from(choices), min_size=1, max_size=5))
    weight = st.floats(0.01, 10)
    weights = draw(st.lists(weight, min_size=len(chosen), max_size=len(chosen)))
    loss = ksa.MaskLoss([one for one, _ in chosen], weights)

    def value(masks, logits):
        if not (masks != VOID).any():
            return 0.0
        values = (equation(masks, logits) for _, equation in chosen)
        return sum(weight * each for weight, each in zip(weights, values, strict=True))

    return loss, value


@given(mask_losses(), st.data())
def test_mask_loss_equals_numpy(drawn, data):
    loss, equation = drawn
    masks, logits = data.draw(class_counts.flatmap(batches))
    actual = float(loss(masks, logits))
    assert math.isfinite(actual)
    scale = sum(loss.weights) * (1 + float(np.abs(logits).max()))
    expected = equation(*at_full_size(masks, logits))
    assert actual == pytest.approx(expected, rel=2e-5, abs=5e-6 * scale)


@given(mask_losses())
def test_config_of_mask_loss_survives_a_round_trip(drawn):
    check_round_trip(drawn[0], keras.losses)


@given(mask_losses(), st.data())
def test_losses_do_not_depend_on_the_logits_of_void_pixels(drawn, data):
    masks, logits = data.draw(
        class_counts.flatmap(lambda count: batches(count, same_size=True))
    )
    other = logits.copy()
    other[masks.reshape(masks.shape[:3]) == VOID] = data.draw(st.floats(-1e30, 1e30))
    for loss in (ksa.SegmentationCrossentropy(), drawn[0]):
        before, after = float(loss(masks, logits)), float(loss(masks, other))
        assert after == pytest.approx(before, rel=1e-6)


@given(mask_losses(), class_counts.flatmap(batches), st.sampled_from([77, 254, -1]))
def test_an_id_that_is_neither_a_class_nor_ignored_makes_losses_nan(drawn, batch, id_):
    masks, logits = batch
    masks = masks.astype("int32")
    masks.flat[masks.size // 2] = id_
    for loss in (ksa.SegmentationCrossentropy(), drawn[0]):
        assert math.isnan(float(loss(masks, logits)))


@given(class_counts, st.sampled_from([*IGNORED]), st.data())
def test_mean_iou_equals_numpy(num_classes, option, data):
    ids = list(option) if isinstance(option, tuple) else option
    metric = ksa.MeanIoU(num_classes, ids)
    check_round_trip(metric, keras.metrics)
    expected = np.zeros((num_classes, num_classes), int)
    for _ in range(data.draw(st.integers(1, 3))):
        # 200 is neither a class nor ignored, and does not count either.
        masks, logits = data.draw(batches(num_classes, [*IGNORED[option], 200]))
        labels, full = at_full_size(masks, logits)
        # Float32 may choose the other of two equal scores.
        best = np.sort(full, axis=-1)
        close = best[..., -1] - best[..., -2] <= 1e-5 * np.abs(logits).max()
        masks.reshape(labels.shape)[close] = labels[close] = 200
        metric.update_state(masks, logits)
        counted = labels < num_classes
        counted &= labels >= 0
        cells = labels * num_classes + full.argmax(-1)
        cells = np.bincount(cells[counted], minlength=num_classes**2)
        expected += cells.reshape(num_classes, num_classes)
    np.testing.assert_array_equal(metric.confusion_matrix(), expected)
    hits, union = np.diag(expected), expected.sum(0) + expected.sum(1)
    union = union - hits
    iou = hits[union > 0] / union[union > 0]
    mean = iou.mean() if iou.size else 0.0
    assert float(metric.result()) == pytest.approx(mean, abs=1e-6)
    assert np.nan_to_num(metric.report()["mIoU"]) == pytest.approx(mean)


# Data


rgb_colors = st.tuples(*[st.integers(0, 255)] * 3)
raw_ids = st.one_of(st.integers(0, 300), st.integers(0, 2**24 - 1))


def label_tables(keys):
    """Draw a number of classes, and a dict from keys to classes or 255."""

    def of(count):
        ids = st.sampled_from([*range(count), VOID])
        tables = st.dictionaries(keys, ids, min_size=1, max_size=12)
        return st.tuples(st.just(count), tables)

    return st.integers(2, 6).flatmap(of)


def grids(values, min_side=1):
    """Draw an array `(H, W, ...)` of these values."""
    sizes = st.tuples(st.integers(min_side, 5), st.integers(min_side, 5))

    def of(size):
        count = size[0] * size[1]
        drawn = st.lists(st.sampled_from(values), min_size=count, max_size=count)
        return drawn.map(lambda each: np.array(each).reshape(*size, *np.shape(each[0])))

    return sizes.flatmap(of)


@given(label_tables(raw_ids), st.data())
def test_a_table_of_ids_maps_as_its_dict_does(drawn, data):
    count, label_map = drawn
    table = LabelTable(
        None, Labels([f"class {i}" for i in range(count)], label_map), 255
    )
    mask = data.draw(grids([*label_map])).astype("int32")
    np.testing.assert_array_equal(
        table.look_up(mask, "mask.png"), np.vectorize(label_map.get)(mask)
    )
    unknown = data.draw(st.integers(-(2**31), 2**31 - 1))
    assume(unknown not in label_map)
    mask.flat[-1] = unknown
    with pytest.raises(ValueError, match=rf"mask.png with the ids {unknown} \(1 pixel"):
        table.look_up(mask, "mask.png")


@given(label_tables(rgb_colors), st.data())
def test_a_table_of_colors_maps_as_its_dict_does(drawn, data):
    count, label_map = drawn
    table = LabelTable(
        None, Labels([f"class {i}" for i in range(count)], label_map), 255
    )
    assert table.by_color
    mask = data.draw(grids([*label_map])).astype("uint8")
    expected = [[label_map[tuple(color)] for color in row] for row in mask.tolist()]
    np.testing.assert_array_equal(table.look_up(None, "mask.png", mask), expected)
    unknown = data.draw(rgb_colors)
    assume(unknown not in label_map)
    mask[-1, -1] = unknown
    with pytest.raises(ValueError, match=r"mask.png with the colors \("):
        table.look_up(None, "mask.png", mask)


@given(st.integers(2, 300), st.sampled_from(["auto", None, 65535, (-1, 70000)]))
def test_masks_of_classes_map_to_themselves(count, option):
    option = list(option) if isinstance(option, tuple) else option
    table = LabelTable(count, None, option)
    ids = np.array([[*range(count), *table.ignored]], "int32")
    found = table.look_up(ids, "mask.npy")
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(found.astype(table.dtype), ids)


# Without control characters and the separators of lines.
letters = st.characters(categories=["L", "N", "P", "S", "Zs"])
words = ("void", "unlabeled", "unlabelled", "ignore", "ignored")
class_names = (
    st.text(letters, min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and name.lower() not in words)
)
plain_names = st.from_regex("[a-z]+( [a-z]+)*", fullmatch=True).filter(
    lambda name: name not in words
)


@st.composite
def class_files(draw):
    """Draw the kind of a file of classes, and rows of names, colors and ids."""
    kind = draw(
        st.sampled_from(["csv", "tsv", "semicolons", "json list", "json dict", "txt"])
    )
    # In lines and in the keys of a dict, a number is no name.
    names = plain_names if kind in ("txt", "json dict") else class_names
    rows = draw(
        st.lists(
            st.tuples(names, rgb_colors, st.integers(0, 2**24 - 1)),
            min_size=2,
            max_size=6,
            unique_by=tuple(lambda row, i=i: row[i] for i in range(3)),
        )
    )
    columns = ["colors", "names"] if kind == "txt" else ["colors", "ids", "names"]
    columns = draw(st.sampled_from(columns))
    if columns == "names" and kind in ("tsv", "semicolons"):
        kind = "csv"  # a single column has no separator to tell
    return kind, columns, rows


def write_class_file(folder, kind, columns, rows):
    """Write names with colors, with ids or alone, and return the file's path."""
    if kind.startswith("json"):
        path = Path(folder, "classes.json")
        if kind == "json list":
            fields = {"colors": "color", "ids": "id"}
            data = [
                {
                    "name": name,
                    fields[columns]: list(color) if columns == "colors" else id_,
                }
                if columns in fields
                else name
                for name, color, id_ in rows
            ]
        elif columns == "names":
            data = {str(number): row[0] for number, row in enumerate(rows)}
        else:
            data = {
                name: list(color) if columns == "colors" else id_
                for name, color, id_ in rows
            }
        path.write_text(json.dumps(data), encoding="utf-8")
        return path
    if kind == "txt":
        path = Path(folder, "classes.txt")
        lines = [
            f"{name} {' '.join(map(str, color))}" if columns == "colors" else name
            for name, color, _ in rows
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path
    path = Path(folder, "classes.csv")
    delimiter = {"csv": ",", "tsv": "\t", "semicolons": ";"}[kind]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        head = {"colors": ["r", "g", "b"], "ids": ["id"], "names": []}[columns]
        writer.writerow(["name", *head])
        for name, color, id_ in rows:
            values = {"colors": color, "ids": [id_], "names": []}[columns]
            writer.writerow([name, *values])
    return path


@given(class_files())
def test_files_of_classes_are_read_as_they_were_written(drawn):
    kind, columns, rows = drawn
    with tempfile.TemporaryDirectory() as folder:
        labels = Labels.from_file(write_class_file(folder, kind, columns, rows))
    assert labels.class_names == tuple(name for name, _, _ in rows)
    if columns == "colors":
        expected = {color: class_ for class_, (_, color, _) in enumerate(rows)}
        assert labels.label_map == expected
        np.testing.assert_array_equal(labels.colors, [color for _, color, _ in rows])
    elif columns == "ids":
        expected = {id_: class_ for class_, (_, _, id_) in enumerate(rows)}
        in_order = expected == {i: i for i in range(len(rows))}
        assert labels.label_map == (None if in_order else expected)
    else:
        assert labels.label_map is None


PLACES = [
    "images/{}.jpg masks/{}.png",
    "images/{}.png masks/{}_mask.png",
    "images/image_{}.png masks/mask_{}.png",
    "{}.jpg {}.png",
    "{}_sat.jpg {}_mask.png",
    "train/images/{}.png train/labels/{}.png",
    "images/city_1/{}.png masks/city_1/{}.png",
]


@given(
    st.sampled_from(PLACES),
    st.sets(st.from_regex("[a-z0-9]{1,5}[0-9]", fullmatch=True), min_size=1),
    st.sampled_from(["", "frame_", "a-b ", "é", "2020.01.", "IMG_"]),
    st.randoms(),
)
def test_pairs_depend_neither_on_order_nor_on_prefixes(places, names, prefix, shuffle):
    root = Path("data")
    expected = {
        tuple(root / place.format(prefix + name) for place in places.split(" "))
        for name in names
    }
    files = [path for pair in expected for path in pair]
    shuffle.shuffle(files)
    matches = match_splits([describe(path, root) for path in files], settled=False)
    (match,) = matches.values()
    assert match.fault is None
    assert {*match.pairs} == expected and len(match.pairs) == len(expected)
