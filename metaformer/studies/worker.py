"""One run, the only way to train: a command, a study, a search and a job of SLURM or Ray all end in `run`.

This is a door of the studies to torch, which is imported only to train.
"""

import contextlib
import json
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from metaformer.config.compose import choices_of, config_of
from metaformer.config.extensions import unheard
from metaformer.config.identity import FILES, differences
from metaformer.config.schema import Config
from metaformer.config.validate import plain
from metaformer.runs.folder import Held, Planned, lock
from metaformer.runs.ledger import note
from metaformer.runs.result import Measured, Result, read_result, write_result
from metaformer.runs.wandb_place import tell_absent
from metaformer.studies.points import resolve
from metaformer.studies.refusal import warn
from metaformer.system import machine
from metaformer.system.company import Company, company
from metaformer.system.errors import ConfigError, tell
from metaformer.system.files import DISK, PART, now, output_to, write
from metaformer.system.orphans import end_with_parent, is_worker, leave_if_orphaned
from metaformer.system.version import TRAINING_VERSION, git_state

if TYPE_CHECKING:
    from metaformer.training.fit import Prepared


@dataclass(frozen=True)
class Outcome:
    """How a run went: finished, found, failed, refused, held by another process, stopped, followed or looked at."""

    name: str
    status: str
    folder: Path | None = None
    result: Result | None = None
    reason: str = ""
    shown: Any = None  # the table or the picture of a debug mode


def job(cfg: DictConfig) -> Outcome:
    """The run that Hydra composed. In a multirun it returns how it went and never raises."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        if hydra.sweeper.params:
            raise ConfigError("hydra.sweeper.params: a grid needs -m, or hydra.mode: MULTIRUN in its file")
        planned = _planned(cfg)
        if planned.config.runtime.force or planned.config.debug.mode != "none" or found(planned) is None:
            take_place(planned.config)
        try:
            outcome, logger = run(planned), planned.config.logger
        except Held as error:
            raise ConfigError(f"{planned.folder}: {error}; nothing was trained here") from error
        done = outcome.status in ("finished", "found") and planned.config.debug.mode == "none"
        if outcome.status == "found" and (words := unheard(logger, 1)):
            print(words, file=sys.stderr)
        if logger.wandb and done and (words := tell_absent([planned.folder], logger)):
            print(words, file=sys.stderr)
        return outcome
    end_with_parent()
    outcome = Outcome("{mixer}-{model}".format_map(choices_of(hydra)), "refused")
    try:
        with output_to(Path(os.devnull)):  # the sweep has told what there is to tell of the images
            planned = _planned(cfg)
        outcome = Outcome(planned.folder.name, "failed", planned.folder)
        take_place(planned.config)
        return run(planned, jobs=int(hydra.launcher.get("n_jobs", 1)), log="run.log")
    except SystemExit as stop:
        leave_if_orphaned()
        if not is_worker():
            raise
        # joblib would kill the runs of the other workers
        return replace(outcome, status="stopped", reason=f"by a signal (status {stop.code}); it goes on from there")
    except Exception as error:  # whatever a run raises is its outcome
        if machine.tasks_of_srun() > 1:
            raise  # whoever started the processes of this run is to end the others
        if isinstance(error, ConfigError | Held):
            status = "refused" if isinstance(error, ConfigError) else "held"
            return replace(outcome, status=status, reason=str(error))
        return replace(outcome, reason=reason_of(error))


def _planned(cfg: DictConfig) -> Planned:
    hydra = HydraConfig.get()
    if hydra.job.chdir:
        raise ConfigError("hydra.job.chdir: paths are relative to the folder of the command; leave it false")
    config = config_of(cfg)
    if config.budget.match == "time":  # of the GPU that it will train on
        take_place(config)
    return resolve(config, choices_of(hydra))[0]


def take_place(config: Config) -> None:
    """Wait for a place on a GPU; a run on several devices takes none, since it has those that its user names."""
    if config.runtime.processes == 1:
        machine.take(config.runtime.accelerator, config.runtime.per_gpu)


def run(planned: Planned, *, jobs: int = 1, log: str | None = None) -> Outcome:
    """Skip a finished run; else check the configuration, then make the folder and train under its lock.

    Args:
        jobs: how many runs share the cores of this machine.
        log: a file in the folder for all that is printed, instead of a progress bar.
    """
    config, folder = planned.config, planned.folder
    force = (config.runtime.force and not machine.restarted()) or config.debug.mode != "none"
    if not force and (result := found(planned)) is not None:
        return Outcome(folder.name, "found", folder, result)
    variable, started = machine.started_together()
    if started not in (1, config.runtime.processes):
        told = f"runtime.devices={config.runtime.devices}, runtime.nodes={config.runtime.nodes}"
        raise ConfigError(f"{told}: expected as many processes, {config.runtime.processes}; {variable} says {started}")
    if log is None:
        warn(config)
    with output_to(Path(os.devnull) if log else None):
        from metaformer.training.fit import fit

        prepared = _prepare(planned)
    if log is None:
        for note in prepared.images.notes:
            tell(note)
    if config.debug.mode in ("profile", "batch"):
        return _look(planned, prepared)
    if machine.rank() > 0:  # the first process does all that concerns files
        folder.mkdir(parents=True, exist_ok=True)
        with output_to(folder / f"rank{machine.rank()}.log" if log else None), recorded(folder):
            fit(planned, prepared, jobs=jobs, show=False)
        return Outcome(folder.name, "followed", folder)
    with lock(folder):
        if not force and (result := found(planned)) is not None:
            return Outcome(folder.name, "found", folder, result)
        return _train(planned, prepared, jobs=jobs, log=log, force=force)


_read: dict[str, Any] = {}  # the images of the run before in this process, by all that tells which they are


def _prepare(planned: Planned) -> "Prepared":
    """Build and try what a run is made of; images are read once by a process that trains many runs on them."""
    from metaformer.training.fit import prepare

    config = planned.config
    key = repr((config.data, config.runtime.cache, planned.fingerprint))
    images = _read.get(key)
    _read.clear()  # there is room for one data set
    prepared = prepare(config, images)
    _read[key] = prepared.images
    return prepared


def found(planned: Planned) -> Result | None:
    """The result of a run that is finished, or None.

    Raises:
        ConfigError: there is one that cannot be read, or that is of another configuration.
    """
    result = read_result(planned.folder)
    if result is None:
        return None
    images = planned.fingerprint is not None and planned.fingerprint == result.fingerprint
    other = differences(result.config, planned.config, same_images=images)
    if other := {key: values for key, values in other.items() if key not in FILES}:
        key, (there, here) = next(iter(other.items()))
        path = planned.folder / "result.json"
        raise ConfigError(f"{path}: is of another configuration ({key} {there}, not {here}); remove it to train again")
    return result


def _train(planned: Planned, prepared: "Prepared", *, jobs: int, log: str | None, force: bool) -> Outcome:
    """Train in a folder that this process holds. A result is there before its checkpoints go."""
    from metaformer.training import stop_and_resume
    from metaformer.training.fit import fit

    config, folder = planned.config, planned.folder
    for stale in folder.iterdir() if force else [folder / "failed.json", *folder.glob(f"{PART}*")]:
        if stale.is_file() and stale.name != ".lock" and not stale.match("rank*.log"):  # others of this run write those
            stale.unlink(missing_ok=True)
    write(folder / "config.yaml", yaml.safe_dump({"choices": dict(planned.choices), **plain(config)}, sort_keys=False))
    show = config.runtime.progress and log is None and sys.stderr.isatty()
    with output_to(folder / log if log else None), recorded(folder):
        resumed = any((folder / name).exists() for name in stop_and_resume.NAMES)
        with company() as beside:
            measured = fit(planned, prepared, jobs=jobs, show=show)
        assert measured is not None  # this is the first process
        result = _result(planned, measured, Company() if resumed else beside)
        write_result(folder, result)
        if config.debug.mode == "none":  # a part of a run is not the run, whose id it has
            note(folder.parent, result.run_id, config.study.name, result.finished)
        stop_and_resume.remove(folder)
    return Outcome(folder.name, "finished", folder, result)


def _result(planned: Planned, measured: Measured, beside: Company) -> Result:
    return Result(
        **asdict(measured),
        name=planned.folder.name,
        choices=dict(planned.choices),
        run_id=planned.run_id,
        cell_id=planned.cell_id,
        seed=planned.config.seed,
        host=platform.node(),
        python=platform.python_version(),
        training_version=TRAINING_VERSION,
        git=git_state(),
        finished=now(),
        fingerprint=planned.fingerprint,
        other_runs=beside.runs,
        other_cores=beside.cores,
        config=planned.config,
    )


def _look(planned: Planned, prepared: "Prepared") -> Outcome:
    """The debug modes that train nothing: a profile of a step, or a picture of a batch."""
    from metaformer.training import debug

    config, folder = planned.config, planned.folder
    if config.debug.mode == "batch":
        picture = debug.picture(config.recipe, config.seed, prepared.images, folder)
        return Outcome(folder.name, "drawn", shown=picture)
    with output_to(Path(os.devnull)):  # the profiler talks of devices that are not there
        return Outcome(folder.name, "profiled", shown=debug.profile(config, prepared.net, prepared.images))


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
        if isinstance(error, OSError) and error.errno in DISK:
            raise ConfigError(f"runtime.runs: {folder} cannot be written ({error.strerror})") from error
        raise
