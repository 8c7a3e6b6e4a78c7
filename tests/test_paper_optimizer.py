"""paper_optimizer: the rate and decay of each weight, and the same after loading."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter import WarmupPoly, paper_optimizer
from keras_segadapter.backbones.mit import MixFFN
from keras_segadapter.training.optimizers import GroupedOptimizer

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 32, 32, 3), "uint8")
MASKS = RNG.integers(0, K, (5, 32, 32), "uint8")


@keras.saving.register_keras_serializable("test_paper_optimizer")
class Scale(keras.Layer):
    """A layer like ConvNeXt's LayerScale: its weight has another name in each build."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * self.gamma


def mit():
    """Build a backbone with one block like MiT's per stage."""
    inputs = x = keras.Input((None, None, 3))
    for stage in (1, 2):
        x = keras.layers.Conv2D(4, 3, 3 - stage + 2, name=f"stage{stage}_embed")(x)
        y = keras.layers.LayerNormalization(name=f"stage{stage}_norm")(x)
        x = x + MixFFN(ratio=1, name=f"stage{stage}_ffn")(y)
    return keras.Model(inputs, x, name="mit")


def convnext(depths):
    """Build stages of `depths` blocks, with layers named as in keras.applications."""
    inputs = x = keras.Input((None, None, 3))
    for stage, depth in enumerate(depths):
        part = f"downsampling_block_{stage - 1}" if stage else "stem"
        reduce = keras.layers.Conv2D(2, 2, 2)
        x = keras.Sequential([reduce], name=f"next_{part}")(x)
        for block in range(depth):
            name = f"next_stage_{stage}_block_{block}"
            y = keras.layers.Conv2D(2, 1, name=f"{name}_pointwise_conv")(x)
            x = x + Scale(name=f"{name}_layer_scale")(y)
    x = keras.layers.LayerNormalization(name="last_norm")(x)
    return keras.Model(inputs, x, name="next")


def segmenter(backbone):
    # Resumed trainings are exact without dropout only.
    head = ksa.MLPHead(K, channels=2, dropout=0.0, name="head")
    return ksa.build_segmenter(backbone, K, head=head)


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def rates_and_decays(optimizer, model):
    """Return the rate and decay of each weight, by its layer's name and its path."""
    groups = optimizer.get_config()["groups"]
    found = {}
    for variable, group in zip(model.trainable_variables, groups, strict=True):
        config = optimizer.get_config()["optimizers"][group]["config"]
        rate = config["learning_rate"]["config"]["learning_rate"]
        found[id(variable)] = rate, config["weight_decay"]
    return {
        f"{layer.name}: {v.path}": found.pop(id(v))
        for layer in model.layers
        for v in layer.trainable_variables
    }


# Contract


def test_configs():
    model = segmenter(mit())
    optimizer = paper_optimizer(model, 9, warmup_steps=2, clipnorm=1.0, amsgrad=True)
    assert isinstance(optimizer, keras.optimizers.MultiOptimizer)
    config = optimizer.get_config()
    optimizer.build(model.trainable_variables)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(copy, GroupedOptimizer)
    assert optimizer.get_config() == config == copy.get_config()
    for group in config["optimizers"]:
        group = group["config"]
        assert (group["epsilon"], group["clipnorm"], group["amsgrad"]) == (
            1e-8,
            1,
            True,
        )
        schedule = group["learning_rate"]["config"]
        assert (schedule["steps"], schedule["warmup_steps"]) == (9, 2)
    names = [group.name for group in optimizer.optimizers]
    assert sorted(names) == sorted(
        f"rate_x{factor}{ending}"
        for factor in (1, 7, 10)
        for ending in ("", "_no_decay")
    )


def prepared(kind):
    """Build a compiled segmenter; equal calls give equal weights."""
    keras.utils.set_random_seed(0)
    if kind == "convnext":
        model = segmenter(convnext((1, 1, 3, 1)))
        options = dict(layer_decay=0.5, multipliers={"adapter_s16": 2.0})
    else:
        backbone = mit() if kind == "mit" else convnext((1, 1, 1, 1))
        backbone.trainable = kind == "mit"
        model, options = segmenter(backbone), {}
    optimizer = paper_optimizer(model, 6, 1e-2, 0.1, warmup_steps=2, **options)
    model.compile(optimizer, run_eagerly=EAGER)
    return model


def train(model, start, stop):
    model.fit(
        IMAGES[start:stop], MASKS[start:stop], batch_size=1, shuffle=False, verbose=0
    )


@pytest.mark.integration
def test_a_loaded_model_trains_on_as_the_saved_one(tmp_path):
    through, stopped = prepared("convnext"), prepared("convnext")
    train(through, 0, 2)
    train(stopped, 0, 1)
    stopped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == stopped.optimizer.get_config()
    store = {}
    loaded.optimizer.save_own_variables(store)
    assert len(store) == 1  # the groups save all the rest
    train(loaded, 1, 2)
    assert int(loaded.optimizer.iterations) == 2
    for one, other in zip(
        through.trainable_variables, loaded.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(array(one), array(other), rtol=1e-6, atol=1e-6)


GROUPS = {"mit": 6, "convnext": 16, "frozen": 4}
RESUME = """
import sys
folder, tests, *kinds = sys.argv[1:]
sys.path.insert(0, tests)
import keras, numpy as np
import test_paper_optimizer as test
for kind in kinds:
    model = keras.models.load_model(f"{folder}/{kind}.keras")
    test.train(model, 2, 3)
    values = [test.array(v) for v in model.trainable_variables]
    kept = test.rates_and_decays(model.optimizer, model)
    groups = np.array(list(kept.values()), float)
    np.savez(f"{folder}/{kind}.npz", *values, groups=groups)
"""


@pytest.mark.slow
def test_resumed_in_a_fresh_process_it_ends_with_the_same_weights(tmp_path):
    through = {kind: prepared(kind) for kind in GROUPS}
    for kind, model in through.items():
        stopped = prepared(kind)
        train(stopped, 0, 2)
        stopped.save(tmp_path / f"{kind}.keras")
        train(model, 0, 3)
    command = [sys.executable, "-c", RESUME, tmp_path, Path(__file__).parent, *through]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    for kind, model in through.items():
        resumed = dict(np.load(tmp_path / f"{kind}.npz"))
        expected = np.array(
            list(rates_and_decays(model.optimizer, model).values()), float
        )
        np.testing.assert_array_equal(resumed.pop("groups"), expected)
        assert len(model.optimizer.optimizers) == GROUPS[kind]
        for one, other in zip(resumed.values(), model.trainable_variables, strict=True):
            np.testing.assert_allclose(one, array(other), rtol=1e-6, atol=1e-6)


# Meaning


def test_each_weight_has_its_role():
    model = segmenter(mit())
    optimizer = paper_optimizer(model, 9, 1.0, weight_decay=0.1, warmup_steps=0)
    kept = rates_and_decays(optimizer, model)
    assert len(kept) == len(model.trainable_variables)
    expected = {}
    for layer in model.layers:
        role = {"ada": 7, "hea": 10}.get(layer.name[:3], 1)
        for v in layer.trainable_variables:
            position = "ffn" in layer.name and "depthwise" in v.path
            decays = "kernel" in v.path or "projection" in v.path
            key = f"{layer.name}: {v.path}"
            expected[key] = role, 0.1 if decays and not position else None
    assert kept == expected
    assert {rate for rate, _ in kept.values()} == {1, 7, 10}
    assert sum("ffn/depthwise" in key for key in kept) == 4  # two kernels, two biases


def test_multipliers_stand_in_place_of_the_roles():
    model = segmenter(mit())
    own = {"/mu$": 0.5, "^head$": 3, r"stage1_.*/kernel": 2}
    optimizer = paper_optimizer(model, 9, 1.0, 0, 4, 5, multipliers=own, warmup_steps=0)
    for key, (rate, decay) in rates_and_decays(optimizer, model).items():
        name = key.split(":")[0]
        if key.endswith("/mu"):
            expected = 0.5
        elif name.startswith("stage1") and key.endswith("kernel"):
            expected = 2
        else:
            expected = {"ada": 4, "hea": 3}.get(name[:3], 1)
        assert (rate, decay) == (expected, None), key


def test_a_frozen_backbone_is_in_no_group():
    backbone = mit()
    backbone.trainable = False
    model = segmenter(backbone)
    kept = rates_and_decays(paper_optimizer(model, 9, 1.0, warmup_steps=0), model)
    assert len(kept) == len(model.trainable_variables) > 0
    assert {rate for rate, _ in kept.values()} == {7, 10}


def test_weights_of_a_layer_that_was_frozen_before_it_was_built():
    # Keras counts them among the model's trainable weights, but not the layer's.
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    frozen = MixFFN(1, trainable=False, name="frozen")
    model = segmenter(keras.Model(inputs, frozen(x)))
    optimizer = paper_optimizer(model, 9, warmup_steps=0)
    assert len(optimizer.get_config()["groups"]) == len(model.trainable_variables)
    optimizer.build(model.trainable_variables)


def check_stage_decay(model, deepest):
    optimizer = paper_optimizer(
        model, 9, 1.0, 0.05, 1, 1, warmup_steps=0, layer_decay=0.9
    )
    powers = {}
    for key, (rate, decay) in rates_and_decays(optimizer, model).items():
        part = key.split(":")[0].split("_block_")[0].removeprefix("convnext_tiny_")
        powers.setdefault(part.removeprefix("next_"), set()).add(rate)
        assert (decay == 0.05) == key.endswith(("kernel", "projection"))
    for stage in range(4):
        assert powers.pop(f"stage_{stage}") == {0.9 ** (deepest - stage - 1)}
    assert powers.pop("stem") == powers.pop("downsampling") == {0.9**deepest}
    assert "head" in powers and len(powers) > 3
    assert set().union(*powers.values()) == {1.0}


@pytest.mark.parametrize(
    ("blocks", "deepest"), [(9, 7), (27, 13)], ids=["9 blocks", "27 blocks"]
)
def test_stages_of_convnext(blocks, deepest):
    check_stage_decay(segmenter(convnext((1, 1, blocks, 1))), deepest)


@pytest.mark.integration
def test_stages_of_convnext_tiny_itself():
    check_stage_decay(ksa.AdaptConvNeXtTiny(K, head_channels=8), 7)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1e-6),
        (750, 0.5 + 0.5e-6),
        (1499, 1 - (1 - 1e-6) / 1500),
        (1500, 1.0),
        (80_750, 0.5),
        (159_999, 1 / 158_500),
        (160_000, 0.0),
        (170_000, 0.0),
    ],
)
def test_the_schedule_rises_and_falls(step, factor):
    schedule = WarmupPoly(6e-5, 160_000)
    for each in (schedule, WarmupPoly.from_config(schedule.get_config())):
        np.testing.assert_allclose(array(each(step)), 6e-5 * factor, rtol=1e-5)


def test_the_schedule_without_warmup():
    schedule = WarmupPoly(2.0, 4, warmup_steps=0)
    values = [float(array(schedule(step))) for step in range(5)]
    assert values == pytest.approx([2, 1.5, 1, 0.5, 0])


def large_gradients(variables):
    """Draw gradients of at least 1e-3 in size."""
    return [
        (RNG.choice([-1, 1], v.shape) * RNG.uniform(1e-3, 0.1, v.shape)).astype("f4")
        for v in variables
    ]


@pytest.mark.integration
def test_ten_steps_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rate, decay, steps, warmup = 1e-3, 0.5, 12, 4
    model = segmenter(mit())
    optimizer = paper_optimizer(model, steps, rate, decay, warmup_steps=warmup)
    variables = model.trainable_variables
    optimizer.build(variables)
    groups, weights = [], []
    for layer in model.layers:
        factor = {"ada": 7, "hea": 10}.get(layer.name[:3], 1)
        for v in layer.trainable_variables:
            plain = len(v.shape) > 1 and "ffn/depthwise" not in v.path
            weight = torch.nn.Parameter(torch.tensor(array(v).copy(), device="cpu"))
            group = dict(params=[weight], weight_decay=decay if plain else 0.0)
            groups.append(dict(group, lr=factor * rate))
            weights.append((weight, v))
    reference = torch.optim.AdamW(groups, eps=1e-8)
    highest = [group["lr"] for group in groups]
    start = [array(v).copy() for v in variables]
    order = [next(w for w, other in weights if other is v) for v in variables]
    for step in range(10):
        rise = 1e-6 + (1 - 1e-6) * step / warmup
        factor = min(rise, (steps - step) / (steps - warmup))
        for group, lr in zip(reference.param_groups, highest, strict=True):
            group["lr"] = lr * factor
        gradients = large_gradients(variables)
        for weight, gradient in zip(order, gradients, strict=True):
            weight.grad = torch.from_numpy(gradient)
        reference.step()
        tensors = [keras.ops.convert_to_tensor(g) for g in gradients]
        optimizer.apply(tensors, variables)
    for weight, v, before in zip(order, variables, start, strict=True):
        expected = weight.detach().numpy()
        assert np.abs(expected - before).max() > 1e-3
        np.testing.assert_allclose(array(v), expected, atol=1e-5, err_msg=v.path)


def first_steps(options, gradients):
    """Return weights before and after one step per gradient, and the optimizer."""
    keras.utils.set_random_seed(0)
    model = segmenter(mit())
    variables = model.trainable_variables
    optimizer = paper_optimizer(model, 9, 1e-2, 0.1, warmup_steps=0, **options)
    optimizer.build(variables)
    before = [array(v).copy() for v in variables]
    for gradient in gradients:
        tensors = [keras.ops.full(v.shape, gradient) for v in variables]
        optimizer.apply(tensors, variables)
    return before, [array(v) for v in variables], optimizer


@pytest.mark.integration
def test_gradients_are_accumulated_over_batches():
    before, after, _ = first_steps(dict(gradient_accumulation_steps=2), [0.1])
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    _, after, _ = first_steps(dict(gradient_accumulation_steps=2), [0.1, 0.3])
    # The schedule has counted both batches, so the rate is 8/9.
    keras.utils.set_random_seed(0)
    model = segmenter(mit())
    variables = model.trainable_variables
    once = paper_optimizer(model, 9, 1e-2 * 8 / 9, 0.1, warmup_steps=0)
    once.build(variables)
    once.apply([keras.ops.full(v.shape, 0.2) for v in variables], variables)
    for one, other in zip(after, variables, strict=True):
        np.testing.assert_allclose(one, array(other), atol=1e-6)


def test_each_group_is_clipped_by_its_own_norm():
    # Adam's first step does not depend on the size of a gradient, but its moments do.
    _, _, optimizer = first_steps(dict(global_clipnorm=1.0), [5.0])
    for group in optimizer.optimizers:
        momenta = [array(v) for v in group.variables if "momentum" in v.path]
        norm = np.sqrt(sum(np.square(m).sum() for m in momenta)) / 0.1
        assert norm == pytest.approx(1.0, rel=1e-4)
    _, _, optimizer = first_steps(dict(clipvalue=0.25), [5.0])
    for group in optimizer.optimizers:
        for v in group.variables:
            if "momentum" in v.path:
                np.testing.assert_allclose(array(v), 0.025, rtol=1e-5)


@pytest.mark.integration
def test_a_fit_with_accumulation_and_moving_averages():
    model = segmenter(mit())
    options = dict(gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5)
    model.compile(
        paper_optimizer(model, 9, 1e-2, warmup_steps=0, **options), run_eagerly=EAGER
    )
    before = [array(v).copy() for v in model.trainable_variables]
    train(model, 0, 4)
    assert int(model.optimizer.iterations) == 4
    averages = [
        array(v)
        for group in model.optimizer.optimizers
        for v in group.variables
        if "average" in v.path
    ]
    after = [array(v) for v in model.trainable_variables]
    # Keras assigns the averages to the weights when fit ends.
    assert sorted(map(np.sum, after)) == pytest.approx(sorted(map(np.sum, averages)))
    moved = [np.any(a != b) for a, b in zip(before, after, strict=True)]
    assert all(moved)


# Edges


@pytest.mark.integration
def test_it_works_under_a_loss_scale(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = prepared("frozen")
    finally:
        keras.config.set_dtype_policy("float32")
    train(model, 0, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    for one, other in zip(
        model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(array(one), array(other))


def test_other_trainable_weights_raise():
    backbone = mit()
    model = segmenter(backbone)
    backbone.trainable = False
    optimizer = paper_optimizer(model, 9, warmup_steps=0)
    model.compile(optimizer)
    backbone.trainable = True
    with pytest.raises(ValueError, match=r"made for \d+ trainable.*Received: \d+ "):
        model.compile(optimizer)
    model.compile(paper_optimizer(model, 9, warmup_steps=0))
    other = segmenter(mit())
    with pytest.raises(ValueError, match="or those of another model"):
        other.compile(model.optimizer)


def test_nothing_to_train_raises():
    model = segmenter(mit())
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        paper_optimizer(model, 9, warmup_steps=0)


def test_other_models_raise():
    words = r"paper_optimizer takes a keras_segadapter\.Segmenter"
    with pytest.raises(TypeError, match=words):
        paper_optimizer(mit(), 9)


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ("momentum", ValueError, "not recognized: .*momentum"),
        ("name", TypeError, "multiple values for keyword argument 'name'"),
        ("loss_scale_factor", TypeError, r"LossScaleOptimizer.*Received: .*=1\.0"),
    ],
    ids=["unknown", "name", "loss scale"],
)
def test_options_that_groups_can_not_have_raise(option, error, words):
    with pytest.raises(error, match=words):
        paper_optimizer(segmenter(mit()), 9, warmup_steps=0, **{option: 1.0})


ABOVE = "must be a finite number above 0"
BAD = {
    "steps 0": (dict(steps=0), "`steps` must be .* at least 1"),
    "steps 1.5": (dict(steps=1.5), "`steps` must be an integer"),
    "warmup 9": (dict(warmup_steps=9), "`warmup_steps` must be below `steps`"),
    "warmup -1": (dict(warmup_steps=-1), "`warmup_steps` must be .* at least 0"),
    "rate 0": (dict(learning_rate=0.0), f"`learning_rate` {ABOVE}"),
    "rate NaN": (dict(learning_rate=float("nan")), f"`learning_rate` {ABOVE}"),
    "schedule": (dict(learning_rate=WarmupPoly(1.0, 9, 0)), f"`learning_rate` {ABOVE}"),
    "decay -0.1": (dict(weight_decay=-0.1), "`weight_decay` must be .* at least 0"),
    "decay None": (dict(weight_decay=None), "`weight_decay` must be .*=None"),
    "adapters 0": (dict(adapter_multiplier=0), f"`adapter_multiplier` {ABOVE}"),
    "head -1": (dict(head_multiplier=-1), f"`head_multiplier` {ABOVE}"),
    "factor 0": (dict(multipliers={"mu": 0}), rf"`multipliers\['mu'\]` {ABOVE}"),
    "no match": (dict(multipliers={"nu$": 1}), r"must match .*'nu\$'"),
    "no expression": (dict(multipliers={"(": 1}), r"regular expressions.*'\('"),
    "number": (dict(multipliers={3: 1}), "regular expressions. Received: 3"),
    "two matches": (
        dict(multipliers={"mu": 1, "adap": 2}),
        "at most one pattern .*'mu' and 'adap'",
    ),
    "no ConvNeXt": (dict(layer_decay=0.9), "needs a ConvNeXt.*backbone 'mit'"),
    "layer decay 1": (dict(layer_decay=True), "`layer_decay` must be .* and below 1"),
}


@pytest.fixture(scope="module")
def model():
    return segmenter(mit())


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_raise(model, arguments, words):
    arguments = dict(steps=9, warmup_steps=2) | arguments
    with pytest.raises(ValueError, match=words):
        paper_optimizer(model, **arguments)


def test_the_default_warmup_needs_more_steps_than_it_has(model):
    with pytest.raises(ValueError, match=r"a tenth .*warmup_steps=1500, steps=1000"):
        paper_optimizer(model, 1000)
