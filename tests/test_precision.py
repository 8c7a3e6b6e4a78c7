"""Tests that mixed precision and compilation change the speed, not the result."""

import contextlib

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter.backbones.mit import EfficientSelfAttention

BACKEND = keras.backend.backend()
K = 8
IMAGES, MASKS = ksa.data.make_scenes(4, size=(32, 32))
SMALL_IMAGES, SMALL_MASKS = IMAGES[:2, :16, :16], MASKS[:2, :16, :16]
# Bounds of the share of equal labels, of the largest difference of logits relative to
# their standard deviation, and of the length of the difference of two steps relative to
# a step's. TensorFlow and torch give 0.999, 0.03, 0.02 and 0.988, 0.09, 0.08.
BOUNDS = {"mixed_float16": (0.99, 0.09, 0.05), "mixed_bfloat16": (0.95, 0.3, 0.2)}


@contextlib.contextmanager
def under(policy):
    """Set the global dtype policy for a while."""
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def build(tiny_backbone):
    """Return a function that builds a segmenter under a policy."""

    def segmenter(policy="float32"):
        with under(policy):
            head = ksa.MLPHead(K, channels=8, dropout=0.0)
            return ksa.build_segmenter(tiny_backbone(), K, head=head)

    return segmenter


@pytest.fixture
def smallest():
    """Return a function that builds a minimal segmenter, which compiles quickly."""

    def segmenter(policy="float32"):
        with under(policy):
            inputs = keras.Input((16, 16, 3))
            stage = keras.layers.Conv2D(4, 4, 4, name="stage")
            return ksa.build_segmenter(
                keras.Model(inputs, stage(inputs)),
                K,
                taps=["stage"],
                adapters=[ksa.SegAdapter(K, kernel_size=3, scale_init=0.1)],
                head=ksa.MLPHead(K, channels=4, dropout=0.0),
            )

    return segmenter


@pytest.fixture(scope="module")
def learned(build):
    """Return weights after a few steps, with adapters that have an effect."""
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(ksa.AdamW(2e-2), metrics=[], run_eagerly=EAGER)
    model.fit(IMAGES, MASKS, epochs=6, verbose=0)
    for variable in model.trainable_variables:
        if variable.path.endswith("mu"):
            variable.assign(np.full(variable.shape, 0.1))
    return model.get_weights()


def array(value):
    return keras.ops.convert_to_numpy(value)


def dtype(value):
    return keras.backend.standardize_dtype(value.dtype)


def steps(model, weights):
    """Return how one step of gradient descent changes the weights, and its loss."""
    model.set_weights(weights)
    model.compile(keras.optimizers.SGD(0.1), metrics=[], run_eagerly=EAGER)
    before = [array(v).copy() for v in model.trainable_variables]
    loss = model.fit(IMAGES, MASKS, verbose=0).history["loss"][0]
    after = [array(v) for v in model.trainable_variables]
    return np.concatenate(
        [(a - b).ravel() for a, b in zip(after, before, strict=True)]
    ), loss


# Contract


@pytest.mark.parametrize("policy", ["float32", *BOUNDS])
def test_a_file_keeps_its_precision_under_another_policy(build, policy, tmp_path):
    model = build(policy)
    model.save(tmp_path / "model.keras")
    with under("mixed_bfloat16" if policy == "float32" else "float32"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        *(array(m.for_inference()(IMAGES)) for m in (model, loaded))
    )


def test_jit_compile_auto_on_a_cpu_means_xla_only_on_jax(build):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        if len(tf.config.list_physical_devices()) > 1:
            pytest.skip("this machine has a GPU")
    model = build()
    model.compile()
    assert model.jit_compile is (BACKEND == "jax")


# Meaning


@pytest.mark.parametrize(
    "policy, size",
    [
        ("mixed_float16", 7),
        pytest.param("mixed_bfloat16", 1, marks=pytest.mark.integration),
    ],
)
def test_predictions_and_gradients_agree_with_float32(build, learned, policy, size):
    exact, low = build(), build(policy)
    share, largest, gradient = BOUNDS[policy]
    exact.set_weights(learned)
    # The features have rms 1, or 7 as EfficientNet's; HSA grows with the square.
    reduce = exact.get_layer("reduce_1")
    reduce.set_weights([size * weight for weight in reduce.get_weights()])
    weights = exact.get_weights()
    low.set_weights(weights)
    expected, found = (array(model.for_inference()(IMAGES)) for model in (exact, low))
    assert found.dtype == "float32"
    assert np.mean(found.argmax(-1) == expected.argmax(-1)) > share
    assert 0 < np.abs(found - expected).max() < largest * expected.std()

    (step, loss), (low_step, low_loss) = (steps(m, weights) for m in (exact, low))
    assert low_loss == pytest.approx(loss, rel=largest)
    assert {dtype(v) for v in low.trainable_variables} == {"float32"}
    # With a loss scale that is not divided out, they would be 32768 times as long.
    assert np.linalg.norm(low_step - step) < gradient * np.linalg.norm(step)


@pytest.mark.parametrize("policy, tolerance", [("float16", 1e-2), ("bfloat16", 1e-1)])
def test_softmax_in_attention_agrees_with_float32(policy, tolerance):
    x = 3 * np.random.default_rng(0).normal(size=(1, 8, 8, 16)).astype("float32")
    exact, low = (
        EfficientSelfAttention(2, 2, dtype=dtype) for dtype in ("float32", policy)
    )
    for layer in (exact, low):
        layer.build(x.shape)
    for layer in (exact.query, exact.key):
        layer.kernel.assign(8 * array(layer.kernel))  # some attention has peaks
    low.set_weights(exact.get_weights())
    expected, found = array(exact(x)), array(low(x)).astype("float32")
    assert np.abs(found - expected).max() < tolerance * expected.std()


@pytest.mark.integration
def test_a_compiled_model_learns_and_predicts_as_an_uncompiled_one(smallest):
    if BACKEND == "torch":
        pytest.skip("torch.compile takes minutes for Keras' training step, or fails")
    model = smallest()
    weights, results = model.get_weights(), []
    for jit_compile in (False, True):
        model.set_weights(weights)
        model.compile(keras.optimizers.SGD(0.1), metrics=[], jit_compile=jit_compile)
        assert model.jit_compile is jit_compile
        loss = model.fit(SMALL_IMAGES, SMALL_MASKS, verbose=0).history["loss"]
        results.append((loss, model.get_weights(), model.segment(SMALL_IMAGES)))
    (loss, plain, labels), (compiled_loss, compiled, compiled_labels) = results
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    assert any(np.any(a != b) for a, b in zip(plain, weights, strict=True))
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(compiled_labels, labels)


# torch.export and inductor warn about their own code.
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_of_the_inference_model(smallest):
    if BACKEND != "torch":
        pytest.skip("torch.compile works on the torch backend")
    import torch

    model = smallest()
    images = torch.from_numpy(SMALL_IMAGES).float()
    # It is exported first, since torch.compile alone breaks it into many graphs.
    with torch.no_grad():
        exported = torch.export.export(model.for_inference(), (images,))
        compiled = torch.compile(exported.module(), fullgraph=True)
        logits = array(compiled(images))
    np.testing.assert_allclose(logits, array(model.for_inference()(images)), atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), model.segment(SMALL_IMAGES))


# Edges


@pytest.mark.integration
@pytest.mark.parametrize("optimizer", ["AdamW", "paper_optimizer"])
def test_a_step_that_overflows_is_skipped_and_the_next_counts(smallest, optimizer):
    model = smallest("mixed_float16")
    paper = optimizer == "paper_optimizer"
    model.compile(
        ksa.paper_optimizer(model, steps=9, warmup_steps=0) if paper else "auto",
        metrics=[],
        run_eagerly=EAGER,
    )
    scale = model.optimizer.dynamic_scale  # of LossScaleOptimizer

    def moved():
        before = [array(v).copy() for v in model.trainable_variables]
        model.fit(SMALL_IMAGES, SMALL_MASKS, verbose=0)
        after = [array(v) for v in model.trainable_variables]
        return [np.any(a != b) for a, b in zip(after, before, strict=True)]

    scale.assign(2.0**60)
    assert not any(moved())
    assert float(scale) == 2.0**59 and int(model.optimizer.iterations) == 0
    scale.assign(2.0**10)
    assert all(moved())
    assert float(scale) == 2.0**10 and int(model.optimizer.iterations) == 1


def test_a_float16_backbone_is_enough_for_a_loss_scale(tiny_backbone):
    with under("mixed_float16"):
        backbone = tiny_backbone()
    model = ksa.build_segmenter(backbone, K)
    sgd = keras.optimizers.SGD()
    for optimizer in ("sgd", keras.optimizers.LossScaleOptimizer(sgd)):
        model.compile(optimizer)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert isinstance(model.optimizer.inner_optimizer, keras.optimizers.SGD)
    model.compile(auto_scale_loss=False)
    assert isinstance(model.optimizer, ksa.AdamW)


POLICIES = [
    "float16",
    "mixed_float16",
    "bfloat16",
    "mixed_bfloat16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["HighOrderSpatialAttention", "SegAdapter"])
def test_symbolic_and_real_outputs_have_one_dtype(name, policy):
    if (BACKEND, policy) == ("jax", "float64"):
        pytest.skip("JAX computes in float32 unless its jax_enable_x64 is set")
    layer = getattr(ksa, name)(K, dtype=policy)
    found = layer(np.ones((1, 4, 4, 6), "float32"))
    for real, symbolic in zip(found, layer(keras.Input((4, 4, 6))), strict=True):
        assert dtype(real) == dtype(symbolic)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_three_blocks_of_scale_one_stay_finite_in_float16(policy, normalize):
    x = 10 * np.random.default_rng(0).normal(size=(1, 8, 8, 16))
    x = x.astype("float16").astype("float32")  # The blocks would amplify its rounding.
    exact, low = (
        ksa.SegAdapter(K, num_blocks=3, scale_init=1, normalize=normalize, dtype=each)
        for each in ("float32", policy)
    )
    exact.build(x.shape)
    low.build(x.shape)
    low.set_weights(exact.get_weights())
    # What leaves float16's range ends at its largest number.
    expected = [np.clip(array(value), -65504, 65504) for value in exact(x)]
    for value, want in zip(low(x), expected, strict=True):
        value = array(value).astype("float32")
        assert np.isfinite(value).all()
        assert np.abs(value - want).max() < 0.01 * want.std()
