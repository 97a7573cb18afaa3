"""What a trained network says of each test image: predictions.npz of a run. Imports no torch."""

import zipfile
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

    @staticmethod
    def read(kept: Any, suffix: str = "") -> "Examples | None":
        """Out of a file of arrays; None where it has none."""
        names = [f"{name}{suffix}" for name in SHOWN]
        return Examples(*(kept[name] for name in names)) if names[0] in kept else None

    def arrays(self, suffix: str = "") -> dict[str, np.ndarray]:
        """As `read` finds them."""
        return {f"{n}{suffix}": a for n, a in zip(SHOWN, (self.predictions, self.images, self.masks), strict=True)}


SHOWN = ("shown", "shown_images", "shown_masks")


@dataclass(frozen=True)
class PixelAnswers:
    """Of the test images of segmentation, in their order."""

    counts: np.ndarray  # [images, classes, 3] of each class the pixels that were found, wrongly taken for it, missed
    losses: np.ndarray  # [images] sums of the cross-entropy over pixels
    examples: Examples | None = None

    @property
    def truth(self) -> np.ndarray:
        """The pixels of each class [images, classes]."""
        return np.asarray(self.counts[..., 0] + self.counts[..., 2])

    @property
    def accuracy(self) -> float:
        return float(self.counts[..., 0].sum() / max(self.truth.sum(), 1))


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
            if "counts" in kept:
                return PixelAnswers(kept["counts"].astype(int), kept["losses"].astype(float), Examples.read(kept))
            scores = kept["logits"] if logits and "logits" in kept else None
            return Answers(kept["predictions"].astype(int), kept["labels"].astype(int), scores)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); evaluate run={folder} tells what the run says") from error
