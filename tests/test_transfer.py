"""Tests of adapters put into a trained model, and of models for other classes."""

import keras
import numpy as np
import pytest
from conftest import EAGER
from numpy_method import assert_close, set_random_weights
from test_transformers import transformer

import keras_segadapter as ksa

layers = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 32, 48, 3), "uint8")
MASKS = RNG.integers(0, 3, (2, 32, 48), "uint8")
NAMES = ["road", "car", "sky"]
COLORS = [[1, 0, 0], [0, 2, 0], [0, 0, 3]]


@keras.saving.register_keras_serializable("tests")
class OwnHead(layers.Layer):
    """A user's head, which has no `build` of its own."""

    def __init__(self, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.widen = layers.Dense(self.width())
        self.classify = layers.Conv2D(num_classes, 1)

    def width(self):
        return 3

    def call(self, features):
        return self.classify(self.widen(features[0]))

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], self.num_classes)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


class Uncounted(OwnHead):
    """A head whose config does not say how many classes it scores."""

    def get_config(self):
        return layers.Layer.get_config(self)


class Squared(OwnHead):
    """A head whose hidden layer is as wide as the square of the classes."""

    def width(self):
        return self.num_classes**2


def trained(backbone, **options):
    """Build a model with random weights in every layer, as after a training."""
    options = {"class_names": NAMES, "name": "mine", **options}
    model = ksa.Segmenter(backbone, len(options["class_names"]), **options)
    set_random_weights(model)
    return model


def scores(model):
    outputs = model(IMAGES)
    return {key: keras.ops.convert_to_numpy(value) for key, value in outputs.items()}


def arrays(variables):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def compiled(model, **options):
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGER, **options)
    return model


def moved(model):
    """Return the ids of the weights that one step of training moves."""
    before = arrays(model.weights)
    model.fit(IMAGES, MASKS, verbose=0)
    after = arrays(model.weights)
    changes = zip(model.weights, before, after, strict=True)
    return {id(weight) for weight, old, new in changes if (old != new).any()}


def ids(*variables):
    return {id(variable) for variable in variables}


def of_classes(model):
    """Return the weights that belong to classes, each with its axis of the classes."""
    found = [(model.head.classifier.kernel, 1), (model.head.classifier.bias, 0)]
    for adapter in model.adapters:
        for attention in adapter.attentions:
            semantic = attention.semantic
            found += [(attention.classifier.kernel, 1), (attention.classifier.bias, 0)]
            found += [(semantic.depthwise.kernel, 2), (semantic.depthwise.bias, 0)]
            found += [(semantic.pointwise.kernel, 0), (semantic.value.kernel, 0)]
    return found


HEADS = {
    "MLPHead": lambda: ksa.MLPHead(3, 7, dropout=0.3, name="decode"),
    "SegFormerHead": lambda: ksa.SegFormerHead(3, 7, dropout=0.3, name="decode"),
}


# Contract


def test_adapters_are_added_to_the_layers_of_the_trained_model(tiny_backbone):
    old = trained(tiny_backbone(), adapters=False, colors=COLORS)
    new = ksa.add_adapters(old)
    assert isinstance(new, ksa.Segmenter) and not new.compiled
    expected, config = old.get_config(), new.get_config()
    assert [adapter.name for adapter in new.adapters] == ["adapter_s4", "adapter_s8"]
    assert len(config.pop("adapters")) == 2 and expected.pop("adapters") is False
    assert config == expected
    for part in ("backbone", "head", "preprocessing"):
        assert getattr(new, part) is getattr(old, part)
    assert [*new.output] == ["logits", "aux"] and [*old.output] == ["logits"]
    assert ksa.add_adapters(old, name="other").name == "other"


@pytest.mark.integration
def test_a_loaded_model_with_adapters_and_other_classes_trains_and_comes_back(
    tiny_backbone, tmp_path
):
    trained(tiny_backbone(), adapters=False).save(tmp_path / "old.keras")
    old = keras.models.load_model(tmp_path / "old.keras")
    new = ksa.add_adapters(old)
    np.testing.assert_array_equal(scores(new)["logits"], scores(old)["logits"])
    new = compiled(ksa.change_classes(new, ["sky", "sea", "car", "bus"]))
    masks = MASKS + 1
    new.fit(IMAGES, masks, verbose=0)
    new.save(tmp_path / "new.keras")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    assert loaded.class_names == ("sky", "sea", "car", "bus")
    assert [adapter.scale_init for adapter in loaded.adapters] == [0.0, 0.0]
    np.testing.assert_array_equal(loaded.segment(IMAGES), new.segment(IMAGES))
    loaded.run_eagerly = EAGER
    expected = new.evaluate(IMAGES, masks, verbose=0, return_dict=True)
    assert loaded.evaluate(IMAGES, masks, verbose=0, return_dict=True) == expected


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_model_of_other_classes_is_else_the_same(tiny_backbone, head):
    adapters = [ksa.SegAdapter(3, 3, 2.0, num_blocks=n, name=f"a{n}") for n in (1, 2)]
    options = {"head": head(), "adapters": adapters, "aux": "per_stage"}
    old = trained(tiny_backbone(), preprocessing=layers.Rescaling(1 / 255), **options)
    old.head.trainable = False
    before, expected = arrays(old.weights), old.get_config()
    new = ksa.change_classes(old, ["sky", "sea"])
    assert not new.compiled
    assert_equal(arrays(old.weights), before)
    assert old.get_config() == expected
    for part in (expected["head"], *expected["adapters"]):
        part["config"]["num_classes"] = 2
    expected.update(num_classes=2, class_names=["sky", "sea"])
    assert new.get_config() == expected
    for part in ("backbone", "preprocessing"):
        assert getattr(new, part) is getattr(old, part)
    assert new.head.trainable_weights == []
    assert ksa.change_classes(old, ["sky", "sea"], name="other").name == "other"


# Meaning


@pytest.mark.parametrize(
    ("head", "aux", "outputs"),
    [
        ("MLPHead", "auto", {"logits", "aux"}),
        ("MLPHead", None, {"logits"}),
        ("SegFormerHead", "per_stage", {"logits", "aux_s4", "aux_s8"}),
    ],
)
def test_the_logits_are_the_same_at_scale_zero(tiny_backbone, head, aux, outputs):
    old = trained(tiny_backbone(), adapters=False, head=HEADS[head]())
    new = ksa.add_adapters(old, aux=aux)
    found = scores(new)
    assert {*found} == outputs
    np.testing.assert_array_equal(found["logits"], scores(old)["logits"])
    np.testing.assert_array_equal(new.segment(IMAGES), old.segment(IMAGES))


def test_the_logits_are_close_at_a_small_scale(tiny_backbone):
    old = trained(tiny_backbone(), adapters=False)
    new = ksa.add_adapters(old, scale_init=1e-5)
    expected, actual = (scores(model)["logits"] for model in (old, new))
    assert (actual != expected).any()
    assert_close(actual, expected, 1e-3)


def test_adapters_of_the_users_own_are_added(tiny_backbone):
    own = [ksa.SegAdapter(3, scale_init=s, normalize=True) for s in (0.0, 0.5)]
    old = trained(tiny_backbone(), adapters=False)
    new = ksa.add_adapters(old, own)
    assert [*new.adapters] == own
    assert (scores(new)["logits"] != scores(old)["logits"]).any()


def test_the_auxiliary_outputs_of_the_model_stay(tiny_backbone):
    fcn = ksa.MLPHead(3, 5, name="fcn")
    old = trained(tiny_backbone(), adapters=False, aux=fcn)
    new = ksa.add_adapters(old)
    assert new.aux is fcn
    np.testing.assert_array_equal(scores(new)["aux"], scores(old)["aux"])
    old = trained(tiny_backbone(), adapters=False, aux="per_stage")
    assert ksa.add_adapters(old).aux == "per_stage"
    old = trained(tiny_backbone(), adapters=False, aux=None)
    assert ksa.add_adapters(old).aux == "sum"


@pytest.mark.integration
@pytest.mark.parametrize("aux", ["sum", None])
def test_the_first_frozen_step_moves_mu_and_what_makes_scores(tiny_backbone, aux):
    model = ksa.add_adapters(trained(tiny_backbone(), adapters=False), aux=aux)
    model.backbone.trainable = model.head.trainable = False
    compiled(model)
    scales = [adapter.scales[0] for adapter in model.adapters]
    classifiers = [adapter.attentions[0].classifier for adapter in model.adapters]
    norms = [adapter.norms[0] for adapter in model.adapters]
    layers = [*classifiers, *norms] if aux else []
    by_loss = [w for layer in layers for w in layer.weights]
    assert moved(model) == ids(*scales, *by_loss)
    # From then on every weight of the adapters receives a gradient.
    everything = [w for adapter in model.adapters for w in adapter.weights]
    assert moved(model) == ids(*everything)


OVERLAPS = {
    "more": ["sky", "tree", "road", "sea"],
    "fewer": ["sky", "tree"],
    "as many": ["sky", "tree", "road"],
    "permuted": ["sky", "road", "car"],
    "none": ["sea", "tree", "lake"],
}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_weights_of_classes_are_equal_by_name(tiny_backbone, overlap):
    names = OVERLAPS[overlap]
    # There are as many channels as classes, but once.
    channels = (4, 6) if overlap == "more" else (3, 3)
    old = trained(tiny_backbone(channels), head=ksa.MLPHead(3, 3))
    new = ksa.change_classes(old, names)
    both = [(new_row, NAMES.index(n)) for new_row, n in enumerate(names) if n in NAMES]
    new_rows, old_rows = np.array(both, int).reshape(-1, 2).T
    fresh = [row for row, name in enumerate(names) if name not in NAMES]
    for (weight, axis), (before, _) in zip(
        of_classes(new), of_classes(old), strict=True
    ):
        weight, before = arrays([weight, before])
        assert weight.shape[axis] == len(names)
        np.testing.assert_array_equal(
            weight.take(new_rows, axis), before.take(old_rows, axis)
        )
        started = weight.take(fresh, axis)  # at random kernels, at zero biases
        assert not np.isin(started, before).any()
        assert (started == 0).all() if weight.ndim == 1 else (started != 0).all()
    belongs = ids(*(weight for weight, _ in of_classes(new)))
    for weight, before in zip(new.weights, old.weights, strict=True):
        if id(weight) not in belongs:
            assert_equal(arrays([weight]), arrays([before]))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_logits_of_known_classes_are_the_old_ones(tiny_backbone, head):
    old = trained(tiny_backbone(), adapters=False, head=head())
    new = ksa.change_classes(old, ["sky", "tree", "sea", "road"])
    known = scores(new)["logits"][..., [0, 3]]
    assert_close(known, scores(old)["logits"][..., [2, 0]], 1e-6)


@pytest.mark.parametrize("aux", ["sum", ksa.MLPHead(3, 5, name="fcn")], ids=["", "fcn"])
def test_permuted_classes_permute_the_scores(tiny_backbone, aux):
    old = trained(tiny_backbone(), aux=aux)
    new = ksa.change_classes(old, ["sky", "road", "car"])
    for key, permuted in scores(new).items():
        assert_close(permuted, scores(old)[key][..., [2, 0, 1]], 1e-5)


@pytest.mark.parametrize("names", [["sky", "road", "car"], ["sky", "sea"]])
def test_a_head_without_build_keeps_its_weights(tiny_backbone, names):
    old = trained(tiny_backbone(), adapters=False, head=OwnHead(3))
    new = ksa.change_classes(old, names)
    assert_close(scores(new)["logits"][..., 0], scores(old)["logits"][..., 2], 1e-6)


@pytest.mark.integration
def test_training_for_other_classes_on_a_frozen_backbone_leaves_the_old_model(
    tiny_backbone,
):
    old = trained(tiny_backbone())
    before = scores(old)
    old.backbone.trainable = False
    new = compiled(ksa.change_classes(old, ["sky", "sea", "car", "bus"]))
    frozen = ids(*new.backbone.weights)
    assert not moved(new) & frozen
    assert_equal(scores(old).values(), before.values())


def test_a_count_makes_as_many_new_classes(tiny_backbone, capsys):
    old = trained(tiny_backbone(), class_names=NAMES, colors=COLORS)
    new = ksa.change_classes(old, 3)
    assert (new.class_names, new.colors) == (None, None)
    for (weight, _), (before, _) in zip(of_classes(new), of_classes(old), strict=True):
        assert not np.isin(*arrays([weight, before])).any()
    assert_equal(arrays(new.adapters[0].scales), arrays(old.adapters[0].scales))
    assert "New classes: 3." in capsys.readouterr().out


def test_a_line_says_which_classes_were_carried_over(tiny_backbone, capsys):
    old = trained(tiny_backbone(), adapters=False)
    capsys.readouterr()
    ksa.change_classes(old, ["sky", "tree", "road"])
    assert capsys.readouterr().out == (
        "Classes carried over with their weights: sky, road. New classes: tree. "
        "Classes left out: car.\n"
    )
    ksa.change_classes(old, [f"c{i}" for i in range(12)])
    new = "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, and 2 more"
    assert capsys.readouterr().out == (
        f"Classes carried over with their weights: none. New classes: {new}. Classes "
        "left out: road, car, sky.\n"
    )


def test_classes_carried_over_keep_their_colors(tiny_backbone):
    taken = ksa.visualization.palette(3)[1].tolist()
    old = trained(tiny_backbone(), adapters=False, colors=[taken, [9, 9, 9], [1, 2, 3]])
    new = ksa.change_classes(old, ["sky", "tree", "road", "sea"])
    first, _, third = ksa.visualization.palette(3).tolist()
    assert new.colors.tolist() == [[1, 2, 3], first, taken, third]
    new = ksa.change_classes(old, ["sky", "tree"], colors=[[5, 5, 5], [6, 6, 6]])
    assert new.colors.tolist() == [[5, 5, 5], [6, 6, 6]]


# Edges


@pytest.mark.integration
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_in_half_precision_stays_in_it(tiny_backbone, policy):
    keras.config.set_dtype_policy(policy)
    try:
        old = trained(tiny_backbone(), adapters=False)
    finally:
        keras.config.set_dtype_policy("float32")
    new = ksa.add_adapters(old)
    assert {adapter.dtype_policy.name for adapter in new.adapters} == {policy}
    np.testing.assert_array_equal(scores(new)["logits"], scores(old)["logits"])
    other = ksa.change_classes(new, ["sky", "tree", "road", "sea"])
    for layer in (other, other.head, *other.adapters):
        assert layer.dtype_policy.name == policy
    permuted = ksa.change_classes(new, ["sky", "road", "car"])
    expected = scores(new)["logits"][..., [2, 0, 1]]
    assert_close(scores(permuted)["logits"], expected, 1e-2)


@pytest.mark.integration
@pytest.mark.parametrize("neck", [None, ksa.SimpleFeaturePyramid], ids=["", "neck"])
def test_tokens_are_adapted_and_keep_the_weights_of_classes(neck):
    old = trained(transformer(), adapters=False, neck=neck and neck())
    new = ksa.add_adapters(old)
    np.testing.assert_array_equal(scores(new)["logits"], scores(old)["logits"])
    set_random_weights(new)
    permuted = ksa.change_classes(new, ["sky", "road", "car"])
    for key, values in scores(permuted).items():
        assert_close(values, scores(new)[key][..., [2, 0, 1]], 1e-4)


def test_lora_in_the_backbone_goes_on(tiny_backbone):
    old = trained(tiny_backbone(), adapters=False)
    ksa.enable_lora(old, "reduce_1", rank=2)
    learning = ids(*old.backbone.trainable_weights)
    for new in (ksa.add_adapters(old), ksa.change_classes(old, ["sky", "car"])):
        assert ids(*new.backbone.trainable_weights) == learning
        assert learning <= ids(*new.trainable_weights)
    assert len(learning) == 2


def test_a_sequential_backbone_of_fixed_size_and_one_tap():
    backbone = keras.Sequential(
        [
            keras.Input((32, 48, 4)),
            layers.Conv2D(4, 4, 4, name="a"),
            layers.Conv2D(5, 2, 2, name="b"),
        ]
    )
    old = trained(backbone, adapters=False, taps=["b"], preprocessing=layers.Identity())
    new = ksa.change_classes(ksa.add_adapters(old), ["sky", "tree", "road"])
    assert [stage.name for stage in new.stages] == ["b"]
    assert new.input.shape == (None, 32, 48, 4)


def old_model(backbone, **options):
    return ksa.Segmenter(backbone(), 3, **{"class_names": NAMES, **options})


def with_lora(backbone):
    model = old_model(backbone)
    model.head.classifier.enable_lora(2)
    return model


ERRORS = {
    "another kind of model": (
        lambda backbone: ksa.add_adapters(backbone()),
        TypeError,
        "add_adapters takes a keras_segadapter.Segmenter",
    ),
    "adapters are there": (
        lambda backbone: ksa.add_adapters(old_model(backbone)),
        ValueError,
        r"`model` has adapters already.*\['adapter_s4', 'adapter_s8'\]",
    ),
    "adapters=False": (
        lambda backbone: ksa.add_adapters(old_model(backbone, adapters=False), False),
        TypeError,
        "`adapters` must be True or a list of SegAdapter. Received: adapters=False",
    ),
    "one adapter for two stages": (
        lambda backbone: ksa.add_adapters(
            old_model(backbone, adapters=False), [ksa.SegAdapter(3)]
        ),
        ValueError,
        "for each of the 2 taps",
    ),
    "adapters of other classes": (
        lambda backbone: ksa.add_adapters(
            old_model(backbone, adapters=False), [ksa.SegAdapter(4) for _ in range(2)]
        ),
        ValueError,
        "Adapters and model must score the same number of classes",
    ),
    "scale_init of a list": (
        lambda backbone: ksa.add_adapters(
            old_model(backbone, adapters=False),
            [ksa.SegAdapter(3) for _ in range(2)],
            scale_init=1e-5,
        ),
        ValueError,
        "`scale_init` is for the adapters of adapters=True",
    ),
    "scale_init": (
        lambda backbone: ksa.add_adapters(
            old_model(backbone, adapters=False), scale_init=np.nan
        ),
        ValueError,
        "`scale_init` must be a finite number. Received: scale_init=nan",
    ),
    "other classes of another kind of model": (
        lambda backbone: ksa.change_classes(backbone(), NAMES),
        TypeError,
        "change_classes takes a keras_segadapter.Segmenter",
    ),
    "a text": (
        lambda backbone: ksa.change_classes(old_model(backbone), "road"),
        TypeError,
        "`class_names` must be a list of strings.*Received: class_names='road'",
    ),
    "ids": (
        lambda backbone: ksa.change_classes(old_model(backbone), [1, 2]),
        TypeError,
        r"`class_names` must be a list of strings.*Received: class_names=\[1, 2\]",
    ),
    "one class": (
        lambda backbone: ksa.change_classes(old_model(backbone), ["road"]),
        ValueError,
        "`num_classes` must be at least 2",
    ),
    "True": (
        lambda backbone: ksa.change_classes(old_model(backbone), True),
        ValueError,
        "`num_classes` must be at least 2",
    ),
    "a model without names": (
        lambda backbone: ksa.change_classes(
            old_model(backbone, class_names=None), NAMES
        ),
        ValueError,
        r"Call model.name_classes\(\[\.\.\.\]\) first.*Received: model=",
    ),
    "a name twice": (
        lambda backbone: ksa.change_classes(old_model(backbone), ["sky", "a", "sky"]),
        ValueError,
        r"the names must differ.*Received: `class_names` with \['sky'\]",
    ),
    "a name twice in the model": (
        lambda backbone: ksa.change_classes(
            old_model(backbone, class_names=["a", "sky", "sky"]), NAMES
        ),
        ValueError,
        r"the names must differ.*Received: `model` with \['sky'\]",
    ),
    "colors": (
        lambda backbone: ksa.change_classes(old_model(backbone), NAMES, COLORS[:2]),
        ValueError,
        "`colors` must hold 3 RGB colors",
    ),
    "a head without num_classes": (
        lambda backbone: ksa.change_classes(
            old_model(backbone, head=Uncounted(3, name="odd")), NAMES
        ),
        ValueError,
        "which must have `num_classes`.*Received: 'odd', a Uncounted without it",
    ),
    "a head of another width for each number of classes": (
        lambda backbone: ksa.change_classes(
            old_model(backbone, head=Squared(3, name="odd")), NAMES
        ),
        ValueError,
        r"and changes nothing else.*Received: 'odd', a Squared .*for 3 classes and ",
    ),
    "a head with LoRA": (
        lambda backbone: ksa.change_classes(with_lora(backbone), NAMES),
        ValueError,
        "and changes nothing else.*Received: 'head', a MLPHead",
    ),
    "a segmenter as backbone": (
        lambda backbone: ksa.build_segmenter(old_model(backbone), 3),
        TypeError,
        r"add_adapters\(model\).*change_classes\(model, class_names\).*model.backbone",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_raises(tiny_backbone, call, kind, words):
    with pytest.raises(kind, match=words):
        call(tiny_backbone)
