"""The metrics of a classifier, as torchmetrics has them: of batches in training, of whole splits in evaluation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_recall

from metaformer.config.metrics import METRICS, Metric, metric_of
from metaformer.config.named_code import import_object
from metaformer.data.images import Images
from metaformer.system.errors import ConfigError


class Mean(torchmetrics.Metric):
    """A mean whose sums stay on the device: torchmetrics' own copy a weight to it at each step."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # in checkpoints: a run may go on in the middle of an epoch
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum", persistent=True)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum", persistent=True)

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Take in the sum of so many values."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count


class Running(nn.Module):
    """Loss and accuracy of the training batches of an epoch, by their names in results.

    Args:
        accuracy: the name of the second metric.
    """

    def __init__(self, accuracy: str) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({"train_loss": Mean(), f"train_{accuracy}": Mean()})

    def items(self) -> list[tuple[str, Mean]]:
        return [(name, own) for name, own in self.by_name.items() if isinstance(own, Mean)]

    def reset(self) -> None:
        for _, own in self.items():
            own.reset()

    def sums(self) -> dict[str, Tensor]:
        """What was added up so far, on the processor."""
        return {name: value.cpu() for name, value in self.state_dict().items()}

    def take(self, sums: Sequence[Mapping[str, Tensor]], device: torch.device) -> None:
        """Go on from what some devices had added up: one as a rule, none or several where their number has changed."""
        self.reset()
        if sums:
            self.load_state_dict({name: torch.stack([one[name] for one in sums]).sum(0).to(device) for name in sums[0]})

    def update(self, loss: Tensor, images: int, right: Tensor, count: Tensor | int) -> None:
        """Take in a batch, or a part of one: its mean loss over so many images, and how many of how many were right."""
        (_, losses), (_, accuracy) = self.items()
        losses.update(images * loss, images)
        accuracy.update(right, count)


def made(metric: Metric, classes: int) -> torchmetrics.Metric:
    """A metric of torchmetrics for so many classes."""
    found: torchmetrics.Metric = import_object(metric.path, "metric")(num_classes=classes, **metric.options)
    return found


@dataclass(frozen=True)
class Scores:
    """The logits [N, classes] of a whole split, in fp32 and in the order of its images, and its labels [N]."""

    logits: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def predictions(self) -> Tensor:
        return self.logits.argmax(1)

    def kept(self, images: Images) -> dict[str, np.ndarray]:
        """What predictions.npz holds of them."""
        largest = torch.finfo(torch.float16).max
        return {
            "predictions": self.predictions.short().numpy(),
            "labels": self.labels.short().numpy(),
            "logits": self.logits.clamp(-largest, largest).half().numpy(),
        }

    def measured(self) -> dict[str, float]:
        """Every metric by its own name; NaN where a logit is not finite, but for those of two classes."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(No positive samples|No negative samples|had nan)")
            known = {name: metric for name, metric in METRICS.items() if "classification" in metric.tasks}
            names = [name for name, metric in known.items() if metric.of_class is None or self.classes == 2]
            return {name: self._measured(name) for name in names}

    def _measured(self, name: str) -> float:
        metric = METRICS[name]
        if not metric.path:  # the loss
            return F.cross_entropy(self.logits, self.labels).item()
        if not self.logits.isfinite().all():
            return float("nan")
        value: Tensor = made(metric, self.classes)(self.logits.softmax(1), self.labels)
        if value.ndim:
            value = value[self.labels.unique()].mean() if metric.of_class is None else value[metric.of_class]
        return value.item()

    def confusion(self) -> Tensor:
        """Images [classes, classes] of each class (row) that were taken for each (column)."""
        return multiclass_confusion_matrix(self.predictions, self.labels, self.classes)

    def recall(self) -> list[float | None]:
        """The share of the images of each class that were found; None where there is no image of it."""
        found = multiclass_recall(self.predictions, self.labels, self.classes, average=None)
        there = self.labels.bincount(minlength=self.classes)
        return [r if n else None for r, n in zip(found.tolist(), there.tolist(), strict=True)]

    def top(self, k: int) -> float:
        """The share of the images whose label is among the k classes of the largest logits."""
        best = self.logits.topk(min(k, self.classes)).indices
        return (best == self.labels[:, None]).any(1).float().mean().item()


def check_metric(key: str, name: str, images: Images) -> None:
    """A ConfigError where a metric, like `val_auroc`, cannot be had of the classes of the images."""
    metric, classes = metric_of(name), len(images.classes)
    if metric.of_class is not None and classes != 2:
        raise ConfigError(f"{key}={name}: is for two classes, and there are {classes}")
    if metric.ranks and (alone := [n for n, part in images.splits().items() if len(part.labels.unique()) < 2]):
        raise ConfigError(f"{key}={name}: is of two classes or more, and {alone[0]} has one alone")


def of_all_devices(own: dict[str, Tensor], devices: int) -> list[dict[str, Tensor]]:
    """What each device has, by its rank; all have to ask."""
    if devices == 1:
        return [own]
    found: list[dict[str, Tensor]] = devices * [own]
    torch.distributed.all_gather_object(found, own)
    return found


def in_order(parts: Tensor) -> Tensor:
    """[devices, images of one, ...], of devices that read every n-th image -> [images, ...] in their order."""
    return parts.transpose(0, 1).flatten(0, 1)
