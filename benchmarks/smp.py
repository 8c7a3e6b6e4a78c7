"""Benchmark beside segmentation_models.pytorch (smp): the same encoders, the same task.

    pip install -e ".[all,dev]" segmentation-models-pytorch
    python benchmarks/smp.py

256 x 256 pixels, 21 classes, random weights, float32, on one core and on two. A
training step has two images: smp's is zero_grad, forward, cross-entropy of logits at
full size with ignore_index 255, backward and AdamW; ours is `train_on_batch` after
`compile()`, which has the auxiliary loss and counts mIoU as well. Inference is of one
image, to logits of its size; ours normalizes the pixels too. How processes take turns:
turns.py. Sections in results/smp.json are not measured again, so the script can be
stopped at any time; delete a section, or the file, to measure it again. `python
benchmarks/smp.py report` only writes the tables. Reading images is the subject of
pipeline.py.
"""

import functools
import math
from pathlib import Path

import networks
import turns

RESULTS = Path(__file__).parent / "results" / "smp.json"
SIZE, CLASSES, BATCH = 256, 21, 2
# smp's name of the encoder, and its networks, that which is usual for it first.
SMP = {
    "MiT-B0": ("mit_b0", "Segformer", "FPN", "DeepLabV3Plus", "Unet"),
    "MobileNetV3-L": ("tu-mobilenetv3_large_100", "FPN", "DeepLabV3Plus", "Unet"),
    "EfficientNet-B0": ("efficientnet-b0", "FPN", "DeepLabV3Plus", "Unet"),
    "ResNet-50": ("resnet50", "FPN", "DeepLabV3Plus", "Unet"),
}
# Its name in keras.applications, where it is not this package's own.
APPLICATIONS = {
    "MobileNetV3-L": "MobileNetV3Large",
    "EfficientNet-B0": "EfficientNetB0",
    "ResNet-50": "ResNet50",
}
NOTES = """\
Times are medians, as ratios to the first row of an encoder, whose own is given: on one
core the seconds that it was busy, on two the seconds that passed. M are millions of
trained weights; "peak MB" is the largest resident size of a process that only trains,
"at start" what it was after the imports, before the network was built. In short: on
torch / tensorflow / jax, those of them that were run.

What differs: smp's MobileNetV3-L ends in the classifier's convolution to 960 channels,
ours at its input of 160. SegFormerB0 is ours without adapters, with SegFormer's own
head; elsewhere "plain" is ours without adapters. A step of smp's has no metric; one
with adapters has two losses. Keras imports jax, scikit-learn, OpenCV and matplotlib
where they are installed, about 220 MB of "at start" on torch. Since this was measured,
adapters of MobileNetV3-L and EfficientNet-B0 begin with a layer norm, by which
inference and steps on torch take 0 to 2 % longer.
"""


def plan():
    """Yield sections, one for each encoder and number of cores."""
    for threads, rounds in ((1, 5), (2, 3)):
        for encoder, (_, *architectures) in SMP.items():
            pairs = [(model, "torch") for model in architectures]
            pairs += [("adapters", on) for on in ("torch", "tensorflow", "jax")]
            if threads == 1:
                plain = "SegFormerB0" if encoder == "MiT-B0" else "plain"
                pairs += [(plain, on) for on in ("torch", "tensorflow")]
            shared = {"encoder": encoder, "threads": threads}
            tasks = [{**shared, "model": model, "on": on} for model, on in pairs]
            yield f"{encoder}, {threads}", rounds, tasks


def prepare(task):
    """Yield the phases of a task: training, then inference."""
    size, classes = task.get("size", SIZE), task.get("classes", CLASSES)
    images, masks = networks.images_and_masks(BATCH, size, classes)
    name, *architectures = SMP[task["encoder"]]
    if task["model"] in architectures:
        import segmentation_models_pytorch  # noqa: F401

        facts = {"start_mb": turns.peak()}
        network = networks.smp(task["model"], name, classes)
        weights = [weight.numel() for weight in network.parameters()]
        step = networks.smp_step(network, images, masks)
        yield "train", step, {**facts, "parameters": sum(weights)}
        yield "infer", networks.torch_inference(network, images[:1]), {}
        return
    import keras

    import keras_segadapter as ksa

    facts = {"start_mb": turns.peak()}
    if task["model"] == "SegFormerB0":
        model = ksa.SegFormerB0(classes)
    elif task["encoder"] == "MiT-B0":
        model = ksa.AdaptMiTB0(classes)
    else:
        build = getattr(keras.applications, APPLICATIONS[task["encoder"]])
        backbone = build(include_top=False, weights=None, input_shape=(None, None, 3))
        adapters = task["model"] == "adapters"
        model = ksa.build_segmenter(backbone, classes, adapters=adapters)
    model.compile()
    weights = [math.prod(weight.shape) for weight in model.trainable_variables]
    step = functools.partial(model.train_on_batch, images, masks)
    yield "train", step, {**facts, "parameters": sum(weights)}
    yield "infer", networks.inference(model, images[:1], task["on"]), {}


def tables(results):
    """Return all tables as Markdown."""
    lines = [turns.head(results), "", NOTES]
    for threads, title in ((1, "one core"), (2, "two cores")):
        runs = [run for run in results["runs"] if run["threads"] == threads]
        if runs:
            lines += [f"**{title}, in short**", "", *summary(runs), ""]
            lines += [f"**{title}**", "", *table(runs), ""]
    return "\n".join(lines)


def summary(runs):
    """Yield the lines of a table of our models beside the usual one of smp's."""
    yield turns.row(
        *("encoder", "model", "M", "inference", "training step", "peak MB"),
    )
    yield "|---|---|---|---|---|---|"
    for first, *others in turns.by_section(runs).values():
        models = [first["model"], *("adapters", "SegFormerB0", "plain")]
        for model in models:
            found = [run for run in (first, *others) if run["model"] == model]
            if found:
                yield turns.row(
                    first["encoder"] if model == models[0] else "",
                    f"smp {model}" if model == models[0] else f"ours, {model}",
                    millions(found[0]),
                    " / ".join(ratio(run, first, "infer") for run in found),
                    " / ".join(ratio(run, first, "train") for run in found),
                    " / ".join(str(run.get("memory_mb", "failed")) for run in found),
                )


def table(runs):
    """Yield the lines of a table of ratios to the first run of each encoder."""
    yield turns.row(
        *("encoder", "model", "on", "M"),
        *("inference", "training step", "peak MB", "at start"),
    )
    yield "|---|---|---|---|---|---|---|---|"
    for group in turns.by_section(runs).values():
        for run in group:
            owner = "smp" if run["model"] in SMP[run["encoder"]] else "ours,"
            yield turns.row(
                run["encoder"] if run is group[0] else "",
                f"{owner} {run['model']}",
                run["on"],
                millions(run),
                *(ratio(run, group[0], phase) for phase in ("infer", "train")),
                run.get("memory_mb", "failed"),
                run.get("start_mb", ""),
            )


def millions(run):
    return f"{run['parameters'] / 1e6:.1f}" if "parameters" in run else ""


def ratio(run, first, phase):
    if run["threads"] == 1:
        phase = f"cpu_{phase}"  # which other load on the machine does not change
    own, base = turns.median(run, phase), turns.median(first, phase)
    if own is None or base is None:
        return "failed"
    return f"1.00 = {1000 * own:.0f} ms" if run is first else f"{own / base:.2f}"


if __name__ == "__main__":
    turns.run(__doc__, RESULTS, plan, prepare, tables)
