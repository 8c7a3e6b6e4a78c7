"""Benchmark on GPUs: TensorFlow, JAX and torch, beside segmentation_models.pytorch.

    pip install -e ".[all,dev]" segmentation-models-pytorch
    python benchmarks/gpu.py

Each backend that finds a GPU takes part; without one the script says so and ends. 512 x
512 pixels, 150 classes, random weights: Adapt-MiT-B0 and Adapt-ConvNeXt-T beside smp's
SegFormer and FPN with the same encoders. Training steps (as in smp.py) and inference of
batches; bfloat16 beside float32, the loss in tiles beside Keras' on whole logits,
TensorFlow with XLA and without; epochs of `fit` from a folder beside those from arrays.
Takes about nine minutes on one large GPU with 16 cores; sections in results/gpu.json
are not measured again, so the script can be stopped at any time and go on later.
`python benchmarks/gpu.py report` only writes the tables; `tiny` tries all of it in a
small form, on a CPU too.
"""

import functools
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import networks
import turns

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SIZE, CLASSES, IMAGES = 512, 150, 256
# smp's network and encoder beside ours.
PEERS = {
    "AdaptMiTB0": ("Segformer", "mit_b0"),
    "AdaptConvNeXtTiny": ("FPN", "tu-convnext_tiny"),
}
# How each says how many GPUs it finds.
COUNT = {
    "tensorflow": "import tensorflow as tf; "
    "print(len(tf.config.list_physical_devices('GPU')))",
    "jax": "import jax; print(sum(x.platform == 'gpu' for x in jax.devices()))",
    "torch": "import torch; print(torch.cuda.device_count())",
}
NOTES = """\
Medians. Each step and each batch for inference goes to the GPU from the host's memory
as float32. Memory is the framework's own peak of a process that only trains, which
holds XLA's trials of kernels too. float32 is as each framework sets it, TensorFlow and
JAX with TF32 for products.
"""


@functools.cache
def backends():
    """Return the backends that find a GPU, each asked in a process of its own."""

    def count(name):
        done = subprocess.run(
            [sys.executable, "-c", COUNT[name]], capture_output=True, text=True
        )
        return int(done.stdout.split()[-1]) if done.returncode == 0 else 0

    with ThreadPoolExecutor() as pool:
        counts = dict(zip(COUNT, pool.map(count, COUNT), strict=True))
    return [name for name, found in counts.items() if found]


def plan():
    """Yield sections: of each model and setting, then the input pipeline.

    Without a GPU they are those of all backends, for `tiny`.
    """
    gpu, found = bool(backends()), backends() or turns.BACKENDS
    for precision, batch in (("bfloat16", 16), ("float32", 16), ("bfloat16", 8)):
        for model in PEERS:
            shared = {"do": "step", "model": model, "calls": 4, "batch": batch}
            shared |= {"precision": precision, "loss": "tiles", "xla": "auto"}
            shared |= {"gpu": gpu}
            tasks = [{**shared, "on": "torch", "loss": "smp"}]
            tasks += [{**shared, "on": on} for on in found]
            if precision == "bfloat16" and batch == 16:
                tasks += [{**shared, "on": "tensorflow", "xla": False}]
            elif precision == "bfloat16":
                tasks += [{**shared, "on": on, "loss": "whole"} for on in found]
            tasks = [task for task in tasks if task["on"] in found]
            yield f"{model}, {precision}, batch {batch}", 3, tasks
        if precision == "bfloat16" and batch == 16:
            shared = {"do": "epoch", "model": "AdaptMiTB0", "batch": 16}
            yield "epochs of AdaptMiTB0", 2, [{**shared, "on": on} for on in found]


def prepare(task):
    """Yield the phases of a task."""
    phases = {"step": training_and_inference, "epoch": epochs}[task["do"]]
    yield from phases(task, task.get("size", SIZE), task.get("classes", CLASSES))


def training_and_inference(task, size, classes):
    images, masks = networks.images_and_masks(task["batch"], size, classes)
    if task["loss"] == "smp":
        network = networks.smp(*PEERS[task["model"]], classes)
        device = "cuda" if task["gpu"] else "cpu"
        how = {"device": device, "bfloat16": task["precision"] == "bfloat16"}
        yield "train", networks.smp_step(network, images, masks, **how), {}
        facts = {"device_mb": device_peak(task)}
        yield "infer", networks.torch_inference(network, images, **how), facts
        return
    import keras

    if task["precision"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    import keras_segadapter as ksa

    model = getattr(ksa, task["model"])(classes)
    whole = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = whole if task["loss"] == "whole" else "auto"
    model.compile(loss=loss, jit_compile=task["xla"])
    yield "train", functools.partial(model.train_on_batch, images, masks), {}
    facts = {"device_mb": device_peak(task)}
    xla = task["gpu"] and task["xla"] == "auto"  # as Keras chooses in training
    yield "infer", networks.inference(model, images, task["on"], xla), facts


def epochs(task, size, classes):
    """Yield epochs of `fit` from arrays, then from pictures in a folder."""
    import keras
    import numpy as np
    from PIL import Image

    keras.config.set_dtype_policy("mixed_bfloat16")
    import keras_segadapter as ksa

    images, masks = ksa.data.make_scenes(16, size=(size, size + size // 2))
    folder, count = Path(tempfile.mkdtemp()), task.get("images", IMAGES)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(count):
        Image.fromarray(images[i % 16]).save(folder / f"images/{i}.jpg", quality=95)
        Image.fromarray(masks[i % 16].astype("uint8")).save(folder / f"masks/{i}.png")
    data = ksa.data.open_folder(
        folder,
        None,
        num_classes=classes,
        batch_size=task["batch"],
        augmentation=ksa.data.Augmentation((size, size)),
    )
    model = getattr(ksa, task["model"])(classes)
    model.compile()
    pixels = np.resize(images[:, :, :size], (count, size, size, 3))
    ids = np.resize(masks[:, :, :size], (count, size, size))
    fit = functools.partial(model.fit, epochs=1, verbose=0)
    facts = {"images": count}
    yield "arrays", lambda: fit(pixels, ids, batch_size=task["batch"]), facts
    yield "folder", lambda: fit(data), {}


def device_peak(task):
    """Return the peak memory of the GPU in MB, without one that of the process."""
    if not task["gpu"]:
        return turns.peak()
    if task["on"] == "torch":
        import torch

        used = torch.cuda.max_memory_allocated()
    elif task["on"] == "jax":
        import jax

        used = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    else:
        import tensorflow as tf

        used = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return round(used / 2**20)


def tables(results):
    """Return all tables as Markdown."""
    lines = [turns.head(results), "", NOTES]
    for section, runs in turns.by_section(results["runs"]).items():
        lines += [f"**{section}**", "", *table(runs), ""]
    return "\n".join(lines)


def table(runs):
    """Yield the lines of a table of epochs, or of steps beside the first row's."""
    if runs[0]["do"] == "epoch":
        yield turns.row("on", "images", "s from arrays", "s from a folder", "its share")
        yield "|---|---|---|---|---|"
        for run in runs:
            arrays, folder = turns.median(run, "arrays"), turns.median(run, "folder")
            if arrays is None or folder is None:
                yield turns.row(run["on"], "failed", "", "", "")
                continue
            share = f"{1 - arrays / folder:.0%}"
            yield turns.row(
                run["on"], run["images"], f"{arrays:.2f}", f"{folder:.2f}", share
            )
        return
    yield turns.row(
        *("what", "on", "step, ms", "ratio", "images a second", "inference, ms"),
        *("ratio", "images a second", "memory, MB"),
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for run in runs:
        cells = []
        for phase in ("train", "infer"):
            own, base = turns.median(run, phase), turns.median(runs[0], phase)
            cells += (
                ["failed", "", ""]
                if own is None
                else [
                    f"{1000 * own:.1f}",
                    f"{own / base:.2f}" if base else "",
                    f"{run['batch'] / own:.0f}",
                ]
            )
        yield turns.row(what(run), run["on"], *cells, run.get("device_mb", ""))


def what(run):
    """Return the name of a run in a table."""
    if run["loss"] == "smp":
        return "smp " + PEERS[run["model"]][0]
    loss = ", whole logits" if run["loss"] == "whole" else ""
    return run["model"] + loss + ("" if run["xla"] else ", no XLA")


def main():
    if sys.argv[1:] in ([], ["measure"]) and not backends():
        print("No GPU was found by TensorFlow, JAX or torch, so nothing is measured.")
        return
    # The processes of a section share the GPU, so none may take all of its memory.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    turns.run(__doc__, RESULTS, plan, prepare, tables)


if __name__ == "__main__":
    main()
