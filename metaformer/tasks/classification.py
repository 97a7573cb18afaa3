"""Classification: the class of an image, by cross-entropy and, with a teacher, by distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from metaformer.config.schema import Distill, Recipe
from metaformer.data.batches import Batch
from metaformer.data.images import Images
from metaformer.models.ends import adapt_stem
from metaformer.models.weights import load_strictly, read
from metaformer.system.errors import ConfigError, in_a_line
from metaformer.tasks.learner import Learner
from metaformer.tasks.mixup import mixup_of
from metaformer.tasks.scores import Scores


class Classifier(Learner):
    """A network under a recipe. It works in any Trainer, with any loader of batches: images [B, C, H, W] in fp32, and
    their labels [B] int64.

    Of the recipe it carries out the loss, the optimizer, the rate over as many epochs or steps as the Trainer has,
    Mixup and CutMix, and what is frozen. Clipping, averaged weights and the precision are the Trainer's: it raises
    where that does something else. What concerns images is `metaformer.data.module.ImageData`'s, and what concerns a
    run (`initialize_from`, `select`, `distill`) that of the bench.

    Validation and test keep the logits of their images. With a teacher, the loss is that of DeiT. A student with a
    distillation token (of timm, `deit_*_distilled_*`) learns from the teacher through that token, any other through its
    only output.

    `Classifier.load_from_checkpoint(FILE)` needs no other argument where the network is of this package, or was built
    by `metaformer.models.build`; other networks come with `net=`. A teacher is never in a checkpoint.

    Args:
        net: images -> logits [B, classes].
        recipe: the keys of `recipe` in the configuration, or a part of them; the others have their defaults.
        classes: how many there are.
        seed: of what is drawn at each step, as by Mixup and stochastic depth.
        teacher: images -> logits, of the same classes.
        class_weights: [classes], of the loss.

    Raises:
        ConfigError: a key or a value that a recipe cannot have, or a network for another number of classes; while it is
            trained, what the Trainer does otherwise than the recipe says.
    """

    accuracy = "accuracy"

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
        super().__init__(net, recipe, classes, seed, class_weights)
        self.mixup = mixup_of(self.recipe, classes)
        self.bce = BinaryCrossEntropy(self.recipe.label_smoothing) if self.recipe.loss == "bce" else None
        self.teacher = [teacher] if teacher is not None else []  # in a list: it belongs to no checkpoint
        if self.teacher and hasattr(self.net, "set_distilled_training"):
            self.net.set_distilled_training(True)  # type: ignore[operator]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for teacher in self.teacher:
            teacher.to(self.device)

    def training_step(self, batch: Batch) -> Tensor:
        if self.mixup is not None:
            if (n := len(batch[0])) % 2:
                told = f"a batch of {n} images is not made of pairs; expected an even number, as with drop_last=True"
                raise ConfigError(f"recipe.mixup, recipe.cutmix: {told}")
            batch = self.mixup(batch[0].clone(), batch[1])  # it writes to the images, which may be a loader's own
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
        return self.trained_on(images, loss, (logits.argmax(1) == hard).sum(), len(hard))

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

    def keep(self, batch: Batch) -> tuple[Tensor, ...]:
        # A copy: what a CUDA graph puts out lies where its next batch will
        return self.net(batch[0]).to(torch.float32, copy=True), batch[1]

    def scored(self, *parts: Tensor) -> Scores:
        logits, labels = parts
        if self.trainer.world_size > 1:
            logits, labels = logits[labels >= 0], labels[labels >= 0]  # the others only filled up
        return Scores(logits.cpu(), labels.cpu())


def build_teacher(distill: Distill, images: Images) -> nn.Module | None:
    """The frozen teacher that a recipe names, tried on two images; None where there is none."""
    if distill.teacher is None:
        return None
    try:
        teacher = timm.create_model(distill.teacher, in_chans=images.channels, num_classes=len(images.classes)).eval()
        weights = read(str(distill.weights), "recipe.distill.weights")  # not timm's: some read any pickle
        load_strictly(teacher, adapt_stem(weights, teacher), f"recipe.distill.weights={distill.weights}")
        with torch.no_grad():
            teacher(images.sample())
    except ConfigError:
        raise
    except Exception as error:  # whatever timm raises
        raise ConfigError(f"recipe.distill.teacher={distill.teacher}: {in_a_line(error)}") from error
    return teacher.requires_grad_(False).to(memory_format=torch.channels_last)


def distillation_loss(logits: Tensor, taught: Tensor, distill: Distill) -> Tensor:
    """How far a student's logits [B, classes] are from its teacher's: from its decisions, or from its probabilities."""
    if distill.mode == "hard":
        return F.cross_entropy(logits, taught.argmax(1))
    student, teacher = ((z / distill.tau).log_softmax(1) for z in (logits, taught))
    return distill.tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
