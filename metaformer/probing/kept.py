"""What was measured of a trained run, kept in its folder. Imports no torch."""

import contextlib
import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaformer.config.validate import plain
from metaformer.data.registry import fingerprint
from metaformer.runs.finished import Finished
from metaformer.system.errors import ConfigError
from metaformer.system.files import file_hash, replacing

VERSION = 1  # raise it when a measure changes: what was kept is then measured again
CKA_IMAGES = 256  # at most
FILE = "probes.npz"


@dataclass(frozen=True)
class Probed:
    """What was measured of one trained run, stage by stage."""

    numbers: list[dict[str, float]]  # means over the blocks of a stage
    surgery: list[dict[str, float]]  # accuracy with every mixer of the stage replaced, by what replaces it
    accuracy: float  # of the whole model
    matrices: list[np.ndarray]  # the mixing matrix of the first block
    fields: list[np.ndarray]  # the receptive field of each stage and, at the end, of the logits
    grams: list[np.ndarray]  # of the features


def key_of(run: Finished) -> str:
    """A hash of what the measures of a run depend on: their version, the weights, the images."""
    images = {key: value for key, value in plain(run.config.data).items() if key != "root"}
    weights, contents = file_hash(run.folder / "weights.pt"), run.result.fingerprint
    with contextlib.suppress(ConfigError):  # without its images a run has what was measured of it
        contents = fingerprint(run.config.data)
    made_of = json.dumps([VERSION, weights, images, *([contents] if contents else [])], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def write(folder: Path, key: str, probed: Probed) -> None:
    """Keep what was measured in a run's folder."""
    arrays = {
        f"{name}{i}": array for name in ("matrices", "fields", "grams") for i, array in enumerate(getattr(probed, name))
    }
    told = {"key": key, "numbers": probed.numbers, "surgery": probed.surgery, "accuracy": probed.accuracy}
    with replacing(folder / FILE) as part:
        np.savez_compressed(part, told=json.dumps(told), **arrays)


def read(folder: Path, key: str) -> Probed | None:
    """What was kept, or None where there is nothing to be read, or it is of another version or of other images."""
    try:
        with np.load(folder / FILE) as file:
            told = json.loads(str(file["told"]))
            if told.pop("key") != key:
                return None
            stages = len(told["numbers"])
            counts = {"matrices": stages, "fields": stages + 1, "grams": stages}
            arrays: Any = {name: [file[f"{name}{i}"] for i in range(n)] for name, n in counts.items()}
            return Probed(**told, **arrays)
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
