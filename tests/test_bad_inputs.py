"""The table of bad inputs and the sentence that each gives.

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
TABLE = [
    # Building
    (lambda: build(num_classes=1), ValueError, "two classes, the background and the"),
    (lambda: build(num_classes="19"), ValueError, "Received: num_classes='19'"),
    (lambda: build(aux="mean"), ValueError, "Received: aux='mean'"),
    (lambda: build(adapters=None), TypeError, "True, False or a list of SegAdapter"),
    (lambda: build(adapters=SHORT), ValueError, "2 taps. Received: 1 adapters"),
    (lambda: build(adapters=SHORT * 2), ValueError, "one SegAdapter of its own"),
    (
        lambda: build(adapters=[SegAdapter(2), SegAdapter(5)]),
        ValueError,
        "scores 5 classes, but num_classes=2",
    ),
    (
        lambda: build(adapters=[SegAdapter(2, return_scores=False) for _ in "ab"]),
        ValueError,
        "Set return_scores=True or aux=None",
    ),
    (lambda: build(head="mlp"), TypeError, "`head` must be a Keras layer"),
    (lambda: build(head=Wide()), ValueError, "class scores.*width, 2\\)"),
    (lambda: build(preprocessing=max), TypeError, "`preprocessing` must be a Keras"),
    # Compiling
    (lambda: fit(compiled=dict(ignore_class="void")), TypeError, "'void'"),
    (lambda: fit(compiled=dict(aux_weight=-1)), ValueError, "aux_weight=-1"),
    (
        lambda: fit(compiled=dict(loss="sparse_categorical_crossentropy")),
        ValueError,
        "gives logits, but this loss takes probabilities",
    ),
    (
        lambda: fit(compiled=dict(loss={"logits": keras.losses.BinaryCrossentropy()})),
        ValueError,
        "from_logits=True",
    ),
    *(
        (
            lambda loss=loss: fit(compiled=dict(loss=loss)),
            ValueError,
            "takes one-hot masks.*to keras_segadapter.MaskLoss",
        )
        for loss in (
            "dice",
            keras.losses.tversky,
            keras.losses.CategoricalFocalCrossentropy(),
            {"aux": keras.losses.CategoricalCrossentropy(from_logits=True)},
        )
    ),
    (
        lambda: fit(y=masks(7), compiled=dict(loss=ksa.MaskLoss(DICE, None, [8]))),
        ValueError,
        "outside the 2 classes 0..1: \\[7\\] \\(ignored: \\[8\\]\\)",
    ),
    (
        lambda: fit(compiled=dict(loss={"mask": "mse"})),
        ValueError,
        "outputs that the model has not: \\['mask'\\].*\\['logits', 'aux'\\]",
    ),
    (
        lambda: fit(compiled=dict(loss_weights={"coarse": 1.0})),
        ValueError,
        "`loss_weights` names outputs",
    ),
    (
        lambda: fit(compiled=dict(metrics={"mIoU": []})),
        ValueError,
        "`metrics` names outputs",
    ),
    # Training
    (lambda: fit(y=masks(7)), ValueError, "outside the 2 classes 0..1: \\[7\\]"),
    (lambda: fit(y=masks(200)), ValueError, "raise num_classes"),
    (lambda: fit(y=MASKS * 255), ValueError, "use masks // 255"),
    (
        lambda: fit(y=MASKS * 255, compiled=dict(ignore_class=None)),
        ValueError,
        "outside the 2 classes.*use masks // 255",
    ),
    (lambda: fit(y=ONE_HOT), ValueError, "one-hot masks: take numpy.argmax"),
    (lambda: fit(y=MASKS[:, ::2]), ValueError, "at the size of the images"),
    (lambda: fit(y={"logits": masks(3), "aux": MASKS}), ValueError, "\\[3\\]"),
    (lambda: fit(x=Wrong(), y=None), ValueError, "\\[9\\]"),
    (lambda: fit(validation_data=(IMAGES, masks(5))), ValueError, "\\[5\\]"),
    (
        lambda: build().fit(IMAGES, MASKS * 255, verbose=0),
        ValueError,
        "must call `compile\\(\\)` before",
    ),
    (lambda: fit(class_weight={0: 1.0}), ValueError, "SegmentationCrossentropy"),
    (
        lambda: fit(compiled=dict(loss=ksa.SegmentationCrossentropy(255, [1, 2, 3]))),
        ValueError,
        "3 weights for 2 classes",
    ),
    # Segmenting
    (lambda: build().segment(IMAGES[0, ..., :1]), ValueError, "\\(16, 24, 1\\)"),
    (lambda: build().segment(IMAGES[0, 0]), ValueError, "convert\\('RGB'\\)"),
    (lambda: build().segment(IMAGES[:0]), ValueError, "\\(0, 16, 24, 3\\)"),
    (lambda: build().segment(IMAGES.astype(str)), ValueError, "dtype <U"),
    (
        lambda: build().segment(np.full((8, 8, 3), np.nan)),
        ValueError,
        "NaN or infinite",
    ),
    (
        lambda: build().segment(np.full((8, 8, 3), 0.5)),
        ValueError,
        "Multiply the image by 255",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), TABLE)
def test_bad_input(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_the_table_is_long_enough():
    assert len(TABLE) >= 20


def test_channels_first():
    network = backbone()
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="set_image_data_format"):
            build_segmenter(network, 2)
    finally:
        keras.config.set_image_data_format("channels_last")
