"""Classification: loss, metrics, optimizer and schedule; everything that is the same for every mixer."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import lightning as L
import timm
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from metaformer.config.schema import Distill, Recipe
from metaformer.config.validate import plain, structure
from metaformer.data.batches import Batch
from metaformer.data.images import Images
from metaformer.data.lightning_progress import done_batches
from metaformer.models.build import described, rebuilt
from metaformer.models.frozen import freeze
from metaformer.models.weights import load_strictly, read
from metaformer.system.errors import ConfigError
from metaformer.system.seeds import seed_globals
from metaformer.tasks.mixup import mixup_of
from metaformer.tasks.optimization import make_optimizer, make_scheduler
from metaformer.tasks.scores import Running, Scores, in_order


class Classifier(L.LightningModule):
    """A network under a recipe. Metrics are fractions. It works in any Trainer, with any loader of (images, labels).

    Validation and test keep the logits of their images, from which every metric is computed once, at the end.
    With a teacher, the loss is that of DeiT. A student with a distillation token (of timm, `deit_*_distilled_*`) learns
    from the teacher through that token, any other through its only output.

    `Classifier.load_from_checkpoint(FILE)` needs no other argument where the network is of this package, or was built
    by `metaformer.models.build`; other networks come with `net=`. A teacher is never in a checkpoint.

    Args:
        net: the network, or what `metaformer.models.build.described` says of it, as a checkpoint has it.
        classes: how many there are.
        class_weights: [classes], of the loss.
    """

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any] | None,
        recipe: Recipe | Mapping[str, Any] | None = None,
        *,
        classes: int,
        seed: int = 0,
        teacher: nn.Module | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        recipe = structure(Recipe, recipe, "recipe.") if isinstance(recipe, Mapping) else recipe or Recipe()
        net = net if isinstance(net, nn.Module) else _network(net)
        weights = None if class_weights is None else torch.as_tensor(class_weights)
        said = {"classes": classes, "seed": seed, "class_weights": None if weights is None else weights.tolist()}
        # For the checkpoint; loggers get the configuration of a run flat, by training.loggers
        self.save_hyperparameters({"net": described(net), "recipe": plain(recipe), **said}, logger=False)
        self.net, self.recipe, self.seed = net, recipe, seed
        self.frozen = [part.eval() for part in freeze(net, recipe.freeze)]
        self.running = Running(classes)
        self.mixup = mixup_of(recipe, classes)
        self.bce = BinaryCrossEntropy(recipe.label_smoothing) if recipe.loss == "bce" else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.kept: list[tuple[Tensor, Tensor]] = []  # logits and labels of the split that is evaluated
        self.scores: Scores | None = None  # of the last one
        self.teacher = [teacher] if teacher is not None else []  # in a list: it belongs to no checkpoint
        if self.teacher and hasattr(net, "set_distilled_training"):
            net.set_distilled_training(True)  # type: ignore[operator]

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
        """[B, C, H, W] -> logits [B, classes]."""
        found: Tensor = self.net(images)
        return found

    def predict_step(self, batch: Tensor | Batch) -> Tensor:
        """Images, with or without labels -> probabilities [B, classes]."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return torch.softmax(self(images).float(), 1)

    def on_fit_start(self) -> None:
        for teacher in self.teacher:
            teacher.to(self.device)

    def on_train_start(self) -> None:
        if done_batches(self.trainer) == 0:  # a checkpoint of an epoch's end still has the sums of that epoch
            self.running.reset()

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
        images, labels = batch
        output = self.net(images)
        logits, distilled = (o.float() for o in (output if isinstance(output, tuple) else (output, output)))
        loss = self._loss(logits, labels)
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher[0](images).float()
            alpha = self.recipe.distill.alpha
            loss = (1 - alpha) * loss + alpha * distillation_loss(distilled, taught, self.recipe.distill)
        hard = labels if labels.ndim == 1 else labels.argmax(1)  # of mixed images the class that has most of them
        self.running.update(loss.detach(), logits, hard)
        for name, metric in self.running.items():
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name == "train_accuracy")
        if not torch.isfinite(loss):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise FloatingPointError(
                f"diverged: loss is {loss.item()} at step {self.global_step + 1} (epoch {self.current_epoch + 1}), "
                f"lr {lr:.3g}; first not finite: {first_not_finite(self.net, images)}"
            )
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The recipe's loss with its smoothing; Mixup has that in its labels [B, classes].

        Class weights are those of each image, over the number of images: the parts of a split batch add up.
        """
        if self.bce is not None:
            bce: Tensor = self.bce(logits, labels)
            return bce
        smoothing = 0.0 if self.mixup else self.recipe.label_smoothing
        weights = self.class_weights
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert isinstance(weights, Tensor)
        summed = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="sum")
        return summed / len(labels)

    def on_validation_epoch_start(self) -> None:
        self.kept = []

    def on_test_epoch_start(self) -> None:
        self.kept = []

    def validation_step(self, batch: Batch) -> None:
        self._keep(batch)

    def test_step(self, batch: Batch) -> None:
        self._keep(batch)

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def _keep(self, batch: Batch) -> None:
        self.kept.append((self.net(batch[0]).float(), batch[1]))

    def _score(self, split: str) -> None:
        """The metrics of a split from the logits of all devices, which read every n-th image each."""
        logits, labels = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        self.kept = []
        if (devices := self.trainer.world_size) > 1:
            logits, labels = (in_order(parts) for parts in self.all_gather((logits, labels)))
            logits, labels = logits[labels >= 0], labels[labels >= 0]  # the others only filled up
        self.scores = Scores(logits.cpu(), labels.cpu())
        for name, value in self.scores.measured().items():
            self.log(f"{split}_{name}", value, prog_bar=name == "accuracy", sync_dist=devices > 1)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.net, self.recipe, on_gpu=self.device.type == "cuda")
        # Not num_training_batches, which is infinite until the data are set up: the warm-up would never end.
        updates = int(self.trainer.estimated_stepping_batches) // (self.trainer.max_epochs or 1)
        scheduler = make_scheduler(optimizer, self.recipe, updates)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.recipe.lr_interval}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self.recipe.lr_interval == "epoch":
            scheduler.step(self.current_epoch + 1)
        else:
            scheduler.step_update(self.global_step)


def _network(description: Mapping[str, Any] | None) -> nn.Module:
    if description is None:
        raise ConfigError("net: the checkpoint does not say how its network is made; expected net=, the network itself")
    return rebuilt(description)


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

    # The forward as it is written: what torch.compile made of it before calls no hooks.
    # A module's hook is called after those of the modules in it: the first to complain is the innermost.
    hooks = [module.register_forward_hook(watch(name)) for name, module in net.named_modules() if name]
    try:
        net.forward(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss itself"


def build_teacher(distill: Distill, images: Images) -> nn.Module | None:
    """The frozen teacher that a recipe names, tried on two images; None where there is none."""
    if distill.teacher is None:
        return None
    try:
        teacher = timm.create_model(distill.teacher, in_chans=images.channels, num_classes=len(images.classes)).eval()
        load_strictly(teacher, read(str(distill.weights)), str(distill.weights))  # not timm's: some read any pickle
        with torch.no_grad():
            teacher(images.sample())
    except ConfigError as error:
        raise ConfigError(f"recipe.distill.{error}") from error
    except Exception as error:  # whatever timm raises
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"recipe.distill.teacher={distill.teacher}: {type(error).__name__}: {reason}") from error
    return teacher.requires_grad_(False).to(memory_format=torch.channels_last)


def distillation_loss(logits: Tensor, taught: Tensor, distill: Distill) -> Tensor:
    """How far a student's logits [B, classes] are from its teacher's: from its decisions, or from its probabilities."""
    if distill.mode == "hard":
        return F.cross_entropy(logits, taught.argmax(1))
    student, teacher = ((z / distill.tau).log_softmax(1) for z in (logits, taught))
    return distill.tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights [classes] that are larger for rare classes, with a mean of 1 over the images: N / (classes x own)."""
    own = labels.bincount(minlength=classes)
    return len(labels) / ((own > 0).sum() * own.clamp_min(1))
