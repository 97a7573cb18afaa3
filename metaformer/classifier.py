"""Training: loss, metrics, optimizer and schedule of a classifier; everything that is the same for every mixer."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from metaformer.batches import Batch, done_batches
from metaformer.schema import ConfigError, nearest
from metaformer.seeds import seed_globals


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
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric(nan_strategy="disable") for _ in range(3))
        for metric in (self.train_accuracy, self.train_loss):
            metric.persistent(True)  # in checkpoints: a run may go on in the middle of an epoch
        self.mixup = mixup_of(recipe, classes)
        self.predictions: list[Tensor] = []
        self.teacher = [teacher] if teacher is not None else []  # in a list: it belongs to no checkpoint
        if self.teacher and hasattr(net, "set_distilled_training"):
            net.set_distilled_training(True)  # type: ignore[operator]

    def on_fit_start(self) -> None:
        for teacher in self.teacher:
            teacher.to(self.device)

    def on_train_start(self) -> None:
        if done_batches(self.trainer) == 0:  # a checkpoint of an epoch's end still has the sums of that epoch
            self.train_loss.reset()
            self.train_accuracy.reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        devices, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        part = batch_idx % parts * devices + self.global_rank
        self.seed_step(self.global_step, *([part] if devices * parts > 1 else []))

    def seed_step(self, *place: int) -> None:
        """Seed the global generators for a step, or for a part of it where its batch is split.

        Whatever draws from them is then a function of (seed, step): a resumed run draws the same, and so do two runs
        that differ in a mixer which draws nothing itself. Parts of a batch, on several devices or one after the other,
        each draw their own.
        """
        seed_globals(self.seed, "step", *place)

    def training_step(self, batch: Batch) -> Tensor:
        if self.mixup is not None:
            batch = self.mixup(*batch)
        loss = self._step("train", batch, smoothing=0.0 if self.mixup else self.recipe["label_smoothing"])[0]
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
        self.predictions.append(self._step("test", batch)[1].argmax(1))

    def on_test_epoch_end(self) -> None:
        """Predictions of all devices, which read every n-th image each."""
        own = torch.cat(self.predictions)
        devices, images = self.trainer.world_size, len(self.trainer.datamodule.data.test)  # type: ignore[attr-defined]
        if devices > 1:
            padded = F.pad(own, (0, -(-images // devices) - len(own)))
            gathered = self.all_gather(padded)
            assert isinstance(gathered, Tensor)  # [devices, images of one]
            own = gathered.T.flatten()[:images]
        self.predictions = [own.cpu()]

    def _step(self, split: str, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        images, labels = batch
        output = self.net(images)
        logits, distilled = (o.float() for o in (output if isinstance(output, tuple) else (output, output)))
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        hard = labels if labels.ndim == 1 else labels.argmax(1)  # of mixed images the class that has most of them
        if split == "train" and self.teacher:
            alpha = self.recipe["distill"]["alpha"]
            loss = (1 - alpha) * loss + alpha * self._distillation(images, distilled)
        mean, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_accuracy")
        mean.update(loss.detach(), weight=len(labels))
        accuracy.update(logits, hard)
        self.log(f"{split}_loss", mean, on_step=False, on_epoch=True)
        self.log(f"{split}_accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True)
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
        """timm's parameter groups (no decay on biases, norms and scales), its optimizer and its schedule."""
        recipe = self.recipe
        # Fused on a GPU, where torch has it; timm hands the rest of the options on.
        fused: dict[str, Any] = (
            {"fused": True} if self.device.type == "cuda" and recipe["optimizer"] in ("adam", "adamw") else {}
        )
        lr = recipe["lr"] * (recipe["batch"] / recipe["lr_base_size"] if recipe["lr_base_size"] else 1)
        optimizer = create_optimizer_v2(
            self.net, recipe["optimizer"], lr=lr, weight_decay=recipe["weight_decay"], **fused
        )
        if recipe["schedule"] == "constant":
            return optimizer
        scheduler, _ = create_scheduler_v2(
            optimizer,
            recipe["schedule"],
            num_epochs=recipe["epochs"],
            cooldown_epochs=recipe["cooldown_epochs"],
            warmup_epochs=recipe["warmup_epochs"],
            warmup_lr=recipe["warmup_lr"],
            min_lr=recipe["min_lr"],
            step_on_epochs=recipe["lr_interval"] == "epoch",
            # Not num_training_batches, which is infinite until the data are set up: the warm-up would never end.
            updates_per_epoch=int(self.trainer.estimated_stepping_batches) // (self.trainer.max_epochs or 1),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": recipe["lr_interval"]}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self.recipe["lr_interval"] == "epoch":
            scheduler.step(self.current_epoch + 1)
        else:
            scheduler.step_update(self.global_step)


def mixup_of(recipe: Mapping[str, Any], classes: int) -> Mixup | None:
    """timm's Mixup and CutMix, one of them for each batch, with label smoothing in their targets; None without."""
    if not recipe["mixup"] and not recipe["cutmix"]:
        return None
    return Mixup(
        mixup_alpha=recipe["mixup"],
        cutmix_alpha=recipe["cutmix"],
        label_smoothing=recipe["label_smoothing"],
        num_classes=classes,
    )


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
