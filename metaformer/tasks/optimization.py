"""Optimizer and schedule of a recipe, by timm."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from metaformer.config.schema import Recipe
from metaformer.models.encoder_decoder import EncoderDecoder
from metaformer.system.errors import ConfigError, in_a_line, nearest
from metaformer.system.seeds import seeded

GROUPING = ("layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale", "filter_bias_and_bn")  # of timm
SHARES = {"layer_decay": 0.75, "layer_decay_min_scale": 0.0}  # examples of timm's own
OWN = ("self", "params", "lr", "weight_decay", "fused")  # recipe.lr, recipe.weight_decay; the rest by the bench


def check_optimizer(recipe: Recipe) -> None:
    """A ConfigError that names the nearest where timm has no such optimizer, or that has no such option."""
    name = recipe.optimizer
    if name not in (known := [str(found) for found in list_optimizers()]):
        raise ConfigError(f"recipe.optimizer={name}: not one of timm's{nearest(name, known)}")
    options = [*(option for option in _defaults(name) if option not in OWN), *GROUPING]
    for option in recipe.optimizer_options:
        if option not in options:
            hint = nearest(option, options) or f"; it has {', '.join(options)}"
            raise ConfigError(f"recipe.optimizer_options.{option}: {name} has no such option{hint}")


def _defaults(optimizer: str) -> dict[str, Any]:
    """What an optimizer of timm takes, with its defaults."""
    takes = inspect.signature(get_optimizer_class(optimizer, bind_defaults=False)).parameters
    return {name: parameter.default for name, parameter in takes.items()}


def try_optimizer(net: nn.Module, recipe: Recipe, *, on_cpu: bool) -> None:
    """A ConfigError where the optimizer, or a value of its options, cannot work.

    Args:
        on_cpu: it is to train on a processor: then it is made whatever its options are, and takes a step of a small
            network. Some optimizers and options are for a GPU alone, and a step needs one.
    """
    if not (on_cpu or recipe.optimizer_options):
        return
    try:
        make_optimizer(net, recipe, on_gpu=False)
        if on_cpu:
            with seeded(0, "small"):
                small = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(1, 1))
            own = {name: value for name, value in recipe.optimizer_options.items() if name not in GROUPING}  # by layers
            optimizer = make_optimizer(small, replace(recipe, optimizer_options=own), on_gpu=False)
            small(torch.ones(1, 1, 2, 2)).sum().backward()
            optimizer.step()
    except ConfigError:
        raise
    except Exception as error:  # whatever an optimizer raises
        told = f"recipe.optimizer={recipe.optimizer}"
        told += f", recipe.optimizer_options={recipe.optimizer_options}" if recipe.optimizer_options else ""
        usual = SHARES | _defaults(recipe.optimizer)
        given = [name for name in recipe.optimizer_options if name in usual]
        like = [f"{name}={list(v) if isinstance(v := usual[name], tuple) else v}" for name in given]
        hint = f"; expected values like {', '.join(like)}" if like else ""
        raise ConfigError(f"{told}: {in_a_line(error, None)}{hint}") from error


def make_optimizer(net: nn.Module, recipe: Recipe, *, on_gpu: bool) -> Optimizer:
    """timm's optimizer with its parameter groups: no decay on vectors, as norms and scales are, and on what is called
    `bias`; what a mixer keeps in matrices, as a table of biases, decays."""
    # Fused on a GPU, where torch has it; timm hands the rest of the options on. A fused one unscales the gradients of
    # fp16 by itself, after all who look at them, and for that Lightning refuses to clip, in bf16 too.
    unscales = recipe.precision == "fp16" or (recipe.precision == "bf16" and recipe.clip_grad is not None)
    fuses = on_gpu and not unscales and recipe.optimizer in ("adam", "adamw")
    fused: dict[str, Any] = {"fused": True} if fuses else {}
    lr = recipe.lr * (recipe.batch / recipe.lr_base_size if recipe.lr_base_size else 1)
    options: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in recipe.optimizer_options.items()
    }
    if recipe.decoder_lr != 1 and isinstance(net, EncoderDecoder):  # not the small network that tries an optimizer
        options["param_group_fn"] = lambda _: _groups(net, recipe)
    return create_optimizer_v2(net, recipe.optimizer, lr=lr, weight_decay=recipe.weight_decay, **fused, **options)


def _groups(net: EncoderDecoder, recipe: Recipe) -> list[dict[str, Any]]:
    """timm's groups, those that decay and those that do not, each in two: of the encoder and of what is behind it."""
    encoder = {id(parameter) for parameter in net.encoder.parameters()}
    found = []
    for group in param_groups_weight_decay(net, recipe.weight_decay, no_weight_decay_list=net.no_weight_decay()):
        for inside, scale in ((True, 1.0), (False, recipe.decoder_lr)):
            part = [parameter for parameter in group["params"] if (id(parameter) in encoder) == inside]
            found.append({**group, "params": part, "lr_scale": scale})
    return [group for group in found if group["params"]]


def rate(optimizer: Optimizer) -> float:
    """The learning rate: the largest where the layers have their own."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def make_scheduler(optimizer: Optimizer, recipe: Recipe, updates_per_epoch: float) -> Scheduler | None:
    """timm's schedule with its warm-up; None where the rate is constant."""
    if recipe.schedule == "constant":
        return None
    updates: float = updates_per_epoch if recipe.steps is None else recipe.steps / recipe.all_epochs
    scheduler: Scheduler = create_scheduler_v2(
        optimizer,
        recipe.schedule,
        num_epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]  # timm takes parts of an epoch too
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        decay_rate=recipe.power,  # read by poly alone
        step_on_epochs=recipe.lr_interval == "epoch",
        updates_per_epoch=updates,  # type: ignore[arg-type]  # and parts of an update
    )[0]
    return scheduler
