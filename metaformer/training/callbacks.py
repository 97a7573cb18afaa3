"""The callbacks of a run: those of the bench, and those that a configuration brings."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging

from metaformer.config.schema import Config
from metaformer.data.batches import Batch
from metaformer.models.precision import device_of
from metaformer.training.best import Best
from metaformer.training.brought import made
from metaformer.training.display import Bar, ProgressFile
from metaformer.training.stop_and_resume import Checkpoints
from metaformer.training.validations import EverySteps


def callbacks_of(folder: Path, config: Config, kept: Mapping[str, int], *, show: bool) -> list[L.Callback]:
    """What a configuration asks for, beside the curve.

    Args:
        kept: what a resumed run has to keep; it goes with the checkpoints.
        show: a progress bar.
    """
    callbacks: list[L.Callback] = [ProgressFile(folder, config.recipe), *([Bar()] if show else [])]
    if config.recipe.validate_steps is not None:
        callbacks.append(EverySteps(config.recipe.validate_steps))
    if config.selected_by:
        callbacks.append(Best(config.selected_by))
    if config.recipe.ema is not None:
        # made before the network moves to its device, and compared with it at each step
        device = device_of(config.runtime.accelerator).type
        callbacks.append(EMAWeightAveraging(device=device, decay=config.recipe.ema))
    if config.debug.mode == "none":
        callbacks.append(Checkpoints(folder, config.runtime.checkpoint_minutes, kept))
    if config.debug.mode == "overfit":
        done = {"stopping_threshold": 1 - 1e-6, "patience": 200, "check_on_train_epoch_end": True}
        callbacks.append(EarlyStopping(f"train_{config.task.accuracy}", mode="max", **done))  # type: ignore[arg-type]
    return callbacks


def brought_callbacks(config: Config) -> list[L.Callback]:
    """Those of the `callbacks` node, in its order."""
    return [made(L.Callback, node, f"callbacks.{name}") for name, node in config.callbacks.items()]


def images_of(batch: Batch) -> int:
    """How many images a batch has, for Lightning's ThroughputMonitor."""
    return len(batch[0])
