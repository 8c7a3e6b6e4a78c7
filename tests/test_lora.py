"""LoRA in layers of a backbone, beside adapters and alone."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import layers
from numpy_method import array, assert_close

import keras_segadapter as ksa
from keras_segadapter.backbones.mit import EfficientSelfAttention
from keras_segadapter.lora import lora_layers, lora_merged

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (2, 16, 24, 3)).astype("float32")
MASKS = GENERATOR.integers(0, 3, (2, 16, 24))
PATTERN = r"attention/(query|value)|^mix"
PATHS = ["attention/query", "attention/value", "mix"]


def small():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 4, 4, name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = x + EfficientSelfAttention(2, name="attention")(x)
    x = layers.Conv2D(8, 2, 2, name="reduce")(x)
    x = layers.Dense(8, activation="relu", name="mix")(x)
    return keras.Model(inputs, x, name="small")


def build(adapters=False, lora=True, rank=2, compiled=True, **options):
    keras.utils.set_random_seed(1)
    head = ksa.MLPHead(3, 8, dropout=0)
    model = ksa.Segmenter(small(), 3, adapters=adapters, head=head, **options)
    if lora:
        ksa.enable_lora(model, PATTERN, rank, alpha=8)
    if compiled:
        model.compile(keras.optimizers.Adam(0.01), run_eagerly=EAGER)
    return model


def with_layer(layer):
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, layer(layers.Conv2D(8, 4, 4)(inputs)), name="small")


def train(model, epochs=1, **kwargs):
    model.fit(IMAGES, MASKS, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return model


def logits(model):
    return array(model(IMAGES)["logits"])


def values(weights):
    return [array(weight) for weight in weights]


def named(model):
    """Return the weights of the backbone by the path of their layer and their name."""
    names = [(path, w) for path, layer in lora_layers(model) for w in layer.weights]
    return {f"{path}/{weight.name}": array(weight) for path, weight in names}


def same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


# Contract


@pytest.mark.integration
@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "alone"])
def test_a_loaded_model_goes_on_as_the_one_that_was_saved(adapters, tmp_path):
    model = train(build(adapters))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    same([logits(loaded)], [logits(model)])
    names, weights = zip(*named(model.backbone).items(), strict=True)
    assert tuple(named(loaded.backbone)) == names
    same(named(loaded.backbone).values(), weights)
    for each in ("trainable_weights", "non_trainable_weights"):
        same(values(getattr(loaded, each)), values(getattr(model, each)))
    same(values(loaded.optimizer.variables), values(model.optimizer.variables))
    mix = loaded.backbone.get_layer("mix")
    assert (mix.lora_rank, mix.lora_alpha) == (2, 8)
    loaded.compile(loaded.optimizer, run_eagerly=EAGER)
    same([logits(train(loaded))], [logits(train(model))])
    assert loaded.get_config()["lora"] == model.get_config()["lora"]


def test_a_model_without_lora_has_none_in_its_config():
    assert "lora" not in build(lora=False, compiled=False).get_config()


def test_weights_are_saved_and_loaded(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = train(build())
    model.save_weights(path)
    twin = build()
    twin.load_weights(path)
    same(named(twin.backbone).values(), named(model.backbone).values())
    # A model without LoRA gets the merged kernels.
    merged = build(lora=False, compiled=False)
    merged.load_weights(path)
    assert_close(logits(merged), logits(model), 1e-5)


def test_weights_without_lora_are_a_new_start(tmp_path):
    plain, model = build(lora=False, compiled=False), build(compiled=False)
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.load_weights(tmp_path / "plain.weights.h5")
    assert_close(logits(model), logits(plain), 1e-6)
    mix = model.backbone.get_layer("mix")
    # Keras sets both to zero, where neither has a gradient.
    assert array(mix.lora_kernel_a).any() and not array(mix.lora_kernel_b).any()


@pytest.mark.integration
def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    expected = train(build(), epochs=2, backup=tmp_path / "whole")
    train(build(), epochs=1, backup=tmp_path / "parts")
    resumed = train(build(), epochs=2, backup=tmp_path / "parts")
    same(values(resumed.weights), values(expected.weights))


@pytest.mark.integration
def test_lora_is_enabled_before_the_segmenter_is_built(tmp_path):
    backbone = small()
    ksa.enable_lora(backbone, "mix", rank=2)
    model = ksa.build_segmenter(backbone, num_classes=3)
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=EAGER)
    before = named(backbone)
    train(model, epochs=2)
    moved = [name for name, w in named(backbone).items() if (w != before[name]).any()]
    assert moved == ["mix/lora_kernel_a", "mix/lora_kernel_b"]


def test_other_layers_join_later():
    model = build(compiled=False)
    assert ksa.enable_lora(model, "attention/key", rank=1) == ["attention/key"]
    assert len(model.get_config()["lora"]["layers"]) == 4
    learning = [w for w in model.trainable_weights if w.name.startswith("lora")]
    assert len(learning) == 8


def test_other_models_on_the_backbone_have_lora_too():
    model = train(build(class_names=["a", "b", "c"]))
    for other in (
        ksa.add_adapters(model),
        ksa.change_classes(model, ["a", "b", "d", "c"]),
    ):
        assert other.get_config()["lora"] == model.get_config()["lora"]
    assert_close(logits(ksa.add_adapters(model)), logits(model), 1e-6)


# Meaning


def test_logits_stay_and_only_the_factors_learn(capsys):
    plain, model = build(adapters=True, lora=False), build(adapters=True)
    norms = (
        "Stages of the backbone 'small' that end in neither a layer norm nor a ReLU "
        "get adapters that begin with a layer norm (normalize=True): s4.\n"
    )
    assert capsys.readouterr().out == 2 * norms + (
        "LoRA of rank 2 is enabled in 3 layers of 'small', whose other weights are "
        "frozen: attention/query, attention/value, mix.\n"
    )
    same([logits(model)], [logits(plain)])
    backbone = model.backbone
    before = {weight.path: array(weight) for weight in backbone.weights}
    adapter, head = values(model.adapters[0].weights), values(model.head.weights)
    train(model, epochs=2)
    learned = [w for w in backbone.weights if (array(w) != before[w.path]).any()]
    assert [w.name for w in learned] == ["lora_kernel_a", "lora_kernel_b"] * 3
    for old, part in ((adapter, model.adapters[0]), (head, model.head)):
        assert any(
            (a != b).any() for a, b in zip(old, values(part.weights), strict=True)
        )


def test_the_kernel_is_the_sum_with_the_product():
    backbone = small()
    paths = ksa.enable_lora(backbone, PATTERN, rank=2, alpha=8)
    assert paths == PATHS
    mix = backbone.get_layer("mix")
    for factor in (mix.lora_kernel_a, mix.lora_kernel_b):
        factor.assign(GENERATOR.normal(size=factor.shape))
    x = GENERATOR.normal(size=(1, 3, 4, 8)).astype("float32")
    kernel = array(mix.weights[0]) + 4 * array(mix.lora_kernel_a) @ array(
        mix.lora_kernel_b
    )
    assert_close(mix(x), np.maximum(x @ kernel, 0), 1e-5)
    # The library's own layers compute with it as well, on PyTorch too.
    query = backbone.get_layer("attention").query
    before = array(query(x))
    query.lora_kernel_b.assign(np.ones(query.lora_kernel_b.shape))
    added = 4 * x @ array(query.lora_kernel_a) @ array(query.lora_kernel_b)
    assert_close(query(x), before + added, 1e-5)


def test_predictions_made_before_do_not_stay():
    model = build(lora=False)
    before = model.predict(IMAGES, verbose=0)
    ksa.enable_lora(model, PATTERN, rank=2)
    mix = model.backbone.get_layer("mix")
    mix.lora_kernel_b.assign(np.ones(mix.lora_kernel_b.shape))
    assert np.abs(model.predict(IMAGES, verbose=0) - before).max() > 1e-3


def test_layers_unfrozen_afterwards_learn_and_are_saved_so(tmp_path):
    model = build()
    model.backbone.get_layer("stem").trainable = True
    model.compile(run_eagerly=EAGER)
    count = len(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (
        len(loaded.trainable_variables) == count == len(build().trainable_weights) + 2
    )
    model.backbone.trainable = False  # 6 factors included
    model.compile(run_eagerly=EAGER)
    assert len(model.trainable_variables) == count - 8
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == count - 8


@pytest.mark.usefixtures("mixed_precision")
def test_low_precision(tmp_path):
    model = train(build())
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    same([logits(loaded)], [logits(model)])
    with lora_merged(model):
        assert_close(logits(model), logits(loaded), 5e-2)


def test_merged_kernels_compute_the_same_without_lora():
    model = train(build())
    expected, kernels = logits(model), named(model.backbone)
    with lora_merged(model):
        assert not model.backbone.get_layer("mix").lora_enabled
        assert_close(logits(model), expected, 1e-5)
    same(named(model.backbone).values(), kernels.values())
    same([logits(model)], [expected])


def test_a_plain_model_that_is_saved_holds_the_merged_kernels(tmp_path):
    model = train(build())
    deployed = model.for_inference()
    deployed.save(tmp_path / "deployed.keras")
    loaded = keras.models.load_model(tmp_path / "deployed.keras")
    assert_close(loaded(IMAGES), array(deployed(IMAGES)), 1e-5)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # of the converters about their own code
def test_an_exported_model_has_no_more_operations(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, plain = train(build()), build(lora=False, compiled=False)
    model.save_weights(tmp_path / "model.weights.h5")
    plain.load_weights(tmp_path / "model.weights.h5")
    counts = []
    for each in (plain, model):
        path = ksa.export_model(each, tmp_path / "model.onnx", size=(16, 24))
        counts.append(len(onnx.load(path).graph.node))
    assert counts[0] == counts[1]
    assert ksa.compare_exported(model, path).difference < 1e-4
    assert model.backbone.get_layer("mix").lora_enabled


def test_the_papers_optimizer_takes_the_factors():
    model = build()
    model.compile(ksa.paper_optimizer(model, 10, warmup_steps=0), run_eagerly=EAGER)
    train(model)


def test_inner_layers_are_found_by_their_attributes():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self._attention = layers.MultiHeadAttention(2, 4)
            self.mlp = [layers.Dense(8), layers.Dense(8)]
            self.last = self.mlp[1]
            self.net = keras.Sequential([layers.Dense(8, name="one")], name="net")

        def call(self, x):
            return self.net(self.last(self.mlp[0](self._attention(x, x))))

    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, Block()(inputs))
    assert [path for path, _ in lora_layers(model)] == [
        *(f"block/attention/{name}_dense" for name in ("key", "output")),
        *(f"block/attention/{name}_dense" for name in ("query", "value")),
        *("block/last", "block/mlp/0", "block/net/one"),
    ]


@pytest.mark.integration
def test_blocks_of_keras_hub_learn_by_lora(tmp_path):
    models = pytest.importorskip("keras_hub").models
    backbone = models.ViTBackbone((32, 32, 3), (8, 8), 2, 2, 8, 16)
    model = ksa.build_segmenter(backbone, num_classes=3)
    paths = ksa.enable_lora(model, r"mha/(query|value)", rank=2)
    assert len(paths) == 4
    model.compile(run_eagerly=EAGER)
    images = GENERATOR.integers(0, 256, (1, 32, 32, 3)).astype("float32")
    model.fit(images, np.zeros((1, 32, 32), "int32"), verbose=0)
    factors = [w for w in model.trainable_variables if w.name == "lora_kernel_b"]
    assert len(factors) == 4 and all(array(factor).any() for factor in factors)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    same([array(loaded(images)["logits"])], [array(model(images)["logits"])])


class Holder(layers.Layer):
    def __init__(self):
        super().__init__(name="holder")
        self.inner = layers.Dense(8)

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.scale = self.add_weight(shape=(8,), name="kernel")

    def call(self, inputs):
        return self.scale * self.inner(inputs)


def test_a_weight_beside_an_inner_layer_is_frozen():
    backbone = with_layer(Holder())
    ksa.enable_lora(backbone, "inner", rank=2)
    learning = [weight.name for weight in backbone.trainable_weights]
    assert learning == ["lora_kernel_a", "lora_kernel_b"]


# Edges


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            layers.Dense(8, kernel_constraint="non_neg", name="mix"),
            "'mix' .* has a `kernel_constraint`",
        ),
        (layers.Dense(8, lora_rank=2, name="mix"), "'mix' .* has LoRA already"),
    ],
    ids=["constraint", "already"],
)
def test_a_layer_that_can_not_do_lora_raises_and_nothing_changes(layer, message):
    backbone = with_layer(layer)
    before = len(backbone.weights)
    with pytest.raises(ValueError, match=message):
        ksa.enable_lora(backbone, "conv|mix", rank=2)
    assert len(backbone.weights) == before
    assert len(backbone.trainable_weights) >= before - 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("nothing", 2), ValueError, r"are stem, attention/key.*pattern='nothing'"),
        (("norm", 2), ValueError, "must match the path of a layer with a method"),
        (("mix", 0), ValueError, "`rank` must be"),
        (("mix", 2, 0), ValueError, "`alpha` must be"),
        (("(", 2), ValueError, "must be a regular expression"),
        ((3, 2), TypeError, "must be a regular expression"),
    ],
    ids=["no match", "no enable_lora", "rank", "alpha", "unclosed", "a number"],
)
def test_wrong_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        ksa.enable_lora(small(), *arguments)


def test_another_model_raises():
    with pytest.raises(TypeError, match=r"must be a functional keras.Model"):
        ksa.enable_lora(layers.Dense(3), "mix", 2)


def test_twice_raises():
    model = build(compiled=False)
    with pytest.raises(ValueError, match=r"'attention/query' .* has LoRA already"):
        ksa.enable_lora(model, PATTERN, rank=2)


def test_a_file_of_another_rank_raises(tmp_path):
    build(rank=3, compiled=False).save_weights(tmp_path / "three.weights.h5")
    with pytest.raises(ValueError, match=r"must have the rank .* and 3 in the file"):
        build(rank=2, compiled=False).load_weights(tmp_path / "three.weights.h5")


def test_a_config_of_other_layers_raises():
    config = build(compiled=False).get_config()
    config["lora"]["layers"]["elsewhere"] = {}
    with pytest.raises(ValueError, match="with LoRA in elsewhere"):
        ksa.Segmenter.from_config(config)
