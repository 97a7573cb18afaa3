"""The curves of a run: metrics.csv, which is the truth, and its mirror on wandb, which may fail."""

import contextlib
import csv
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L


class MetricsFile(L.Callback):
    """One row an epoch in metrics.csv, mirrored to wandb where there is one.

    Lightning's CSVLogger deletes the file of an earlier start, and with it the rows from before a resume.
    """

    COLUMNS = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")

    def __init__(self, path: Path, mirror: "Mirror | None" = None) -> None:
        self.path, self.mirror = path, mirror

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._write([row for row in self.rows() if int(row["epoch"]) <= trainer.current_epoch], "w")

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name in self.COLUMNS}
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], **metrics}
        row |= {"seconds": round(time.perf_counter() - self.started, 3)}
        self._write([row], "a")
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise FloatingPointError(
                    f"diverged: {name} is {row[name]} in epoch {row['epoch']} at lr {row['lr']:.3g}"
                )
        if self.mirror is not None:
            self.mirror.log(row)

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]], mode: str) -> None:
        with self.path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


class Mirror:
    """A wandb run that can fail without ending the training: the local files are the truth."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, row: Mapping[str, Any]) -> None:
        self._try(lambda: self.run.log(dict(row)))

    def summarise(self, values: Mapping[str, Any]) -> None:
        self._try(lambda: self.run.summary.update(dict(values)))

    def _try(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            print(f"wandb: {type(error).__name__}: {error}; training goes on", file=sys.stderr)


@contextlib.contextmanager
def wandb_run(config: Mapping[str, Any], folder: Path) -> Iterator[Mirror | None]:
    """A wandb run with the id of this run, grouped by cell, finished whatever happens; None where none is wanted."""
    logger = config["logger"]
    if not logger["wandb"] or config["debug"]["mode"] != "none":
        yield None
        return
    import wandb

    identity = folder.name.rpartition("-")[2]
    try:
        run = wandb.init(
            project=logger["project"],
            entity=logger["entity"],
            mode=logger["mode"],
            dir=folder,
            id=identity,
            name=folder.name,
            group=folder.name.replace(f"-s{config['seed']}-{identity}", ""),
            tags=[config["study"]["name"]] if config["study"]["name"] else [],
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(init_timeout=60),
        )
    except Exception as error:
        print(f"wandb: {type(error).__name__}: {error}; training goes on without it", file=sys.stderr)
        yield None
        return
    failed = True
    try:
        yield Mirror(run)
        failed = False
    finally:
        Mirror(run)._try(lambda: run.finish(exit_code=int(failed)))
