"""The table of bad inputs and the error that each raises.

Bad folders and files are in test_folders.py, bad taps and backbones in test_stages.py,
bad arguments of the layers in the test files of the layers.
"""

import keras
import numpy as np
import pytest

import keras_segadapter as ksa
from keras_segadapter import SegAdapter, build_segmenter

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
    model = build()
    model.compile(**(compiled or {}))
    model.fit(x, y, verbose=0, **options)


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


class Wrong(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return IMAGES, masks(9)


ONE_HOT = np.eye(2, dtype="uint8")[MASKS]
SHORT = [SegAdapter(2)]
DICE = keras.losses.Dice(axis=(1, 2))
NAN, HALF = np.full((8, 8, 3), np.nan), np.full((8, 8, 3), 0.5)
TABLE = {
    # Building
    "one_class": (lambda: build(num_classes=1), ValueError, "two classes, the backgr"),
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
            "by_name": "dice",
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
    # Training
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
    "dataset": (lambda: fit(x=Wrong(), y=None), ValueError, "\\[9\\]"),
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
        lambda: fit(class_weight={0: 1.0}),
        ValueError,
        "SegmentationCrossentropy",
    ),
    "too_many_class_weights": (
        lambda: fit(compiled=dict(loss=ksa.SegmentationCrossentropy(255, [1, 2, 3]))),
        ValueError,
        "3 weights for 2 classes",
    ),
    "unknown_argument_of_fit": (lambda: fit(batch=2), TypeError, "'batch'"),
    # Segmenting
    "grey": (lambda: build().segment(IMAGES[0, ..., :1]), ValueError, "16, 24, 1"),
    "a_row": (lambda: build().segment(IMAGES[0, 0]), ValueError, "convert\\('RGB"),
    "no_images": (lambda: build().segment(IMAGES[:0]), ValueError, "\\(0, 16, 24, 3"),
    "text": (lambda: build().segment(IMAGES.astype(str)), ValueError, "<U"),
    "nan": (lambda: build().segment(NAN), ValueError, "NaN or infinite"),
    "scaled": (lambda: build().segment(HALF), ValueError, "Multiply them by 255"),
}


@pytest.mark.parametrize(("call", "error", "message"), TABLE.values(), ids=TABLE)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_channels_first():
    network = backbone()
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="set_image_data_format"):
            build_segmenter(network, 2)
    finally:
        keras.config.set_image_data_format("channels_last")
