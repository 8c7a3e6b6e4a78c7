"""Vision transformers: stages of tokens (B, N, C), visible or inside one layer."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import ops
from numpy_method import maps, set_random_weights

import keras_segadapter as ksa
from keras_segadapter.graph.splice import splice

layers = keras.layers
WIDTH = 8


@keras.saving.register_keras_serializable("tests")
class LeadingTokens(layers.Layer):
    """Puts a class token and registers before the patches, adds positions."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def build(self, input_shape):
        self.leading = self.add_weight(shape=(1, self.count, input_shape[-1]))

    def call(self, inputs):
        leading = ops.tile(self.leading, (ops.shape(inputs)[0], 1, 1))
        return ops.concatenate([leading, inputs], axis=1)

    def compute_output_shape(self, input_shape):
        batch, count, channels = input_shape
        return (batch, None if count is None else self.count + count, channels)

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A transformer's block as one layer."""

    def build(self, input_shape):
        self.norm = layers.LayerNormalization()
        self.mix = layers.MultiHeadAttention(2, 4)
        self.ffn = layers.Dense(input_shape[-1], activation="gelu")
        self.norm.build(input_shape)
        self.mix.build(input_shape, input_shape)
        self.ffn.build(input_shape)

    def call(self, inputs):
        x = self.norm(inputs)
        x = inputs + self.mix(x, x)
        return x + self.ffn(x)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("tests")
class Encoder(layers.Layer):
    """All blocks in one layer, as keras-hub's ViT has them."""

    def __init__(self, depth, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth
        self.blocks = [Block(name=f"block_{i + 1}") for i in range(depth)]
        self.norm = layers.LayerNormalization(name="encoder_norm")

    def build(self, input_shape):
        for layer in (*self.blocks, self.norm):
            layer.build(input_shape)

    def call(self, inputs, training=None):
        x, each = inputs, {}
        for block in self.blocks:
            x = block(x, training=training)
            each[block.name] = x
        return self.norm(x), each

    def compute_output_shape(self, input_shape):
        return input_shape, {block.name: input_shape for block in self.blocks}

    def get_config(self):
        return {**super().get_config(), "depth": self.depth}


@keras.saving.register_keras_serializable("tests")
class HiddenEncoder(Encoder):
    """An encoder that only runs on real tensors."""

    def call(self, inputs, training=None):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("no symbolic tensors here")
        return super().call(inputs, training=training)


def transformer(size=(32, 48), encoder=None, depth=4, leading=3):
    """A ViT with patches of 8 pixels, a class token and registers."""
    image = keras.Input((*size, 3))
    x = layers.Conv2D(WIDTH, 8, 8, name="patches")(image)
    x = layers.Reshape((-1, WIDTH))(x)
    x = LeadingTokens(leading)(x)
    if encoder:
        x, _ = encoder(depth, name="encoder")(x)
    else:
        for i in range(depth):
            x = Block(name=f"block_{i + 1}")(x)
    return keras.Model(
        image, layers.LayerNormalization(name="last_norm")(x), name="vit"
    )


# Layers


@pytest.mark.parametrize("leading", [0, 1, 5])
def test_adapting_tokens_is_adapting_the_map_that_they_make(leading):
    layer = ksa.SegAdapter(3, num_blocks=2)
    tokens = ops.convert_to_tensor(maps(2, leading + 4 * 5, WIDTH))
    grid = ops.convert_to_tensor(maps(2, 4, 5, 1))
    adapted, scores = layer([tokens, grid])
    set_random_weights(layer)
    adapted, scores = map(ops.convert_to_numpy, layer([tokens, grid]))
    features = ops.reshape(tokens[:, leading:], (2, 4, 5, WIDTH))
    expected, expected_scores = map(ops.convert_to_numpy, layer(features))
    np.testing.assert_array_equal(
        adapted[:, :leading], ops.convert_to_numpy(tokens)[:, :leading]
    )
    patches = adapted[:, leading:].reshape(expected.shape)
    assert np.abs(expected - ops.convert_to_numpy(features)).max() > 0.1
    np.testing.assert_allclose(patches, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)


def test_tokens_to_map_lays_out_the_last_tokens_row_by_row():
    tokens = np.arange(2 * 7 * 1, dtype="float32").reshape(2, 7, 1)
    grid = np.zeros((2, 2, 3, 5), "float32")
    features = ops.convert_to_numpy(ksa.TokensToMap()([tokens, grid]))
    expected = [[[1, 2, 3], [4, 5, 6]], [[8, 9, 10], [11, 12, 13]]]
    np.testing.assert_array_equal(features[..., 0], expected)


@pytest.mark.parametrize("return_scores", [True, False])
def test_in_a_model_of_open_size(tmp_path, return_scores):
    image = keras.Input((None, None, 3))
    patches = layers.Conv2D(WIDTH, 8, 8)(image)
    tokens = LeadingTokens(2)(layers.Reshape((-1, WIDTH))(patches))
    adapter = ksa.SegAdapter(3, return_scores=return_scores)
    outputs = keras.tree.flatten(adapter([tokens, patches]))
    assert outputs[0].shape == (None, None, WIDTH)
    outputs.append(ksa.TokensToMap()([outputs[0], patches]))
    assert outputs[-1].shape == (None, None, None, WIDTH)
    model = keras.Model(image, outputs)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for height, width in [(16, 40), (24, 32)]:
        x = maps(2, height, width, 3)
        results = loaded.predict(x, verbose=0)
        count = height * width // 64
        assert results[0].shape == (2, 2 + count, WIDTH)
        assert results[-1].shape == (2, height // 8, width // 8, WIDTH)
        for result, expected in zip(results, model(x), strict=True):
            expected = ops.convert_to_numpy(expected)
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [ksa.SegAdapter(3), ksa.TokensToMap()])
@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 7, 4), (2, 2, 4, 4)],  # eight patches, seven tokens
        [(2, 7, None), (2, 2, 2, 4)],
        [(2, 2, 2, 4), (2, 2, 2, 4)],
        [(2, 7, 4)],
    ],
)
def test_what_is_no_pair_of_tokens_and_grid(layer, shapes):
    with pytest.raises(ValueError, match=r"pair \[tokens .*Received: input_shape="):
        type(layer).from_config(layer.get_config()).build(shapes)


def test_tokens_alone_get_a_sentence():
    with pytest.raises(ValueError, match="takes feature maps"):
        ksa.SegAdapter(3)(keras.Input((7, 4)))
    with pytest.raises(ValueError, match="takes a pair"):
        ksa.TokensToMap()(keras.Input((7, 4)))


# The builder


@pytest.mark.parametrize("encoder", [None, Encoder])
def test_a_transformer_is_tapped_at_every_fourth_of_its_depth(encoder):
    stages = ksa.find_stages(transformer(depth=8, encoder=encoder))
    assert [(s.stride, s.channels) for s in stages] == [(8, WIDTH)] * 4
    names = [stage.name for stage in stages]
    assert names == ["block_2", "block_4", "block_6", "last_norm"]


def test_blocks_of_additions_are_tapped_behind_the_second_one():
    image = keras.Input((32, 32, 3))
    x = layers.Reshape((-1, WIDTH))(layers.Conv2D(WIDTH, 8, 8)(image))
    for i in range(4):
        mixed = layers.MultiHeadAttention(2, 4)(x, x)
        x = layers.Add(name=f"mixed_{i}")([x, mixed])
        x = layers.Add(name=f"block_{i}")([x, layers.Dense(WIDTH)(x)])
    names = [stage.name for stage in ksa.find_stages(keras.Model(image, x))]
    assert names == ["block_0", "block_1", "block_2", "block_3"]


@pytest.mark.parametrize("encoder", [None, Encoder])
def test_what_runs_between_the_adapters_is_the_backbone(encoder):
    backbone = transformer(encoder=encoder)
    stages = ksa.find_stages(backbone)
    found = []
    inputs = keras.Input((32, 48, 3))
    splice(backbone, inputs, stages, lambda _, x: found.append(x) or x)
    x = maps(1, 32, 48, 3)
    last = keras.Model(inputs, found).predict(x, verbose=0)[-1]
    np.testing.assert_array_equal(last, backbone.predict(x, verbose=0))


@pytest.mark.parametrize("encoder", [None, Encoder])
def test_a_transformer_trains_saves_and_loads(encoder, tmp_path):
    backbone = transformer(encoder=encoder)
    names = ["block_1", "block_3"]
    adapters = [ksa.SegAdapter(3, scale_init=1.0) for _ in names]
    model = ksa.build_segmenter(backbone, 3, taps=names, adapters=adapters)
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=EAGER and encoder is None)
    assert [stage.name for stage in model.stages] == names
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), "uint8")
    masks = np.random.default_rng(1).integers(0, 3, (2, 32, 48), "uint8")
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.fit(images, masks, verbose=0)
    moved = {
        v.path
        for v, b in zip(model.trainable_variables, before, strict=True)
        if np.any(ops.convert_to_numpy(v) != b)
    }
    # Block 3's part of the loss comes through block 2 and what adapter 1 gave to it.
    of_blocks = [v for v in backbone.trainable_variables if "block_2" in v.path]
    assert of_blocks and {v.path for v in of_blocks} <= moved
    assert {w.path for adapter in adapters for w in adapter.weights} <= moved
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    results = (ops.convert_to_numpy(each(images)) for each in (loaded, model))
    np.testing.assert_allclose(*results, atol=1e-4)
    assert model.segment(images[0, :21, :30]).shape == (21, 30)


def test_the_baseline_of_a_transformer_has_no_adapters():
    model = ksa.build_segmenter(transformer(), 3, adapters=False)
    assert not any(isinstance(layer, ksa.SegAdapter) for layer in model.layers)
    assert model.predict(maps(1, 32, 48, 3), verbose=0).shape == (1, 32, 48, 3)


def test_a_transformer_of_open_size_takes_any(tmp_path):
    backbone = transformer(size=(None, None), depth=2)
    model = ksa.build_segmenter(backbone, 3, taps=["block_1", "last_norm"])
    for size in [(32, 64), (24, 40)]:
        assert model.predict(maps(1, *size, 3), verbose=0).shape == (1, *size, 3)


def test_an_encoder_that_wants_a_known_size_gets_a_sentence():
    class Square(Encoder):
        def call(self, inputs, training=None):
            int(inputs.shape[1])  # as those do that lay out windows
            return super().call(inputs, training=training)

    fixed = ksa.build_segmenter(transformer(encoder=Square), 3)
    assert [stage.name for stage in fixed.stages][:2] == ["block_1", "block_2"]
    with pytest.raises(ValueError, match="Build it with a fixed input_shape"):
        ksa.build_segmenter(transformer(size=(None, None), encoder=Square), 3)


def test_an_encoder_that_hides_its_blocks_gets_a_sentence():
    backbone = transformer(encoder=HiddenEncoder)
    with pytest.raises(ValueError, match="hidden in its layer 'encoder'"):
        ksa.find_stages(backbone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # keras-hub warns at import of its own
@pytest.mark.parametrize("family", ["DINOV2", "DINOV3", "ViT"])
def test_keras_hubs_transformers_are_looked_into(family, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    arguments = {"patch_size": 8, "num_layers": 4, "hidden_dim": 8, "num_heads": 2}
    if family == "ViT":
        arguments |= {"mlp_dim": 16}
    else:
        arguments |= {"intermediate_dim": 16, "num_register_tokens": 4}
    if family == "DINOV2":
        arguments |= {"position_embedding_shape": (32, 32)}
    backbone = getattr(keras_hub.models, f"{family}Backbone")(
        image_shape=(32, 32, 3), **arguments
    )
    stages = ksa.find_stages(backbone)
    assert [(stage.stride, stage.channels) for stage in stages] == [(8, 8)] * 4
    found = []
    inputs = keras.Input((32, 32, 3))
    splice(backbone, inputs, stages, lambda _, x: found.append(x) or x)
    x = maps(2, 32, 32, 3)
    np.testing.assert_allclose(
        keras.Model(inputs, found).predict(x, verbose=0)[-1],
        backbone.predict(x, verbose=0),
        atol=1e-6,
    )
    # People want these features frozen.
    backbone.trainable = False
    before = [ops.convert_to_numpy(v) for v in backbone.weights]
    model = ksa.build_segmenter(backbone, 3)
    model.compile()
    masks = np.random.default_rng(1).integers(0, 3, (2, 32, 32), "uint8")
    model.fit(x, masks, verbose=0)
    for variable, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4
    )
