"""Where a report goes, and what else is made of a study: to a folder that git does not track, or to the study's own."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from metaformer.runs.launch import study_folder


def report_folder(runs: Path, study: str | None, words: Sequence[str]) -> Path:
    """Where a report goes that is not published: of a study, or of what the words make of it.

    Args:
        runs: the folder of the run folders.
    """
    told = re.sub(r"[^\w.,=-]+", "_", "_".join([*([study] if study else []), *words]).replace("+", ""))
    name = told if len(told) <= 100 else f"{told[:90]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return runs / "reports" / (name or "sweep")


def written_to(runs: Path, study: str, words: Sequence[str] = (), *, publish: bool) -> Path:
    """Where what is made of a study goes: to a folder that git does not track, until somebody publishes it.

    Args:
        runs: the folder of the run folders.
        words: what makes a part of the study of it.
    """
    return study_folder(study) if publish else report_folder(runs, study, words)
