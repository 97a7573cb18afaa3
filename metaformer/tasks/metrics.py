"""The metrics of a classifier, as torchmetrics has them."""

import torchmetrics
from torch import Tensor, nn
from torchmetrics import MeanMetric

from metaformer.config.metrics import METRICS, SPLITS, metrics_of
from metaformer.config.named_code import import_object

ByName = dict[str, torchmetrics.Metric]


class Metrics(nn.Module):
    """Loss and metrics of the splits by their names in results, like `val_loss` and `val_accuracy`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict()
        for split in SPLITS:
            self.by_name[f"{split}_loss"] = MeanMetric(nan_strategy="disable")
            for name in metrics_of(split):
                metric = METRICS[name.removeprefix(f"{split}_")]
                self.by_name[name] = import_object(metric.path, name)(num_classes=classes, **metric.options)
        for own in self.of("train").values():
            own.persistent(True)  # in checkpoints: a run may go on in the middle of an epoch

    def of(self, split: str) -> ByName:
        """The metrics of one split by their names."""
        found = ((name, m) for name, m in self.by_name.items() if name.startswith(f"{split}_"))
        return {name: m for name, m in found if isinstance(m, torchmetrics.Metric)}

    def update(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> ByName:
        """Take in a batch: its mean loss, logits [B, classes], labels [B]. The metrics of the split, to be logged."""
        metrics = self.of(split)
        for name, metric in metrics.items():
            if name.endswith("_loss"):
                metric.update(loss, weight=len(labels))
            else:
                metric.update(logits, labels)
        return metrics
