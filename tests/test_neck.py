"""SimpleFeaturePyramid, and a neck between the adapters and the head of a segmenter."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import layers, ops
from numpy_method import array, assert_close, layer_norm, maps, set_random_weights

import keras_segadapter as ksa
from keras_segadapter.layers.faster import PatchConv2DTranspose

WIDTH, K = 8, 3
BLOCKS = ["block_0", "block_1", "block_2"]


def plain_vit(size=(32, 48), depth=4, norm=True):
    """Build a network of tokens at stride 16 that ends in a layer norm."""
    image = keras.Input((*size, 3))
    x = layers.Conv2D(WIDTH, 16, 16)(image)
    x = layers.Reshape((-1, WIDTH))(x)
    for index in range(depth):
        branch = layers.Dense(WIDTH, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add(name=f"block_{index}")([x, branch])
    if norm:
        x = layers.LayerNormalization(name="final_norm")(x)
    model = keras.Model(image, x, name="plain_vit")
    for layer in model.layers:
        if isinstance(layer, layers.LayerNormalization):
            set_random_weights(layer)
    return model


def build(backbone=None, neck=None, **options):
    options = {"preprocessing": layers.Rescaling(1 / 255), **options}
    neck = neck or ksa.SimpleFeaturePyramid()
    return ksa.build_segmenter(backbone or plain_vit(), K, neck=neck, **options)


def batch(size=(32, 48)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size, 3), "uint8")
    return images, rng.integers(0, K, (2, *size), "uint8")


def into_neck_and_out_of_adapters(backbone, **options):
    """Return what a neck gets and what the adapters give, on random images."""
    model = build(backbone, layers.Identity(), **options)
    outputs = [*model.neck.input], model.features["outputs"]
    return keras.Model(model.input, outputs).predict(batch()[0], verbose=0)


# Contract; the rest of it is in test_layers_contract.py


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_maps_as_scale_factors(count):
    neck = ksa.SimpleFeaturePyramid([2, 1], name="two")
    words = f"'two' takes one feature map for each.*\\(2, 1\\) and {count} maps"
    with pytest.raises(ValueError, match=words):
        neck([keras.Input((4, 4, 8))] * count)


@pytest.mark.integration
def test_a_model_with_a_neck_saves_and_loads(tmp_path):
    images, _ = batch()
    model = build()
    set_random_weights(model.neck)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.neck.get_config() == model.neck.get_config()
    results = (each.predict(images, verbose=0) for each in (loaded, model))
    np.testing.assert_allclose(*results, atol=1e-5)


def test_a_config_of_before_has_no_neck():
    config = ksa.build_segmenter(plain_vit(), K).get_config()
    assert config.pop("neck") is None
    assert ksa.Segmenter.from_config(config).neck is None


@pytest.mark.parametrize(
    "neck, error, words",
    [
        pytest.param("fpn", TypeError, "`neck` must be a Keras layer", id="no layer"),
        pytest.param(
            layers.Concatenate(), ValueError, "`neck` must turn a list", id="no list"
        ),
        pytest.param(
            ksa.SimpleFeaturePyramid(name="block_0"),
            ValueError,
            "`neck` and a layer of the backbone, both named 'block_0'",
            id="name of another layer",
        ),
        pytest.param(
            ksa.SimpleFeaturePyramid([4]), ValueError, "and 4 maps", id="one factor"
        ),
    ],
)
def test_a_wrong_neck_raises(neck, error, words):
    with pytest.raises(error, match=words):
        build(neck=neck)


def test_the_cost_report_has_a_row_for_the_neck():
    model = build(adapters=False)
    report = ksa.cost_report(model, (32, 48))
    (row,) = (row for row in report.rows if row.part == "neck")
    assert report.parameters == model.count_params()
    # On 2 x 3 pixels: 8 to 4 channels and, on four times as many, 4 to 2; then 8 to 4.
    products = 6 * 4 * (8 * 4 + 4 * (4 * 2) + 8 * 4)
    assert (row.stage, row.multiply_adds) == ("", products)
    assert row.parameters == sum(np.prod(w.shape) for w in model.neck.weights)
    assert report.not_counted == ()


def test_the_papers_optimizer_treats_it_as_the_head():
    model = build()
    optimizer = ksa.paper_optimizer(model, steps=2000, head_multiplier=5)
    model.compile(optimizer)
    rates = {}
    for group in optimizer.optimizers:
        rates.update({id(v): group.name for v in group._trainable_variables})
    assert {rates[id(v)].split("_no")[0] for v in model.neck.weights} == {"rate_x5"}


# Meaning


def test_equals_pytorchs_layers():
    torch = pytest.importorskip("torch")
    x = maps(2, 5, 6, WIDTH)
    neck = ksa.SimpleFeaturePyramid([4, 0.5])
    neck.build([x.shape] * 2)
    set_random_weights(neck)
    first, second = neck.branches[0].deconvolutions
    (norm,) = neck.branches[0].norms

    def tensor(variable, *axes):
        values = torch.from_numpy(array(variable))
        return values.permute(*axes) if axes else values

    def deconvolution(layer, x):
        # Keras has (k, k, filters, C), PyTorch (C, filters, k, k).
        weight = tensor(layer.kernel, 3, 2, 0, 1)
        return torch.nn.functional.conv_transpose2d(
            x, weight, tensor(layer.bias), stride=2
        )

    image = torch.from_numpy(x.astype("float64")).permute(0, 3, 1, 2)
    hidden = deconvolution(first, image).permute(0, 2, 3, 1)
    hidden = torch.nn.functional.layer_norm(
        hidden, (WIDTH // 2,), tensor(norm.gamma), tensor(norm.beta), 1e-6
    )
    hidden = torch.nn.functional.gelu(hidden).permute(0, 3, 1, 2)
    fine = deconvolution(second, hidden).permute(0, 2, 3, 1)
    coarse = torch.nn.functional.max_pool2d(image, 2, 2, ceil_mode=True)
    expected = fine.numpy(), coarse.permute(0, 2, 3, 1).numpy()
    for actual, reference in zip(neck([x, x]), expected, strict=True):
        assert_close(actual, reference, 1e-5)


def test_the_transposed_convolution_is_keras_own():
    x = maps(2, 3, 4, 6)
    options = {"filters": 5, "kernel_size": 2, "strides": 2, "activation": "relu"}
    ours, keras_own = PatchConv2DTranspose(**options), layers.Conv2DTranspose(**options)
    for layer in (ours, keras_own):
        layer.build(x.shape)
        set_random_weights(layer)
    assert_close(ours(x), array(keras_own(x)), 1e-5)


def test_logits_are_at_the_finest_stride_and_scores_at_their_own():
    model = build()
    assert [stage.stride for stage in model.stages] == [16] * 4
    assert model.output["logits"].shape == (None, 8, 12, K)
    assert model.output["aux"].shape == (None, 2, 3, K)


@pytest.mark.integration
def test_images_are_padded_to_the_necks_deepest_stride():
    class Pooled(layers.Layer):
        def call(self, inputs):
            return [inputs[0], ops.mean(inputs[-1], axis=(1, 2), keepdims=True)]

    backbone = plain_vit(size=(None, None))
    for neck, divisor in [
        (ksa.SimpleFeaturePyramid(), 32),
        (ksa.SimpleFeaturePyramid([4, 2, 1, 1]), 16),
        (ksa.SimpleFeaturePyramid([1, 0.5, 0.25, 0.25]), 64),
        (Pooled(), 16),
    ]:
        model = build(backbone, neck, adapters=False)
        assert model.size_divisor == divisor
    images, _ = batch((21, 30))
    model = build(backbone)
    padded = np.pad(images, ((0, 0), (0, 11), (0, 2), (0, 0)), mode="edge")
    expected = model.predict(padded, verbose=0)[:, :21, :30].argmax(-1)
    np.testing.assert_array_equal(model.segment(images), expected)


def test_an_auxiliary_layer_gets_the_necks_maps():
    model = build(aux=ksa.MLPHead(K, channels=4, name="second"))
    assert model.output["aux"].shape == (None, 8, 12, K)


@pytest.mark.parametrize("adapters", [True, False])
def test_the_final_norm_stands_in_front_of_the_neck(adapters):
    backbone = plain_vit()
    seen, adapted = into_neck_and_out_of_adapters(backbone, adapters=adapters)
    norm = backbone.get_layer("final_norm")
    for one, other in zip(seen[:3], adapted[:3], strict=True):
        assert_close(one, layer_norm(norm, other.astype("float64")), 1e-5)
    np.testing.assert_array_equal(seen[3], adapted[3])  # The last tap lies behind it.


@pytest.mark.parametrize("pooled", [False, True])
def test_taps_that_all_lie_in_front_of_the_final_norm(pooled):
    backbone = plain_vit()
    if pooled:
        vector = layers.GlobalAveragePooling1D()(backbone.output)
        backbone = keras.Model(backbone.input, vector)
    seen, adapted = into_neck_and_out_of_adapters(backbone, taps=BLOCKS)
    norm = backbone.get_layer("final_norm")
    for one, other in zip(seen, adapted, strict=True):
        assert_close(one, layer_norm(norm, other.astype("float64")), 1e-5)


def test_without_a_final_norm_the_neck_gets_the_features_as_they_are(tiny_backbone):
    for backbone in (plain_vit(norm=False), tiny_backbone(size=(32, 48))):
        for one, other in zip(*into_neck_and_out_of_adapters(backbone), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_identity_adds_the_final_norm_alone():
    model = build(neck=layers.Identity(), adapters=False)
    assert model.output["logits"].shape == (None, 2, 3, K)
    plain = ksa.build_segmenter(model.backbone, K, head=model.head, adapters=False)
    images, _ = batch()
    difference = model.predict(images, verbose=0) - plain.predict(images, verbose=0)
    assert np.abs(difference).max() > 1e-3


@pytest.mark.integration
def test_a_frozen_backbone_stays_and_everything_else_learns():
    backbone = plain_vit()
    backbone.trainable = False
    adapters = [ksa.SegAdapter(K, scale_init=1.0, normalize=True) for _ in range(4)]
    model = build(backbone, adapters=adapters)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGER)
    before = [ops.convert_to_numpy(w) for w in model.weights]
    model.fit(*batch(), verbose=0)
    moved = {
        w.path
        for w, old in zip(model.weights, before, strict=True)
        if np.any(ops.convert_to_numpy(w) != old)
    }
    assert moved.isdisjoint({w.path for w in backbone.weights})
    parts = [*adapters, model.neck, model.head]
    assert {w.path for part in parts for w in part.trainable_weights} <= moved


@pytest.mark.integration
def test_adapters_and_other_classes_keep_the_neck():
    images, _ = batch()
    trained = build(adapters=False, class_names=["sky", "sea", "sand"])
    model = ksa.add_adapters(trained)
    assert model.neck is trained.neck
    results = (each.predict(images, verbose=0) for each in (model, trained))
    np.testing.assert_array_equal(*results)
    model = ksa.change_classes(trained, ["sea", "sky"])
    assert model.neck is trained.neck


def test_a_line_names_the_neck_where_all_stages_are_coarse(capsys, tiny_backbone):
    model = ksa.build_segmenter(plain_vit(), K)
    line = (
        "All stages of the backbone 'plain_vit' have stride 16, at which masks are "
        "coarse. For finer ones pass a neck, as in "
        "neck=keras_segadapter.SimpleFeaturePyramid()."
    )
    assert line in capsys.readouterr().out
    ksa.build_segmenter(plain_vit(depth=2), K)
    assert "SimpleFeaturePyramid([4, 2, 1])." in capsys.readouterr().out
    build()
    ksa.Segmenter.from_config(model.get_config())
    ksa.build_segmenter(tiny_backbone(), K)
    assert "SimpleFeaturePyramid" not in capsys.readouterr().out


# Edges


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # by the converters
def test_an_exported_file_of_open_size(tmp_path):
    pytest.importorskip("onnxruntime")
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(WIDTH, 16, 16, name="block_0")(image)
    x = layers.Conv2D(WIDTH, 3, padding="same", name="block_1")(x)
    neck = ksa.SimpleFeaturePyramid([4, 0.5])
    model = build(keras.Model(image, x), neck, taps=BLOCKS[:2])
    size = (64, 96) if keras.backend.backend() == "jax" else None
    ksa.export_model(model, tmp_path / "m.onnx", size=size)
    image = batch((64, 96))[0][0]
    assert ksa.compare_exported(model, tmp_path / "m.onnx", image).difference < 1e-4


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    images, masks = batch()
    model.compile(run_eagerly=EAGER)
    model.fit(images, masks, verbose=0)
    logits = model.predict(images, verbose=0)
    assert logits.dtype == "float32" and np.isfinite(logits).all()


def test_sizes_beside_the_multiples_of_the_stride():
    neck = ksa.SimpleFeaturePyramid([2, 1, 0.5, 0.25])
    pyramid = neck([maps(1, 5, 1, 3)] * 4)
    assert [x.shape for x in pyramid] == [
        (1, 10, 2, 1),
        (1, 5, 1, 3),
        (1, 3, 1, 3),
        (1, 2, 1, 3),
    ]
    model = build()  # of a fixed size, to which images are resized
    assert model.segment(batch((21, 30))[0][0]).shape == (21, 30)
