"""What a trained network says of each test image: predictions.npz of a run. Imports no torch."""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaformer.system.errors import ConfigError


@dataclass(frozen=True)
class Answers:
    """Of the test images, in their order."""

    predictions: np.ndarray  # [images] integers
    labels: np.ndarray  # [images] integers
    logits: np.ndarray | None = None  # [images, classes] float16, where asked for and kept

    @property
    def truth(self) -> np.ndarray:
        """What is right, the same in all runs on the same images."""
        return self.labels

    @property
    def accuracy(self) -> float:
        return float((self.predictions == self.labels).mean())


@dataclass(frozen=True)
class Examples:
    """The first test images of segmentation, to be looked at."""

    predictions: np.ndarray  # [few, H, W] classes
    images: np.ndarray  # [few, H, W, C] uint8
    masks: np.ndarray  # [few, H, W] classes, 255 for none


SHOWN = ("shown", "shown_images", "shown_masks")  # the arrays of examples in a file, in the order of the fields


@dataclass(frozen=True)
class PixelAnswers:
    """Of the test images of segmentation, in their order."""

    counts: np.ndarray  # [images, classes, 3] of each class the pixels that were found, wrongly taken for it, missed
    losses: np.ndarray  # [images] sums of the cross-entropy over pixels
    examples: Examples | None = None

    @staticmethod
    def read(kept: Any, suffix: str = "") -> "PixelAnswers | None":
        """Out of a file of arrays; None where it has none."""
        if f"counts{suffix}" not in kept:
            return None
        names = [f"{name}{suffix}" for name in SHOWN]
        examples = Examples(*(kept[name] for name in names)) if names[0] in kept else None
        return PixelAnswers(kept[f"counts{suffix}"].astype(int), kept[f"losses{suffix}"].astype(float), examples)

    def arrays(self, suffix: str = "") -> dict[str, np.ndarray]:
        """As `read` finds them."""
        found = {"counts": self.counts.astype(np.int32), "losses": self.losses.astype(np.float32)}
        if self.examples is not None:
            e = self.examples
            found |= dict(zip(SHOWN, (e.predictions, e.images, e.masks), strict=True))
        return {f"{name}{suffix}": array for name, array in found.items()}

    @property
    def truth(self) -> np.ndarray:
        """The pixels of each class [images, classes]."""
        return np.asarray(self.counts[..., 0] + self.counts[..., 2])

    @property
    def accuracy(self) -> float:
        return float(PIXEL_METRICS["pixel_accuracy"](self.counts.sum(0)))


def _mean_ratio(own: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The mean of the ratios [..., classes], over the classes that are there."""
    ratios = np.divide(own, of, out=np.zeros(own.shape), where=of > 0)
    return np.asarray(ratios.sum(-1) / np.maximum((of > 0).sum(-1), 1))


# Each from counts [..., classes, 3] of many images together. A class is there where a mask or a prediction has it
PIXEL_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_iou": lambda counts: _mean_ratio(counts[..., 0], counts.sum(-1)),
    "mean_dice": lambda counts: _mean_ratio(2 * counts[..., 0], counts.sum(-1) + counts[..., 0]),
    "pixel_accuracy": lambda counts: np.asarray(
        counts[..., 0].sum(-1) / np.maximum((counts[..., 0] + counts[..., 2]).sum(-1), 1)
    ),
}


def read_answers(folder: Path, *, logits: bool = False) -> Answers | PixelAnswers | None:
    """The answers of a finished run; None where it kept none.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = folder / "predictions.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if (pixels := PixelAnswers.read(kept)) is not None:
                return pixels
            scores = kept["logits"] if logits and "logits" in kept else None
            return Answers(kept["predictions"].astype(int), kept["labels"].astype(int), scores)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); evaluate run={folder} tells what the run says") from error
