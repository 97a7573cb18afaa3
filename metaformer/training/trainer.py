"""Lightning's Trainer, on the devices and in the precision of a configuration."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from metaformer.config.schema import Config, Recipe, Runtime
from metaformer.models.precision import keep_unwritten, set_tf32
from metaformer.system.errors import ConfigError
from metaformer.system.machine import cores, keep_memory, processor
from metaformer.training.sharding import strategy_of

LIMITS: dict[str, dict[str, Any]] = {  # of the Trainer, by debug mode
    "fast": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 2},
    "overfit": {"limit_val_batches": 0},
}
PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


# What Lightning warns of and this package takes care of: batches are functions of their place.
NOISE = (
    ".*(does not have many workers|LeafSpec|exists and is not empty|dataloader is not resumable|flops_per_batch|"
    "in eval mode at the start of training|infer the batch indices)"
)


def workers(runtime: Runtime, jobs: int) -> int:
    """How many processes read the photographs of one device: runtime.workers, or one for each core that is left."""
    share = cores() // (jobs * runtime.devices)
    return runtime.workers if runtime.workers is not None else min(16, share) if share > 1 else 0


def threads(runtime: Runtime, jobs: int) -> int:
    """How many threads a run has: runtime.threads, or its share of the cores."""
    return runtime.threads or max(1, cores() // (jobs * runtime.devices))


def make_trainer(
    runtime: Runtime, recipe: Recipe, brought: Mapping[str, Any] | None = None, **options: Any
) -> L.Trainer:
    """A Trainer; a ConfigError where the devices that are asked for are not there, or a flag cannot work.

    Args:
        brought: flags that the user sets, over those of the bench.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertising, no list of absent devices
    set_tf32(runtime.tf32)
    keep_memory()
    keep_unwritten()
    warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU")  # here it is an error
    warnings.filterwarnings("ignore", message=".*srun. command is available")  # on any machine of a cluster
    together = runtime.processes
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) == together:  # submitit requeues its jobs itself
        options["plugins"] = [SLURMEnvironment(auto_requeue=False)]
    spread = "ddp" if together > 1 or runtime.strategy == "ddp" else "auto"
    try:
        trainer = L.Trainer(
            accelerator=runtime.accelerator,
            devices=runtime.devices,
            num_nodes=runtime.nodes,
            use_distributed_sampler=False,
            precision=PRECISION[recipe.precision],
            **{"strategy": spread, "logger": False, "enable_model_summary": False, **options, **(brought or {})},
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        flags = [
            f"trainer.{flag}={value}"
            for flag, value in (brought or {}).items()
            if flag in str(error) or (isinstance(value, str) and value in str(error))  # a number could be any
        ]
        asked = [f"runtime.accelerator={runtime.accelerator}", f"runtime.devices={runtime.devices}"]
        raise ConfigError(f"{', '.join(flags or asked)}: {error}") from error
    if trainer.strategy.root_device.type == "cpu":
        if recipe.precision == "fp16":  # Lightning would take bf16 instead
            raise ConfigError("recipe.precision=fp16: is for a GPU, and there is none; a processor has fp32 or bf16")
        if (brought or {}).get("sync_batchnorm"):  # torch would fail in the first step
            raise ConfigError("trainer.sync_batchnorm=True: is for GPUs, and there are none")
    return trainer


def fitting_trainer(
    config: Config,
    recipe: Recipe,
    callbacks: list[L.Callback],
    loggers: Sequence[Logger],
    *,
    epochs: int,
    parts: int,
    folder: Path,
    show: bool,
) -> L.Trainer:
    """The Trainer of a run, whose recipe may be that of a debug mode.

    Args:
        epochs: how many there are.
        parts: those that the batch of a device is split into.
        show: a progress bar.
    """
    options: dict[str, Any] = {"max_epochs": epochs, **LIMITS.get(config.debug.mode, {})}
    return make_trainer(
        config.runtime,
        recipe,
        config.trainer,
        strategy=strategy_of(config.runtime),
        accumulate_grad_batches=parts,
        gradient_clip_val=recipe.clip_grad,
        deterministic=True,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=list(loggers) or False,
        enable_checkpointing=config.debug.mode == "none",
        enable_progress_bar=show,
        default_root_dir=folder,
        **options,
    )


def steps_of_an_epoch(limit: int | float, images: int, recipe: Recipe) -> int:
    """How many whole batches an epoch has.

    Args:
        limit: `trainer.limit_train_batches`, a number of them or a share, 1.0 for all. Lightning means the parts of
            batches that are accumulated, with which the number of steps would change.

    Raises:
        ConfigError: it leaves none.
    """
    whole = images // recipe.batch
    kept = min(limit, whole) if isinstance(limit, int) else int(limit * whole)
    if not kept:
        raise ConfigError(f"trainer.limit_train_batches={limit}: leaves none of the {whole} batches of an epoch")
    return kept


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor where the system tells it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
