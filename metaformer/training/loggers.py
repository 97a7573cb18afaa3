"""Lightning's loggers, which may fail: metrics.csv is the truth, and nothing is ever read back."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from metaformer.config.schema import Config
from metaformer.system.errors import in_a_line
from metaformer.training.brought import made
from metaformer.training.step_values import NthSteps


class Guarded(Logger):
    """A logger that can fail without ending the training: this is told once, and it is not asked again."""

    def __init__(self, logger: Logger, key: str) -> None:
        super().__init__()
        self.logger, self.key, self.failed = logger, key, False

    def attempt(self, method: str, *args: Any, **options: Any) -> Any:
        if self.failed:
            return None
        try:
            return getattr(self.logger, method)(*args, **options)
        except Exception as error:  # whatever a logger, the disk or the network raises
            self.failed = True
            print(f"{self.key}: {in_a_line(error, None)}; training goes on without it", file=sys.stderr)
            return None

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def group_separator(self) -> str:
        return str(self.logger.group_separator)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.attempt("log_metrics", metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        self.attempt("log_hyperparams", params, *args, **options)

    def log_graph(self, *args: Any, **options: Any) -> None:
        self.attempt("log_graph", *args, **options)

    def save(self) -> None:
        self.attempt("save")

    def finalize(self, status: str) -> None:
        self.attempt("finalize", status)

    def __getattr__(self, name: str) -> Any:
        """What only some loggers have, like `experiment` or `log_image`."""
        if name.startswith("__"):  # what copy and pickle ask of one that is not made yet
            raise AttributeError(name)
        found = getattr(self.__dict__["logger"], name)
        return partial(self.attempt, name) if callable(found) else found


class Steps(NthSteps):
    """Gives loggers the configuration, and of every `trainer.log_every_n_steps`-th step the loss and the rate.

    It reads a loss back from its device, which takes time: a run without loggers has no such callback. TensorBoard is
    told at the end how good the configuration was, by the metric `leading`: its page HPARAMS lists no run without one.
    """

    def __init__(self, settings: Mapping[str, Any], leading: str) -> None:
        super().__init__()
        self.settings, self.leading = settings, leading

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # a later hook is too late: Lightning has loggers save what they know before training starts
            for logger in trainer.loggers:
                logger.log_hyperparams(dict(self.settings))

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (found := trainer.callback_metrics.get(self.leading)) is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, Guarded) and isinstance(logger.logger, TensorBoardLogger):
                logger.log_hyperparams(dict(self.settings), {"hp_metric": float(found)})

    def every(self, trainer: L.Trainer) -> int:
        n: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return n

    def tell(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        for logger in trainer.loggers:  # Lightning and its monitors count steps from 0
            logger.log_metrics({"train_loss_step": float(loss), "lr": self.lr}, step=trainer.global_step - 1)


def loggers_of(config: Config, folder: Path) -> list[Guarded]:
    """Those of the `logger.lightning` node. They write into the run's folder, and a run is called as that is."""
    return [
        Guarded(made(Logger, node, key, save_dir=str(folder), run_name=folder.name), key)  # type: ignore[type-abstract]
        for key, node in ((f"logger.lightning.{name}", node) for name, node in config.logger.lightning.items())
    ]
