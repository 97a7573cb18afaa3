"""Segmentation: the class of each pixel, by cross-entropy and a soft Dice loss."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.config.schema import Recipe
from metaformer.config.tasks import IGNORED
from metaformer.data.batches import Batch
from metaformer.tasks.learner import Learner
from metaformer.tasks.pixels import SHOWN, PixelScores, scores_of


class Segmenter(Learner):
    """A network under a recipe, whose logits are [B, classes, H, W]; masks are [B, H, W] with 255 for no class.

    Validation and test keep counts of each image, never its logits.

    Args:
        dice: weight of the Dice loss; cross-entropy has the rest. The others are those of `Learner`.
    """

    accuracy = "pixel_accuracy"

    def __init__(
        self,
        net: nn.Module | Mapping[str, Any] | None,
        recipe: Recipe | Mapping[str, Any] | None = None,
        *,
        classes: int,
        seed: int = 0,
        class_weights: Tensor | Sequence[float] | None = None,
        dice: float = 0.0,
    ) -> None:
        super().__init__(net, recipe, classes, seed, class_weights, dice=dice)
        self.dice = dice
        self.shown = torch.empty(0)  # predictions of the first images
        self.register_buffer("confused", torch.zeros(classes, classes, dtype=torch.int64), persistent=False)

    def training_step(self, batch: Batch) -> Tensor:
        images, masks = batch[0], batch[1].long()
        logits = self.net(images).float()
        loss = self._loss(logits, masks)
        right = (logits.argmax(1) == masks).sum()
        return self.trained_on(images, loss, right, (masks != IGNORED).sum())

    def _loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Means over all pixels and over all images, so that the parts of a split batch add up.

        A pixel has the weight of its own class. torch weighs the smoothed share of its label by the other classes, of
        which a rare one, with a weight of thousands, would be all that is learned.
        """
        weights = self.class_weights
        assert weights is None or isinstance(weights, Tensor)
        smoothing = self.recipe.label_smoothing
        whole = weights is None and not logits.is_cuda  # its sum has no deterministic form on CUDA, and is refused
        reduction = "sum" if whole else "none"
        losses = F.cross_entropy(logits, masks, ignore_index=IGNORED, label_smoothing=smoothing, reduction=reduction)
        if weights is not None:
            losses = losses * weights[masks.where(masks != IGNORED, 0)]
        loss = losses.sum() / masks.numel()
        return (1 - self.dice) * loss + self.dice * dice_loss(logits, masks) if self.dice else loss

    def judged(self, batch: Batch) -> PixelScores:
        """What is kept of a batch of validation or test."""
        return scores_of(self.net(batch[0]).float(), batch[1])

    def keep(self, batch: Batch) -> tuple[Tensor, ...]:
        found = self.judged(batch)
        assert isinstance(self.confused, Tensor)
        if not self.kept:  # the first batch of a split
            self.shown = found.shown
            self.confused.zero_()
        elif len(self.shown) < SHOWN:  # a batch may be one image
            self.shown = torch.cat([self.shown, found.shown])[:SHOWN]
        self.confused += found.confused
        return found.counts, found.losses

    def scored(self, *parts: Tensor) -> PixelScores:
        counts, losses = parts
        confused = self.trainer.strategy.reduce(self.confused, reduce_op="sum")
        assert isinstance(confused, Tensor)
        there = counts[:, 0, 0] >= 0
        shown = self.of_all(self.shown)[: min(SHOWN, int(there.sum()))]
        found = PixelScores(counts[there], losses[there], confused, shown)
        return replace(found, **{name: value.cpu() for name, value in vars(found).items()})


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - the soft Dice coefficient of each class in the mask of an image, mean over classes and images (V-Net,
    arXiv:1606.04797, without the squares). Pixels without a class count nowhere.

    Args:
        logits: [B, classes, H, W].
        masks: [B, H, W] int64, 255 for no class.
    """
    there = (masks != IGNORED)[:, None]
    shares = logits.softmax(1) * there
    truth = F.one_hot(masks.where(masks != IGNORED, 0), logits.shape[1]).movedim(-1, 1) * there
    both, all_of = (shares * truth).sum((2, 3)), shares.sum((2, 3)) + truth.sum((2, 3))
    present = truth.sum((2, 3)) > 0
    lost = (1 - 2 * both / all_of.clamp_min(1e-6)) * present
    return (lost.sum(1) / present.sum(1).clamp_min(1)).mean()
