"""Segmenters on vision transformers, with blocks in the graph or inside one layer."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import EAGER
from keras import ops
from numpy_method import assert_close, maps

import keras_segadapter as ksa
from keras_segadapter.graph.splice import splice

layers = keras.layers
WIDTH = 8


@keras.saving.register_keras_serializable("tests")
class LeadingTokens(layers.Layer):
    """Put class and register tokens before the patches."""

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
    """One block of a transformer."""

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
    """All blocks of a transformer in one layer, as in keras-hub's ViT."""

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
    """Build a ViT with patches of 8 pixels, a class token and registers."""
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


@pytest.mark.parametrize("encoder", [None, Encoder])
def test_stages_are_the_quarters_of_the_depth(encoder):
    stages = ksa.find_stages(transformer(depth=8, encoder=encoder))
    assert [(s.stride, s.channels) for s in stages] == [(8, WIDTH)] * 4
    names = [stage.name for stage in stages]
    assert names == ["block_2", "block_4", "block_6", "last_norm"]


def test_a_stage_of_two_additions_ends_after_the_second():
    image = keras.Input((32, 32, 3))
    x = layers.Reshape((-1, WIDTH))(layers.Conv2D(WIDTH, 8, 8)(image))
    for i in range(4):
        mixed = layers.MultiHeadAttention(2, 4)(x, x)
        x = layers.Add(name=f"mixed_{i}")([x, mixed])
        x = layers.Add(name=f"block_{i}")([x, layers.Dense(WIDTH)(x)])
    names = [stage.name for stage in ksa.find_stages(keras.Model(image, x))]
    assert names == ["block_0", "block_1", "block_2", "block_3"]


@pytest.mark.integration
@pytest.mark.parametrize("encoder", [None, Encoder])
def test_between_the_adapters_the_backbone_runs_unchanged(encoder):
    backbone = transformer(encoder=encoder)
    stages = ksa.find_stages(backbone)
    found = []
    inputs = keras.Input((32, 48, 3))
    splice(backbone, inputs, stages, lambda _, x: found.append(x) or x)
    x = maps(1, 32, 48, 3)
    last = keras.Model(inputs, found).predict(x, verbose=0)[-1]
    np.testing.assert_array_equal(last, backbone.predict(x, verbose=0))


@pytest.mark.integration
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
    # Block 2 learns through what it makes of the first adapter's output.
    of_blocks = [v for v in backbone.trainable_variables if "block_2" in v.path]
    assert of_blocks and {v.path for v in of_blocks} <= moved
    assert {w.path for adapter in adapters for w in adapter.weights} <= moved
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    results = (each.predict(images, verbose=0) for each in (loaded, model))
    np.testing.assert_allclose(*results, atol=1e-4)
    assert model.segment(images[0, :21, :30]).shape == (21, 30)


def test_adapters_called_by_hand_on_tokens_learn():
    image = keras.Input((32, 48, 3))
    patches = layers.Conv2D(WIDTH, 8, 8)(image)  # (B, 4, 6, WIDTH)
    tokens = LeadingTokens(3)(layers.Reshape((-1, WIDTH))(patches))
    adapter = ksa.SegAdapter(3, scale_init=1.0)
    tokens, scores = adapter([Block()(tokens), patches])
    features = ksa.TokensToMap()([Block()(tokens), patches])
    logits = ksa.MLPHead(3, channels=8)([features])
    model = keras.Model(image, {"mask": logits, "coarse": scores})
    loss = ksa.SegmentationCrossentropy()
    model.compile(
        keras.optimizers.SGD(0.1),
        {"mask": loss, "coarse": loss},
        metrics={"mask": [ksa.MeanIoU(3)]},
        run_eagerly=EAGER,
    )
    before = [ops.convert_to_numpy(w) for w in adapter.weights]
    masks = np.random.default_rng(1).integers(0, 3, (2, 32, 48), "uint8")
    masks = {"mask": masks, "coarse": masks}
    history = model.fit(maps(2, 32, 48, 3), masks, verbose=0).history
    assert np.isfinite(history["mask_mIoU"]).all()
    for weight, old in zip(adapter.weights, before, strict=True):
        assert np.any(ops.convert_to_numpy(weight) != old), weight.path


def test_the_baseline_has_no_adapters():
    model = ksa.build_segmenter(transformer(), 3, adapters=False)
    assert not any(isinstance(layer, ksa.SegAdapter) for layer in model.layers)
    images = np.zeros((1, 32, 48, 3), "uint8")
    assert model.predict(images, verbose=0).shape == (1, 32, 48, 3)


@pytest.mark.integration
def test_open_size():
    backbone = transformer(size=(None, None), depth=2)
    model = ksa.build_segmenter(backbone, 3, taps=["block_1", "last_norm"])
    for size in [(32, 64), (24, 40)]:
        images = np.zeros((1, *size, 3), "uint8")
        assert model.predict(images, verbose=0).shape == (1, *size, 3)


def test_an_encoder_that_needs_a_fixed_size_raises_for_an_open_one():
    class Square(Encoder):
        def call(self, inputs, training=None):
            int(inputs.shape[1])  # as encoders do that lay out windows
            return super().call(inputs, training=training)

    fixed = ksa.build_segmenter(transformer(encoder=Square), 3)
    assert [stage.name for stage in fixed.stages][:2] == ["block_1", "block_2"]
    with pytest.raises(ValueError, match="Build it with a fixed input_shape"):
        ksa.build_segmenter(transformer(size=(None, None), encoder=Square), 3)


def test_an_encoder_that_hides_its_blocks_raises():
    backbone = transformer(encoder=HiddenEncoder)
    with pytest.raises(ValueError, match="inside the layer 'encoder'"):
        ksa.find_stages(backbone)


@pytest.mark.parametrize("told", ["all", "one more", "a square of the height"])
def test_a_layer_that_tells_tokens_of_another_grid_raises(told):
    class Patches(layers.Layer):
        def build(self, input_shape):
            self.patches = layers.Conv2D(WIDTH, 8, 8)
            self.patches.build(input_shape)

        def call(self, inputs):
            patches = self.patches(inputs)
            return ops.reshape(patches, (ops.shape(patches)[0], -1, WIDTH))

        def compute_output_shape(self, input_shape):
            height, width = (side // 8 for side in input_shape[1:3])
            width = height if told == "a square of the height" else width
            return (None, height * width + (told == "one more"), WIDTH)

    for size in ((32, 32), (32, 48)):
        image = keras.Input((*size, 3))
        x = Block(name="block")(Patches(name="tokens")(image))
        backbone = keras.Model(image, x, name="vit")
        if told != "a square of the height" or size == (32, 32):
            assert [stage.stride for stage in ksa.find_stages(backbone)] == [8]
        else:
            words = "'tokens', which makes 24 tokens of .* 32 x 48 pixels and tells 16"
            with pytest.raises(ValueError, match=words):
                ksa.find_stages(backbone)


def keras_hubs(family, size=(32, 32)):
    """Build a tiny transformer of keras-hub, with registers where it has them."""
    keras_hub = pytest.importorskip("keras_hub")
    arguments = {"patch_size": 8, "num_layers": 4, "hidden_dim": 8, "num_heads": 2}
    if family == "ViT":
        arguments |= {"mlp_dim": 16}
    else:
        arguments |= {"intermediate_dim": 16, "num_register_tokens": 4}
    if family == "DINOV2":
        arguments |= {"position_embedding_shape": size}
    return getattr(keras_hub.models, f"{family}Backbone")(
        image_shape=(*size, 3), **arguments
    )


def frozen_segmenter(backbone):
    """Freeze a transformer, and put adapters, a neck and a head on it."""
    backbone.trainable = False
    return ksa.build_segmenter(
        backbone,
        3,
        adapters=[ksa.SegAdapter(3, scale_init=1.0, normalize=True) for _ in range(4)],
        neck=ksa.SimpleFeaturePyramid(),
        head=ksa.MLPHead(3, channels=8),
        preprocessing=layers.Rescaling(1 / 255),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # keras-hub's dependencies warn at import
@pytest.mark.parametrize("family", ["DINOV2", "DINOV3", "ViT"])
def test_keras_hubs_transformers(family, tmp_path):
    backbone = keras_hubs(family)
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
    # These features are often used frozen.
    model = frozen_segmenter(backbone)
    assert model.output["logits"].shape == (None, 16, 16, 3)  # stride 2
    before = [ops.convert_to_numpy(v) for v in model.weights]
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGER)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    masks = np.random.default_rng(1).integers(0, 3, (2, 32, 32), "uint8")
    model.fit(images, masks, verbose=0)
    moved = {
        v.path
        for v, value in zip(model.weights, before, strict=True)
        if np.any(ops.convert_to_numpy(v) != value)
    }
    assert moved.isdisjoint({v.path for v in backbone.weights})
    assert {v.path for v in model.trainable_weights} <= moved
    model.save(tmp_path / "m.keras")
    expected = model.predict(images, verbose=0)
    np.savez(tmp_path / "m.npz", images=images, expected=expected)
    script = (
        "import keras, numpy as np; import keras_segadapter\n"
        "data = np.load('m.npz'); model = keras.models.load_model('m.keras')\n"
        "logits = model.predict(data['images'], verbose=0)\n"
        "np.testing.assert_allclose(logits, data['expected'], atol=1e-4)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert model.segment(images[0, :21, :30]).shape == (21, 30)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # keras-hub and transformers warn at import
def test_the_neck_gets_the_feature_maps_of_transformers_dinov3(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        patch_size=8,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_register_tokens=4,
        image_size=32,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        apply_layernorm=True,  # the final norm on each of them
        reshape_hidden_states=True,  # without class token and registers
    )
    reference = transformers.DINOv3ViTBackbone(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight += torch.from_numpy(rng.normal(0, 0.1, tuple(weight.shape)))
    reference.save_pretrained(tmp_path)
    backbone = keras_hub.models.Backbone.from_preset(str(tmp_path))
    model = ksa.build_segmenter(
        backbone,
        3,
        adapters=False,
        neck=layers.Identity(),
        preprocessing=layers.Identity(),
    )
    x = maps(2, 32, 32, 3)
    seen = keras.Model(model.input, [*model.neck.input]).predict(x, verbose=0)
    with torch.no_grad():
        expected = reference(torch.from_numpy(x).permute(0, 3, 1, 2)).feature_maps
    for features, theirs in zip(seen, expected, strict=True):
        assert_close(features, theirs.permute(0, 2, 3, 1).numpy(), 1e-5)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # keras-hub's dependencies warn at import
def test_keras_hubs_dinov3_in_low_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")  # JAX has no float16 for it on CPUs
    try:
        model = frozen_segmenter(keras_hubs("DINOV3"))
    finally:
        keras.config.set_dtype_policy("float32")
    logits = model.predict(np.zeros((1, 32, 32, 3), "uint8"), verbose=0)
    assert logits.dtype == "float32" and np.isfinite(logits).all()


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")  # keras-hub's dependencies warn at import
def test_keras_hubs_dino_takes_squares_only():
    with pytest.raises(ValueError, match=r"makes 29 tokens .* and tells 21"):
        ksa.find_stages(keras_hubs("DINOV3", (32, 48)))
    with pytest.raises(ValueError, match="height and width to be the same"):
        keras_hubs("DINOV2", (32, 48))  # keras-hub's own error
