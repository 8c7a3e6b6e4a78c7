"""Benchmark of the input pipeline: its speed, its growth, its overlap with training.

    git worktree add ../before c5fdba5
    KERAS_BACKEND=torch python benchmarks/pipeline.py --before ../before

Augmented views of 512 x 512 are read from pictures that are made on the spot, and from
CamVid with `--camvid FOLDER`. Each measurement is a process of its own; those that are
compared take turns. With `--before`, the package in that folder is measured too. The
results are written to results/pipeline.json and pipeline.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
CROP, CLASSES, BATCH, VIEWS = (512, 512), 11, 8, 48
# Name, size, suffix and number of the pictures.
KINDS = (
    ("png 480 x 360", (360, 480), "png", 24),
    ("jpeg 1024 x 768", (768, 1024), "jpg", 24),
    ("jpeg 2048 x 1024", (1024, 2048), "jpg", 12),
)
PHOTOS = KINDS[2][0]


def make_pictures(folder):
    """Write scenes with noise, in as many pixels as cameras make, and their masks."""
    import numpy as np
    from PIL import Image

    from keras_segadapter.data import make_scenes

    rng = np.random.default_rng(0)
    for name, (height, width), suffix, count in KINDS:
        for kind in ("images", "masks"):
            (folder / name / kind).mkdir(parents=True)
        scenes = make_scenes(count, size=(height // 4, width // 4))
        for i, (image, mask) in enumerate(zip(*scenes, strict=True)):
            large = Image.fromarray(image).resize((width, height))
            pixels = np.asarray(large) + rng.normal(0, 6, (height, width, 3))
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))
            options = {"quality": 92} if suffix == "jpg" else {}
            picture.save(folder / name / f"images/{i:03}.{suffix}", **options)
            mask = Image.fromarray(mask.repeat(4, 0).repeat(4, 1))
            mask.save(folder / name / f"masks/{i:03}.png")


# One round, in a process of its own


def measure(folders):
    """Measure the package at hand, and print the results for the calling process."""
    import keras

    import keras_segadapter as ksa

    def opened(folder, threads=1, processes=0):
        """Return a dataset of about `VIEWS` views."""
        paths = [
            sorted(Path(folder, kind).iterdir())[:VIEWS] for kind in ("images", "masks")
        ]
        source = tuple(each * (VIEWS // len(each)) for each in paths)
        data = ksa.data.FolderDataset(
            source,
            CLASSES,
            batch_size=BATCH,
            augmentation=ksa.data.Augmentation(CROP),
            threads=threads,
            **({"processes": processes} if processes else {}),
        )
        data[len(data) - 1]  # warms up
        return data

    def read(data):
        for i in range(len(data)):
            data[i]

    def timed(run, data):
        """Return wall seconds of a pass, and views per second of wall and CPU time."""
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        count = len(data.image_paths)
        return {"wall": wall, "a second": count / wall, "a core-second": count / cpu}

    record = {"pictures": {}, "readers": {}, "overlap": {}}
    for name, folder in folders.items():
        data = opened(folder)
        record["pictures"][name] = timed(lambda data=data: read(data), data)
    # Only this version has processes and ends its readers.
    has_processes = hasattr(ksa.data.FolderDataset, "close")
    counts = [(1, 0), (2, 0), (1, 1), (1, 2)] if has_processes else [(1, 0), (2, 0)]
    backbone = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 4, 4)]
    )
    scale = keras.layers.Rescaling(1 / 255)
    model = ksa.build_segmenter(backbone, CLASSES, adapters=False, preprocessing=scale)
    model.compile()
    for threads, processes in counts:
        name = f"{processes} processes" if processes else f"{threads} threads"
        data = opened(folders[PHOTOS], threads, processes)
        read(data)  # starts the processes
        record["readers"][name] = timed(lambda data=data: read(data), data)
        if max(threads, processes) > 1:
            continue
        batch, count = data[0], len(data)

        class Kept(keras.utils.PyDataset):
            def __len__(self, count=count):
                return count

            def __getitem__(self, index, batch=batch):
                return batch

        record["overlap"][name] = {
            "read": timed(lambda data=data: read(data), data)["wall"],
            "trained": timed(lambda: model.fit(Kept(), verbose=0), data)["wall"],
            "both": timed(lambda data=data: model.fit(data, verbose=0), data)["wall"],
        }
    print(json.dumps(record))


# All of them


def run(folders, package):
    """Measure the package in a folder, on one thread beside those that read."""
    threads = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    environment = {**os.environ, **dict.fromkeys(threads, "1")}
    environment["PYTHONPATH"] = str(package)
    command = [sys.executable, __file__, "--folders", json.dumps(folders)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(*rows):
    return ["", f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"] + [
        f"| {' | '.join(row)} |" for row in rows[1:]
    ]


def report(record):
    """Return the tables of all rounds, of which medians are shown."""

    def value(version, part, name, key):
        rounds = record["rounds"][version]
        return statistics.median(each[part][name][key] for each in rounds)

    versions, now = [*record["rounds"]], record["rounds"]["now"]
    rows = [("pictures", *(f"{version}, a core-second" for version in versions))]
    for name in now[0]["pictures"]:
        rates = [value(v, "pictures", name, "a core-second") for v in versions]
        times = f" ({rates[-1] / rates[0]:.1f} times)" if len(rates) > 1 else ""
        rows.append((name, *(f"{rate:.1f}" for rate in rates)))
        rows[-1] = (*rows[-1][:-1], rows[-1][-1] + times)
    lines = [
        "# The input pipeline",
        "",
        f"Written by `python benchmarks/pipeline.py`: {len(now)} rounds with "
        f"{record['backend']} on {os.cpu_count()} cores, load of the machine "
        f"{record['load']:.1f}. Medians of augmented views of 512 x 512, of all steps "
        f"of `Augmentation`; the last two tables of {PHOTOS}.",
        *table(*rows),
    ]
    growth = [("readers", "views a second", "growth")]
    epochs = [
        ("readers", "reading, s", "training, s", "epoch, s", "epoch over the larger")
    ]
    for version in versions:
        first = record["rounds"][version][0]
        for name in first["readers"]:
            rate = value(version, "readers", name, "a second")
            base = value(version, "readers", f"1 {name.split()[1]}", "a second")
            growth.append((f"{version}, {name}", f"{rate:.1f}", f"{rate / base:.2f}"))
        for name in first["overlap"]:
            read, trained, both = (
                value(version, "overlap", name, key)
                for key in ("read", "trained", "both")
            )
            seconds = [f"{each:.2f}" for each in (read, trained, both)]
            ratio = f"{both / max(read, trained):.2f}"
            epochs.append((f"{version}, {name}", *seconds, ratio))
    return "\n".join([*lines, *table(*growth), *table(*epochs)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--before", type=Path, help="folder of an earlier package")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid's images, masks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folders", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folders:
        return measure(args.folders)
    packages = {"before": args.before.resolve()} if args.before else {}
    packages["now"] = ROOT
    rounds = {version: [] for version in packages}
    with tempfile.TemporaryDirectory() as place:
        make_pictures(Path(place))
        folders = {name: str(Path(place) / name) for name, *_ in KINDS}
        if args.camvid:
            folders["CamVid, jpeg 480 x 360"] = str(args.camvid)
        for _ in range(args.rounds):
            for version, package in packages.items():
                rounds[version].append(run(folders, package))
    backend, load = os.environ.get("KERAS_BACKEND", "tensorflow"), os.getloadavg()[2]
    record = {"backend": backend, "load": load, "rounds": rounds}
    (RESULTS / "pipeline.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "pipeline.md").write_text(report(record))
    print(report(record))


if __name__ == "__main__":
    main()
