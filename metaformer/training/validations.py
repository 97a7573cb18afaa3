"""Validation every so many steps, where epochs are short and `recipe.steps` has many of them."""

import math

import lightning as L


class EverySteps(L.Callback):
    """Validates at the end of the epoch in which another `steps` steps are reached, and of the last epoch.

    Which epochs these are hangs on nothing but their numbers, so that a run that goes on validates the same ones.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._choose(trainer)  # in the middle of an epoch there is no other start

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._choose(trainer)

    def _choose(self, trainer: L.Trainer) -> None:
        whole = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        epoch = trainer.current_epoch
        reached = (epoch + 1) * whole // self.steps > epoch * whole // self.steps
        due = reached or epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if due else epoch + 2  # Lightning divides the number of the epoch by it
