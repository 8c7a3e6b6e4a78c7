"""The record of a training: its history, its curves and its best model."""

import csv
import math
import os
from pathlib import Path

import keras

BEST = "val_mIoU"


class Record(keras.callbacks.Callback):
    """Callback that keeps the record of a training, also of one that resumes.

    After each epoch it writes `history.csv` and `curves.png`, and `best.keras` if the
    validation mIoU is better than before. The file of the history is written whole,
    from the epochs before this one: an epoch that is trained again after a kill stands
    in it once, and the best one is known without a state of its own.

    Args:
        folder: Path of the folder to write to.
        patience: Integer. Number of epochs without a better validation mIoU after
            which the training stops; None for no such end. Defaults to `None`.
    """

    def __init__(self, folder, patience=None):
        super().__init__()
        self.folder, self.patience = Path(folder), patience

    def on_epoch_end(self, epoch, logs=None):
        rows = [row for row in read_history(self.folder) if row["epoch"] <= epoch]
        earlier = best_row(rows)
        row = {"epoch": epoch + 1, **{key: float(x) for key, x in logs.items()}}
        rows.append(row)
        if best_row(rows) is not earlier:
            draft = self.folder / "best.new.keras"
            self.model.save(draft)
            os.replace(draft, self.folder / "best.keras")
        _write_history(rows, self.folder)
        _draw_curves(rows, self.folder / "curves.png")
        waited = row["epoch"] - best_row(rows)["epoch"]
        if self.patience is not None and waited >= self.patience:
            print(
                f"Stopping after epoch {epoch + 1}: the validation mIoU did not "
                f"improve in {waited} epochs."
            )
            self.model.stop_training = True


def read_history(folder):
    """Return the rows of a training's `history.csv` as dicts of numbers."""
    path = Path(folder) / "history.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def best_row(rows):
    """Return the first of the rows with the highest validation mIoU, or None."""

    def figure(row):
        return -math.inf if math.isnan(row[BEST]) else row[BEST]

    return max(rows, key=figure, default=None)


def _write_history(rows, folder):
    """Write the rows as `history.csv`, in one step."""
    draft = folder / "history.csv.new"
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), restval=math.nan)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(draft, folder / "history.csv")


def _draw_curves(rows, path):
    """Draw the loss and the mIoU by epoch, of training and validation."""
    # Without pyplot, no backend is chosen and no figure is kept.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((9, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, key in zip(figure.subplots(1, 2), ("loss", "mIoU"), strict=True):
        for name, label in ((key, "training"), (f"val_{key}", "validation")):
            axes.plot(epochs, [row[name] for row in rows], ".-", label=label)
        axes.set(xlabel="epoch", title=key)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png")
