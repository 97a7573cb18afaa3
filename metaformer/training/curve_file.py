"""The curves of a run: metrics.csv, which is the truth, and after it its mirror on wandb."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L

from metaformer.runs.result import add_to_curve, columns_of, read_curve, write_curve
from metaformer.runs.wandb_run import Mirror
from metaformer.system.errors import ConfigError
from metaformer.tasks.optimization import rate


class CurveFile(L.Callback):
    """One row an epoch in metrics.csv, mirrored to wandb where there is one.

    Lightning's CSVLogger deletes the file of an earlier start, and with it the rows from before a resume.
    """

    def __init__(self, folder: Path, mirror: Mirror | None = None, task: str = "classification") -> None:
        self.folder, self.mirror, self.columns = folder, mirror, columns_of(task)
        self.before = 0.0  # seconds of this epoch that an earlier start has spent
        self.started = time.perf_counter()
        self.lr = 0.0
        self.validated = -1  # the last epoch that was

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            there = self.rows() if (self.folder / "metrics.csv").exists() else []
            kept = there[: trainer.current_epoch]  # later rows, whole or not, are of an epoch that is trained again
            if [row["epoch"] for row in kept] != [str(1 + i) for i in range(trainer.current_epoch)]:
                raise ConfigError(
                    f"{self.folder}/metrics.csv: has no row for each of the {trainer.current_epoch} epochs of the "
                    "checkpoint; remove the folder to train from the start"
                )
            write_curve(self.folder, kept, self.columns)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.lr = rate(trainer.optimizers[0])

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.before + time.perf_counter() - self.started}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.before = state["seconds"]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self.lr}
        known = [name for name in self.columns if name in trainer.callback_metrics]
        if self.validated != trainer.current_epoch:  # what Lightning remembers is of an earlier one
            known = [name for name in known if not name.startswith("val_")]
        row |= {name: float(trainer.callback_metrics[name]) for name in known}
        row |= {"seconds": round(self.before + time.perf_counter() - self.started, 3)}
        self.before, self.started = 0.0, time.perf_counter()
        if trainer.is_global_zero:
            add_to_curve(self.folder, row, self.columns)
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise FloatingPointError(
                    f"diverged: {name} is {row[name]} in epoch {row['epoch']} at lr {row['lr']:.3g}"
                )
        if self.mirror is not None:
            self.mirror.log(row, trainer.global_step)

    def ends_validated(self) -> bool:
        """Whether the last epoch was validated; on the first device, which writes the file."""
        rows = self.rows() if (self.folder / "metrics.csv").exists() else []
        return bool(rows and rows[-1]["val_loss"])

    def rows(self) -> list[dict[str, str]]:
        return read_curve(self.folder)
