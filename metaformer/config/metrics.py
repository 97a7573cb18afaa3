"""Every metric in one place: its name in results, its words, and who computes it. Imports no torch.

A metric is a number from 0 to 1, more is better, and is reported in points (percent). Its name in results, in
`study.analysis.metric` and on wandb is that of a split and its own: `val_accuracy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric of torchmetrics, made with the number of classes and `options`, updated with logits and labels."""

    words: str
    path: str  # of a class of torchmetrics
    options: Mapping[str, Any] = field(default_factory=dict)
    training: bool = False  # also of the training batches; it costs time at every step


METRICS = {
    "accuracy": Metric(
        "accuracy", "torchmetrics.classification.MulticlassAccuracy", {"average": "micro"}, training=True
    )
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}  # with their words


def metrics_of(split: str) -> list[str]:
    """The names of the metrics of a split in results, like `val_accuracy`."""
    return [f"{split}_{name}" for name, metric in METRICS.items() if split != "train" or metric.training]


def in_words(metric: str) -> str:
    """`val_accuracy` -> `validation accuracy`."""
    split, _, name = metric.partition("_")
    return f"{SPLITS[split]} {METRICS[name].words}"
