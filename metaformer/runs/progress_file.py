"""progress.json: where a run is within its epoch, for a display. It is there only while the run trains and tests."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from metaformer.system.files import PART

NAME = "progress.json"


@dataclass(frozen=True)
class Progress:
    """What a run does now."""

    state: str  # training, validating, testing
    epoch: int  # from 1
    epochs: int  # of the whole run
    step: int
    steps: int
    lr: float
    images_per_second: float  # of training, since the epoch began; 0.0 where no step is done


def tell(folder: Path, progress: Progress) -> None:
    """Write it whole, without waiting for the disk. Where it cannot be written, nobody sees it and the run goes on."""
    part = folder / f"{PART}{NAME}"
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(asdict(progress)))
        part.replace(folder / NAME)


def told(folder: Path, since: float = 0.0) -> Progress | None:
    """What a run said last; None where it said nothing after `since` (seconds of the clock)."""
    path = folder / NAME
    try:
        return Progress(**json.loads(path.read_text())) if path.stat().st_mtime >= since else None
    except (OSError, ValueError, TypeError):
        return None


def remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / NAME).unlink(missing_ok=True)
