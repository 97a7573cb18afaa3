"""A network under a recipe, whatever it learns: seeds of steps, sums of an epoch, scores of a split, optimizer."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from metaformer.config.schema import Recipe
from metaformer.config.validate import check_fields, plain, structure
from metaformer.data.batches import Batch
from metaformer.data.lightning_progress import done_batches
from metaformer.models.build import described, rebuilt
from metaformer.models.frozen import freeze
from metaformer.system.errors import ConfigError
from metaformer.system.seeds import seed_globals
from metaformer.tasks.divergence import Watch, every, first_not_finite
from metaformer.tasks.optimization import check_optimizer, make_optimizer, make_scheduler, rate
from metaformer.tasks.pixels import PixelScores
from metaformer.tasks.scores import Running, Scores, in_order, of_all_devices


class Learner(L.LightningModule):
    """What the tasks share. Metrics are fractions.

    Validation and test keep what a task needs of each image, from which every metric is computed once, at the end.

    Args:
        net: the network, or what `metaformer.models.build.described` says of it, as a checkpoint has it.
        classes: how many there are.
        class_weights: [classes], of the loss.
    """

    accuracy: str  # the metric of the training batches beside the loss

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any] | None,
        recipe: Recipe | Mapping[str, Any] | None,
        classes: int,
        seed: int,
        class_weights: Tensor | Sequence[float] | None,
        **more: Any,
    ) -> None:
        super().__init__()
        recipe = structure(Recipe, recipe, "recipe.") if isinstance(recipe, Mapping) else recipe or Recipe()
        check_fields(recipe, path="recipe.")
        net = net if isinstance(net, nn.Module) else _network(net)
        if (own := getattr(net, "num_classes", classes)) != classes:
            raise ConfigError(f"classes={classes}: the network tells {own} classes apart")
        if class_weights is not None and recipe.loss == "bce":
            raise ConfigError("class_weights: belong to recipe.loss=ce")
        weights = None if class_weights is None else torch.as_tensor(class_weights)
        said = {"classes": classes, "seed": seed, "class_weights": None if weights is None else weights.tolist()}
        self.save_hyperparameters({"net": described(net), "recipe": plain(recipe), **said, **more})
        self.net, self.recipe, self.seed = net, recipe, seed
        self.frozen = [part.eval() for part in freeze(net, recipe.freeze)]
        self.running, self.watch = Running(self.accuracy), Watch()
        self.sums: list[dict[str, Tensor]] = []  # of an epoch that a checkpoint was in, by device
        self.listed: int | None = None  # the epoch in which Lightning knows of the running metrics
        self.register_buffer("class_weights", weights, persistent=False)
        self.kept: list[tuple[Tensor, ...]] = []  # of the split that is evaluated
        self.scores: Scores | PixelScores | None = None  # of the last one

    @abstractmethod
    def keep(self, batch: Batch) -> tuple[Tensor, ...]:
        """What is kept of a batch of a split: tensors with a row for each image."""

    @abstractmethod
    def scored(self, *parts: Tensor) -> Scores | PixelScores:
        """The scores from what was kept of all images, in their order, with some that only filled up a batch."""

    def train(self, mode: bool = True) -> Self:
        """As in torch, but for frozen parts, which stay in eval mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Self:
        """As in Lightning.

        Raises:
            ConfigError: the file is no checkpoint, or does not say how its network is made.
        """
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **options)
        except KeyError as error:
            hint = f"it has no {error}; metaformer.load reads the weights.pt of a run"
            raise ConfigError(f"{checkpoint_path}: is no checkpoint of Lightning ({hint})") from error

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes], or [B, classes, H, W] of pixels."""
        found: Tensor = self.net(images)
        return found

    def predict_step(self, batch: Tensor | Batch) -> Tensor:
        """Images, with or without labels -> probabilities in the shape of the logits."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return torch.softmax(self(images).float(), 1)

    def on_fit_start(self) -> None:
        """Raise a ConfigError for a key of the recipe that a Trainer would carry out, and this one does not."""
        clip, average, precision = self.recipe.clip_grad, self.recipe.ema, self.recipe.precision
        if precision != "fp32" and self.trainer.precision == "32-true":
            raise ConfigError(f"recipe.precision={precision}: expected Trainer(precision='{precision[-4:]}-mixed')")
        if self.recipe.class_weights == "balanced" and self.class_weights is None:
            raise ConfigError("recipe.class_weights=balanced: expected class_weights=, a weight for each class")
        if clip is not None and self.trainer.gradient_clip_val != clip:
            raise ConfigError(f"recipe.clip_grad={clip}: expected Trainer(gradient_clip_val={clip}), which clips")
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if average is not None and not any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise ConfigError(f"recipe.ema={average}: expected a callback that averages, EMAWeightAveraging")

    def on_train_start(self) -> None:
        self.listed = None
        if done_batches(self.trainer) == 0:  # a checkpoint of an epoch's end still has the sums of that epoch
            self.running.reset()
        elif self.sums:
            self.running.take(self.sums[self.global_rank :: self.trainer.world_size], self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is one of a run that has not diverged; each device has sums of its own batches."""
        self.watch.read()
        checkpoint["sums"] = of_all_devices(self.running.sums(), self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.sums = checkpoint.get("sums", [])

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

    def trained_on(self, images: Tensor, loss: Tensor, right: Tensor, count: Tensor | int) -> Tensor:
        """Tell of a training batch, and stop where the loss is no number any more; returns the loss.

        Args:
            right, count: how many images or pixels were found, of how many.
        """
        self.running.update(loss.detach(), len(images), right, count)
        self._list_running()
        self.watch.see(loss, self.global_step + 1, self.current_epoch + 1, rate(self.trainer.optimizers[0]))
        if (self.global_step + 1) % every(loss.device) == 0 or self.trainer.is_last_batch:
            self.watch.read(lambda: self.first_not_finite(images))
        return loss

    def first_not_finite(self, images: Tensor) -> str:
        """Where a forward pass stops being finite."""
        return first_not_finite(self.net, images)

    def _list_running(self) -> None:
        """Tell Lightning of the metrics that are updated here, in the first step that this process does in an epoch.

        It computes them at the epoch's end. Each call of `log` takes a millisecond, 5% of a step of a small model.
        """
        if self.listed == self.current_epoch:
            return
        self.listed = self.current_epoch
        for name, metric in self.running.items():
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name != "train_loss")

    def on_train_end(self) -> None:
        """A CUDA graph may have let go of the gradients while it validated; Lightning would carry them to the CPU."""
        self.zero_grad()

    def on_validation_epoch_start(self) -> None:
        self.kept = []

    def validation_step(self, batch: Batch) -> None:
        self.kept.append(self.keep(batch))

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def _score(self, split: str) -> None:
        """The metrics of a split from what all devices kept, which read every n-th image each."""
        parts = [self.of_all(torch.cat(own)) for own in zip(*self.kept, strict=True)]
        self.kept, several = [], self.trainer.world_size > 1
        self.scores = self.scored(*parts)
        for name, value in self.scores.measured().items():
            self.log(f"{split}_{name}", value, prog_bar=name in ("accuracy", "mean_iou"), sync_dist=several)

    def of_all(self, own: Tensor) -> Tensor:
        """What all devices have of their images, in the order of these; all have to ask."""
        if self.trainer.world_size == 1:
            return own
        found = self.all_gather(own)
        assert isinstance(found, Tensor)
        return in_order(found)

    def configure_optimizers(self) -> Any:
        check_optimizer(self.recipe)
        optimizer = make_optimizer(self.net, self.recipe, on_gpu=self.device.type == "cuda")
        # Not num_training_batches, which is infinite until the data are set up: the warm-up would never end.
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ConfigError("the Trainer has neither a last epoch nor a last step, which the schedule has to know; "
                              "expected max_epochs or max_steps")  # fmt: skip
        epochs = self.recipe.all_epochs
        if self.trainer.max_steps == -1 and self.trainer.max_epochs == epochs:
            updates: float = int(total) // epochs
        else:  # in somebody's own Trainer: the whole schedule in as many steps as that has
            updates = total / epochs
        scheduler = make_scheduler(optimizer, self.recipe, updates)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.recipe.lr_interval}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, Scheduler):  # of a subclass, or of Lightning's Tuner
            super().lr_scheduler_step(scheduler, metric)
        elif self.recipe.lr_interval == "epoch":
            own, trained = self.recipe.all_epochs, self.trainer.max_epochs
            stretch = own / trained if trained not in (None, -1, own) else 1
            scheduler.step((self.current_epoch + 1) * stretch)  # type: ignore[arg-type]  # timm takes parts too
        else:
            scheduler.step_update(self.global_step)


def _network(description: Mapping[str, Any] | None) -> nn.Module:
    if description is None:
        raise ConfigError("net: the checkpoint does not say how its network is made; expected net=, the network itself")
    return rebuilt(description)


def balanced_weights(counts: Tensor) -> Tensor:
    """Weights [classes] that are larger for rare classes, with a mean of 1 over all N: N / (classes x own).

    A class of which there is none has 0: a smoothed label would teach nothing but it.
    """
    weights = counts.sum() / ((counts > 0).sum() * counts.clamp_min(1))
    return weights.where(counts > 0, 0)


def favoured(counts: Tensor, weights: Tensor, smoothing: float) -> tuple[int, float]:
    """The class that a constant answer does best to give most, and how much, under weights and smoothed labels.

    torch weighs the share of a label that goes to the other classes by their weights too: a rare class gains by it.
    """
    shares, classes = counts / counts.sum(), (counts > 0).sum()
    best = weights * ((1 - smoothing) * shares + smoothing / len(counts))
    place = int(best.argmax())
    return place, float(best[place] / best.sum() * classes)
