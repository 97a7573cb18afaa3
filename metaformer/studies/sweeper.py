"""A study as Hydra's sweeper: a grid like that of Hydra's own, with three differences.

A bad configuration in any cell is refused before anything runs, only what is not finished is launched, and it ends with
a summary.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from metaformer.config.compose import ELSEWHERE, changes, given_words, key_of, keys_of
from metaformer.config.extensions import unheard
from metaformer.config.hydra_internals import begin_workers_with, launched, make_launcher, register_plugin
from metaformer.runs.launch import record, study_folder
from metaformer.runs.packed import gather, unpack
from metaformer.runs.report_folder import report_folder
from metaformer.runs.result import failure_of, read_result
from metaformer.runs.study_check import check_study
from metaformer.runs.wandb_place import tell_absent
from metaformer.studies.points import Point, points
from metaformer.studies.progress import follow
from metaformer.studies.ray_launcher import RayLauncher
from metaformer.studies.refusal import refuse, warn
from metaformer.studies.search import SearchSweeper
from metaformer.studies.worker import Outcome, found, job, reason_of, take_place
from metaformer.system.errors import ConfigError
from metaformer.system.files import now, write, written_since
from metaformer.system.locks import held
from metaformer.system.machine import how_to_share, memory_of_workers
from metaformer.system.orphans import first_of_workers, saved_before_the_end

HOW = re.compile(r"\{.*\}|state: \w+")  # as joblib has it in its message: {SIGKILL(-9)}; submitit: OUT_OF_MEMORY


class StudySweeper(Sweeper):
    """Trains what is not finished of a grid, with any launcher of Hydra's."""

    __module__ = "hydra_plugins.metaformer"  # see register()

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, params: DictConfig | None) -> None:
        """`params` is the grid, which `points` reads from the configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = make_launcher(hydra_context, job, config)
        begin_workers_with(self.launcher, first_of_workers())

    def sweep(self, arguments: list[str]) -> None:
        if "hydra.sweep.dir" in map(key_of, given_words(self.config, "hydra")):
            raise ConfigError(f"hydra.sweep.dir: {ELSEWHERE['hydra.run.dir']}")
        listed = points(self.hydra_context.config_loader, self.config, arguments)
        study, runtime = listed[0].config.study, listed[0].config.runtime
        self._check_launcher(listed)
        entries = [point.entry for point in listed]
        changed = self._changes(arguments)
        whole = bool(study.name) and not changed
        study = check_study(study, entries, None if whole else keys_of(arguments))
        packed = unpack(study_folder(study.name) / "runs.npz") if study.name and runtime.packed else {}
        pending = [p for p in listed if runtime.force or (found(p.run) is None and p.run.run_id not in packed)]
        pending = by_cell(pending) if runtime.compile else pending  # a process has the compiled code of one cell
        # Its own descriptor, since a run in this process sends what it prints to a file.
        file = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        console = Console(file=file, width=None if file.isatty() else 120)
        _announce(listed, pending, console)
        warn(*(p.config for p in pending))
        here = not self._on_slurm() and not isinstance(self.launcher, RayLauncher)
        if pending and here and (words := how_to_share(runtime.accelerator, runtime.per_gpu)):
            print(f"note: {words}", file=sys.stderr)
        if pending and here and self.config.hydra.launcher.get("n_jobs", 1) == 1:
            take_place(pending[0].config)  # the runs are of this process, in which CUDA starts now
        if pending and isinstance(self.launcher, RayLauncher):
            self.launcher.connect()
        refuse({p.cell: p.config for p in pending}, here=here)
        if whole:
            with ExitStack() as stack:
                try:
                    Path(runtime.runs).mkdir(parents=True, exist_ok=True)
                    stack.enter_context(held(Path(runtime.runs) / ".launch.lock"))
                except OSError as error:
                    raise ConfigError(f"runtime.runs={runtime.runs}: cannot be written ({error.strerror})") from error
                record(study, entries, given_words(self.config), Path(runtime.runs))
        outcomes: list[Outcome] = []
        if pending:
            with follow(listed, pending, console, show=runtime.progress), self._stops(pending):
                outcomes = self._launch(pending)
        runs = gather(study.name if whole or runtime.packed else None, entries, Path(runtime.runs), runtime.packed)
        from metaformer.analysis.page import summarise  # half of the time that --help would take

        place = report_folder(Path(runtime.runs), study.name, changed)
        command = " ".join(["python -m metaformer.train -m", *given_words(self.config)])
        summarise(study, runs, console, place, whole=whole, command=command)
        if words := unheard(listed[0].config.logger, len(listed) - len(pending)):
            print(words, file=sys.stderr)
        if listed[0].config.logger.wandb:
            _tell_absent(listed, study.name if whole else None, console)
        if failures := [o for o in outcomes if o.status in ("failed", "refused", "held", "stopped")]:
            _tell(failures, len(listed), console)
            raise SystemExit(1)

    def _stops(self, pending: Sequence[Point]) -> AbstractContextManager[None]:
        """What a signal finds while runs are trained; a run in this process listens for itself."""
        workers = type(self.launcher).__name__ == "JoblibLauncher" and self.config.hydra.launcher.n_jobs != 1
        return saved_before_the_end([p.run.folder / ".lock" for p in pending]) if workers else nullcontext()

    def _on_slurm(self) -> bool:
        return type(self.launcher).__name__ == "SlurmLauncher"

    def _check_launcher(self, listed: Sequence[Point]) -> None:
        """Refuse what would train a sweep once for each device, or what this machine cannot submit."""
        slurm = self._on_slurm()
        if slurm and shutil.which("sbatch") is None:
            raise ConfigError("hydra/launcher=slurm: there is no sbatch here; expected a login node of a SLURM cluster")
        jobs = self.config.hydra.launcher.get("n_jobs", 1)
        if not isinstance(jobs, int) or jobs == 0 or jobs < -1:
            raise ConfigError(f"hydra.launcher.n_jobs={jobs}: expected at least 1, or -1 for one on each core")
        for point in listed:
            if point.config.runtime.processes > 1 and not slurm:
                words = " ".join(point.overrides)
                raise ConfigError(
                    f"runtime.devices={point.config.runtime.devices}: a sweep trains each run on one device, but with "
                    f"hydra/launcher=slurm; or one run at a time: python -m metaformer.train {words}"
                )

    def _launch(self, pending: Sequence[Point]) -> list[Outcome]:
        """Run what is pending.

        A worker of joblib that dies (out of memory, a crash in C) takes those beside it with it. All that were at work
        are tried again, each alone: so the one that died is known, and the others go on. Elsewhere they die one by one.
        """
        since = time.time()
        try:
            returned = launched(self.launcher, [p.overrides for p in pending])
        except Exception as error:  # whatever a launcher raises when a worker is gone
            if type(self.launcher).__name__ != "JoblibLauncher":  # it has not launched
                told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
                chosen = self.config.hydra.runtime.choices["hydra/launcher"]
                raise ConfigError(f"hydra/launcher={chosen}: {told or reason_of(error)}") from error
            died = _died(error)
        else:
            pairs = zip(pending, returned, strict=True)
            return [_lost(p, _died(r), since) if isinstance(r, Exception) else r for p, r in pairs]
        lost = [p for p in pending if not _finished_since(p, since)]
        left = [p for p in lost if not written_since(p.run.folder / "failed.json", since)]
        outcomes = [_failed(p, failure_of(p.run.folder)) for p in lost if p not in left]
        if len(pending) == 1:
            return outcomes + [_dead(p, died) for p in left]
        begun = [p for p in left if written_since(p.run.folder / "config.yaml", since)]
        rest = [p for p in left if p not in begun]
        half = 0 if begun else len(rest) // 2  # it died before it wrote a file: in which half?
        groups = [*([p] for p in begun), rest[:half], rest[half:]]
        apart = f"{len(begun) or 'all'} that may be why are tried apart"
        print(f"note: a worker died ({memory_of_workers()}); {apart}", file=sys.stderr)
        if "SIGKILL" in died:  # by the system, where memory ran out
            print("note: fewer runs at once take less memory: hydra.launcher.n_jobs", file=sys.stderr)
        return outcomes + [outcome for group in groups if group for outcome in self._launch(group)]

    def _changes(self, arguments: Sequence[str]) -> list[str]:
        """The words with which the command line narrowed or changed the study that its file describes."""
        return changes([*arguments, *(a for a in given_words(self.config, "hydra") if "hydra.sweeper" in a)])


def by_cell(points: Sequence[Point]) -> list[Point]:
    """The points of each cell one after the other."""
    cells = {cell: place for place, cell in enumerate(dict.fromkeys(p.run.cell_id for p in points))}
    return sorted(points, key=lambda p: cells[p.run.cell_id])


def register() -> None:
    """Make sweepers and launcher known to Hydra, which takes plugins from the namespace `hydra_plugins` only."""
    sys.modules["hydra_plugins.metaformer"] = sys.modules[__name__]
    register_plugin(StudySweeper)
    register_plugin(SearchSweeper)
    register_plugin(RayLauncher)


def _announce(listed: Sequence[Point], pending: Sequence[Point], console: Console) -> None:
    study, done = listed[0].config.study, len(listed) - len(pending)
    name = study.name or "sweep"
    console.print(f"[bold]{name}[/]: {len(listed)} runs, {done} finished, {len(pending)} to do")
    if study.question:
        console.print(study.question, markup=False)
    for words in dict.fromkeys(f"{p.cell}: {p.match.words}" for p in listed if p.match):
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def _died(error: Exception) -> str:
    """A line of what a launcher raises when a worker is gone, with the exit codes of joblib or the state of SLURM."""
    return f"its worker died ({' '.join([type(error).__name__, *HOW.findall(str(error))])})"


def _finished_since(point: Point, since: float) -> bool:
    """Whether a run has a result; with runtime.force, one of after `since`."""
    there = read_result(point.run.folder) is not None
    return there and (not point.config.runtime.force or written_since(point.run.folder / "result.json", since))


def _lost(point: Point, died: str, since: float) -> Outcome:
    """How a run went whose worker is gone: it may have finished before, or have said why it failed."""
    if _finished_since(point, since):
        return Outcome(point.run.folder.name, "finished", point.run.folder, read_result(point.run.folder))
    if written_since(point.run.folder / "failed.json", since):
        return _failed(point, failure_of(point.run.folder))
    return _dead(point, died)


def _failed(point: Point, reason: str) -> Outcome:
    return Outcome(point.run.folder.name, "failed", point.run.folder, reason=reason)


def _dead(point: Point, reason: str) -> Outcome:
    """A run whose process is gone, with a note of it for the report."""
    traceback = "none: the process ended at once; what it printed is in run.log"
    write(point.run.folder / "failed.json", json.dumps({"reason": reason, "traceback": traceback, "time": now()}))
    return _failed(point, reason)


def _tell_absent(listed: Sequence[Point], study: str | None, console: Console) -> None:
    """Say which of the finished runs are not on wandb, and how they get there."""
    finished = [point.run.folder for point in listed if (point.run.folder / "result.json").exists()]
    if words := tell_absent(finished, listed[0].config.logger, study):
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def _tell(failures: Sequence[Outcome], runs: int, console: Console) -> None:
    """A line for each run that did not finish, with the place of its traceback."""
    for outcome in failures:
        line = f"{outcome.status} {outcome.name}: {outcome.reason}"
        console.print(line, style="red", markup=False, soft_wrap=True)
        if outcome.status == "failed" and outcome.folder and (outcome.folder / "failed.json").exists():
            console.print(f"  the traceback: {outcome.folder}/failed.json", markup=False, soft_wrap=True)
    console.print(f"{len(failures)} of {runs} runs did not finish; the same command tries them again")
