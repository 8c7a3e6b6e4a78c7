"""Benchmark of time and memory beside other libraries, in inference and training.

    pip install -e ".[all,dev]"
    python benchmarks/speed.py

Each task runs in its own process, in its backend or runtime. The processes of a section
take turns of one or three calls, so that other load on the machine affects all alike.
The tables show medians, and ratios to their first row. Memory is the peak resident size
of the process. Weights are random. Sections in results/speed.json are not measured
again, so the script can be stopped at any time; delete the file to start over.
`python benchmarks/speed.py report` only writes the tables again.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "speed.json"
SIZE, CLASSES = 512, 150
PACKAGES = (
    *("keras", "tensorflow", "jax", "torch", "keras-hub", "transformers"),
    *("onnxruntime", "openvino", "numpy"),
)
OURS = ("AdaptMiTB0", "AdaptConvNeXtTiny")
PEERS = ("SegFormer-B0", "UPerNet-ConvNeXt-T")  # of transformers
BACKBONES = ("keras.applications ConvNeXtTiny", "ConvNeXtTiny")
RUNTIMES = ("onnxruntime", "openvino", "openvino bfloat16")
BACKENDS = ("tensorflow", "jax", "torch")
FORMATS = {".onnx": "ONNX", ".xml": "OpenVINO", ".tflite": "LiteRT", "": "SavedModel"}


def plan():
    """Yield sections: a title, the number of rounds, and the tasks that take turns.

    The times of a section are compared with those of its first task.
    """
    small, large = OURS
    yield from beside_peers(PEERS[0], small, batch=1)
    yield the_head(small)
    yield exported_files(small)
    yield with_and_without_adapters(small, "tensorflow")
    yield with_and_without_adapters(small, "torch")
    yield growth("infer", small)
    yield growth("train", small)
    yield from beside_peers(PEERS[0], small, batch=8)
    yield from beside_peers(PEERS[1], large, batch=1)
    # With whole logits as well, these would not fit into 24 GB.
    yield with_and_without_adapters(large, "tensorflow", losses=("tiles",))
    yield with_and_without_adapters(large, "torch", losses=("tiles",))
    yield from beside_peers(PEERS[1], large, batch=8)
    for backend in BACKENDS:
        yield convnext("infer", backend)
        yield convnext("train", backend)


def beside_peers(peer, ours, batch):
    pairs = [(peer, "torch")]
    if peer == "SegFormer-B0":
        pairs.append(("SegFormer-B0 at 1/4 size", "torch"))
        pairs.append(("keras-hub SegFormer-B0", "torch"))
        # Our own, without adapters: the same numbers.
        pairs += [("SegFormerB0", on) for on in ("tensorflow", "torch") if batch == 1]
    # XLA on a CPU is slow at depthwise convolutions, so JAX has no batches of eight.
    backends = [name for name in BACKENDS if name != "jax" or batch == 1]
    pairs += [(ours, backend) for backend in backends]
    files = [[(name, runtime) for name in (peer, ours)] for runtime in RUNTIMES]
    title = f"inference, batch {batch}: {ours}"
    if batch == 1:
        rounds = 9 if peer == "SegFormer-B0" else 4
        yield title, rounds, [infer(*pair, batch) for pair in sum(files, pairs)]
        return
    # The memory that all of them keep between their turns does not fit into 24 GB.
    for on in ("torch", "tensorflow", *RUNTIMES[:2]):
        tasks = [infer(*pair, batch) for pair in sum(files, pairs) if pair[1] == on]
        yield f"{title}, {on}", 3 if peer == "SegFormer-B0" else 2, tasks


def infer(model, on, batch):
    return {"do": "infer", "model": model, "on": on, "batch": batch}


def the_head(ours):
    names = (ours, "head", "head, concatenated")
    tasks = [infer(name, "torch", 1) for name in names]
    return f"the head's share of {ours}, batch 1", 9, tasks


def exported_files(ours):
    made = [(".onnx", backend, False) for backend in BACKENDS]
    made += [(".xml", backend, False) for backend in BACKENDS]
    made += [(".tflite", "tensorflow", False)]
    made += [("", "tensorflow", False), ("", "jax", False)]
    made += [(ending, "tensorflow", True) for ending in (".onnx", ".xml", ".tflite")]
    tasks = [
        {"do": "export", "model": ours, "on": on, "ending": ending, "int8": int8}
        for ending, on, int8 in made
    ]
    return f"exported files of {ours}, batch 1", 9, tasks


def with_and_without_adapters(ours, backend, losses=("whole", "tiles")):
    shared = {"do": "train", "model": ours, "on": backend, "batch": 2}
    tasks = [
        {**shared, "adapters": adapters, "loss": loss}
        for loss in losses
        for adapters in (False, True)
    ]
    if "whole" in losses:
        tasks.append({**shared, "adapters": True, "loss": "model"})
    return f"training, batch 2: {ours} on {backend}", 4, tasks


def growth(do, model):
    sizes = [(SIZE, 2), (SIZE, 19), (SIZE, 150), (256, 150), (768, 150), (1024, 150)]
    shared = {"do": do, "model": model, "on": "torch", "batch": 1}
    if do == "train":
        shared["loss"] = "tiles"
    tasks = [{**shared, "size": size, "classes": count} for size, count in sizes]
    return f"growth: {do}", 4, tasks


def convnext(do, backend):
    """Return the section of our ConvNeXt beside that of keras.applications."""
    shared = {"do": do, "on": backend, "batch": 1, "size": 256, "threads": 1}
    tasks = [{**shared, "model": name} for name in BACKBONES]
    word = {"infer": "inference", "train": "training"}[do]
    return f"convnext: {word}, batch 1, on {backend}", 5, tasks


# One task, in its own process


def serve(task):
    """Prepare a task, then make timed calls for each line that comes in."""
    facts = {}
    if task["do"] == "export":
        call, facts = exported(task)
    else:
        call = {"infer": inference, "train": training}[task["do"]](task)
    call()  # to trace, compile and allocate
    print("ready", json.dumps(facts), flush=True)
    for _ in sys.stdin:
        # The first call of a turn finds cold caches, so short tasks make three.
        short = task["do"] != "train" and task.get("batch", 1) == 1
        seconds = [timed(call) for _ in range(3 if short else 1)]
        print(json.dumps([seconds, peak()]), flush=True)


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak():
    """Return the peak resident size of this process in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def inference(task):
    """Return a function that segments a batch into logits at image size."""
    import numpy as np

    batch, size = task["batch"], task.get("size", SIZE)
    shape = (batch, size, size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype("float32")
    if task["on"] in RUNTIMES:
        return in_runtime(task, images)
    if task["model"].startswith("head"):
        return without_gradients(head(task["model"].endswith("concatenated")))
    model = build(task)
    if hasattr(model, "for_inference"):
        model = model.for_inference()
    if task["model"].split(" ")[0] in PEERS:
        import torch

        pixels = torch.tensor(images / 255).permute(0, 3, 1, 2).contiguous()
        return without_gradients(lambda: model(pixels))
    import keras

    images = keras.ops.convert_to_tensor(images)
    if task["on"] == "torch":
        return without_gradients(lambda: model(images))
    if task["on"] == "tensorflow":
        import tensorflow as tf

        function = tf.function(model, reduce_retracing=True)
        return lambda: function(images).numpy()
    import jax

    function = jax.jit(lambda x: model(x))
    return lambda: function(images).block_until_ready()


def without_gradients(call):
    import torch

    def run():
        with torch.inference_mode():
            return call()

    return run


def build(task):
    """Build the network of a task, with the resize to image size for transformers'."""
    name, classes = task["model"], task.get("classes", CLASSES)
    if name.split(" ")[0] in PEERS:
        import torch
        import transformers

        if name.startswith("SegFormer"):
            config = transformers.SegformerConfig(num_labels=classes)
            network = transformers.SegformerForSemanticSegmentation(config)
        else:
            backbone = transformers.ConvNextConfig(
                depths=[3, 3, 9, 3],
                hidden_sizes=[96, 192, 384, 768],
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )
            config = transformers.UperNetConfig(
                backbone_config=backbone, num_labels=classes, use_auxiliary_head=False
            )
            network = transformers.UperNetForSemanticSegmentation(config)

        class Resized(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, pixels):
                logits = self.network(pixels).logits
                if name.endswith("1/4 size"):
                    return logits
                return torch.nn.functional.interpolate(
                    logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False
                )

        return Resized().eval()
    if name == "keras-hub SegFormer-B0":
        return keras_hub_segformer(classes)
    if name in BACKBONES:
        return convnext_alone(name)
    import keras_segadapter as ksa

    if name == "SegFormerB0":
        return ksa.SegFormerB0(classes)
    return getattr(ksa, name)(classes, adapters=task.get("adapters", True))


def convnext_alone(name):
    """Build a ConvNeXt-T, with the same weights for both, without stochastic depth."""
    import keras

    import keras_segadapter as ksa

    keras.utils.set_random_seed(0)
    plain = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    return ksa.ConvNeXtTiny(plain, drop_path=0) if name == "ConvNeXtTiny" else plain


def head(concatenated):
    """Return a function that runs our or the paper's head on MiT-B0's stages."""
    from keras import ops

    import keras_segadapter as ksa

    channels = (32, 64, 160, 256)
    sides = (SIZE // 4, SIZE // 8, SIZE // 16, SIZE // 32)
    features = [ops.ones((1, s, s, c)) for s, c in zip(sides, channels, strict=True)]
    layer = ksa.MLPHead(CLASSES)
    layer(features)

    def whole():
        maps = []
        for x, linear, norm in zip(features, layer.linears, layer.norms, strict=True):
            x = ops.gelu(norm(linear(x)), approximate=False)
            maps.append(ops.image.resize(x, (sides[0], sides[0])))
        fused = ops.matmul(ops.concatenate(maps, axis=-1), layer.projection)
        return layer.classifier(ops.gelu(layer.projection_norm(fused)))

    return whole if concatenated else lambda: layer(features)


def keras_hub_segformer(classes):
    import keras_hub

    encoder = keras_hub.models.MiTBackbone(
        image_shape=(SIZE, SIZE, 3),
        layerwise_depths=[2, 2, 2, 2],
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[32, 64, 160, 256],
    )
    backbone = keras_hub.models.SegFormerBackbone(
        image_encoder=encoder, projection_filters=256
    )
    return keras_hub.models.SegFormerImageSegmenter(backbone, num_classes=classes)


def in_runtime(task, images):
    """Return a function that runs the network, as an ONNX file, in a runtime."""
    import torch

    channels_first = task["model"] in PEERS
    path = str(Path(tempfile.mkdtemp()) / "model.onnx")
    if channels_first:
        images = (images / 255).transpose(0, 3, 1, 2).copy()
        network = build(task)
        torch.onnx.export(network, (torch.tensor(images),), path, dynamo=True)
    else:
        import keras

        model = build(task)
        signature = [keras.InputSpec(shape=images.shape, dtype="float32", name="image")]
        model.export(path, format="onnx", input_signature=signature, verbose=False)
    if task["on"] == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: images})
    import openvino

    precision = "bf16" if task["on"].endswith("bfloat16") else "f32"
    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
    )
    return lambda: compiled(images)


def exported(task):
    """Return a function that runs an exported file, and how it agrees with Keras.

    With random weights many pixels are nearly undecided, on which files in 8 bits can't
    agree, while those in float32 must. tests/test_export.py uses a trained model.
    """

    import keras_segadapter as ksa

    model = build(task)
    image, *photos = ksa.data.make_scenes(9, size=(SIZE, SIZE))[0]
    out = Path(tempfile.mkdtemp()) / f"model{task['ending']}"
    options = {"calibration": photos} if task["int8"] else {}
    ksa.export_model(model, out, size=(SIZE, SIZE), **options)
    comparison = ksa.compare_exported(model, out, image)
    run, images = ksa.open_exported(out).run, image[None].astype("float32")
    files = [file for file in out.parent.rglob("*") if file.is_file()]
    facts = {
        **dataclasses.asdict(comparison),
        "file_mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
    }
    return lambda: run(images), facts


def training(task):
    """Return a function that makes one training step with both losses, AdamW and mIoU.

    The task's `loss` is "tiles" for our loss, "whole" for Keras' on logits resized as a
    whole, or "model" for Keras' at the size of the scores, which shows what the model
    itself takes. A backbone alone learns to return zeros.
    """
    import keras
    import numpy as np

    import keras_segadapter as ksa

    batch, size = task["batch"], task.get("size", SIZE)
    classes = task.get("classes", CLASSES)
    model = build(task)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3)).astype("float32")
    if task["model"] in BACKBONES:
        model.compile(ksa.AdamW(), "mean_squared_error")
        zeros = np.zeros(model.compute_output_shape(images.shape), "float32")
        return lambda: model.train_on_batch(images, zeros)
    masks = rng.integers(0, classes, (batch, size, size), "int32")
    whole = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if task["loss"] == "model":
        # This bypasses the wrappers of `Segmenter.compile` that resize the scores.
        loss = dict.fromkeys(
            model.output, lambda mask, scores: whole(mask[:, ::4, ::4], scores)
        )
        model.compile(metrics=None)
        keras.Model.compile(model, ksa.AdamW(), loss)
    else:
        model.compile(loss=whole if task["loss"] == "whole" else "auto")
    return lambda: model.train_on_batch(images, masks)


# All tasks, in turns


def measure():
    """Measure the sections that have no results yet."""
    results = {
        "command": "python benchmarks/speed.py",
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "runs": [],
    }
    if RESULTS.exists():
        results["runs"] = json.loads(RESULTS.read_text())["runs"]
    done = {run["section"] for run in results["runs"]}
    for section, rounds, tasks in plan():
        if section in done:
            continue
        # All of them are ready before the first is timed.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            workers = list(pool.map(start, tasks))
        figures = [[] for _ in tasks]
        for _ in range(rounds):
            for worker, found in zip(workers, figures, strict=True):
                if worker:
                    process, _ = worker
                    process.stdin.write("go\n")
                    process.stdin.flush()
                    found.append(json.loads(process.stdout.readline()))
        for worker, found, task in zip(workers, figures, tasks, strict=True):
            run = {"section": section, **task}
            if worker:
                process, facts = worker
                run |= facts
                process.stdin.close()
                process.wait()
                run["seconds"] = [round(x, 4) for turn, _ in found for x in turn]
                run["memory_mb"] = round(max(memory for _, memory in found))
            results["runs"].append(run)
            print(json.dumps(run), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def start(task):
    """Start a task's process and wait until it is ready for the first timed call.

    Returns:
        The process and the facts that it printed, or None if it failed.
    """
    backend = task["on"] if task["on"] in BACKENDS else "torch"
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if "threads" in task:
        env["OMP_NUM_THREADS"] = str(task["threads"])
    worker = subprocess.Popen(
        [sys.executable, __file__, "--task", json.dumps(task)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in worker.stdout:
        if line.startswith("ready "):
            return worker, json.loads(line.removeprefix("ready "))
    worker.wait()
    return None


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(": ")[1] for line in lines if line.startswith("model name")}
    return f"{os.cpu_count()} cores of {', '.join(sorted(names))}, {platform.system()}"


# Tables


def report():
    text = tables(json.loads(RESULTS.read_text()))
    RESULTS.with_suffix(".md").write_text(text)
    print(text)


def tables(results):
    """Return all tables as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    lines = [f"{results['machine']}; {versions}.", ""]
    sections = {}
    for run in results["runs"]:
        sections.setdefault(run["section"], []).append(run)
    for section, runs in sections.items():
        lines += [f"**{section}**", "", *table(runs), ""]
    training = {name: runs for name, runs in sections.items() if "adapters" in runs[0]}
    lines += ["**training: what adapters and tiles change**", ""]
    lines += [*changes(training), ""]
    return "\n".join(lines)


def table(runs):
    """Yield the lines of a table of medians and their ratios to the first run's."""
    if runs[0]["do"] == "export":
        yield from files_table(runs)
        return
    yield "| what | on | ms | ratio | peak memory, MB |"
    yield "|---|---|---|---|---|"
    for run in runs:
        if "seconds" not in run:
            yield f"| {what(run)} | {run['on']} | failed | | |"
            continue
        # Where a file is exported first, the peak is that of the export.
        shown = run["do"] == "train" or run["model"].startswith("head")
        memory = run["memory_mb"] if shown else ""
        yield (
            f"| {what(run)} | {run['on']} | {1000 * median(run):.0f} "
            f"| {median(run) / median(runs[0]):.2f} | {memory} |"
        )


def files_table(runs):
    """Yield the lines of the table of exported files."""
    yield "| format | made on | logits differ by | class ids agree | ms | file, MB |"
    yield "|---|---|---|---|---|---|"
    for run in runs:
        name = FORMATS[run["ending"]] + (", int8" if run["int8"] else "")
        yield (
            f"| {name} | {run['on']} | failed | | | |"
            if "seconds" not in run
            else f"| {name} | {run['on']} | {run['difference']:.0e} "
            f"| {run['agreement']:.2%} | {1000 * median(run):.0f} | {run['file_mb']} |"
        )


def changes(sections):
    """Yield the lines of the table of ratios: what adapters cost, what tiles save."""
    yield (
        "| model | on | adapters: time | adapters: memory | in tiles: time "
        "| in tiles: memory above the model's |"
    )
    yield "|---|---|---|---|---|---|"
    for runs in sections.values():
        by_kind = {(run["adapters"], run["loss"]): run for run in runs}
        without, adapted = by_kind[False, "tiles"], by_kind[True, "tiles"]
        in_tiles = "| | "
        if (True, "model") in by_kind:
            whole, own = by_kind[True, "whole"], by_kind[True, "model"]["memory_mb"]
            memory = (adapted["memory_mb"] - own) / (whole["memory_mb"] - own)
            shown = "below 0" if memory < 0 else f"{memory:.2f}"
            in_tiles = f"| {median(adapted) / median(whole):.2f} | {shown} "
        yield (
            f"| {adapted['model']} | {adapted['on']} "
            f"| {median(adapted) / median(without):.2f} "
            f"| {adapted['memory_mb'] / without['memory_mb']:.2f} {in_tiles}|"
        )


def median(run):
    return statistics.median(run["seconds"])


def what(run):
    """Return the name of a run in a table."""
    name = run["model"]
    if run["do"] == "train" and "adapters" in run:
        name += "" if run["adapters"] else ", no adapters"
        loss = {"whole": "of whole logits", "tiles": "in tiles"}
        name += f", loss {loss.get(run['loss'], 'of the scores')}"
    if "size" in run:
        name += f", {run['size']} x {run['size']}"
    if "classes" in run:
        name += f", K = {run['classes']}"
    if "threads" in run:
        name += f", OMP_NUM_THREADS={run['threads']}"
    return name


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "do", nargs="?", choices=("measure", "report"), help="what to do"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        serve(json.loads(args.task))
        return
    if args.do != "report":
        measure()
    report()


if __name__ == "__main__":
    main()
