"""Training: loss, metrics, optimizer and schedule of a classifier; everything that is the same for every mixer."""

import random
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from metaformer.schema import ConfigError, nearest
from metaformer.seeds import derive

Batch = tuple[Tensor, Tensor]


class Classifier(L.LightningModule):
    """A network under a recipe (the `recipe` node of the configuration). Accuracies are fractions.

    With a teacher, the loss is that of DeiT (arXiv:2012.12877, Eq. 2 and 3). A student with a distillation token (of
    timm, `deit_*_distilled_*`) learns from the teacher through that token, any other through its only output.
    """

    def __init__(
        self, net: nn.Module, recipe: Mapping[str, Any], *, classes: int, seed: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        if recipe["optimizer"] not in (known := [str(name) for name in list_optimizers()]):
            raise ConfigError(
                f"recipe.optimizer={recipe['optimizer']}: not one of timm's{nearest(recipe['optimizer'], known)}"
            )
        self.net, self.recipe, self.seed = net, recipe, seed
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(classes, average="micro") for _ in range(3)
        )
        self.predictions: list[Tensor] = []
        self.teacher = [teacher] if teacher is not None else []  # in a list: it belongs to no checkpoint
        if self.teacher and hasattr(net, "set_distilled_training"):
            net.set_distilled_training(True)  # type: ignore[operator]

    def on_fit_start(self) -> None:
        for teacher in self.teacher:
            teacher.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Whatever draws from a global generator in this step is a function of (seed, step): a resumed run draws the
        # same, and so do two runs that differ in a mixer which draws nothing itself.
        seed = derive(self.seed, "step", self.global_step)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch) -> Tensor:
        loss = self._step("train", batch, smoothing=self.recipe["label_smoothing"])[0]
        if not torch.isfinite(loss):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise FloatingPointError(
                f"diverged: loss is {loss.item()} at step {self.global_step + 1} (epoch {self.current_epoch + 1}), "
                f"lr {lr:.3g}; first not finite: {first_not_finite(self.net, batch[0])}"
            )
        return loss

    def validation_step(self, batch: Batch) -> None:
        self._step("val", batch)

    def on_test_epoch_start(self) -> None:
        self.predictions = []

    def test_step(self, batch: Batch) -> None:
        self.predictions.append(self._step("test", batch)[1].argmax(1).cpu())

    def _step(self, split: str, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        images, labels = batch
        output = self.net(images)
        logits, distilled = (o.float() for o in (output if isinstance(output, tuple) else (output, output)))
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if split == "train" and self.teacher:
            alpha = self.recipe["distill"]["alpha"]
            loss = (1 - alpha) * loss + alpha * self._distillation(images, distilled)
        accuracy = getattr(self, f"{split}_accuracy")
        accuracy(logits, labels)
        self.log(f"{split}_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log(f"{split}_accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss, logits

    def _distillation(self, images: Tensor, logits: Tensor) -> Tensor:
        distill = self.recipe["distill"]
        with torch.no_grad():
            taught = self.teacher[0](images).float()
        if distill["mode"] == "hard":
            return F.cross_entropy(logits, taught.argmax(1))
        tau = distill["tau"]
        student, teacher = ((z / tau).log_softmax(1) for z in (logits, taught))
        return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def configure_optimizers(self) -> Any:
        """timm's parameter groups (no decay on biases, norms and scales), warm-up and cosine, stepped every update."""
        recipe = self.recipe
        optimizer = create_optimizer_v2(
            self.net, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"]
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            "cosine",
            num_epochs=recipe["epochs"],
            warmup_epochs=recipe["warmup_epochs"],
            warmup_lr=recipe["warmup_lr"],
            min_lr=recipe["min_lr"],
            step_on_epochs=False,
            # Not num_training_batches, which is infinite until the data are set up: the warm-up would never end.
            updates_per_epoch=int(self.trainer.estimated_stepping_batches) // (self.trainer.max_epochs or 1),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step)


@torch.no_grad()
def first_not_finite(net: nn.Module, images: Tensor) -> str:
    """The module where values stop being finite in a forward pass: its weights, or else its output."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            if found or not isinstance(output, Tensor) or torch.isfinite(output).all():
                return
            weights = [key for key, p in module.named_parameters(recurse=False) if not torch.isfinite(p).all()]
            found.append(f"{name}.{weights[0]}" if weights else f"the output of {name} ({type(module).__name__})")

        return check

    # A module's hook is called after those of the modules in it: the first to complain is the innermost.
    hooks = [module.register_forward_hook(watch(name)) for name, module in net.named_modules() if name]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss itself"
