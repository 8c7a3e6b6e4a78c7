"""Segmenter: calls, compile, fit, evaluate, segment."""

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter import SegAdapter, build_segmenter

K = 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 64, 96, 3), "uint8")
MASKS = RNG.integers(0, K, (4, 64, 96), "uint8")


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def weights(layers):
    return [keras.ops.convert_to_numpy(v) for layer in layers for v in layer.variables]


def test_a_call_gives_scores_at_the_finest_stride(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    scores = model(IMAGES[:1].astype("float32"))
    assert {key: tuple(value.shape) for key, value in scores.items()} == {
        "logits": (1, 16, 24, K),
        "aux": (1, 16, 24, K),
    }
    assert {keras.backend.standardize_dtype(v.dtype) for v in scores.values()} == {
        "float32"
    }


def test_prediction_is_the_resized_scores(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    x = IMAGES[:1].astype("float32")
    expected = ksa.ResizeLike()([model(x)["logits"], x])
    for found in (
        model.for_inference()(x),
        model.predict(x, verbose=0),
        model.predict_on_batch(x),
    ):
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (found, expected)), atol=1e-6
        )


def test_scale_zero_leaves_the_backbones_features_bit_identical(tiny_backbone):
    backbone = tiny_backbone()
    adapters = [SegAdapter(K, scale_init=0.0) for _ in range(2)]

    class Features(keras.layers.Layer):
        """A head that hands out the deepest features as they are."""

        def call(self, features):
            return features[-1][..., :K]

        def compute_output_shape(self, input_shape):
            return (*input_shape[-1][:-1], K)

    model = build_segmenter(
        backbone, K, adapters=adapters, head=Features(name="features")
    )
    probe = keras.Model(model.input, model.get_layer("features").output)
    x = IMAGES.astype("float32")
    # Called op by op: a compiler may order the sums of two programs differently.
    expected = backbone(model.preprocessing(x))[..., :K]
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(features) for features in (probe(x), expected))
    )


def test_the_coarse_map_is_the_sum_of_the_resized_scores(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    adapters = [layer for layer in model.layers if isinstance(layer, SegAdapter)]
    scores = keras.Model(model.input, [adapter.output[1] for adapter in adapters])
    x = IMAGES[:1].astype("float32")
    fine, deep = scores(x)
    expected = fine + ksa.ResizeLike()([deep, fine])
    np.testing.assert_allclose(
        *(keras.ops.convert_to_numpy(t) for t in (model(x)["aux"], expected)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_fit_on_one_mask_and_history(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    model.compile()
    history = model.fit(
        IMAGES, MASKS, batch_size=2, verbose=0, validation_data=(IMAGES, MASKS)
    ).history
    names = {"loss", "logits_loss", "aux_loss", "mIoU"}
    assert set(history) == names | {f"val_{name}" for name in names}
    values = {name: value[0] for name, value in history.items()}
    for prefix in ("", "val_"):
        total = values[f"{prefix}logits_loss"] + 0.1 * values[f"{prefix}aux_loss"]
        np.testing.assert_allclose(values[f"{prefix}loss"], total, rtol=1e-5)
    assert isinstance(model.optimizer, ksa.AdamW)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == (
        pytest.approx(6e-5)
    )


@pytest.mark.integration
def test_evaluate_equals_the_losses_counted_by_hand(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    loss = crossentropy()
    model.compile(
        loss={"logits": loss, "aux": loss}, loss_weights={"logits": 1.0, "aux": 0.5}
    )
    result = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    images = IMAGES.astype("float32")
    by_hand = {}
    for key, scores in model(images).items():
        logits = ksa.ResizeLike()([scores, images])
        by_hand[key] = float(loss(MASKS, keras.ops.convert_to_numpy(logits)))
    assert result["logits_loss"] == pytest.approx(by_hand["logits"], rel=1e-4)
    assert result["aux_loss"] == pytest.approx(by_hand["aux"], rel=1e-4)
    total = by_hand["logits"] + 0.5 * by_hand["aux"]
    assert result["loss"] == pytest.approx(total, rel=1e-4)


def pairs_only(y_true, y_pred):
    """A loss of a user's own that takes batches of two."""
    return crossentropy()(keras.ops.reshape(y_true, (2, 64, 96)), y_pred)


@pytest.mark.integration
def test_a_step_is_traced_once(tiny_backbone):
    steps = []

    class Counted(ksa.Segmenter):
        def train_step(self, *args, **kwargs):
            steps.append(self)
            return super().train_step(*args, **kwargs)

    model = Counted(tiny_backbone((4,)), K, head=ksa.MLPHead(K, 4))
    model.compile(loss={"logits": ksa.SegmentationCrossentropy(), "aux": pairs_only})
    means = [m for m in model.metrics if isinstance(m, keras.metrics.Mean)]
    assert [float(mean.count) for mean in means] == [0.0] * len(means)
    model.fit(IMAGES[:2], MASKS[:2], verbose=0)
    assert len(steps) == 1


@pytest.mark.integration
def test_compile_with_a_loss_for_one_output_and_metrics_by_output(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    model.compile(
        loss={"logits": crossentropy()},
        metrics={"logits": [ksa.MeanIoU(K)], "aux": ["accuracy"]},
        run_eagerly=EAGER,
    )
    result = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    assert set(result) == {"loss", "logits_mIoU", "aux_accuracy"}


@pytest.mark.integration
def test_none_means_none_and_fit_takes_keras_positional_arguments(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    model.compile(metrics=None, run_eagerly=EAGER)
    history = model.fit(IMAGES, MASKS, 2, 2, 0, None, 0.5).history
    assert len(history["val_loss"]) == 2 and "mIoU" not in history
    model.compile(optimizer=None, run_eagerly=EAGER)
    result = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    assert np.isfinite(result["loss"]) and model.optimizer is None
    model = build_segmenter(tiny_backbone(), K)
    model.compile(loss=None, metrics=None)
    assert model.loss is None and model.optimizer is not None


def mean_distance(y_true, y_pred):
    """A metric and loss of a user's own: ids and logits at the size of the mask."""
    truth = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), K, dtype="float32")
    distance = keras.ops.abs(keras.ops.subtract(truth, y_pred))
    return keras.ops.mean(distance, axis=-1)


@keras.saving.register_keras_serializable("tests")
class MeanDistance(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return mean_distance(y_true, y_pred)


@pytest.mark.integration
# Keras' MeanIoU asks JAX for int64, which it does not have by default.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")
@pytest.mark.parametrize(
    "loss, metric",
    [
        (crossentropy(), "accuracy"),
        (mean_distance, keras.metrics.MeanMetricWrapper(mean_distance, "distance")),
        (MeanDistance(), mean_distance),
        (
            ksa.SegmentationCrossentropy(),
            keras.metrics.MeanIoU(K, sparse_y_pred=False, name="keras_iou"),
        ),
        (ksa.SegmentationCrossentropy(), keras.metrics.MeanIoU(K, name="keras_iou")),
        (
            ksa.SegmentationCrossentropy(),
            keras.metrics.OneHotMeanIoU(K, name="keras_iou"),
        ),
    ],
    ids=["keras", "function", "class", "logits_iou", "keras_iou", "one_hot_iou"],
)
def test_foreign_losses_and_metrics_get_scores_at_the_size_of_the_mask(
    tiny_backbone, loss, metric
):
    model = build_segmenter(tiny_backbone(), K, adapters=False)
    model.compile(loss=loss, metrics=[metric], run_eagerly=EAGER)
    logits = model.predict(IMAGES, verbose=0)
    result = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    by_hand = np.mean(keras.ops.convert_to_numpy(loss(MASKS.astype("int32"), logits)))
    assert result["loss"] == pytest.approx(by_hand, rel=1e-5)
    (name,) = set(result) - {"loss"}
    expected = {
        "accuracy": np.mean(logits.argmax(-1) == MASKS),
        "keras_iou": ksa.MeanIoU(K)(MASKS, logits),
    }.get(name, np.mean(keras.ops.convert_to_numpy(mean_distance(MASKS, logits))))
    assert result[name] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")
@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        keras.metrics.MeanIoU(K),
        keras.metrics.OneHotMeanIoU(K),
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
    ],
    ids=["accuracy", "iou", "one_hot_iou", "crossentropy"],
)
def test_metrics_of_keras_leave_void_out(tiny_backbone, metric):
    model = build_segmenter(tiny_backbone(), K, adapters=False)
    model.compile(metrics=[metric], run_eagerly=EAGER)
    half = MASKS.copy()
    half[:, 16:] = 255
    logits = model.predict(IMAGES, verbose=0)[:, :16]
    with_void = model.evaluate(IMAGES, half, verbose=0)[1]
    expected = {
        "accuracy": np.mean(logits.argmax(-1) == half[:, :16]),
        "crossentropy": ksa.SegmentationCrossentropy()(half[:, :16], logits),
    }
    name = str(getattr(metric, "name", metric)).removeprefix("sparse_categorical_")
    miou = ksa.MeanIoU(K)(half[:, :16], logits)
    assert with_void == pytest.approx(float(expected.get(name, miou)), rel=1e-5)


@pytest.mark.integration
def test_weighted_metrics_get_the_weights(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(metrics=None, weighted_metrics=[accuracy], run_eagerly=EAGER)
    weights = np.zeros(MASKS.shape, "float32")
    weights[1] = 1.0  # only the second image counts
    logits = model.predict(IMAGES, verbose=0)
    result = model.evaluate(
        IMAGES, MASKS, sample_weight=weights, verbose=0, return_dict=True
    )
    expected = np.mean(logits[1].argmax(-1) == MASKS[1])
    assert result["accuracy"] == pytest.approx(expected, abs=1e-6)


def test_masks_of_another_size_than_the_images_stop_a_dataset_too(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    model.compile(run_eagerly=EAGER)
    with pytest.raises(ValueError, match="at the size of the images"):
        model.fit((pair for pair in [(IMAGES, MASKS[:, ::2])]), verbose=0)


@pytest.mark.integration
def test_a_mask_for_each_output(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    model.compile(run_eagerly=EAGER)
    one = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    masks = {"logits": MASKS, "aux": (MASKS + 1) % K}
    other = model.evaluate(IMAGES, masks, verbose=0, return_dict=True)
    assert other["logits_loss"] == pytest.approx(one["logits_loss"], rel=1e-5)
    assert other["aux_loss"] != pytest.approx(one["aux_loss"], rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        (dict(aux="per_stage"), {"aux_s4", "aux_s8"}),
        (dict(aux=None), set()),
        (dict(adapters=False), set()),
    ],
)
def test_the_other_auxiliary_outputs(tiny_backbone, options, outputs):
    model = build_segmenter(tiny_backbone(), K, **options)
    model.compile(run_eagerly=EAGER)
    history = model.fit(IMAGES, MASKS, verbose=0).history
    losses = {"loss", *(f"{name}_loss" for name in outputs)}
    losses |= {"logits_loss"} if outputs else set()
    assert set(history) == losses | {"mIoU"}


def test_ignored_ids_reach_loss_and_metric(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    masks = MASKS.copy()
    masks[:, :20], masks[:, 20:30] = 255, 77
    model.compile(ignore_class=[255, 77], run_eagerly=EAGER)
    result = model.evaluate(IMAGES, masks, verbose=0, return_dict=True)
    assert np.isfinite(result["loss"])
    counted = model.metrics[1].metrics[0].confusion_matrix().sum()
    assert counted == np.isin(masks, range(K)).sum()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = np.s_[2 * index : 2 * index + 2]
        return IMAGES[part], MASKS[part]


def tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((IMAGES, MASKS)).batch(2)


def torch_loader():
    torch = pytest.importorskip("torch")
    pairs = [
        (torch.tensor(i), torch.tensor(m)) for i, m in zip(IMAGES, MASKS, strict=True)
    ]
    return torch.utils.data.DataLoader(pairs, batch_size=2)


@pytest.mark.parametrize(
    "source",
    [Batches, pytest.param(tf_data, marks=pytest.mark.integration), torch_loader],
)
def test_every_source_of_data_gives_the_same_loss(tiny_backbone, source):
    model = build_segmenter(tiny_backbone(), K)
    # In a graph, TensorFlow's own datasets have no known batch size.
    model.compile(run_eagerly=EAGER and source is not tf_data)
    expected = model.evaluate(IMAGES, MASKS, verbose=0, return_dict=True)
    result = model.evaluate(source(), verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert np.isfinite(model.fit(source(), verbose=0).history["loss"][0])


@pytest.mark.integration
def test_a_frozen_backbone_keeps_weights_and_statistics(tiny_backbone):
    backbone = tiny_backbone()
    model = build_segmenter(backbone, K)
    backbone.trainable = False
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=EAGER)
    before = weights(backbone.layers)
    adapters = [layer for layer in model.layers if isinstance(layer, SegAdapter)]
    adapters_before = weights(adapters)
    model.fit(IMAGES, MASKS, batch_size=2, verbose=0)
    for old, new in zip(before, weights(backbone.layers), strict=True):
        np.testing.assert_array_equal(old, new)
    assert any(
        np.any(old != new)
        for old, new in zip(adapters_before, weights(adapters), strict=True)
    )


def test_layers_are_shared_with_the_backbone(tiny_backbone):
    backbone = tiny_backbone()
    model = build_segmenter(backbone, K)
    assert model.backbone is backbone
    shared = [layer for layer in backbone.layers if layer in model.layers]
    assert len(shared) == len(backbone.layers) - 1  # all but the input


def test_adapters_false_is_the_same_model_less_the_adapters(tiny_backbone):
    channels = (4, 6, 8, 10)
    plain = build_segmenter(tiny_backbone(channels), K, adapters=False)
    adapted = build_segmenter(tiny_backbone(channels), K)
    adapters = [layer for layer in adapted.layers if isinstance(layer, SegAdapter)]
    assert [round(a.scale_init, 9) for a in adapters] == [1e-5, 1e-4, 1e-3, 1e-2]
    added = sum(adapter.count_params() for adapter in adapters)
    assert plain.count_params() == adapted.count_params() - added


def test_any_size_passes_predict_and_segment(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    for size in ((96, 128), (93, 141), (64, 64)):
        image = RNG.integers(0, 256, (*size, 3), "uint8")
        assert model.predict(image[None], verbose=0).shape == (1, *size, K)
        labels = model.segment(image)
        assert labels.shape == size and labels.dtype == "uint8"
        assert labels.max() < K


def test_segment_takes_one_image_a_batch_and_a_list(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    batch = model.segment(IMAGES)
    assert batch.shape == IMAGES.shape[:3]
    expected = np.argmax(model.predict(IMAGES, verbose=0), axis=-1)
    np.testing.assert_array_equal(batch, expected)
    np.testing.assert_array_equal(model.segment(IMAGES[1]), batch[1])
    one, other = model.segment([IMAGES[0], IMAGES[1, :50, :41].astype("float32")])
    np.testing.assert_array_equal(one, batch[0])
    assert other.shape == (50, 41)


def test_a_model_of_fixed_size_segments_any_size(tiny_backbone):
    model = build_segmenter(tiny_backbone(size=(64, 96)), K)
    np.testing.assert_array_equal(
        model.segment(IMAGES), np.argmax(model.predict(IMAGES, verbose=0), -1)
    )
    assert model.segment(np.zeros((100, 30, 3), "uint8")).shape == (100, 30)


@pytest.mark.integration
def test_it_nests_in_another_model_at_image_size(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    inputs = keras.Input((None, None, 3))
    logits = model.for_inference()(inputs)
    outer = keras.Model(inputs, keras.layers.Rescaling(2.0)(logits))
    expected = 2 * model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(outer.predict(IMAGES, verbose=0), expected, rtol=1e-5)
    outer.compile("sgd", crossentropy(), run_eagerly=EAGER)
    before = model.get_weights()
    assert np.isfinite(outer.fit(IMAGES, MASKS, verbose=0).history["loss"][0])
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))


def test_features_are_what_goes_into_and_out_of_the_adapters(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    found = keras.Model(model.input, model.features).predict_on_batch(IMAGES)
    assert set(found) == {"inputs", "outputs", "scores"}
    for x, y, s, adapter in zip(*found.values(), model.adapters, strict=True):
        for one, other in zip((y, s), adapter(x), strict=True):
            np.testing.assert_allclose(
                one, keras.ops.convert_to_numpy(other), rtol=1e-4, atol=1e-5
            )
    plain = build_segmenter(tiny_backbone(), K, adapters=False)
    assert plain.features["inputs"] == plain.features["outputs"]
    assert plain.features["scores"] == [] and plain.adapters == []


@keras.saving.register_keras_serializable("tests")
class FCNHead(keras.layers.Layer):
    """An auxiliary head on the deepest stage."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.scores = keras.layers.Dense(units)

    def build(self, shapes):
        self.scores.build(shapes[-1])

    def call(self, features):
        return self.scores(features[-1])

    def compute_output_shape(self, shapes):
        return (*shapes[-1][:-1], self.scores.units)

    def get_config(self):
        return {**super().get_config(), "units": self.scores.units}


@pytest.mark.integration
@pytest.mark.parametrize("adapters", [True, False])
def test_an_auxiliary_head_of_the_users_own(tiny_backbone, tmp_path, adapters):
    model = build_segmenter(tiny_backbone(), K, aux=FCNHead(K), adapters=adapters)
    assert model(IMAGES)["aux"].shape == (4, 8, 12, K)
    model.compile(run_eagerly=EAGER)
    history = model.fit(IMAGES, MASKS, verbose=0).history
    assert set(history) == {"loss", "logits_loss", "aux_loss", "mIoU"}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for key, scores in model(IMAGES).items():
        np.testing.assert_array_equal(
            *map(keras.ops.convert_to_numpy, (loaded(IMAGES)[key], scores))
        )


def test_cloning_names_the_way_to_a_new_segmenter(tiny_backbone):
    model = build_segmenter(tiny_backbone(), K)
    with pytest.raises(ValueError, match=r"Segmenter.from_config\(model.get_config"):
        keras.models.clone_model(model)
    clone = ksa.Segmenter.from_config(model.get_config())
    assert isinstance(clone, ksa.Segmenter) and clone.layers[2] is not model.layers[2]
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]


@pytest.mark.parametrize("training", [None, True])
def test_a_nested_backbone_keeps_the_arguments_of_its_call(training):
    """`inner(x, training=True)` drops out wherever the model is called as it is."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.Conv2D(4, 4, 4)(inputs))
    inner = keras.Model(inputs, x)
    outer = keras.Model(inputs, inner(inputs, training=training))
    model = build_segmenter(outer, K)
    for network, name in ((outer, None), (model, "logits")):
        one, other = network(IMAGES), network(IMAGES)
        one, other = (one[name], other[name]) if name else (one, other)
        one, other = map(keras.ops.convert_to_numpy, (one, other))
        assert np.array_equal(one, other) is (training is None)


def test_a_segmenter_with_a_nested_backbone_is_adapted(tiny_backbone):
    inputs = keras.Input((None, None, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    outer = keras.Model(inputs, tiny_backbone()(scaled))
    model = build_segmenter(outer, K)
    assert sum(isinstance(layer, SegAdapter) for layer in model.layers) == 2
    assert isinstance(model.preprocessing, keras.layers.Identity)


@pytest.mark.integration
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_with_float32_logits(tiny_backbone, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = build_segmenter(tiny_backbone(), K)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(run_eagerly=EAGER)
    assert np.isfinite(model.fit(IMAGES, MASKS, verbose=0).history["loss"][0])
    for scores in (*model(IMAGES[:1]).values(), model.for_inference()(IMAGES[:1])):
        assert keras.backend.standardize_dtype(scores.dtype) == "float32"


def test_a_head_and_adapters_of_the_users_own(tiny_backbone):
    adapters = [SegAdapter(K, kernel_size=3, num_blocks=2) for _ in range(2)]
    head = ksa.MLPHead(K, channels=16)
    model = build_segmenter(tiny_backbone(), K, adapters=adapters, head=head)
    assert head in model.layers
    assert set(adapters) <= set(model.layers)


@pytest.mark.integration
def test_it_learns(tiny_backbone):
    """Two halves of different brightness are told apart after a few steps."""
    images = np.zeros((8, 32, 32, 3), "uint8")
    images[:, :, 16:] = 255
    masks = (images[..., 0] > 0).astype("uint8")
    model = build_segmenter(tiny_backbone(), 2)
    model.compile(ksa.AdamW(1e-2), metrics=None)
    model.fit(images, masks, batch_size=8, epochs=25, verbose=0)
    assert np.mean(model.segment(images) == masks) > 0.9


@pytest.mark.integration
def test_one_tiny_fit_compiled():
    """XLA on TensorFlow and JAX; tiny, since XLA is slow on a CPU."""
    if keras.backend.backend() == "torch":
        pytest.skip(
            "XLA exists on TensorFlow and JAX; on torch jit_compile is torch.compile, "
            "which takes minutes for this model on a CPU"
        )
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    model = build_segmenter(
        keras.Model(inputs, keras.layers.Conv2D(4, 2, 2)(x)),
        K,
        head=ksa.MLPHead(K, channels=4),
    )
    model.compile(jit_compile=True)
    assert model.jit_compile
    history = model.fit(IMAGES[:2, :16, :16], MASKS[:2, :16, :16], verbose=0).history
    assert np.isfinite(history["loss"][0])
