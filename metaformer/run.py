"""One run: a cell and a seed, a folder, a `result.json` that is written last. Imports torch only to train.

runs/pooling-tiny-fashion_small-s0-1a2b3c4d/
    config.yaml  metrics.csv  weights.pt  predictions.npz  result.json
    last.ckpt (until it is finished)  failed.json (until it is tried again)  run.log (in a multirun)
"""

import contextlib
import csv
import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from metaformer import slots
from metaformer.budget import Match, matched
from metaformer.identity import cell_id, run_id
from metaformer.schema import ConfigError
from metaformer.validation import validate

Outcome = dict[str, Any]  # name, folder, status (finished | found | failed | refused | held), and its result or reason


@dataclass
class Planned:
    """One run of a study before it is launched."""

    cell: str  # what was varied, as it was typed, without the seed
    levels: dict[str, str]  # the same by factor: {"mixer": "pooling", "lr": "0.01"}
    mixer: str
    folder: Path
    config: dict[str, Any]
    overrides: list[str]
    match: Match | None = None  # how it was matched to a budget


def rank() -> int:
    """The place of this process among those that train one run together, whoever started them; 0 is the first."""
    variables = ("RANK", "LOCAL_RANK") if "SLURM_JOB_ID" not in os.environ else ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in variables if name in os.environ), 0)


def choices_of(hydra: Any) -> dict[str, str]:
    """What was chosen in each config group, by the words that the user typed."""
    groups = ("mixer", "model", "recipe", "experiments")
    return {group: str(hydra.runtime.choices.get(group)) for group in groups}


def folders_by_id(runs: Path) -> dict[str, list[Path]]:
    """The run folders under `runs` by the id that ends their name; more than one where somebody made a copy."""
    found: dict[str, list[Path]] = {}
    for path in sorted(runs.glob("*-*")):
        found.setdefault(path.name.rpartition("-")[2], []).append(path)
    return found


def run_folder(
    config: Mapping[str, Any], choices: Mapping[str, str], known: Mapping[str, list[Path]] | None = None
) -> Path:
    """The folder of a run: found by its id, or else named for people by what was chosen.

    Args:
        known: `folders_by_id`, where it is asked for many runs.
    """
    runs = Path(config["runtime"]["runs"])
    if config["debug"]["mode"] != "none":
        return runs / f"debug-{config['debug']['mode']}"
    identity = run_id(config)
    words = [choices["mixer"], choices["model"], config["data"]["name"], f"s{config['seed']}", identity]
    name = "-".join(words).replace("/", "_")
    return (folders_by_id(runs) if known is None else known).get(identity, [runs / name])[0]


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None. One that cannot be read is an error: nobody's result is redone unasked."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        wrong = [key for key in ("name", "seed", "metrics", "params", "seconds", "config") if key not in result]
        reason = f"it has no '{wrong[0]}'" if wrong else ""
    except (ValueError, TypeError, OSError) as error:
        reason = str(error)
    if reason:
        raise ConfigError(f"{path}: cannot be read ({reason}); remove it to train this run again")
    return result


def failure_of(folder: Path) -> str:
    """Why a run failed, or nothing where it did not."""
    try:
        return str(json.loads((folder / "failed.json").read_text())["reason"])
    except FileNotFoundError:
        return ""
    except (ValueError, LookupError, OSError) as error:
        return f"its failed.json cannot be read ({error})"


def read_curve(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, one an epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def job(cfg: DictConfig) -> Outcome:
    """Train the run that `cfg` describes, unless it is there. In a multirun it returns how it went and never raises."""
    hydra = HydraConfig.get()
    choices = choices_of(hydra)
    if hydra.mode != RunMode.MULTIRUN:
        if hydra.sweeper.params:
            raise ConfigError("hydra.sweeper.params: a grid needs -m, or hydra.mode: MULTIRUN in its file")
        config = _validated(cfg, hydra)
        return train(config, choices, run_folder(config, choices))
    outcome: Outcome = {"name": f"{choices['mixer']}-{choices['model']}", "status": "refused"}
    try:
        config = _validated(cfg, hydra)
        folder = run_folder(config, choices)
        outcome |= {"name": folder.name, "folder": str(folder), "status": "failed"}
        jobs = int(hydra.launcher.get("n_jobs", 1))
        if jobs != 1 and config["runtime"]["accelerator"] != "cpu":
            slots.take(config["runtime"]["per_gpu"])
        return train(config, choices, folder, jobs=jobs, log="run.log")
    except Exception as error:
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            raise  # whoever started the processes of this run is to end the others
        if isinstance(error, ConfigError | Held):
            return outcome | {"status": "refused" if isinstance(error, ConfigError) else "held", "reason": str(error)}
        return outcome | {"reason": reason_of(error)}


def _validated(cfg: DictConfig, hydra: Any) -> dict[str, Any]:
    if hydra.job.chdir:
        raise ConfigError("hydra.job.chdir: paths are relative to the folder of the command; leave it false")
    return matched(validate(cfg))[0]


def train(
    config: dict[str, Any], choices: Mapping[str, str], folder: Path, *, jobs: int = 1, log: str | None = None
) -> Outcome:
    """Skip a finished run; else check the configuration, then make the folder and train under its lock.

    Args:
        jobs: how many runs share the cores of this machine.
        log: a file in the folder for all that is printed, instead of a progress bar.
    """
    debug, main = config["debug"]["mode"], rank() == 0
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0  # then it goes on, forced or not
    force = (config["runtime"]["force"] and not requeued) or debug != "none"
    outcome: Outcome = {"name": folder.name, "folder": str(folder)}
    if not force and (result := read_result(folder)) is not None:
        return outcome | {"status": "found", "result": result}
    with output_to(Path(os.devnull) if log else None):
        from metaformer import data, training

        images = data.load(config["data"], config["runtime"]["cache"])
        net = training.build_net(config, images)
        if config["recipe"]["scale"] is None and not isinstance(images.train, data.Split):
            raise ConfigError(
                "recipe.scale: expected a random resized crop, as in recipe=poolformer, since data.decode=always"
            )
        if config["recipe"]["batch"] > len(images.train):
            raise ConfigError(
                f"recipe.batch={config['recipe']['batch']}: there are {len(images.train)} training images"
            )
    if debug == "profile":
        with output_to(Path(os.devnull)):  # the profiler talks of devices that are not there
            table = training.profile(config, net, images)
        return {"name": folder.name, "status": "profiled", "table": table}
    if debug == "batch":
        return {"name": folder.name, "status": "drawn", "picture": training.picture(config, images, folder)}
    if not main:  # the first process does all that concerns files
        folder.mkdir(parents=True, exist_ok=True)
        with output_to(folder / f"rank{rank()}.log" if log else None), recorded(folder):
            training.fit(config, choices, net, images, folder, jobs=jobs, show=False)
        return outcome | {"status": "followed"}
    with lock(folder):
        if not force and (result := read_result(folder)) is not None:
            return outcome | {"status": "found", "result": result}
        for stale in folder.iterdir() if force else [folder / "failed.json"]:
            if stale.is_file() and stale.name != ".lock":
                stale.unlink(missing_ok=True)
        write(folder / "config.yaml", yaml.safe_dump({"choices": dict(choices), **config}, sort_keys=False))
        show = config["runtime"]["progress"] and log is None and sys.stderr.isatty()
        with output_to(folder / log if log else None), recorded(folder):
            measured = training.fit(config, choices, net, images, folder, jobs=jobs, show=show)
        result = {
            "name": folder.name,
            "choices": dict(choices),
            "run_id": run_id(config),
            "cell_id": cell_id(config),
            "seed": config["seed"],
            **measured,
            "host": platform.node(),
            "python": platform.python_version(),
            "code": code_version(),
            "git": git_state(),
            "finished": now(),
            "config": config,
        }
        write(folder / "result.json", json.dumps(result, indent=2, allow_nan=False))
    return outcome | {"status": "finished", "result": result}


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep an error and its traceback in failed.json, and let it go on; one of the disk is one of the user's."""
    try:
        yield
    except Exception as error:
        failure = {"reason": reason_of(error), "traceback": traceback.format_exc(), "time": now()}
        with contextlib.suppress(OSError):
            write(folder / "failed.json", json.dumps(failure, indent=2))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise ConfigError(f"runtime.runs: {folder} cannot be written ({error.strerror})") from error
        raise


def write(path: Path, text: str) -> None:
    """Write a file that is either there whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Held(RuntimeError):
    """Another process trains this run."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make a run's folder and hold it: one process at a time, the others wait and say so.

    Raises:
        Held: in a job of SLURM, which is not to wait on a device that others could use. It waits for a minute, as the
            process of a job that was requeued may still be leaving.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock")
        try:
            held.acquire(timeout=0)
        except Timeout:
            print(f"another process trains {folder.name}; waiting for it", file=sys.stderr)
            held.acquire(timeout=60 if "SLURM_JOB_ID" in os.environ else -1)
    except Timeout as error:
        raise Held("another process trains it") from error
    except OSError as error:
        raise ConfigError(f"runtime.runs: {folder} cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        held.release()


def is_held(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


# What goes on round the runs and not in them.
ROUND = (
    *("study", "launch", "progress", "mirror", "stats", "comparison", "verdict", "tables", "prose", "figures"),
    *("report", "plan", "dashboard", "evaluate", "search", "check", "probe"),
    *("conformance", "behaviour"),
    *("probes", "measured", "portrait", "pictures", "budget"),
)


@cache
def code_version() -> str:
    """A hash of the code and the embedded images that results come from, installed or in a checkout."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted([*package.glob("*.py"), *package.glob("assets/*.npz")]):
        if file.stem not in ROUND:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from and whether it was changed since; None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]

    def ask(*arguments: str) -> str:
        return subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", Path(__file__).name)  # not merely inside of some repository
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Append what this process prints, libraries in C included, to a file; None leaves it as it is."""
    if path is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in zip(saved, (1, 2), strict=True):
            os.dup2(stream, descriptor)
            os.close(stream)
