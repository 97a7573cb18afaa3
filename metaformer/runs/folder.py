"""A run before it is trained, and its folder: its name, how it is found, and who holds it.

runs/pooling-tiny-fashion_small-s0-1a2b3c4d5e6f/
    config.yaml  metrics.csv  weights.pt  predictions.npz  result.json
    last.ckpt, progress.json (until it is finished)  failed.json (until it is tried again)  run.log (in a multirun)
    wandb, wandb.json, steps.csv (with logger=wandb)
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.config.compose import Choices
from metaformer.config.identity import cell_id, content_of, run_id
from metaformer.config.schema import Config
from metaformer.system import locks
from metaformer.system.errors import ConfigError


@dataclass(frozen=True)
class Planned:
    """A run before it is trained."""

    config: Config
    choices: Choices
    fingerprint: str | None  # of the images
    run_id: str
    cell_id: str  # of the run without its seed
    folder: Path


def planned(
    config: Config,
    choices: Choices,
    fingerprint: str | None = None,
    known: Mapping[str, list[Path]] | None = None,
    content: Mapping[str, Any] | None = None,
) -> Planned:
    """A validated configuration with its ids and its folder: found by its id, or named for people by what was chosen.

    Args:
        known: `folders_by_id`, where it is asked for many runs.
        content: `content_of` these, where it is known.
    """
    content, runs = content or content_of(config, fingerprint), Path(config.runtime.runs)
    identity = run_id(content)
    if config.debug.mode != "none":
        folder = runs / f"debug-{config.debug.mode}"
    else:
        words = [choices["mixer"], choices["model"], config.data.name, f"s{config.seed}", identity]
        named = runs / "-".join(words).replace("/", "_")
        folder = (folders_by_id(runs) if known is None else known).get(identity, [named])[0]
    return Planned(config, choices, fingerprint, identity, cell_id(content), folder)


def folders_by_id(runs: Path) -> dict[str, list[Path]]:
    """The run folders under `runs` by the id that ends their name; more than one where somebody made a copy."""
    found: dict[str, list[Path]] = {}
    for path in sorted(runs.glob("*-*")):
        found.setdefault(path.name.rpartition("-")[2], []).append(path)
    return found


class Held(RuntimeError):
    """Another process trains this run."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make a run's folder and hold it: one process at a time, the others wait and say so.

    Raises:
        Held: in a job of SLURM, which is not to wait on a device that others could use. It waits for a minute, as the
            process of a job that was requeued may still be leaving.
    """
    path = folder / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locks.held(path, locks.LOOK))
            except TimeoutError:
                print(f"another process trains {folder.name}; waiting for it", file=sys.stderr)
                stack.enter_context(locks.held(path, 60 if "SLURM_JOB_ID" in os.environ else float("inf")))
        except TimeoutError as error:
            raise Held("another process trains it") from error
        except OSError as error:
            raise ConfigError(f"runtime.runs: {folder} cannot be written ({error.strerror or error})") from error
        yield


def is_held(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    return locks.is_held(folder / ".lock")
