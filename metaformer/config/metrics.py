"""Every metric in one place: its name in results, its words and unit, and who computes it. Imports no torch.

Its name in results, in `study.analysis.metric` and on wandb is that of a split and its own: `val_accuracy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TM = "torchmetrics.classification"


@dataclass(frozen=True)
class Metric:
    """A metric of a whole split; of segmentation it is computed in `metaformer.tasks.pixels`.

    Of classification torchmetrics computes it from the probabilities [N, classes] and the labels of the images. What
    `path` returns for each class is averaged over the classes that have an image, or is that of `of_class`.
    """

    words: str
    path: str = ""  # of a class of torchmetrics, made with the number of classes and `options`
    options: Mapping[str, Any] = field(default_factory=dict)
    training: bool = False  # also of the training batches, by `tasks.scores.Running`
    scale: float = 100.0  # reports multiply by it: fractions are in points (percent)
    unit: str = "points"
    higher: bool = True  # is better
    worst: float = 0.0  # what a run that failed counts as in a search
    ranks: bool = False  # images of one class by those of others: nothing where there are no others
    of_class: int | None = None  # for two classes only, of which the second is the positive one
    tasks: tuple[str, ...] = ("classification",)

    @property
    def digits(self) -> int:
        """How many are worth showing behind the point, in its unit."""
        return 2 if self.unit == "points" else 4

    @property
    def sign(self) -> str:
        """Its unit for a value, where `unit` is that of a difference."""
        return "%" if self.unit == "points" else self.unit

    def told(self, value: float) -> str:
        """A value in words: `76.80%`, or `0.7021` where it is no fraction."""
        return f"{value:.2%}" if self.unit == "points" else f"{value:.4f}"


METRICS = {
    "accuracy": Metric("accuracy", f"{TM}.MulticlassAccuracy", {"average": "micro"}, training=True),
    "balanced_accuracy": Metric("balanced accuracy", f"{TM}.MulticlassRecall", {"average": None}),
    "macro_f1": Metric("macro F1", f"{TM}.MulticlassF1Score", {"average": "macro"}),
    "macro_auroc": Metric("macro AUROC", f"{TM}.MulticlassAUROC", {"average": None}, ranks=True),
    # without label smoothing
    "loss": Metric(
        "log loss",
        training=True,
        scale=1,
        unit="nats",
        higher=False,
        worst=100,
        tasks=("classification", "segmentation"),
    ),
    "calibration_error": Metric(
        "expected calibration error (15 bins)",
        f"{TM}.MulticlassCalibrationError",
        {"n_bins": 15, "norm": "l1"},
        higher=False,
        worst=1,
    ),
    "sensitivity": Metric("sensitivity", f"{TM}.MulticlassRecall", {"average": None}, of_class=1),
    "specificity": Metric("specificity", f"{TM}.MulticlassRecall", {"average": None}, of_class=0),
    # Of all pixels of a split together, as means over the classes that are in it
    "mean_iou": Metric("mean IoU", tasks=("segmentation",)),
    "mean_dice": Metric("mean Dice", tasks=("segmentation",)),
    "pixel_accuracy": Metric("pixel accuracy", training=True, tasks=("segmentation",)),
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}  # with their words


def metrics_of(split: str, task: str | None = None) -> list[str]:
    """The names of the metrics of a split in results, like `val_accuracy`; those of a task, or of all."""
    own = {name: metric for name, metric in METRICS.items() if task is None or task in metric.tasks}
    return [f"{split}_{name}" for name, metric in own.items() if split != "train" or metric.training]


def metric_of(name: str) -> Metric:
    """`val_accuracy` -> what is known of accuracy."""
    return METRICS[name.partition("_")[2]]


def selecting(name: str) -> str:
    """The metric of the validation images that goes with one of the test images: nothing is chosen on those."""
    return f"val_{name.partition('_')[2]}"


def in_words(name: str) -> str:
    """`val_accuracy` -> `validation accuracy`."""
    return f"{SPLITS[name.partition('_')[0]]} {metric_of(name).words}"
