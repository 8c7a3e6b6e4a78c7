"""A file that this package once wrote loads for good, on each backend.

`python tests/test_golden.py` wrote `golden/`, once: a new file would prove nothing.
"""

from pathlib import Path

import keras
import numpy as np
from conftest import EAGER

import keras_segadapter as ksa
from keras_segadapter.backbones.mit import EfficientSelfAttention, MixFFN
from keras_segadapter.layers.faster import PatchConv2D

GOLDEN = Path(__file__).parent / "golden"
K = 3
IMAGES = np.arange(2 * 24 * 32 * 3).reshape(2, 24, 32, 3) * 37 % 256
MASKS = IMAGES[..., 0] % K


def build():
    """Build one of each layer that a file can hold, with an operation between."""
    image = keras.Input((None, None, 3))
    x = PatchConv2D(4, 4, 4, name="embed")(image)
    x = x + EfficientSelfAttention(2, 2, name="attention")(x)
    x = keras.layers.Conv2D(6, 3, 2, padding="same", name="reduce")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = x + keras.layers.Dropout(0.1, name="drop_path")(MixFFN(2, name="ffn")(x))
    backbone = keras.Model(image, x, name="golden_backbone")
    backbone.trainable = False
    adapter = ksa.SegAdapter(K, 3, scale_init=0.1, normalize=True, name="adapter_s8")
    return ksa.build_segmenter(
        backbone,
        K,
        taps=ksa.find_stages(backbone)[1:],
        adapters=[adapter],
        head=ksa.MLPHead(K, channels=8, name="head"),
        name="golden",
    )


def test_the_golden_file_loads_predicts_and_goes_on():
    path = GOLDEN / "segmenter.keras"
    assert path.stat().st_size < 200_000
    model = keras.models.load_model(path)
    (stage,) = model.stages
    assert stage.name.startswith("add") and (stage.stride, stage.channels) == (8, 6)
    expected = np.load(GOLDEN / "logits.npy")
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected, atol=1e-4)
    assert not model.backbone.trainable_variables and model.trainable_variables
    # Compiled as it was, the optimizer's state included.
    assert model.loss["aux"].ignore_class == [7, 255]
    assert model.optimizer.name == "grouped_optimizer"
    assert int(model.optimizer.iterations) == 2
    model.run_eagerly = EAGER
    assert np.isfinite(model.fit(IMAGES, MASKS, verbose=0).history["loss"][0])
    assert int(model.optimizer.iterations) == 3


def write():
    keras.utils.set_random_seed(0)
    model = build()
    optimizer = ksa.paper_optimizer(model, steps=9, learning_rate=1e-3, warmup_steps=1)
    model.compile(optimizer, ignore_class=[7, 255])
    model.fit(IMAGES, MASKS, epochs=2, verbose=0)
    GOLDEN.mkdir(exist_ok=True)
    model.save(GOLDEN / "segmenter.keras")
    np.save(GOLDEN / "logits.npy", model.predict(IMAGES, verbose=0))


if __name__ == "__main__":
    write()
