"""What single steps say, for wandb: loss, rate, norm of the gradient, images per second, memory of the GPU."""

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from metaformer.runs.wandb_run import Mirror


class StepValues(L.Callback):
    """Sends the values of every n-th step. In the steps between it computes nothing, and no value leaves the device.

    The loss is that of the first device; the norm is that of the whole gradient, before it is clipped; images per
    second are those since the last values, or since the epoch began; memory is the most so far, in GiB.
    """

    def __init__(self, mirror: Mirror, every: int, batch: int) -> None:
        self.mirror, self.every, self.batch = mirror, every, batch
        self.due = False
        self.losses: list[Tensor] = []  # of the parts of a batch
        self.norm, self.lr = torch.tensor(0.0), 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin(trainer)  # without the time of the validation

    def _begin(self, trainer: L.Trainer) -> None:
        self.first, self.started = trainer.global_step, time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.due = (trainer.global_step + 1) % self.every == 0

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.due:
            self.lr = optimizer.param_groups[0]["lr"]
            self.norm = get_total_norm([p.grad for p in module.parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if not self.due:
            return
        self.losses.append(outputs["loss"])
        if trainer.global_step % self.every:
            return  # a part of the batch
        loss, norm = torch.stack([torch.stack(self.losses).sum(), self.norm]).tolist()
        self.losses = []
        images, seconds = self.batch * (trainer.global_step - self.first), time.perf_counter() - self.started
        row = {"loss": loss, "lr": self.lr, "grad_norm": norm, "images_per_second": images / seconds}
        if module.device.type == "cuda":
            row["gpu_memory"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        self.mirror.log({f"step/{name}": value for name, value in row.items()}, trainer.global_step)
        self._begin(trainer)
