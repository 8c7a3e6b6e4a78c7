"""Benchmark of costs: beside the published figures, and what adapters add elsewhere.

    python benchmarks/costs.py

Weights are random, and nothing is downloaded. The table is written to results/costs.md.
"""

from pathlib import Path

import keras

import keras_segadapter as ksa
from keras_segadapter import models
from keras_segadapter.inference.cost import cost_report

RESULTS = Path(__file__).parent / "results" / "costs.md"
# Dataset, number of classes, image size.
SETTINGS = (("ADE20K", 150, 512), ("Cityscapes", 19, 1024))
# Published G multiply-adds without and with adapters, per setting (paper, section 4).
PUBLISHED = {
    "MiTB0": ((8.4, 9.7), (44.0, 47.0)),
    "MiTB1": ((15.9, 19.5), (86.6, 97.4)),
    "MiTB2": ((25.8, 29.4), (147.7, 158.6)),
    "MiTB3": ((42.5, 46.1), (238.6, 249.5)),
    "ConvNeXtTiny": ((29.0, 32.9), (113.7, 134.6)),
    "ConvNeXtSmall": ((51.1, 57.5), (202.1, 223.0)),
    "ConvNeXtBase": ((86.2, 96.9), (342.5, 379.0)),
}
# Published millions of parameters with adapters and 150 classes.
PARAMETERS = {"MiTB0": 4.8, "MiTB1": 17.3, "MiTB2": 28.4, "MiTB3": 37.4}
# Width of the head in the authors' ADE20K settings, where it is not 256.
WIDE_HEADS = {"ConvNeXtSmall": 384, "ConvNeXtBase": 512}
# Backbones of keras.applications whose stages are wide.
WIDE = ("ResNet50", "DenseNet121", "Xception", "InceptionV3", "VGG16")

HEADER = """\
# Cost of the paper's models

Written by `python benchmarks/costs.py`. G are 10^9 multiply-adds of one image at
inference, M are 10^6 parameters, both by `cost_report`.

- "ours": as this package computes it, resizes included. The head projects each stage
  before the resize, which gives the same numbers for less work.
- "concatenated": with the published head, which resizes and concatenates before it
  projects, C_d^2 (3 n_4 - n_8 - n_16 - n_32) more for n_s pixels at stride s. Without
  resizes, as the published figures turn out to be.
- The difference is "concatenated" less "published".

| model | data | C_d | M | published M | ours | concatenated | published | diff. G | % |
|---|---|---|---|---|---|---|---|---|---|
"""

NOTES = """
## What differs by more than 4 %, and doubtful cells

- Adapt-ConvNeXtTiny, ADE20K: 32.9 can't be right. The adapters of Adapt-ConvNeXtSmall
  have the same channels and add 6.4 there (57.5 - 51.1); 29.0 + 6.3 = 35.3.
- ConvNeXtSmall and ConvNeXtBase, ADE20K, head width 384 and 512, with and without
  adapters: the published figures are those of width 256 (the rows with C_d 256), though
  the authors' ADE20K settings files widen the head.
- Adapt-MiTB3, parameters: 37.4 M can't be right, MiT-B3 by itself has 44 M. The
  multiply-adds agree.

## What the published count holds

- The two products of attention: they are 1.0 of MiT-B0's 8.4 G at 512 and 16.6 of its
  44.0 G at 1024.
- The head over the concatenation, with its classifier. No resizes: with them (0.2 G at
  512, 0.3 G at 1024) SegFormer-B0 at 512 would come to 8.6 and ConvNeXtTiny to 29.2.
- Something for norms, most likely: the SegFormer baselines at 1024 exceed our count by
  0.16, 0.32, 0.47 and 0.71 G for B0 to B3. Five multiply-adds for each value of a layer
  norm and two for each of a batch norm would be 0.20, 0.33, 0.48 and 0.65. For ConvNeXt
  the same would be 0.4 to 0.7 G, but only 0.1 G is missing.
- The adapters by themselves are published 0.1 to 0.2 G higher at 512, and 0.2 to 0.8 G
  higher at 1024. Their two norms a stage, five a value, explain about a fifth of that;
  what the rest is we don't know.
"""

WIDE_HEADER = """
## Adapters on wide stages

One image of 256 x 256, 21 classes: without adapters, with those that `build_segmenter`
makes and what they add, and with the paper's on all channels.

| backbone | channels | adapters work on | M without | with | % | all channels | \
G without | with | % | all channels |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def build(name, num_classes, adapters, channels):
    adapt = getattr(models, f"Adapt{name}")
    return adapt(num_classes, adapters=adapters, head_channels=channels)


def saving(size, channels):
    """Return the multiply-adds that projecting before the resize saves."""
    first, *others = [(size // stride) ** 2 for stride in (4, 8, 16, 32)]
    return channels**2 * (3 * first - sum(others))


def row(name, adapters, data, num_classes, size, channels, published):
    report = cost_report(build(name, num_classes, adapters, channels), size)
    resizes = sum(cost.multiply_adds for cost in report.rows if cost.part == "resizes")
    ours = report.multiply_adds / 1e9
    concatenated = ours + (saving(size, channels) - resizes) / 1e9
    difference = concatenated - published
    known = adapters and num_classes == 150
    cells = [
        f"Adapt-{name}" if adapters else name,
        f"{data}, {size}",
        str(channels),
        f"{report.parameters / 1e6:.1f}",
        str(PARAMETERS.get(name, "")) if known else "",
        f"{ours:.1f}",
        f"{concatenated:.1f}",
        f"{published:.1f}",
        f"{difference:+.2f}",
        f"{100 * difference / published:+.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def wide_row(name):
    make = getattr(keras.applications, name)
    backbone = make(include_top=False, weights=None, input_shape=(None, None, 3))
    stages = ksa.find_stages(backbone)
    paper = [ksa.SegAdapter(21) for _ in stages]
    kinds = [
        ksa.build_segmenter(backbone, 21, adapters=a) for a in (False, True, paper)
    ]
    reports = [cost_report(model, 256) for model in kinds]
    cells = [
        name,
        ", ".join(str(stage.channels) for stage in stages),
        ", ".join(
            str(adapter.width or stage.channels)
            for stage, adapter in zip(stages, kinds[1].adapters, strict=True)
        ),
    ]
    for costs, unit in (
        ([report.parameters for report in reports], 1e6),
        ([report.multiply_adds for report in reports], 1e9),
    ):
        without, narrow, full = (cost / unit for cost in costs)
        share = 100 * (narrow / without - 1)
        cells += [f"{without:.1f}", f"{narrow:.1f}", f"+{share:.0f}", f"{full:.1f}"]
    return "| " + " | ".join(cells) + " |"


lines = []
for setting, (data, num_classes, size) in enumerate(SETTINGS):
    for name, figures in PUBLISHED.items():
        widths = {256, WIDE_HEADS.get(name, 256) if data == "ADE20K" else 256}
        for channels in sorted(widths):
            for adapters, published in zip(
                (False, True), figures[setting], strict=True
            ):
                lines.append(
                    row(name, adapters, data, num_classes, size, channels, published)
                )
                print(lines[-1], flush=True)
RESULTS.parent.mkdir(exist_ok=True)
wide = []
for name in WIDE:
    wide.append(wide_row(name))
    print(wide[-1], flush=True)
RESULTS.write_text(
    HEADER + "\n".join(lines) + "\n" + WIDE_HEADER + "\n".join(wide) + "\n" + NOTES
)
print(f"wrote {RESULTS}")
