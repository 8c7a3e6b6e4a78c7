"""The tables of README.md: each command, the paper's figure, an estimate of the time.

    KERAS_BACKEND=torch python benchmarks/paper/tables.py

Multiply-adds are counted in models with random weights; nothing is downloaded. PyTorch
counts fastest.
"""

from pathlib import Path

from protocol import DATASETS, MODELS, parts_of, published, settings_of
from train import build

import keras_segadapter as ksa

README = Path(__file__).parent / "README.md"
# Operations a second: the dense bfloat16 peak of an H100 SXM, and the assumed share.
PEAK, SHARES = 989e12, {"mit": 0.05, "convnext": 0.10}


def products(model, dataset):
    """Count the multiply-adds of a model for one crop."""
    settings = {**settings_of(model, dataset), "weights": None}
    return ksa.cost_report(build(model, settings), settings["crop"]).multiply_adds


def hours(model, dataset, products):
    """Estimate the hours of a training on one H100."""
    settings = settings_of(model, dataset)
    # A step is three times the work of a prediction, a multiply-add two operations.
    operations = 3 * 2 * products * settings["batch"] * settings["steps"]
    return operations / (SHARES[parts_of(model)[1]] * PEAK) / 3600


def row(model, dataset):
    """Return the row of one command, with the hours of the multiply-adds as printed."""
    count = f"{products(model, dataset) / 1e9:.1f}"
    return (
        f"| `{model} {dataset} FOLDER` | {published(model, dataset)} "
        f"| {settings_of(model, dataset)['steps']:,} | {count} "
        f"| {hours(model, dataset, 1e9 * float(count)):.1f} |"
    )


def table(dataset):
    """Return the table of a dataset."""
    head = "| `python benchmarks/paper/train.py` | mIoU in the paper, % | steps "
    head += "| G multiply-adds of a crop | hours, estimated |\n|---|---|---|---|---|\n"
    return head + "\n".join(row(model, dataset) for model in MODELS)


def main():
    for dataset in DATASETS:
        new = table(dataset)
        print(f"{new}\n", flush=True)
        before, after = README.read_text().split(f"<!-- {dataset} -->\n")
        _, after = after.split("<!-- end -->", 1)
        text = f"{before}<!-- {dataset} -->\n{new}\n<!-- end -->{after}"
        README.write_text(text)


if __name__ == "__main__":
    main()
