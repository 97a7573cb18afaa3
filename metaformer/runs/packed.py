"""All finished runs of a study in one small file, experiments/NAME/runs.npz: results, curves, and predictions.

A clone without run folders can draw the whole report from it. Scores of the classes are left out, but for a metric that
needs them. Imports no torch.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from metaformer.runs.answers import Answers, PixelAnswers
from metaformer.runs.launch import Entry, Run, collect, study_folder
from metaformer.runs.result import Result, as_plain, parse
from metaformer.system.errors import ConfigError
from metaformer.system.files import write


@dataclass(frozen=True)
class Packed:
    """A run as the file holds it."""

    result: Result
    answers: Answers | PixelAnswers | None
    curve: list[dict[str, str]] = field(default_factory=list)


def pack(runs: Sequence[Run], path: Path, *, logits: bool) -> int:
    """Write the finished runs; its size in bytes. The same runs give the same bytes."""
    arrays: dict[str, np.ndarray] = {}
    told, labels, drawn = [], list[np.ndarray](), set[str]()
    for i, (run, result) in enumerate((run, run.result) for run in runs if run.result is not None):
        answers = run.answers(logits=logits)
        entry: dict[str, Any] = {"result": as_plain(result), "curve": list(run.epochs())}
        entry["result"]["config"]["data"]["root"] = None  # a place on one machine
        if isinstance(answers, PixelAnswers):
            arrays |= (replace(answers, examples=None) if run.cell in drawn else answers).arrays(f"_{i}")
            drawn.add(run.cell)
        elif answers is not None:
            small = np.uint8 if max(answers.predictions.max(), answers.labels.max()) < 256 else np.uint16
            known = (n for n, other in enumerate(labels) if np.array_equal(other, answers.labels))
            place = next(known, len(labels))
            if place == len(labels):
                labels.append(answers.labels)
                arrays[f"labels_{place}"] = answers.labels.astype(small)
            arrays[f"predictions_{i}"] = answers.predictions.astype(small)
            if answers.logits is not None:
                arrays[f"logits_{i}"] = answers.logits
            entry["labels"] = place
        told.append(entry)
    arrays["runs"] = np.frombuffer(json.dumps(told, allow_nan=False).encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write(path, content.getvalue())
    return len(content.getvalue())


def unpack(path: Path) -> dict[str, Packed]:
    """The runs of such a file by their id, none where it is not there.

    Raises:
        ConfigError: it cannot be read, or its predictions do not give the accuracies that it holds.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as kept:
            told = json.loads(kept["runs"].tobytes())
            found = [_unpacked(entry, i, kept) for i, entry in enumerate(told)]
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); put it back, or remove it") from error
    for run in found:
        accuracy = run.result.accuracy
        if run.answers is not None and accuracy is not None:
            right = run.answers.accuracy
            if abs(right - accuracy) > 1e-6:
                name = run.result.name
                raise ConfigError(f"{path}: the predictions of {name} are right in {right:.4%}, not in {accuracy:.4%}")
    return {run.result.run_id: run for run in found}


def _unpacked(entry: dict[str, Any], i: int, kept: Any) -> Packed:
    answers: Answers | PixelAnswers | None = PixelAnswers.read(kept, f"_{i}")
    if "labels" in entry:
        labels, predictions = (kept[key].astype(int) for key in (f"labels_{entry['labels']}", f"predictions_{i}"))
        if labels.shape != predictions.shape:
            raise ValueError(f"predictions_{i} has {len(predictions)} images, not {len(labels)}")
        answers = Answers(predictions, labels, kept.get(f"logits_{i}"))
    return Packed(parse(entry["result"]), answers, entry["curve"])


def gather(study: str | None, listed: Sequence[Entry], folder: Path, counts: bool = False) -> list[Run]:
    """Every listed run as `collect` finds it, or, where it has no result here, as the study's runs.npz holds it.

    Args:
        counts: a run of that file counts as finished (runtime.packed), though it failed here when it was trained again.
    """
    runs = collect(listed, folder)
    if study is None or all(run.result for run in runs):
        return runs
    found = unpack(study_folder(study) / "runs.npz")

    def one(run: Run) -> Run:
        there = found.get(run.run_id)
        if run.result is not None or there is None or (run.problem.startswith("failed") and not counts):
            return run
        return replace(run, result=there.result, packed=there.answers, curve=there.curve, folder=None, problem="")

    return [one(run) for run in runs]
