"""The weights that validated best, where `recipe.select=best` says that they are tested."""

from typing import Any

import lightning as L
from torch import Tensor, nn

from metaformer.config.metrics import metric_of
from metaformer.training.sharding import load_weights, weights_of


class Best(L.Callback):
    """Keeps the weights of the epoch with the best metric, the first of equal ones, and goes with the checkpoints.

    It has to come before the callback of a moving average, which puts the averaged weights in place of the others while
    they are validated.
    """

    def __init__(self, metric: str) -> None:
        self.metric, self.sign = metric, 1 if metric_of(metric).higher else -1
        self.epoch, self.value = 0, float("-inf")
        self.weights: dict[str, Tensor] = {}
        self.validated: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        net: Any = module.net
        self.validated = {name: value.clone() for name, value in weights_of(net).items()}

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        value = self.sign * float(trainer.callback_metrics[self.metric])
        if value > self.value:
            self.epoch, self.value, self.weights = trainer.current_epoch + 1, value, self.validated
        self.validated = {}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "value": self.value, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.value, self.weights = state["epoch"], state["value"], state["weights"]

    def restore(self, net: nn.Module) -> None:
        """Give a network the kept weights."""
        load_weights(net, self.weights)
