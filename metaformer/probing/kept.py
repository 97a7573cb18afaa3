"""What was measured of a trained run, kept in its folder. Imports torch only to measure."""

import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaformer.config.validate import plain
from metaformer.runs.finished import Finished
from metaformer.system import machine
from metaformer.system.files import file_hash, output_to

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


def probe(run: Finished, jobs: int) -> Probed:
    """What was measured of a run: read from its folder, or measured and written there.

    Args:
        jobs: how many runs are probed at once on this machine.
    """
    path, runtime = run.folder / FILE, run.config.runtime
    images = {key: value for key, value in plain(run.config.data).items() if key != "root"}
    made_of = json.dumps([VERSION, file_hash(run.folder / "weights.pt"), images], sort_keys=True)
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    if path.exists() and (kept := _read(path, key)) is not None:
        return kept
    if jobs > 1 and runtime.accelerator != "cpu":
        machine.take(runtime.per_gpu)  # before torch is imported
    with output_to(Path(os.devnull)):
        from metaformer.probing.one_run import measure

        probed = measure(run, jobs)
    arrays = {
        f"{name}{i}": array for name in ("matrices", "fields", "grams") for i, array in enumerate(getattr(probed, name))
    }
    told = {"key": key, "numbers": probed.numbers, "surgery": probed.surgery, "accuracy": probed.accuracy}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, told=json.dumps(told), **arrays)
    part.replace(path)
    return probed


def _read(path: Path, key: str) -> Probed | None:
    """None where it cannot be read, or was measured by another version or of other images."""
    try:
        with np.load(path) as file:
            told = json.loads(str(file["told"]))
            if told.pop("key") != key:
                return None
            stages = len(told["numbers"])
            counts = {"matrices": stages, "fields": stages + 1, "grams": stages}
            arrays: Any = {name: [file[f"{name}{i}"] for i in range(n)] for name, n in counts.items()}
            return Probed(**told, **arrays)
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
