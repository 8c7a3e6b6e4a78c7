"""The table of bad inputs and the error that each raises.

Bad folders and files are in test_folders.py, bad taps and backbones in test_stages.py,
bad arguments of the layers in the test files of the layers.
"""

import keras
import numpy as np
import pytest
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter import SegAdapter, build_segmenter
from keras_segadapter.training.watch import StopOnNonsense

IMAGES = np.zeros((2, 16, 24, 3), "uint8")
MASKS = np.zeros((2, 16, 24), "uint8")
MASKS[:, 8:] = 1


def backbone():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, 4)(inputs)
    return keras.Model(inputs, keras.layers.Conv2D(6, 2, 2)(x))


def build(**options):
    return build_segmenter(backbone(), **{"num_classes": 2, **options})


def fit(x=IMAGES, y=MASKS, compiled=None, **options):
    MODEL.compile(**{"run_eagerly": EAGER, **(compiled or {})})
    MODEL.fit(x, y, verbose=0, **options)


def compute_loss(masks):
    MODEL.compile()
    MODEL.compute_loss(y=masks, y_pred=MODEL(IMAGES))


def masks(*values):
    wrong = MASKS.copy()
    wrong[0, 0, : len(values)] = values
    return wrong


class Wide(keras.layers.Layer):
    """A head that gives the wrong number of classes."""

    def call(self, features):
        return features[0]

    def compute_output_shape(self, input_shape):
        return input_shape[0]


class Batches(keras.utils.PyDataset):
    """A dataset of the batches that it is given."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def evaluate(*data):
    MODEL.compile(run_eagerly=EAGER)
    MODEL.evaluate(*data, verbose=0)


def revive(thing, missing=None, unknown=None):
    config = thing.get_config()
    config.pop(missing, None)
    config.update(dict.fromkeys([unknown] if unknown else []))
    type(thing).from_config(config)


def revive_stage():
    config = build().get_config()
    del config["taps"][0]["stride"]
    ksa.Segmenter.from_config(config)


NUMBERS = {
    "aux_weight": lambda value: MODEL.compile(aux_weight=value),
    "loss_weight": lambda value: MODEL.compile(loss_weights={"logits": value}),
    "ffn_ratio": lambda value: SegAdapter(2, ffn_ratio=value),
    "scale_init": lambda value: SegAdapter(2, scale_init=value),
    "kernel_size": lambda value: SegAdapter(2, kernel_size=value),
    "num_blocks": lambda value: SegAdapter(2, num_blocks=value),
    "filters": lambda value: ksa.SegAttention(value),
    "channels": lambda value: ksa.MLPHead(2, channels=value),
    "dropout": lambda value: ksa.MLPHead(2, dropout=value),
    "drop_path": lambda value: ksa.MiTB0(drop_path=value),
    "num_classes": lambda value: ksa.MeanIoU(value),
    "class_weight": lambda value: ksa.SegmentationCrossentropy(class_weight=[value, 1]),
    "class_weight_by_class": lambda value: ksa.SegmentationCrossentropy(
        class_weight={0: value}
    ),
    "weights": lambda value: ksa.MaskLoss(DICE, weights=[value]),
    "pixels": lambda value: ksa.balanced_class_weight([value, 1]),
    "learning_rate": lambda value: ksa.WarmupPoly(value, 2, 1),
    "steps": lambda value: ksa.WarmupPoly(1, value, 1),
    "warmup_steps": lambda value: ksa.WarmupPoly(1, 2, value),
    "weight_decay": lambda value: ksa.paper_optimizer(MODEL, 2000, weight_decay=value),
    "head_multiplier": lambda value: ksa.paper_optimizer(
        MODEL, 2000, head_multiplier=value
    ),
    "scales": lambda value: ksa.predict_logits(MODEL, IMAGES[0], scales=[value]),
    "crop": lambda value: ksa.predict_logits(MODEL, IMAGES[0], crop=value or "none"),
    "tile": lambda value: ksa.predict_labels(MODEL, IMAGES[0], tile=value or "none"),
    "image_size": lambda value: ksa.cost_report(MODEL, value),
    "every": lambda value: ksa.TrainingPictures(IMAGES, MASKS, "unused", every=value),
    "alpha": lambda value: ksa.visualization.overlay(IMAGES[0], MASKS[0], alpha=value),
}


ONE_HOT = np.eye(2, dtype="uint8")[MASKS]
SHORT = [SegAdapter(2)]
DICE = keras.losses.Dice(axis=(1, 2))
NAN, HALF = np.full((8, 8, 3), np.nan), np.full((8, 8, 3), 0.5)
MODEL = build()
TABLE = {
    # Building
    "one_class": (lambda: build(num_classes=1), ValueError, "two classes, the backgr"),
    **{
        f"class_names_{name}": (
            lambda names=names: build(class_names=names),
            ValueError,
            "`class_names` must be a list of 2 strings",
        )
        for name, names in {"number": 3, "text": "ab", "numbers": [1, 2]}.items()
    },
    **{
        f"colors_{name}": (
            lambda colors=colors: build(colors=colors),
            ValueError,
            "`colors` must hold 2 RGB colors.* 0..255",
        )
        for name, colors in {
            "words": ["red", "blue"],
            "range": [[0, 0, 300], [0, 0, 0]],
            "channels": [[0, 0], [1, 1]],
            "fractions": [[0, 0, 0.5], [0, 0, 1]],
        }.items()
    },
    "input_shape": (
        lambda: ksa.MiTB0(input_shape=(64, 64)),
        ValueError,
        r"`input_shape` must be \(height, width, channels\)",
    ),
    "input_shape_channels": (
        lambda: ksa.MiTB0(input_shape=(64, 64, None)),
        ValueError,
        r"`input_shape\[2\]` must be an integer",
    ),
    "path_of_an_export": (
        lambda: ksa.export_model(MODEL, None),
        TypeError,
        "`path` must be a path",
    ),
    "path_of_an_exported_file": (
        lambda: ksa.open_exported(None),
        TypeError,
        "`path` must be a path",
    ),
    "epochs": (lambda: fit(IMAGES, MASKS, epochs="2"), ValueError, "`epochs` must be"),
    "batch_size": (
        lambda: fit(IMAGES, MASKS, batch_size=0),
        ValueError,
        "`batch_size` must be an integer of at least 1",
    ),
    "negative_classes": (
        lambda: build(num_classes=-3),
        ValueError,
        "must be at least 2.*Received: num_classes=-3",
    ),
    "taps_number": (
        lambda: build(taps=3),
        ValueError,
        "`taps` must be a list.*Received: taps=3",
    ),
    "backbone_segmenter": (
        lambda: build_segmenter(MODEL, 2),
        TypeError,
        r"add_adapters\(model\).*change_classes.*pass its backbone, model.backbone",
    ),
    "stages_of_a_segmenter": (
        lambda: ksa.find_stages(MODEL),
        TypeError,
        "model.backbone",
    ),
    "aux_array": (lambda: build(aux=MASKS), ValueError, '`aux` must be "sum"'),
    "return_scores_text": (
        lambda: SegAdapter(2, return_scores="no"),
        TypeError,
        "`return_scores` must be True or False. Received: return_scores='no'",
    ),
    "multipliers_number": (
        lambda: ksa.paper_optimizer(MODEL, 2000, multipliers=3),
        TypeError,
        "`multipliers` must be a dict",
    ),
    # Configs
    "config_without_backbone": (
        lambda: revive(MODEL, "backbone"),
        ValueError,
        "config of a Segmenter .*missing keys \\['backbone'\\]",
    ),
    "config_with_more": (
        lambda: revive(MODEL, unknown="color"),
        ValueError,
        "unknown keys \\['color'\\]",
    ),
    "config_of_a_stage": (
        lambda: revive_stage(),
        ValueError,
        "config of a Stage .*\\['stride'\\]",
    ),
    "config_of_a_loss": (
        lambda: revive(ksa.MaskLoss(DICE), "losses"),
        ValueError,
        "config of a MaskLoss .*\\['losses'\\]",
    ),
    "config_of_a_layer": (
        lambda: revive(SegAdapter(2), "num_classes"),
        TypeError,
        "'num_classes'",
    ),
    "config_of_a_layer_with_more": (
        lambda: revive(SegAdapter(2), unknown="color"),
        TypeError,
        "'color'",
    ),
    "classes_as_text": (
        lambda: build(num_classes="19"),
        ValueError,
        "Received: num_classes='19'",
    ),
    "unknown_aux": (lambda: build(aux="mean"), ValueError, "Received: aux='mean'"),
    "aux_gives_wrong_classes": (lambda: build(aux=Wide()), ValueError, "`aux` must"),
    "adapters_none": (
        lambda: build(adapters=None),
        TypeError,
        "True, False or a list of SegAdapter",
    ),
    "too_few_adapters": (
        lambda: build(adapters=SHORT),
        ValueError,
        "2 taps. Received: 1 adapters",
    ),
    "one_adapter_twice": (
        lambda: build(adapters=SHORT * 2),
        ValueError,
        "one SegAdapter of its own",
    ),
    "adapter_of_other_classes": (
        lambda: build(adapters=[SegAdapter(2), SegAdapter(5)]),
        ValueError,
        "num_classes=2 and the adapter .* with num_classes=5",
    ),
    "adapters_without_scores": (
        lambda: build(adapters=[SegAdapter(2, return_scores=False) for _ in "ab"]),
        ValueError,
        "Set return_scores=True or aux=None",
    ),
    "head_as_text": (lambda: build(head="mlp"), TypeError, "`head` must be a Keras"),
    "head_gives_wrong_classes": (
        lambda: build(head=Wide()),
        ValueError,
        "class scores.*width, 2\\)",
    ),
    "preprocessing_function": (
        lambda: build(preprocessing=max),
        TypeError,
        "`preprocessing` must be a Keras",
    ),
    # Compiling
    "ignored_name": (
        lambda: fit(compiled=dict(ignore_class="void")),
        TypeError,
        "'void'",
    ),
    "negative_aux_weight": (
        lambda: fit(compiled=dict(aux_weight=-1)),
        ValueError,
        "aux_weight=-1",
    ),
    "loss_of_probabilities_by_name": (
        lambda: fit(compiled=dict(loss="sparse_categorical_crossentropy")),
        ValueError,
        "compares probabilities or values.*from_logits=True",
    ),
    "loss_of_two_probabilities": (
        lambda: fit(compiled=dict(loss={"logits": keras.losses.BinaryCrossentropy()})),
        ValueError,
        "from_logits=True",
    ),
    "loss_without_from_logits": (
        lambda: fit(
            compiled=dict(loss=keras.losses.SparseCategoricalCrossentropy()),
        ),
        ValueError,
        "from_logits=True",
    ),
    "loss_of_values": (lambda: fit(compiled=dict(loss="mse")), ValueError, "'mse'"),
    **{
        f"one_hot_loss_{name}": (
            lambda loss=loss: fit(compiled=dict(loss=loss)),
            ValueError,
            "takes one-hot masks.*to keras_segadapter.MaskLoss",
        )
        for name, loss in {
            "by_name": "tversky",
            "function": keras.losses.tversky,
            "instance": keras.losses.CategoricalFocalCrossentropy(),
            "by_output": {"aux": keras.losses.CategoricalCrossentropy(True)},
        }.items()
    },
    **{
        f"metric_{name}": (
            lambda metric=metric: fit(compiled=dict(metrics=[metric])),
            ValueError,
            "takes other values. Use keras_segadapter.MeanIoU",
        )
        for name, metric in {
            "of_other_classes": keras.metrics.MeanIoU(3),
            "of_two_values": keras.metrics.BinaryIoU(),
            "of_probabilities": keras.metrics.Precision(),
            "by_name": "mse",
        }.items()
    },
    "ids_outside_a_mask_loss": (
        lambda: fit(y=masks(7), compiled=dict(loss=ksa.MaskLoss(DICE, None, [8]))),
        ValueError,
        "outside the 2 classes 0..1.*\\[7\\].*\\[8\\]",
    ),
    "loss_of_another_output": (
        lambda: fit(compiled=dict(loss={"mask": "mse"})),
        ValueError,
        "`loss` must name outputs.*\\['logits', 'aux'\\].*\\['mask'\\]",
    ),
    "weight_of_another_output": (
        lambda: fit(compiled=dict(loss_weights={"coarse": 1.0})),
        ValueError,
        "`loss_weights` must name outputs",
    ),
    "metric_of_another_output": (
        lambda: fit(compiled=dict(metrics={"mIoU": []})),
        ValueError,
        "`metrics` must name outputs",
    ),
    "loss_unknown": (
        lambda: fit(compiled=dict(loss="foo")),
        ValueError,
        "`loss` must be a keras.losses.Loss.*Received: loss='foo'",
    ),
    "loss_number": (lambda: fit(compiled=dict(loss=3)), ValueError, "loss=3"),
    "loss_list": (lambda: fit(compiled=dict(loss=["mse"])), ValueError, "by output"),
    "loss_class": (
        lambda: fit(compiled=dict(loss=keras.losses.MeanSquaredError)),
        ValueError,
        "compares probabilities or values",
    ),
    "loss_weights_number": (
        lambda: fit(compiled=dict(loss_weights=2.0)),
        TypeError,
        "`loss_weights` must be a dict",
    ),
    "metric_unknown": (
        lambda: fit(compiled=dict(metrics=["foo"])),
        ValueError,
        "`metrics` must hold.*'foo'",
    ),
    "metric_class": (
        lambda: fit(compiled=dict(metrics=[ksa.MeanIoU])),
        ValueError,
        "`metrics` must hold instances",
    ),
    "metric_of_more_classes": (
        lambda: fit(compiled=dict(metrics=[ksa.MeanIoU(5)])),
        ValueError,
        "MeanIoU\\(num_classes=5\\) for a model with num_classes=2",
    ),
    "class_weight_at_compile": (
        lambda: MODEL.compile(loss=ksa.SegmentationCrossentropy(255, [1, 2, 3])),
        ValueError,
        "3 weights for 2 classes",
    ),
    "class_weight_in_a_mix": (
        lambda: MODEL.compile(
            loss=ksa.MaskLoss(ksa.SegmentationCrossentropy(class_weight={5: 1}))
        ),
        ValueError,
        "classes \\[5\\]",
    ),
    "class_weight_set": (
        lambda: ksa.SegmentationCrossentropy(class_weight={1, 2}),
        TypeError,
        "a list of one weight per class",
    ),
    "weights_number": (
        lambda: ksa.MaskLoss(DICE, weights=3),
        ValueError,
        "one number per loss.*weights=3",
    ),
    # Training
    "no_masks": (lambda: fit(y=None), ValueError, "images without masks, y=None"),
    "x_none": (lambda: fit(x=None, y=None), ValueError, "Received: x=None"),
    "x_none_with_masks": (lambda: fit(x=None), ValueError, "Received: x=None"),
    "loop_without_images": (
        lambda: compute_loss({"logit": MASKS}),
        ValueError,
        r"a dict with an array for each of \['logits', 'aux'\].*keys \['logit'\]",
    ),
    "list_of_images": (
        lambda: fit(x=list(IMAGES), y=list(MASKS)),
        TypeError,
        "numpy.stack.*Received: x of type list of 2",
    ),
    "list_of_masks": (
        lambda: fit(y=list(MASKS)),
        TypeError,
        "Received: y of type list of 2",
    ),
    "tuple_of_both": (lambda: fit(x=(IMAGES, MASKS), y=None), TypeError, "tuple of 2"),
    "path": (lambda: fit(x="folder", y=None), TypeError, "open_folder"),
    "gray_images": (lambda: fit(x=IMAGES[..., :1]), ValueError, "16, 24, 1\\)"),
    "images_of_text": (lambda: fit(x=IMAGES.astype(str)), ValueError, "dtype <U"),
    "masks_of_another_output": (
        lambda: fit(y={"logit": MASKS}),
        ValueError,
        "each of \\['logits', 'aux'\\].*\\['logit'\\]",
    ),
    "masks_of_one_output": (
        lambda: fit(y={"logits": MASKS}),
        ValueError,
        "each of \\['logits', 'aux'\\].*\\['logits'\\]",
    ),
    "empty_arrays": (lambda: fit(IMAGES[:0], MASKS[:0]), ValueError, "x of length 0"),
    "empty_dataset": (lambda: fit(Batches(), None), ValueError, "x of length 0"),
    "dataset_without_masks": (
        lambda: fit(Batches(IMAGES), None),
        ValueError,
        "images without masks",
    ),
    "dataset_with_wrong_output": (
        lambda: fit(Batches((IMAGES, {"mask": MASKS})), None),
        ValueError,
        "Received: a dict with the keys \\['mask'\\]",
    ),
    "validation_of_one": (
        lambda: fit(validation_data=(IMAGES,)),
        ValueError,
        "`validation_data` must be a pair .*tuple of 1",
    ),
    "validation_of_images": (
        lambda: fit(validation_data=IMAGES),
        ValueError,
        "images without masks",
    ),
    "validation_empty": (
        lambda: fit(validation_data=(IMAGES[:0], MASKS[:0])),
        ValueError,
        "x of length 0",
    ),
    "evaluate_no_masks": (lambda: evaluate(IMAGES), ValueError, "without masks"),
    "evaluate_list": (
        lambda: evaluate(list(IMAGES), list(MASKS)),
        TypeError,
        "x of type list of 2",
    ),
    "evaluate_empty": (lambda: evaluate(Batches()), ValueError, "x of length 0"),
    "predict_none": (lambda: MODEL.predict(None), TypeError, "Received: x=None"),
    "predict_list": (lambda: MODEL.predict(list(IMAGES)), TypeError, "numpy.stack"),
    "predict_empty": (lambda: MODEL.predict(IMAGES[:0]), ValueError, "length 0"),
    "id_outside": (lambda: fit(y=masks(7)), ValueError, "outside the 2 classes.*\\[7"),
    "many_ids": (lambda: fit(y=masks(200)), ValueError, "raise num_classes"),
    "black_and_white": (lambda: fit(y=MASKS * 255), ValueError, "masks // 255"),
    "black_and_white_without_void": (
        lambda: fit(y=MASKS * 255, compiled=dict(ignore_class=None)),
        ValueError,
        "outside the 2 classes.*masks // 255",
    ),
    "one_hot_masks": (lambda: fit(y=ONE_HOT), ValueError, "one-hot masks .*argmax"),
    "masks_of_another_size": (
        lambda: fit(y=MASKS[:, ::2]),
        ValueError,
        "at the size of the images",
    ),
    "one_of_two_masks": (
        lambda: fit(y={"logits": masks(3), "aux": MASKS}),
        ValueError,
        "\\[3\\]",
    ),
    "dataset": (lambda: fit(Batches((IMAGES, masks(9))), None), ValueError, "\\[9\\]"),
    "validation_masks": (
        lambda: fit(validation_data=(IMAGES, masks(5))),
        ValueError,
        "\\[5\\]",
    ),
    "not_compiled": (
        lambda: build().fit(IMAGES, MASKS * 255, verbose=0),
        ValueError,
        "must call `compile\\(\\)` before",
    ),
    "class_weight": (
        lambda: fit(class_weight={2: 1.0}),
        ValueError,
        "classes \\[2\\]",
    ),
    "too_many_class_weights": (
        lambda: fit(compiled=dict(loss=ksa.SegmentationCrossentropy(255, [1, 2, 3]))),
        ValueError,
        "3 weights for 2 classes",
    ),
    "unknown_argument_of_fit": (lambda: fit(batch=2), TypeError, "'batch'"),
    # Segmenting
    "grey": (lambda: MODEL.segment(IMAGES[0, ..., :1]), ValueError, "16, 24, 1"),
    "a_row": (lambda: MODEL.segment(IMAGES[0, 0]), ValueError, "convert\\('RGB"),
    "no_images": (lambda: MODEL.segment(IMAGES[:0]), ValueError, "\\(0, 16, 24, 3"),
    "text": (lambda: MODEL.segment(IMAGES.astype(str)), ValueError, "<U"),
    "nan": (lambda: MODEL.segment(NAN), ValueError, "NaN or infinite"),
    "scaled": (lambda: MODEL.segment(HALF), ValueError, "Multiply them by 255"),
}


@pytest.mark.parametrize(("call", "error", "message"), TABLE.values(), ids=TABLE)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("value", ["3", None, True, float("nan"), float("inf"), -1e9])
@pytest.mark.parametrize("name", NUMBERS)
def test_bad_number(name, value):
    # NumPy makes a count of True among others.
    if (name, value) in {("scale_init", -1e9), ("loss_weight", -1e9), ("pixels", True)}:
        NUMBERS[name](value)
    else:
        with pytest.raises(ValueError, match=r"must .*Received: "):
            NUMBERS[name](value)


@pytest.mark.integration
@pytest.mark.parametrize("trainable", [False, True])
def test_freezing_after_compile(trainable):
    network = backbone()
    network.trainable = not trainable
    model = build_segmenter(network, 2)
    model.compile(run_eagerly=EAGER)
    network.trainable = trainable
    with pytest.raises(ValueError, match=r"frozen or unfrozen after compile.*again"):
        model.fit(IMAGES, MASKS, verbose=0)
    model.compile(run_eagerly=EAGER)
    model.fit(IMAGES, MASKS, verbose=0)


def test_no_batches():
    watch = StopOnNonsense()
    watch.on_epoch_begin(0)
    with pytest.raises(ValueError, match="training data must hold at least one batch"):
        watch.on_epoch_end(0)


def test_channels_first():
    network = backbone()
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="set_image_data_format"):
            build_segmenter(network, 2)
    finally:
        keras.config.set_image_data_format("channels_last")
