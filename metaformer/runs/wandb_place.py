"""Whether a run is on wandb: a mark in its folder, and the files that wait there to be uploaded. Nothing is asked of
the server."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from metaformer.config.schema import Logger
from metaformer.system.errors import ConfigError, few
from metaformer.system.files import write

MARK = "wandb.json"


@dataclass(frozen=True)
class Mark:
    """Where a run was sent to, or written for, with which tags."""

    project: str
    entity: str | None
    tags: list[str]
    mode: str = "online"  # offline: it was written into the folder of the run, for `wandb sync`
    more: list[str] = field(default_factory=list)  # sent beside curves and results: weights, mixing


def mark(folder: Path, logger: Logger, tags: list[str], more: list[str]) -> None:
    """Note that a run is on the server or waits for it, so that nobody sends it again."""
    write(folder / MARK, json.dumps(asdict(Mark(logger.project, logger.entity, tags, logger.mode, more))) + "\n")


def marked(folder: Path, logger: Logger) -> Mark | None:
    """Where a run is in this project; None where it is not. What waits in its folder can go to any project."""
    try:
        found = Mark(**json.loads((folder / MARK).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / MARK}: cannot be read ({error}); remove it to upload this run again") from error
    here = (found.project, found.entity) == (logger.project, logger.entity)
    return found if here or (found.mode == "offline" and waiting(folder)) else None


def waiting(folder: Path) -> list[Path]:
    """The folders of what was written offline and is not uploaded: one for each start. wandb marks what it uploads."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [file.parent for file in files if not file.with_name(f"{file.name}.synced").exists()]


def discard(folder: Path) -> None:
    """Remove what waits there, since what follows is the whole of it."""
    for part in waiting(folder):
        shutil.rmtree(part)


def waits_offline(folder: Path, logger: Logger) -> bool:
    """Whether a run was written offline for this project, and is not uploaded."""
    there = marked(folder, logger)
    return there is not None and there.mode == "offline" and bool(waiting(folder))


def absent(folders: Sequence[Path], logger: Logger) -> list[Path]:
    """Those of finished runs that are not on the server."""
    return [folder for folder in folders if marked(folder, logger) is None or waits_offline(folder, logger)]


def upload(folders: Sequence[Path], logger: Logger) -> list[Path]:
    """Give what waits in some folders to `wandb sync`, and mark what arrived.

    Returns:
        Those where something still waits. What wandb says of them is on the terminal.
    """
    if not folders:
        return []
    where = ["--project", logger.project, *(["--entity", logger.entity] if logger.entity else [])]
    known = {folder: marked(folder, logger) for folder in folders}
    parts = [str(part) for folder in folders for part in waiting(folder)]
    command = [sys.executable, "-m", "wandb", "sync", *where, *parts]
    patience = {
        "WANDB_X_GRAPHQL_RETRY_MAX": "4"
    }  # a server that does not answer: about a minute, not a quarter of an hour
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env={**patience, **os.environ})
    for folder, found in known.items():
        if found is not None and not waiting(folder):
            mark(folder, replace(logger, mode="online"), found.tags, found.more)
    return [folder for folder in folders if waiting(folder)]


def tell_absent(folders: Sequence[Path], logger: Logger, study: str | None = None) -> str:
    """Which of some finished runs are not on wandb, and the command that uploads them; nothing where all are."""
    missing = absent(folders, logger)
    if not missing:
        return ""
    usual = Logger()
    words = [f"experiments={study}"] if study else []
    words += [f"logger.{key}={getattr(logger, key)}" for key in ("project", "entity")
              if getattr(logger, key) != getattr(usual, key)]  # fmt: skip
    words += [f"runtime.runs={runs}" for runs in {folder.parent for folder in missing} if runs != Path("runs")]
    names = few([folder.name for folder in missing])
    command = " ".join(["python -m metaformer.dashboard sync=true", *words])
    return f"not on wandb: {len(missing)} of {len(folders)} finished runs ({names}); {command} uploads them"
