"""What a trained network says of each test image: predictions.npz of a run. Imports no torch."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaformer.system.errors import ConfigError


@dataclass(frozen=True)
class Answers:
    """Of the test images, in their order."""

    predictions: np.ndarray  # [images] integers
    labels: np.ndarray  # [images] integers
    logits: np.ndarray | None = None  # [images, classes] float16, where asked for and kept


def read_answers(folder: Path, *, logits: bool = False) -> Answers | None:
    """The answers of a finished run; None where it kept none.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = folder / "predictions.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            scores = kept["logits"] if logits and "logits" in kept else None
            return Answers(kept["predictions"].astype(int), kept["labels"].astype(int), scores)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); evaluate run={folder} tells what the run says") from error
