"""find_stages, taps and splicing on graphs of every kind."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_segadapter import SegAdapter, build_segmenter, find_stages
from keras_segadapter.graph.splice import splice

layers = keras.layers
FOUR = (4, 6, 8, 10)  # channels of four stages, strides 4 to 32


def application(name):
    build = getattr(keras.applications, name)
    return build(include_top=False, weights=None, input_shape=(None, None, 3))


def hub_efficientnet():
    import keras_hub

    return keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[0.5] * 6,
        stackwise_depth_coefficients=[0.5] * 6,
        stackwise_kernel_sizes=[3, 3, 3, 3, 3, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4],
        stackwise_input_filters=[32, 16, 32, 48, 96, 112],
        stackwise_output_filters=[16, 32, 48, 96, 112, 192],
        stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2],
        stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25, 0.25, 0.25],
        stackwise_block_types=["fused", "fused", "fused"] + ["unfused"] * 3,
        stackwise_force_input_filters=[0] * 6,
        stackwise_nores_option=[False] * 6,
        min_depth=8,
        image_shape=(None, None, 3),
    )


def cv_resnet():
    import keras_cv

    return keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[64, 72, 80, 88],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        block_type="basic_block",
    )


# Block outputs that a practitioner would tap: (stride, channels), shallow to deep. More
# families are in test_families.py.
FAMILIES = {
    "MobileNetV3Small": [(4, 16), (8, 24), (16, 48), (32, 96)],
    "EfficientNetV2B0": [(4, 32), (8, 48), (16, 112), (32, 192)],
    "ConvNeXtTiny": [(4, 96), (8, 192), (16, 384), (32, 768)],
    "ResNet50": [(4, 256), (8, 512), (16, 1024), (32, 2048)],
    "DenseNet121": [(4, 256), (8, 512), (16, 1024), (32, 1024)],
}


def places(stages):
    return [(stage.stride, stage.channels) for stage in stages]


@pytest.mark.integration
@pytest.mark.parametrize("name", FAMILIES)
def test_stages_of_keras_applications(name):
    assert places(find_stages(application(name))) == FAMILIES[name]


# One of each library and kind of block; benchmarks/backbones.py tries all families.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MobileNetV3Small", "ConvNeXtTiny", "hub_efficientnet", "cv_resnet"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_family_trains_one_step_and_comes_back_from_its_file(name, tmp_path):
    backbone = application(name) if name in FAMILIES else globals()[name]()
    # Other layers were made before: operations of the loaded graph get other names.
    layers.Add()([keras.Input((4,))] * 2) + 1.0
    model = build_segmenter(backbone, 3)
    model.compile()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), "uint8")
    masks = np.random.default_rng(1).integers(0, 3, (2, 64, 96), "uint8")
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.fit(images, masks, batch_size=2, verbose=0)
    moved = [
        np.any(keras.ops.convert_to_numpy(v) != b)
        for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert np.mean(moved) > 0.95
    logits = model.predict(images, verbose=0)
    assert np.isfinite(logits).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(images, verbose=0), logits, atol=1e-4)


def test_the_names_of_a_resnet_are_its_blocks_outputs():
    names = [stage.name for stage in find_stages(application("ResNet50"))]
    assert names == [
        "conv2_block3_out",
        "conv3_block4_out",
        "conv4_block6_out",
        "conv5_block3_out",
    ]


def test_convnext_is_tapped_behind_the_residual_addition():
    # The layer named ..._identity is the branch before the addition, and the norm at
    # the end was trained on pooled features.
    stages = find_stages(application("ConvNeXtTiny"))
    assert all(stage.name.startswith("add") for stage in stages)


def nodes(model):
    """Nodes that other graphs left on a model's layers."""
    return [
        (len(layer._inbound_nodes), len(layer._outbound_nodes))
        for layer in model.layers
    ]


def test_finding_stages_leaves_a_backbone_as_it_was(tiny_backbone):
    inner = tiny_backbone(FOUR)
    inputs = keras.Input((None, None, 3))
    outer = keras.Model(inputs, inner(layers.Rescaling(1 / 255)(inputs)))
    chain = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 4, 4)])
    before = [nodes(model) for model in (inner, outer, chain)]
    for model in (outer, chain):
        assert find_stages(model)
    assert [nodes(model) for model in (inner, outer, chain)] == before


def test_a_declared_pyramid_is_taken_where_adapters_can_go_there(tiny_backbone):
    backbone = tiny_backbone(FOUR)
    inside = {f"P{i}": backbone.get_layer(f"reduce_{i}").output for i in (1, 2, 3)}
    backbone.pyramid_outputs = inside
    assert [stage.name for stage in find_stages(backbone)] == [
        "reduce_1",
        "reduce_2",
        "reduce_3",
    ]
    # On a branch, or twice at one stride: then the graph decides.
    branch = next(x for x in backbone.layers if "normalization" in x.name).output
    same = {"P1": inside["P1"], "P2": backbone.get_layer("reduce_2").input}
    for wrong in ({"P2": branch}, same):
        backbone.pyramid_outputs = wrong
        found = [stage.position for stage in find_stages(backbone)]
        assert found == [s.position for s in find_stages(tiny_backbone(FOUR))]


def test_of_a_pyramid_with_a_classifiers_wide_layer_the_block_is_taken():
    images = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 4, 4)(images)
    x = layers.Add(name="block")([x, layers.Conv2D(8, 3, padding="same")(x)])
    x = layers.ReLU(name="top")(layers.Conv2D(64, 1)(x))
    backbone = keras.Model(images, x)
    backbone.pyramid_outputs = {"P2": x}
    assert [stage.name for stage in find_stages(backbone)] == ["block"]


def test_a_saved_stage_is_checked_and_found_where_positions_moved(tiny_backbone):
    backbone = tiny_backbone(FOUR)
    stage = build_segmenter(backbone, 2, taps=["reduce_2"]).stages[0]
    moved = dataclasses.replace(stage, position=stage.position + 1)
    assert build_segmenter(backbone, 2, taps=[moved]).stages == [stage]
    for wrong in ({"channels": 7}, {"stride": 4}, {"name": "reduce_9x"}):
        other = dataclasses.replace(stage, **wrong)
        with pytest.raises(ValueError, match="found in another graph"):
            build_segmenter(backbone, 2, taps=[other])
    # Two places of one stride and width, none of this name and position.
    add = find_stages(backbone)[1]
    nowhere = dataclasses.replace(add, name="add_999", position=0)
    with pytest.raises(ValueError, match="found in another graph"):
        build_segmenter(backbone, 2, taps=[nowhere])


def test_stages_do_not_depend_on_what_was_built_before(tiny_backbone):
    first = find_stages(tiny_backbone(FOUR))
    second = find_stages(tiny_backbone(FOUR))
    assert [s.position for s in first] == [s.position for s in second]
    assert [s.name for s in first] != [s.name for s in second]  # add, add_4: operations


def test_a_stage_can_be_one_or_many_of_any_stride():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 3, padding="same")(inputs)
    x = layers.Conv2D(6, 2, 2)(x)
    model = keras.Model(inputs, x)
    assert places(find_stages(model)) == [(6, 6)]
    assert places(find_stages(keras.Model(inputs, x + x))) == [(6, 6)]
    no_stride = keras.Model(inputs, layers.Conv2D(5, 3, padding="same")(inputs))
    assert places(find_stages(no_stride)) == [(1, 5)]


@pytest.mark.parametrize("size", [None, 155])
def test_a_border_lost_to_unpadded_convolutions_is_no_stride(size):
    inputs = keras.Input((size, size, 3))
    x = inputs
    for width in FOUR:
        x = layers.Conv2D(width, 3, 2)(layers.Conv2D(width, 3)(x))
    stages = find_stages(keras.Model(inputs, x))
    assert places(stages) == [(4, 8), (8, 10), (16, 10)]


def test_several_outputs_are_the_stages(tiny_backbone):
    whole = tiny_backbone(FOUR)
    outputs = [whole.get_layer("reduce_1").output, whole.output]
    assert places(find_stages(keras.Model(whole.input, outputs))) == [(4, 4), (32, 10)]


def test_of_outputs_at_one_resolution_the_last_is_the_stage(tiny_backbone):
    whole = tiny_backbone(FOUR)
    outputs = [whole.get_layer("reduce_3").output, whole.layers[1].output, whole.output]
    stem_too = keras.Model(whole.input, [whole.get_layer("reduce_1").output, *outputs])
    assert places(find_stages(stem_too)) == [(4, 4), (16, 8), (32, 10)]


def test_a_layer_that_holds_all_stages_is_looked_into():
    class Block(layers.Layer):
        def build(self, input_shape):
            self.one = layers.Conv2D(self.width, 3, 2, padding="same")
            self.two = layers.Conv2D(self.width, 3, padding="same")
            self.norm = layers.BatchNormalization()
            self.one.build(input_shape)
            self.two.build((None, None, None, self.width))
            self.norm.build((None, None, None, self.width))

        def call(self, inputs):
            return self.norm(self.two(self.one(inputs)))

    class Encoder(layers.Layer):
        def __init__(self):
            super().__init__(name="encoder")
            self.stages = [Block(name=f"stage_{width}") for width in FOUR]
            for block, width in zip(self.stages, FOUR, strict=True):
                block.width = width

        def build(self, input_shape):
            for block in self.stages:
                block.build(input_shape)
                input_shape = (*input_shape[:-1], block.width)

        def call(self, inputs):
            for block in self.stages:
                inputs = block(inputs)
            return inputs

    images = keras.Input((None, None, 3))
    stages = find_stages(keras.Model(images, Encoder()(images)))
    assert [stage.name for stage in stages] == ["stage_6", "stage_8", "stage_10"]


def test_what_stands_behind_the_last_block_of_a_stage():
    def ends(close):
        images = keras.Input((None, None, 3))
        x = layers.Conv2D(8, 4, 4)(images)
        x = layers.Add(name="block")([x, layers.Conv2D(8, 3, padding="same")(x)])
        x = close(x)
        return find_stages(keras.Model(images, x))[0].name

    def norm(x):
        return layers.BatchNormalization(name="norm")(x)

    def hard_swish(x):  # of operations, as keras-cv has it
        return x * (layers.ReLU(6.0)(x + 3.0) * (1 / 6))

    def join(x):
        return layers.Concatenate(name="join")([x, layers.Conv2D(8, 1)(x)])

    def pad(x):
        return layers.ZeroPadding2D(1)(x)

    wide, narrow = layers.Conv2D(32, 1, name="wide"), layers.Conv2D(4, 1, name="narrow")
    assert ends(lambda x: hard_swish(norm(wide(x)))) == "block"  # an expansion
    assert ends(lambda x: pad(norm(wide(x)))) == "block"
    pool = layers.AveragePooling2D(2)
    assert ends(lambda x: pool(narrow(join(x)))) == "join"  # DenseNet's transition
    assert ends(lambda x: norm(narrow(join(x)))) == "norm"  # CSPNet's


def test_long_chains_of_scaled_residuals_take_no_longer_than_others():
    images = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 4, 4)(images)
    for _ in range(40):
        x = x + layers.BatchNormalization()(x)
    assert places(find_stages(keras.Model(images, x))) == [(4, 8)]


def test_stages_with_a_classifier_on_top():
    model = keras.applications.MobileNetV2(weights=None, alpha=0.35)
    assert [s.stride for s in find_stages(model)] == [4, 8, 16, 32]


def test_a_nested_backbone_is_looked_into(tiny_backbone):
    inner = tiny_backbone(FOUR)
    inputs = keras.Input((None, None, 3))
    outer = keras.Model(inputs, inner(layers.Rescaling(1 / 255)(inputs)))
    assert places(find_stages(outer)) == places(find_stages(inner))
    chain = keras.Sequential([keras.Input((None, None, 3)), layers.ReLU(), inner])
    assert places(find_stages(chain)) == places(find_stages(inner))


def test_a_nested_model_may_take_one_tensor_twice():
    one, other = keras.Input((None, None, 4)), keras.Input((None, None, 4))
    inner = keras.Model([one, other], layers.Subtract()([one, 3.0 * other]))
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 4, 4)(inputs)
    backbone = keras.Model(inputs, inner([x, x]))
    found = []
    images = keras.Input((16, 16, 3))
    stages = find_stages(backbone)
    splice(backbone, images, stages, lambda _, x: found.append(x) or x)
    probe = np.ones((1, 16, 16, 3), "float32")
    np.testing.assert_allclose(
        keras.Model(images, found[-1]).predict(probe, verbose=0),
        backbone.predict(probe, verbose=0),
        atol=1e-6,
    )


def test_splice_replaces_what_the_next_stage_receives(tiny_backbone):
    backbone = tiny_backbone(FOUR)
    stages = find_stages(backbone)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")

    def features(factor):
        found = []

        def insert(index, x):
            x = x * factor if index == 1 else x
            found.append(x)
            return x

        inputs = keras.Input((64, 64, 3))
        splice(backbone, inputs, stages, insert)
        return keras.Model(inputs, found).predict(images, verbose=0)

    same, changed = features(1.0), features(3.0)
    np.testing.assert_array_equal(same[0], changed[0])  # before the change
    np.testing.assert_allclose(changed[1], 3 * same[1], rtol=1e-6)
    assert np.abs(changed[2] - same[2]).max() > 1e-3  # the next stage got it
    assert np.abs(changed[3] - same[3]).max() > 1e-3
    np.testing.assert_array_equal(same[3], backbone.predict(images, verbose=0))


def test_taps_by_name_tensor_and_stage_are_one(tiny_backbone):
    backbone = tiny_backbone(FOUR)
    stages = find_stages(backbone)
    name = "reduce_2"
    by_name = build_segmenter(backbone, 3, taps=[name]).stages
    tensor = backbone.get_layer(name).output
    assert build_segmenter(backbone, 3, taps=[tensor]).stages == by_name
    assert build_segmenter(backbone, 3, taps=by_name).stages == by_name
    # Order does not matter: stages are sorted from shallow to deep.
    assert build_segmenter(backbone, 3, taps=stages[::-1]).stages == stages


def test_taps_of_the_same_stride_get_names_of_their_own():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 4, 4, name="one")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="two")(x)
    model = build_segmenter(
        keras.Model(inputs, x), 2, taps=["one", "two"], aux="per_stage"
    )
    assert {"adapter_s4", "adapter_s4_2"} <= {layer.name for layer in model.layers}
    assert set(model.output) == {"logits", "aux_s4", "aux_s4_2"}


def test_a_stage_of_another_process_is_found_by_its_position(tiny_backbone):
    stages = find_stages(tiny_backbone(FOUR))
    other = build_segmenter(tiny_backbone(FOUR), 2, taps=stages[1:])
    assert places(other.stages) == places(stages[1:])


def two_branches():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 4, 4, name="trunk")(inputs)
    branch = layers.Conv2D(4, 3, padding="same", name="branch")(x)
    twice = layers.ReLU(name="twice")
    x = twice(twice(layers.Add(name="sum")([x, branch])))
    pooled = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(inputs, layers.Dense(5)(pooled), name="two_branches")


WRONG_TAPS = {
    "branch": (["branch"], "'branch' lies on a branch.*next place that.*'sum'"),
    "vector": (["pooled"], "must be a feature map.*'pooled'"),
    "unknown": (["nothing"], "whose stages end at: .*'nothing'"),
    "shared": (["twice"], "Pass the tensor.*'twice'.*called 2 times"),
    "repeated": (["sum", "sum"], "names 'sum' more than once"),
    "none": ([], "a list of at least one"),
    "no_list": ("sum", "Wrap a single one in a list"),
}


@pytest.mark.parametrize(("taps", "message"), WRONG_TAPS.values(), ids=WRONG_TAPS)
def test_wrong_taps(taps, message):
    with pytest.raises(ValueError, match=message):
        build_segmenter(two_branches(), 2, taps=taps)


def test_taps_of_a_wrong_kind_or_model(tiny_backbone):
    with pytest.raises(TypeError, match=r"3, .* of type int"):
        build_segmenter(two_branches(), 2, taps=[3])
    with pytest.raises(ValueError, match=r"tensor in `taps` must belong to"):
        build_segmenter(two_branches(), 2, taps=[tiny_backbone(FOUR).output])
    with pytest.raises(ValueError, match="found in another graph"):
        build_segmenter(two_branches(), 2, taps=find_stages(tiny_backbone(FOUR)))


def test_a_shared_layer_is_tapped_by_its_tensor():
    backbone = two_branches()
    inner = backbone.get_layer("pooled").input
    assert build_segmenter(backbone, 2, taps=[inner]).stages[0].name == "twice"


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def sequential(*of_layers):
    return keras.Sequential(of_layers)


WRONG_BACKBONES = {
    "subclassed": (Subclassed, TypeError, "functional keras.Model.*type Subclassed"),
    "text": (lambda: "resnet50", TypeError, "backbone='resnet50' of type str"),
    "unbuilt": (
        lambda: sequential(layers.Conv2D(3, 3)),
        ValueError,
        "must know its input shape",
    ),
    "vectors": (
        lambda: sequential(keras.Input((8,)), layers.Dense(3)),
        ValueError,
        "one batch of images",
    ),
    "no_maps": (
        lambda: sequential(keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(3)),
        ValueError,
        "must have feature maps",
    ),
}


@pytest.mark.parametrize(
    ("build", "error", "message"), WRONG_BACKBONES.values(), ids=WRONG_BACKBONES
)
def test_wrong_backbones(build, error, message):
    with pytest.raises(error, match=message):
        find_stages(build())


def test_a_backbone_with_two_inputs():
    a, b = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="one batch of images"):
        find_stages(keras.Model([a, b], layers.Add()([a, b])))


def test_sequential_is_unwrapped_and_adapted():
    backbone = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 4, 4, activation="relu"),
            layers.Conv2D(8, 2, 2, activation="relu"),
        ]
    )
    model = build_segmenter(backbone, 2)
    assert places(model.stages) == [(4, 4), (8, 8)]
    assert sum(isinstance(layer, SegAdapter) for layer in model.layers) == 2
