"""Optimizer and schedule of a recipe, by timm."""

from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from metaformer.config.schema import Recipe
from metaformer.system.errors import ConfigError, nearest


def check_optimizer(name: str) -> None:
    """A ConfigError that names the nearest where timm has no such optimizer."""
    if name not in (known := [str(found) for found in list_optimizers()]):
        raise ConfigError(f"recipe.optimizer={name}: not one of timm's{nearest(name, known)}")


def make_optimizer(net: nn.Module, recipe: Recipe, *, on_gpu: bool) -> Optimizer:
    """timm's optimizer with its parameter groups: no decay on biases, norms and scales."""
    # Fused on a GPU, where torch has it; timm hands the rest of the options on. Lightning refuses to clip gradients in
    # bf16 with it, as fused optimizers unscale them by themselves, though there is no scale in bf16.
    clipped = recipe.clip_grad is not None and recipe.precision != "fp32"
    fuses = on_gpu and not clipped and recipe.optimizer in ("adam", "adamw")
    fused: dict[str, Any] = {"fused": True} if fuses else {}
    lr = recipe.lr * (recipe.batch / recipe.lr_base_size if recipe.lr_base_size else 1)
    return create_optimizer_v2(net, recipe.optimizer, lr=lr, weight_decay=recipe.weight_decay, **fused)


def make_scheduler(optimizer: Optimizer, recipe: Recipe, updates_per_epoch: int) -> Scheduler | None:
    """timm's schedule with its warm-up; None where the rate is constant."""
    if recipe.schedule == "constant":
        return None
    scheduler: Scheduler = create_scheduler_v2(
        optimizer,
        recipe.schedule,
        num_epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]  # timm takes parts of an epoch too
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=recipe.lr_interval == "epoch",
        updates_per_epoch=updates_per_epoch,
    )[0]
    return scheduler
