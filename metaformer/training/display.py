"""What a run shows while it trains: its own bar on a terminal, and progress.json for the display of a sweep."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from metaformer.config.schema import Recipe
from metaformer.runs.progress_file import Progress, remove, tell
from metaformer.tasks.optimization import rate

EVERY = 1.0  # seconds


class ProgressFile(L.Callback):
    """Writes progress.json once a second at most. It counts steps and time, and takes no value from the device."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.told = -math.inf
        self.steps, self.speed = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        in_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self.steps = self.recipe.steps or in_epoch * (trainer.max_epochs or 1)
        self._begin(trainer)
        self._tell(trainer, "training")

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin(trainer)  # without the time of the validation

    def _begin(self, trainer: L.Trainer) -> None:
        self.first, self.started = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if time.monotonic() - self.told >= EVERY:
            images = self.recipe.batch * (trainer.global_step - self.first)
            self.speed = images / (time.monotonic() - self.started)
            self._tell(trainer, "training")

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if time.monotonic() - self.told >= EVERY:
            self._tell(trainer, "validating")

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._tell(trainer, "testing")

    def _tell(self, trainer: L.Trainer, state: str) -> None:
        if trainer.is_global_zero:
            self.told = time.monotonic()
            lr = rate(trainer.optimizers[0]) if trainer.optimizers else 0.0
            epochs = trainer.max_epochs or 1
            epoch = min(trainer.current_epoch + 1, epochs)
            tell(self.folder, Progress(state, epoch, epochs, trainer.global_step, self.steps, lr, self.speed))

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._remove(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._remove(trainer)

    def _remove(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            remove(self.folder)


class Bar(RichProgressBar):
    """Lightning's bar, which counts epochs from 1, as metrics.csv does, and shows loss and learning rate.

    The loss is that of a batch, read once a second: its value has to come from the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}
        self.read = -math.inf

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self.read >= EVERY:
            self.read = time.monotonic()
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning divides it by the parts
            self.shown = {"loss": f"{loss:.3f}", "lr": f"{rate(trainer.optimizers[0]):.2e}"}
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return self.shown | super().get_metrics(trainer, module)
