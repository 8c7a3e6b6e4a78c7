"""The tables of evidence.py: arms, paired differences, classes, and what was tried."""

import json
import statistics

NAMES = {"camvid": "CamVid", "facade": "facades", "few": "46 pictures of CamVid"}
# What is said of two arms: the first less the second.
FROZEN = "frozen: adapters over the head alone"
LEARNS = "all learns: adapters over none"
PAIRS = {
    FROZEN: ("frozen_adapters", "frozen_plain"),
    "frozen: adapters over a head as large": ("frozen_adapters", "frozen_wide"),
    "frozen: adapters over LoRA as large": ("frozen_adapters", "frozen_lora"),
    "frozen: a head as large over the small one": ("frozen_wide", "frozen_plain"),
    "frozen: LoRA over the head alone": ("frozen_lora", "frozen_plain"),
    LEARNS: ("adapters", "plain"),
    "all learns: adapters over an FCN head in training": ("adapters", "fcn"),
    "all learns: an FCN head in training over none": ("fcn", "plain"),
    "frozen, the head alone, over all learns": ("frozen_plain", "plain"),
    "frozen, with adapters, over all learns": ("frozen_adapters", "plain"),
}
NOTE = """\
Differences are between trainings with the same seed: the same order, the same crops.
Intervals are Student's, of 95 %; they speak of other seeds of the same training on the
same images, not of other images. Those in bold exclude 0. Minutes are those that one
core was busy.
"""


def read(path, command=""):
    """Return the records in a file, or the start of such a file."""
    if path.exists():
        return json.loads(path.read_text())
    return {"command": command, "versions": {}, "runs": []}


def report(final, chosen, arms, choices, start, taken):
    """Write the tables beside the records, and print them."""
    runs = read(final)["runs"]
    lines = ["# What adapters add on street scenes", "", NOTE]
    if runs:
        # The marks let a page of the site include this table alone.
        lines += ["<!-- --8<-- [start:differences] -->", "", *differences(runs), ""]
        lines += ["<!-- --8<-- [end:differences] -->", ""]
    for data, name in NAMES.items():
        of_data = [run for run in runs if run["dataset"] == data]
        if of_data:
            lines += [f"## {name}", "", *by_arm(of_data, arms), ""]
            lines += [*by_class(of_data), ""]
    tried = read(chosen)["runs"]
    if tried:
        lines += ["## What was tried before `val` was scored", ""]
        lines += [*by_choice(tried, choices, start), ""]
        took = [f"{listed(changes)} in {arm}" for arm, changes in taken.items()]
        lines += [f"Taken: {'; '.join(took) or 'nothing'}.", ""]
    text = "\n".join(lines)
    final.with_suffix(".md").write_text(text)
    print(text)


def by_arm(runs, arms):
    """Yield the lines of the table of the arms' scores and costs."""
    yield row(
        *("arm", "seeds", "mIoU on val, %", "on the facades, %", "M learn"),
        *("G multiply-adds", "minutes", "peak MB"),
    )
    yield "|---" * 8 + "|"
    for arm in arms:
        of_arm = [run for run in runs if run["arm"] == arm]
        if not of_arm:
            continue
        across = [run["across_miou"] for run in of_arm if run["across_miou"]]
        yield row(
            arm,
            len(of_arm),
            spread([run["val_miou"] for run in of_arm]),
            spread(across) if across else "",
            f"{of_arm[0]['trained_parameters'] / 1e6:.2f}",
            f"{of_arm[0]['multiply_adds'] / 1e9:.2f}",
            f"{statistics.mean(run['seconds'] for run in of_arm) / 60:.1f}",
            round(statistics.mean(run["peak_mb"] for run in of_arm)),
        )


def differences(runs):
    """Yield the lines of the table of differences of two arms with the same seed."""
    of_data = {data: [run for run in runs if run["dataset"] == data] for data in NAMES}
    columns = [
        *((name, of_data[data], "val_miou") for data, name in NAMES.items()),
        ("of CamVid, on facades", of_data["camvid"], "across_miou"),
    ]
    columns = [column for column in columns if column[1]]
    yield row("points of mIoU on `val`", *(title for title, *_ in columns))
    yield "|---" * (1 + len(columns)) + "|"
    for claim, pair in PAIRS.items():
        gains = [paired(of_one, *pair, score) for _, of_one, score in columns]
        if any(gains):
            yield row(claim, *(interval(gain) or "not run" for gain in gains))


def by_class(runs):
    """Yield the lines of the table of the gains of adapters by class."""
    yield row("points of IoU by class", FROZEN, LEARNS)
    yield "|---|---|---|"
    for name in runs[0]["val_iou"]:
        gains = [
            paired(runs, *PAIRS[claim], "val_iou", name) for claim in (FROZEN, LEARNS)
        ]
        yield row(name, *map(interval, gains))


def by_choice(runs, choices, start):
    """Yield the lines of the table of the candidates that `choose` compared."""
    yield (
        "Where each candidate starts: "
        + ", ".join(f"`{key}` {value}" for key, value in start.items())
        + "."
    )
    yield ""
    yield row("arm", "changed", "seeds", "mIoU, %", "difference, points")
    yield "|---|---|---|---|---|"
    for arm, changed in ((arm, each) for arm, all_ in choices.items() for each in all_):
        of_arm = [run for run in runs if run["arm"] == arm]
        found = [run for run in of_arm if run["settings"] == {**start, **changed}]
        first = [run for run in of_arm if run["settings"] == start]
        if not found:
            continue
        gains = [
            one["val_miou"] - two["val_miou"]
            for one in found
            for two in first
            if one["seed"] == two["seed"] and changed
        ]
        yield row(
            arm,
            listed(changed),
            len(found),
            spread([run["val_miou"] for run in found]),
            interval(gains),
        )


def paired(runs, arm, other, score, name=None):
    """Return the differences of two arms, one for each seed that both have.

    Of a score by class, `name` is the class.
    """
    found = {
        (run["arm"], run["seed"]): run[score] if name is None else run[score][name]
        for run in runs
    }
    seeds = sorted({seed for _, seed in found})
    pairs = [(found.get((arm, seed)), found.get((other, seed))) for seed in seeds]
    return [one - two for one, two in pairs if None not in (one, two)]


def interval(differences):
    """Return the mean difference in points, and its interval of 95 %."""
    if not differences:
        return ""
    points = [100 * difference for difference in differences]
    mean = statistics.mean(points)
    if len(points) == 1:
        return f"{mean:+.1f}"
    from scipy import stats

    reach = stats.t.ppf(0.975, len(points) - 1) * stats.sem(points)
    text = f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"
    return f"**{text}**" if abs(mean) > reach else text


def spread(shares):
    """Return the mean and the standard deviation of shares, in percent."""
    points = [100 * share for share in shares]
    deviation = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):.1f}{deviation}"


def listed(changes):
    values = (f"{v:.3g}" if isinstance(v, float) else v for v in changes.values())
    return ", ".join(map("{} {}".format, changes, values))


def row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"
