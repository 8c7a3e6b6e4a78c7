"""Benchmark of time and memory of the paper's models, in Keras and in other runtimes.

    pip install -e ".[all,dev]"
    python benchmarks/speed.py

512 x 512 pixels, 150 classes, random weights: beside transformers' networks and
keras-hub's, as exported files, with and without adapters and tiles of the loss, and by
size and number of classes. The tables show medians, and ratios to their first row. How
processes take turns: turns.py. Sections in results/speed.json are not measured again,
so the script can be stopped at any time; delete a section, or the file, to measure it
again. `python benchmarks/speed.py report` only writes the tables. The same encoders in
segmentation_models.pytorch: smp.py. GPUs: gpu.py. Reading images: pipeline.py.
"""

import dataclasses
import tempfile
from pathlib import Path

import networks
import turns

RESULTS = Path(__file__).parent / "results" / "speed.json"
SIZE, CLASSES = 512, 150
OURS = ("AdaptMiTB0", "AdaptConvNeXtTiny")
PEERS = ("SegFormer-B0", "UPerNet-ConvNeXt-T")  # of transformers
RUNTIMES = ("onnxruntime", "openvino", "openvino bfloat16")
FORMATS = {".onnx": "ONNX", ".xml": "OpenVINO", ".tflite": "LiteRT", "": "SavedModel"}


def plan():
    """Yield sections: a title, the number of rounds, and the tasks that take turns.

    The times of a section are compared with those of its first task.
    """
    small, large = OURS
    yield beside_peers(PEERS[0], small, rounds=9)
    yield exported_files(small)
    yield with_and_without_adapters(small, "tensorflow")
    yield with_and_without_adapters(small, "torch")
    yield growth("infer", small)
    yield growth("train", small)
    yield beside_peers(PEERS[1], large, rounds=4)
    # With whole logits as well, these would not fit into 24 GB.
    yield with_and_without_adapters(large, "tensorflow", losses=("tiles",))
    yield with_and_without_adapters(large, "torch", losses=("tiles",))


def beside_peers(peer, ours, rounds):
    pairs = [(peer, "torch")]
    if peer == "SegFormer-B0":
        pairs.append(("SegFormer-B0 at 1/4 size", "torch"))
        pairs.append(("keras-hub SegFormer-B0", "torch"))
        # Our own, without adapters: the same numbers.
        pairs += [("SegFormerB0", on) for on in ("tensorflow", "torch")]
    pairs += [(ours, backend) for backend in turns.BACKENDS]
    pairs += [(name, runtime) for runtime in RUNTIMES for name in (peer, ours)]
    # The first call of a turn finds cold caches, so short tasks make three.
    shared = {"do": "infer", "batch": 1, "calls": 3}
    tasks = [{**shared, "model": model, "on": on} for model, on in pairs]
    return f"inference, batch 1: {ours}", rounds, tasks


def exported_files(ours):
    made = [(".onnx", backend, False) for backend in turns.BACKENDS]
    made += [(".xml", backend, False) for backend in turns.BACKENDS]
    made += [(".tflite", "tensorflow", False)]
    made += [("", "tensorflow", False), ("", "jax", False)]
    made += [(ending, "tensorflow", True) for ending in (".onnx", ".xml", ".tflite")]
    shared = {"do": "export", "model": ours, "calls": 3}
    tasks = [
        {**shared, "on": on, "ending": ending, "int8": int8}
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
    shared |= {"loss": "tiles"} if do == "train" else {"calls": 3}
    tasks = [{**shared, "size": size, "classes": count} for size, count in sizes]
    return f"growth: {do}", 4, tasks


# One task, in its own process


def prepare(task):
    """Yield the only phase of a task."""
    facts = {}
    if task["do"] == "export":
        call, facts = exported(task)
    else:
        call = {"infer": inference, "train": training}[task["do"]](task)
    yield "seconds", call, facts


def inference(task):
    """Return a function that segments a batch into logits at image size."""
    size, classes = task.get("size", SIZE), task.get("classes", CLASSES)
    images, _ = networks.images_and_masks(task["batch"], size, classes)
    if task["on"] in RUNTIMES:
        return in_runtime(task, images)
    if task["model"].split(" ")[0] in PEERS:
        return networks.torch_inference(build(task), images)
    return networks.inference(build(task), images, task["on"])


def build(task):
    """Build the network of a task."""
    name, classes = task["model"], task.get("classes", CLASSES)
    if name.split(" ")[0] in PEERS:
        return networks.transformers_network(name, classes)
    if name == "keras-hub SegFormer-B0":
        return networks.keras_hub_segformer(SIZE, classes)
    import keras_segadapter as ksa

    if name == "SegFormerB0":
        return ksa.SegFormerB0(classes)
    return getattr(ksa, name)(classes, adapters=task.get("adapters", True))


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
    itself takes.
    """
    import keras

    import keras_segadapter as ksa

    size, classes = task.get("size", SIZE), task.get("classes", CLASSES)
    images, masks = networks.images_and_masks(task["batch"], size, classes)
    model = build(task)
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


# Tables


def tables(results):
    """Return all tables as Markdown."""
    lines = [turns.head(results), ""]
    sections = turns.by_section(results["runs"])
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
        memory = run["memory_mb"] if run["do"] == "train" else ""
        yield (
            f"| {what(run)} | {run['on']} | {1000 * turns.median(run):.0f} "
            f"| {turns.median(run) / turns.median(runs[0]):.2f} | {memory} |"
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
            f"| {run['agreement']:.2%} | {1000 * turns.median(run):.0f} "
            f"| {run['file_mb']} |"
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
            in_tiles = f"| {turns.median(adapted) / turns.median(whole):.2f} | {shown} "
        yield (
            f"| {adapted['model']} | {adapted['on']} "
            f"| {turns.median(adapted) / turns.median(without):.2f} "
            f"| {adapted['memory_mb'] / without['memory_mb']:.2f} {in_tiles}|"
        )


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
    return name


if __name__ == "__main__":
    turns.run(__doc__, RESULTS, plan, prepare, tables)
