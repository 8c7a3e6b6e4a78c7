"""cost_report: parameters and multiply-adds against counts by hand."""

import keras
import pytest
from keras import layers, ops

import keras_segadapter as ksa
from keras_segadapter.inference.cost import cost_report


class Block(layers.Layer):
    """A user's layer: a function of its input and of the layers inside."""

    def __init__(self, function, *inside, **kwargs):
        super().__init__(**kwargs)
        self.function, self.inside = function, list(inside)

    def build(self, input_shape):
        for layer in self.inside:
            layer.build(input_shape)

    def call(self, inputs):
        return self.function(inputs, *self.inside)


class ToNumPy(layers.Layer):
    """A layer that can't run on symbolic tensors."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],) * 2)

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("real tensors only")
        return ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, input_shape):
        return input_shape


class Positions(layers.Layer):
    """Positions that depend on the image's size alone, as for rotary attention."""

    def call(self, inputs):
        return ops.zeros((1, 1, 6))

    def compute_output_shape(self, input_shape):
        return (1, 1, 6)


class OpenSize(ToNumPy):
    """Such a layer, which leaves the size of its output open as well."""

    def compute_output_shape(self, input_shape):
        return (None, None, None, input_shape[-1])


def segmenter(*between, num_classes=3, size=(None, None), adapters=False):
    """Build a segmenter of one stage: stride 4, 6 channels, with `between` inside."""
    inputs = keras.Input((*size, 3))
    x = layers.Conv2D(6, 4, 4)(inputs)
    for layer in between:
        x = layer(x)
    backbone = keras.Model(inputs, layers.Activation("relu", name="end")(x))
    return ksa.build_segmenter(backbone, num_classes, taps=["end"], adapters=adapters)


def rows(report, part):
    return [row for row in report.rows if row.part == part]


def stage_cost(*between):
    """Return the multiply-adds of `between`, on 4 x 8 pixels with 6 channels."""
    report = cost_report(segmenter(*between, size=(16, 32)), (16, 32))
    assert report.not_counted == ()
    (stage,) = rows(report, "backbone")
    return stage.multiply_adds - 4 * 8 * (4 * 4 * 3 * 6)


# Contract


def test_the_report_is_a_table_that_adds_up(tiny_backbone):
    model = ksa.build_segmenter(tiny_backbone(), 5, name="tiny")
    report = cost_report(model, (32, 48))
    assert [(row.part, row.stage) for row in report.rows] == [
        ("backbone", "s4"),
        ("backbone", "s8"),
        ("adapter", "s4"),
        ("adapter", "s8"),
        ("head", ""),
        ("resizes", ""),
    ]
    assert report.parameters == sum(row.parameters for row in report.rows)
    assert report.parameters == model.count_params()
    assert report.multiply_adds == sum(row.multiply_adds for row in report.rows)
    lines = str(report).splitlines()
    assert lines[0] == "tiny, one image of 32 x 48"
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[-1].split() == [
        "total",
        f"{report.parameters / 1e6:.3f}",
        f"{report.multiply_adds / 1e9:.3f}",
    ]
    assert repr(report) == str(report)


def test_counting_changes_nothing_and_repeats(tiny_backbone, tmp_path):
    model = ksa.build_segmenter(tiny_backbone(), 5)
    report = cost_report(model, 32)
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert cost_report(loaded, 32) == report == cost_report(model, 32)


def test_low_precision_costs_as_much(tiny_backbone):
    report = cost_report(ksa.build_segmenter(tiny_backbone(), 5), 32)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = cost_report(ksa.build_segmenter(tiny_backbone(), 5), 32)
    finally:
        keras.config.set_dtype_policy("float32")
    assert mixed.rows == report.rows


# Meaning


def test_later_stages_may_read_positions_made_of_the_image():
    image = keras.Input((16, 32, 3))
    positions = Positions()(image)
    fine = layers.Conv2D(6, 4, 4, name="fine")(image)
    coarse = layers.Conv2D(6, 2, 2, name="coarse")(layers.Add()([positions, fine]))
    model = ksa.build_segmenter(
        keras.Model(image, coarse), 3, taps=["fine", "coarse"], adapters=False
    )
    first, second = rows(cost_report(model, (16, 32)), "backbone")
    assert first.multiply_adds == 4 * 8 * (4 * 4 * 3 * 6)
    assert second.multiply_adds == 2 * 4 * (2 * 2 * 6 * 6)


@pytest.mark.parametrize(
    "layer, expected",
    [
        (layers.Dense(5), 32 * 6 * 5),
        (layers.EinsumDense("bhwc,cd->bhwd", (4, 8, 5)), 32 * 6 * 5),
        (layers.Conv2D(5, 3, padding="same"), 32 * 9 * 6 * 5),
        (layers.Conv2D(4, (1, 3), padding="same", groups=2), 32 * 3 * 3 * 4),
        (layers.Conv2D(5, 2, 2), 8 * 4 * 6 * 5),
        (layers.DepthwiseConv2D(3, 1, "same", 2), 32 * 9 * 12),
        (layers.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2), 8 * 12 * (9 + 5)),
        (layers.Conv2DTranspose(5, 3, 2, "same"), 32 * 9 * 6 * 5),
        (layers.UpSampling2D(2), 0),
        (layers.BatchNormalization(), 0),
        (layers.LayerNormalization(), 0),
        (layers.Activation("gelu"), 0),
        (layers.PReLU(), 0),
        (layers.MaxPooling2D(2), 0),
        (layers.Rescaling(2.0), 0),
        (layers.Dropout(0.1), 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_layers(layer, expected):
    assert stage_cost(layer) == expected


def tokens(x):
    return ops.reshape(x, (ops.shape(x)[0], -1, 6))


def heads(x):
    return ops.reshape(x, (ops.shape(x)[0], -1, 2, 3))


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda x: ops.matmul(tokens(x), ops.ones((6, 5))), 32 * 6 * 5),
        (lambda x: ops.tensordot(x, ops.ones((8, 6, 5)), 2), 4 * 8 * 6 * 5),
        (lambda x: ops.dot(tokens(x), ops.ones((6, 5))), 32 * 6 * 5),
        (lambda x: ops.einsum("...c,cd->...d", x, ops.ones((6, 5))), 32 * 6 * 5),
        (lambda x: ops.einsum("bnc,bmc->nm", tokens(x), tokens(x)), 32 * 32 * 6),
        (lambda x: ops.einsum("bnc,bmc", tokens(x), tokens(x)), 32 * 32 * 6),
        (lambda x: ops.einsum("bhwc,c->bhwc", x, ops.ones((6,))), 0),
        (lambda x: ops.einsum("bhwc->bwhc", x), 0),
        (lambda x: ops.conv(x, ops.ones((3, 3, 6, 5)), 1, "same"), 32 * 54 * 5),
        (lambda x: ops.dot_product_attention(*[heads(x)] * 3), 2 * 2 * 32 * 32 * 3),
        (lambda x: x * x + ops.softmax(x), 0),
    ],
    ids="matmul tensordot dot einsum transposed implicit product turn conv attention "
    "elementwise".split(),
)
def test_operations(function, expected):
    block = Block(lambda x: x + ops.mean(function(x)))
    assert stage_cost(block) == expected


def test_attention_with_reduced_keys():
    attention = ksa.MiTB0().get_layer("stage3_block1_attention")  # 5 heads, reduction 2
    attention = type(attention)(num_heads=2, reduction=2)
    keys = 8
    linear = 2 * 32 * 36 + 2 * keys * 36  # query, projection; key, value
    assert stage_cost(attention) == linear + keys * 4 * 36 + 2 * 32 * keys * 6


def test_a_vision_transformer():
    inputs = keras.Input((32, 48, 3))
    x = layers.Reshape((-1, 8))(layers.Conv2D(8, 8, 8)(inputs))
    for _ in range(4):
        x = x + layers.MultiHeadAttention(2, 4)(x, x)
    report = cost_report(ksa.build_segmenter(keras.Model(inputs, x), 3), (32, 48))
    linear, products = 4 * 24 * 8 * 8, 2 * 24 * 24 * 8
    patches = 24 * 8 * 8 * 3 * 8
    assert [row.multiply_adds for row in rows(report, "backbone")] == [
        patches + linear + products,
        *[linear + products] * 3,
    ]
    per_pixel = 8 * 8**2 + 3 * 8 * 3 + 25 * (8 + 3)
    assert {row.multiply_adds for row in rows(report, "adapter")} == {24 * per_pixel}
    assert report.not_counted == ()


def test_adapters_of_fewer_channels_cost_less():
    adapters = [ksa.SegAdapter(3, width=4)]
    report = cost_report(segmenter(adapters=adapters), (16, 32))
    (row,) = rows(report, "adapter")
    per_pixel = 5 * 4**2 + 4 * 4 * 6 + (6 + 2 * 4) * 3 + 25 * (4 + 3)
    assert row.multiply_adds == 4 * 8 * per_pixel
    assert row.parameters == adapters[0].count_params()


def test_layers_inside_a_users_layers_are_counted():
    inner = Block(lambda x, dense: dense(x), layers.Dense(6))
    outer = Block(lambda x, block, conv: conv(block(x)), inner, layers.Conv2D(4, 1))
    sequential = keras.Sequential([keras.Input((4, 8, 4)), layers.Dense(7)])
    assert stage_cost(outer, sequential) == 32 * (36 + 24 + 28)


def test_layers_that_can_not_be_counted_are_named():
    model = segmenter(ToNumPy(name="odd"), Block(lambda x, y: y(x), ToNumPy(name="in")))
    report = cost_report(model, (16, 32))
    assert report.not_counted == ("odd", "in")
    assert str(report).endswith("not counted: odd\nnot counted: in")


def test_layers_behind_an_open_size_are_named():
    inside = OpenSize(name="open"), layers.Dense(6, name="after")
    block = Block(lambda x, open_size, dense: dense(open_size(x)), *inside)
    assert cost_report(segmenter(block), (16, 32)).not_counted == ("open", "after")


def test_the_head_projects_before_it_resizes():
    model = ksa.build_segmenter(
        ksa.MiTB0(), 19, adapters=False, head=ksa.MLPHead(19, channels=8)
    )
    report = cost_report(model, (64, 96))
    (head,), (resizes,) = rows(report, "head"), rows(report, "resizes")
    pixels = [16 * 24, 8 * 12, 4 * 6, 2 * 3]
    stages = zip(pixels, (32, 64, 160, 256), strict=True)
    assert head.multiply_adds == (
        sum(n * 8 * (channels + 8) for n, channels in stages) + pixels[0] * 8 * 19
    )
    # Four multiply-adds per value: three stages are resized to the first, and the
    # scores to the image.
    assert resizes.multiply_adds == 4 * (3 * pixels[0] * 8 + 64 * 96 * 19)
    assert resizes.parameters == 0


@pytest.mark.parametrize(
    "num_classes", [pytest.param(19, marks=pytest.mark.integration), 150]
)
def test_adapters_cost_what_the_papers_formula_says(num_classes):
    k = num_classes
    report = cost_report(ksa.build_segmenter(ksa.MiTB0(), k), (64, 96))
    stages = zip((4, 8, 16, 32), (32, 64, 160, 256), strict=True)
    assert [row.multiply_adds for row in rows(report, "adapter")] == [
        (64 // s) * (96 // s) * (2 * c**2 + 3 * c * k + 25 * (c + k) + 6 * c**2)
        for s, c in stages
    ]


def test_adapt_mit_b0_costs_what_the_paper_says():
    report = cost_report(ksa.build_segmenter(ksa.MiTB0(), 150), 512)
    adapters = sum(row.multiply_adds for row in rows(report, "adapter"))
    assert abs(adapters / 1e9 - 1.3) < 0.2
    assert round(report.parameters / 1e6, 1) == 4.8
    # The published head resizes before it projects: each pixel of the three coarser
    # stages is projected at the size of the finest.
    saved = 256 * 256 * (3 * 128**2 - 64**2 - 32**2 - 16**2)
    (resizes,) = rows(report, "resizes")
    baseline = report.multiply_adds - adapters - resizes.multiply_adds + saved
    assert abs(baseline / 1e9 - 8.4) < 0.05


@pytest.mark.integration
@pytest.mark.parametrize(
    "backbone, millions",
    [(ksa.MiTB1, 17.3), (ksa.MiTB2, 28.4)],
)
def test_parameters_are_the_published_ones(backbone, millions):
    report = cost_report(ksa.build_segmenter(backbone(), 150), 64)
    assert round(report.parameters / 1e6, 1) == millions


def test_layers_behind_the_last_tap_are_not_counted(tiny_backbone):
    backbone = tiny_backbone((4, 6, 8))
    taps = ksa.find_stages(backbone)[:2]
    whole = cost_report(ksa.build_segmenter(backbone, 3), 32)
    cut = cost_report(ksa.build_segmenter(backbone, 3, taps=taps), 32)
    assert rows(cut, "backbone") == rows(whole, "backbone")[:2]


def test_parameters_of_a_shared_layer_are_counted_once():
    shared = layers.Dense(6)
    report = cost_report(segmenter(shared, shared), 16)
    (stage,) = rows(report, "backbone")
    assert stage.parameters == 4 * 4 * 3 * 6 + 6 + 6 * 6 + 6
    assert stage.multiply_adds == 16 * (48 * 6 + 2 * 36)


# Edges


def test_a_model_of_fixed_size():
    model = segmenter(size=(16, 32))
    assert cost_report(model, (16, 32)).multiply_adds > 0
    with pytest.raises(ValueError, match=r"must be \(16, 32\), the only size"):
        cost_report(model, 32)


@pytest.mark.parametrize(
    "size, words",
    [
        (0, r"`image_size\[0\]` must be an integer of at least 4. Received: .*=0"),
        (3, "at least 4"),
        ((32, 2), r"image_size\[1\]=2"),
        (32.0, "32.0"),
        ((32, 32, 3), r"`image_size` must be \(height, width\)"),
    ],
    ids=["0", "below the stride", "width below the stride", "float", "triple"],
)
def test_bad_sizes_raise(size, words):
    with pytest.raises(ValueError, match=words):
        cost_report(segmenter(), size)


def test_other_models_raise():
    words = r"cost_report takes a keras_segadapter\.Segmenter.*Sequential"
    with pytest.raises(TypeError, match=words):
        cost_report(keras.Sequential(), 64)
