"""What single steps say: to wandb here, to Lightning's loggers in `loggers`."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from metaformer.runs.result import add_step, read_steps, write_steps
from metaformer.runs.wandb_run import Mirror
from metaformer.tasks.optimization import rate
from metaformer.training.sharding import whole


class NthSteps(L.Callback):
    """Asks `tell` at every n-th step. In the steps between it computes nothing, and no value leaves the device."""

    def __init__(self) -> None:
        self.due, self.lr = False, 0.0  # the rate of this step: the schedule has gone on when it ends
        self.losses: list[Tensor] = []  # of the parts of a batch; each brings its share

    def every(self, trainer: L.Trainer) -> int:
        """Which n it is."""
        raise NotImplementedError

    def tell(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Read what is wanted of a step that has just ended, from the loss of the first device."""
        raise NotImplementedError

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.due = (trainer.global_step + 1) % self.every(trainer) == 0
        if self.due:
            self.lr = rate(trainer.optimizers[0])

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.due:
            return
        self.losses.append(outputs["loss"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:  # else it was a part of the batch
            loss, self.losses = torch.stack(self.losses).sum(), []
            self.tell(trainer, module, loss)


class StepValues(NthSteps):
    """Loss, rate, norm of the gradient, images per second and memory of the GPU, in steps.csv and on wandb.

    The norm is that of the whole gradient, before it is clipped; images per second are those since the last values, or
    since the epoch began; memory is the most so far, in GiB.
    """

    def __init__(self, folder: Path, mirror: Mirror | None, every: int, batch: int) -> None:
        super().__init__()
        self.folder, self.mirror, self.n, self.batch = folder, mirror, every, batch
        self.norm = torch.tensor(0.0)

    def every(self, trainer: L.Trainer) -> int:
        return self.n

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin(trainer)  # a run that goes on within an epoch does not start that one
        if trainer.is_global_zero:
            write_steps(self.folder, read_steps(self.folder, until=trainer.global_step))

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin(trainer)  # without the time of the validation

    def _begin(self, trainer: L.Trainer) -> None:
        self.first, self.started = trainer.global_step, time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.due:
            self.norm = whole(get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))

    def tell(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if not trainer.is_global_zero:
            return
        values = torch.stack([loss, self.norm]).tolist()  # one copy to the host
        images, seconds = self.batch * (trainer.global_step - self.first), time.perf_counter() - self.started
        row = {"loss": values[0], "lr": self.lr, "grad_norm": values[1], "images_per_second": images / seconds}
        if module.device.type == "cuda":
            row["gpu_memory"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        add_step(self.folder, {"step": trainer.global_step, **row})
        if self.mirror is not None:
            self.mirror.log({f"step/{name}": value for name, value in row.items()}, trainer.global_step)
        self._begin(trainer)
