"""The metrics of a segmenter: of all pixels of a split together, from what each image gives to them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

from metaformer.config.tasks import FILLED, IGNORED
from metaformer.data.images import Images
from metaformer.data.splits import Split
from metaformer.runs.answers import PIXEL_METRICS, Examples, PixelAnswers

SHOWN = 6  # test images whose predictions are kept as pictures


@dataclass(frozen=True)
class PixelScores:
    """Of the images of a split in their order; pixels without a class count nowhere.

    counts: [N, classes, 3] int64, of each class the pixels that were found, wrongly taken for it, and missed.
    losses: [N] fp32, the sum of the cross-entropy over the pixels.
    confused: [classes, classes] int64, pixels of each class (row) that were taken for each (column).
    shown: [few, H, W] uint8, the predicted classes of the first images.
    """

    counts: Tensor
    losses: Tensor
    confused: Tensor
    shown: Tensor

    @property
    def images(self) -> int:
        return len(self.counts)

    def measured(self) -> dict[str, float]:
        """Every metric by its own name; NaN where a logit is not finite."""
        found, _, missed = self.counts.sum(0).unbind(1)
        loss = (self.losses.double().sum() / (found + missed).sum()).item()
        summed, finite = self.counts.sum(0).numpy(), math.isfinite(loss)
        metrics = {name: float(of(summed)) if finite else math.nan for name, of in PIXEL_METRICS.items()}
        return {"loss": loss if finite else math.nan, **metrics}

    def confusion(self) -> Tensor:
        return self.confused

    def recall(self) -> list[float | None]:
        """The share of the pixels of each class that were found; None where there is none of it."""
        found, _, missed = self.counts.sum(0).unbind(1)
        return [f / (f + m) if f + m else None for f, m in zip(found.tolist(), missed.tolist(), strict=True)]

    def answers(self, images: Images) -> PixelAnswers:
        """The counts of the test images, and the first of these with mask and prediction."""
        test, rows = images.test, torch.arange(len(self.shown))
        assert isinstance(test, Split)
        pictures = Examples(self.shown.numpy(), test[rows].images.numpy(), test.targets(rows).numpy())
        return PixelAnswers(self.counts.numpy(), self.losses.numpy(), pictures)

    def kept(self, images: Images) -> dict[str, np.ndarray]:
        """What predictions.npz holds of them."""
        return self.answers(images).arrays()


def scores_of(logits: Tensor, masks: Tensor) -> PixelScores:
    """Of a batch: logits [B, classes, H, W] and masks [B, H, W]. What only fills up a batch has counts of -1."""
    classes, filled = logits.shape[1], (masks == FILLED).flatten(1).all(1)
    labels = torch.where(masks == FILLED, IGNORED, masks.long())
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").flatten(1).sum(1)
    taken = logits.argmax(1)
    stats = multiclass_stat_scores(
        taken.flatten(1), labels.flatten(1), classes, average=None, multidim_average="samplewise", ignore_index=IGNORED
    )
    counts = stats[..., [0, 1, 3]].where(~filled[:, None, None], -1)
    inside = labels != IGNORED  # torchmetrics' matrix would take classes^2 numbers for each pixel on a GPU
    pairs = (labels * classes + taken)[inside].bincount(minlength=classes**2)
    return PixelScores(counts, losses, pairs.view(classes, classes), taken[:SHOWN].byte())
