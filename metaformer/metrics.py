"""The curves of a run: metrics.csv, which is the truth, and after it its mirror on wandb."""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from metaformer.mirror import Mirror
from metaformer.run import read_curve


class MetricsFile(L.Callback):
    """One row an epoch in metrics.csv, mirrored to wandb where there is one.

    Lightning's CSVLogger deletes the file of an earlier start, and with it the rows from before a resume.
    """

    COLUMNS = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self.path, self.mirror = path, mirror
        self.before = 0.0  # seconds of this epoch that an earlier start has spent
        self.started = time.perf_counter()
        self.lr = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write([row for row in self.rows() if int(row["epoch"]) <= trainer.current_epoch], "w")

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.before + time.perf_counter() - self.started}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.before = state["seconds"]

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name in self.COLUMNS}
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {"lr": self.lr, **metrics}
        row |= {"seconds": round(self.before + time.perf_counter() - self.started, 3)}
        self.before, self.started = 0.0, time.perf_counter()
        if trainer.is_global_zero:
            self._write([row], "a")
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise FloatingPointError(
                    f"diverged: {name} is {row[name]} in epoch {row['epoch']} at lr {row['lr']:.3g}"
                )
        if self.mirror is not None:
            self.mirror.log(row)

    def rows(self) -> list[dict[str, str]]:
        return read_curve(self.path.parent) if self.path.exists() else []

    def _write(self, rows: Sequence[Mapping[str, Any]], mode: str) -> None:
        with self.path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)
