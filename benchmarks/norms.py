"""Benchmark of the norm in front of adapters: behind ReLUs, and behind sums.

    python benchmarks/norms.py

Two small networks learn the built-in scenes from scratch, without adapters, with the
paper's, and with adapters that begin with a layer norm; three seeds each. The stages of
one end in ReLUs, those of the other in projections and sums, as in MobileNetV2. One
thread, six minutes. The table is written to results/norms.md.
"""

import os
from pathlib import Path

import evidence

os.environ.update(evidence.ONE_CORE)  # before TensorFlow is imported

import keras
from evidence_tables import interval, row, spread
from keras import layers

import keras_segadapter as ksa

RESULTS = Path(__file__).parent / "results" / "norms.md"
SEEDS, EPOCHS, CLASSES = range(3), 8, len(ksa.data.SCENE_CLASSES)
NORMS = {"none": None, "the paper's": False, "with a norm in front": True}


def convolution(x, layer, relu=None):
    x = layers.BatchNormalization(momentum=0.9)(layer(x))
    return x if relu is None else layers.ReLU(relu)(x)


def relus():
    """Build a network of convolutions that end in ReLUs."""
    inputs = keras.Input((None, None, 3))
    x = inputs
    for width, strides in ((24, (2,)), (24, (2, 1)), (48, (2, 1)), (64, (2, 1))):
        for stride in strides:
            layer = layers.Conv2D(width, 3, stride, "same", use_bias=False)
            x = convolution(x, layer, relu=float("inf"))
    return keras.Model(inputs, x)


def sums():
    """Build a network of inverted bottlenecks, whose ends have no activation."""
    inputs = keras.Input((None, None, 3))
    x = convolution(inputs, layers.Conv2D(16, 3, 2, "same", use_bias=False), relu=6.0)
    for width in (16, 24, 48, 96):
        for stride in (2, 1):
            expand = layers.Conv2D(6 * x.shape[-1], 1, use_bias=False)
            spatial = layers.DepthwiseConv2D(3, stride, "same", use_bias=False)
            y = convolution(convolution(x, expand, 6.0), spatial, 6.0)
            y = convolution(y, layers.Conv2D(width, 1, use_bias=False))
            x = y if stride == 2 else x + y
    return keras.Model(inputs, x)


def train(build, rate, normalize, seed):
    """Train a network once, and return its mIoU on scenes that it has not seen."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    images, masks = ksa.data.make_scenes(240, size=(64, 64))
    backbone = build()
    depths = reversed(range(len(ksa.find_stages(backbone))))
    scales = [1e-2 * 0.1**depth for depth in depths]
    model = ksa.build_segmenter(
        backbone,
        CLASSES,
        adapters=normalize is not None
        and [
            ksa.SegAdapter(CLASSES, scale_init=s, normalize=normalize) for s in scales
        ],
        preprocessing=layers.Rescaling(1 / 127.5, -1),
    )
    model.compile(ksa.AdamW(rate), metrics=None, aux_weight=0.4)
    model.fit(images[:200], masks[:200], batch_size=8, epochs=EPOCHS, verbose=0)
    pairs = zip(images[200:], masks[200:], strict=True)
    return float(ksa.evaluate_images(model, pairs).miou)


def main():
    lines = [
        "# A norm in front of adapters",
        "",
        "Written by `python benchmarks/norms.py`, which says how. Differences are to",
        "the paper's adapters with the same seed, with a 95 % interval; those that",
        "exclude 0 are in bold.",
        "",
        row("stages end in", "adapters", "mIoU, %", "difference, points"),
        "|---|---|---|---|",
    ]
    for build, rate in ((relus, 4e-3), (sums, 2e-3)):
        scores = {
            name: [train(build, rate, normalize, seed) for seed in SEEDS]
            for name, normalize in NORMS.items()
        }
        base = scores["the paper's"]
        for name, values in scores.items():
            gains = [a - b for a, b in zip(values, base, strict=True)]
            shown = "" if values is base else interval(gains)
            lines.append(row(build.__name__, name, spread(values), shown))
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
