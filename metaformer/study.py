"""A study: which runs it is made of, which of them are finished, and what came out.

`StudySweeper` expands a grid as Hydra's own sweeper does, with three differences: a bad configuration in any cell is
refused before anything runs, only what is not finished is launched, and it ends with a summary.
"""

import copy
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from metaformer import launch, report
from metaformer.budget import matched
from metaformer.config import conf_dir
from metaformer.config import register as register_config
from metaformer.progress import follow
from metaformer.run import (
    Outcome,
    Planned,
    choices_of,
    code_version,
    failure_of,
    folders_by_id,
    job,
    read_result,
    run_folder,
)
from metaformer.schema import GROUPS, ConfigError, processes
from metaformer.search import FIRST_SEED
from metaformer.validation import check, validate


class StudySweeper(Sweeper):
    __module__ = "hydra_plugins.metaformer"  # see register()

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, params: DictConfig | None) -> None:
        """`params` is the grid, which `plan` reads from the configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=job, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        planned = plan(self.hydra_context.config_loader, self.config, arguments)
        study = planned[0].config["study"]
        runtime = planned[0].config["runtime"]
        self._check_launcher(planned)
        listed = launch.entries(planned)
        whole = bool(study["name"]) and not self._changed(arguments)
        if whole:
            launch.check(study, listed)
        results = {} if runtime["force"] else {p.folder: read_result(p.folder) for p in planned}
        finished = {folder: result for folder, result in results.items() if result is not None}
        pending = [p for p in planned if p.folder not in finished]
        # Its own descriptor, since a run in this process sends what it prints to a file.
        file = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        console = Console(file=file, width=None if file.isatty() else 120)
        console.print(
            f"[bold]{study['name'] or 'sweep'}[/]: {len(planned)} runs, {len(finished)} finished, {len(pending)} to do"
        )
        if study["question"]:
            console.print(study["question"], markup=False)
        for words in dict.fromkeys(f"{p.cell}: {p.match.words}" for p in planned if p.match):
            console.print(words, markup=False, highlight=False, soft_wrap=True)
        _note_other_code(finished.values(), console)
        if whole:
            launch.record(study, listed, list(self.config.hydra.overrides.task))
        outcomes: list[Outcome] = []
        if pending:
            with follow(planned, pending, console, show=runtime["progress"]):
                outcomes = self._launch(pending)
        failures = [o for o in outcomes if o["status"] in ("failed", "refused", "held")]
        report.summarise(study, launch.collect(listed, Path(runtime["runs"])), console, write=whole)
        for outcome in failures:
            console.print(
                f"{outcome['status']} {outcome['name']}: {outcome['reason']}", style="red", markup=False, soft_wrap=True
            )
            if outcome["status"] == "failed" and (Path(outcome["folder"]) / "failed.json").exists():
                console.print(f"  the traceback: {outcome['folder']}/failed.json", markup=False, soft_wrap=True)
        if failures:
            console.print(f"{len(failures)} of {len(planned)} runs did not finish; the same command tries them again")
            raise SystemExit(1)

    def _check_launcher(self, planned: Sequence[Planned]) -> None:
        """Refuse what would train a sweep once for each device, or what this machine cannot submit."""
        slurm = type(self.launcher).__name__ == "SlurmLauncher"
        if slurm and shutil.which("sbatch") is None:
            raise ConfigError("hydra/launcher=slurm: there is no sbatch here; expected a login node of a SLURM cluster")
        for run in planned:
            if processes(run.config["runtime"]) > 1 and not slurm:
                words = " ".join(run.overrides)
                raise ConfigError(
                    f"runtime.devices={run.config['runtime']['devices']}: a sweep trains each run on one device, but "
                    f"with hydra/launcher=slurm; or one run at a time: python -m metaformer.train {words}"
                )

    def _launch(self, pending: Sequence[Planned]) -> list[Outcome]:
        """Run what is pending; where a worker dies, the folders tell which runs it took with it."""
        try:
            return [r.return_value for r in self.launcher.launch([p.overrides for p in pending], initial_job_idx=0)]
        except Exception as error:
            died = f"its worker died ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
            lost = [p.folder for p in pending if read_result(p.folder) is None]
            reasons = [failure_of(folder) or died for folder in lost]
            return [
                {"name": folder.name, "folder": str(folder), "status": "failed", "reason": reason}
                for folder, reason in zip(lost, reasons, strict=True)
            ]

    def _changed(self, arguments: Sequence[str]) -> bool:
        """Whether the command line narrowed or changed the study that its file describes."""
        return bool(changes([*arguments, *(a for a in self.config.hydra.overrides.hydra if "hydra.sweeper" in a)]))


def changes(arguments: Sequence[str]) -> list[str]:
    """The overrides that change which runs a study is made of, or how it is judged."""
    kept = []
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if key not in ("experiments", "data.root") and key.partition(".")[0] not in ("runtime", "logger"):
            kept.append(argument)
    return kept


def plan(loader: ConfigLoader, cfg: DictConfig, arguments: Sequence[str]) -> list[Planned]:
    """Every run of the grid, composed and validated; a run that two points of the grid describe is listed once."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # not before Hydra has loaded its plugins

    grid = [f"{key!s}={values}" for key, values in (cfg.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*grid, *arguments])
    points = BasicSweeper.split_arguments(overrides, None)[0]
    varied = {i: values[0] for i, values in enumerate(zip(*points, strict=True)) if len(set(values)) > 1}
    factors = _factors({i: override.lstrip("+").partition("=")[0] for i, override in varied.items()})
    known = folders_by_id(Path(cfg.runtime.runs))
    composer = Composer(loader, cfg)
    planned: dict[Path, Planned] = {}
    for point in points:
        choices, config = composer.compose(point)
        config, match = matched(config)
        if config["study"]["name"] and config["seed"] >= FIRST_SEED:
            raise ConfigError(f"seed={config['seed']}: seeds from {FIRST_SEED} on are those of searches")
        if (mode := config["debug"]["mode"]) != "none":
            raise ConfigError(f"debug={mode}: is for one run, not for a sweep")
        words = [_word(point[i]) for i in factors]
        levels = {factor: point[i].partition("=")[2] for i, factor in factors.items()} or {"mixer": choices["mixer"]}
        folder = run_folder(config, choices, known)
        cell = " ".join(words) or choices["mixer"]
        words_of_match = match.overrides if match else []
        run = Planned(cell, levels, choices["mixer"], folder, config, [*point, *words_of_match], match)
        planned.setdefault(folder, run)
    return list(planned.values())


class Composer:
    """Composes the points of a grid as Hydra does, and quickly: it takes Hydra 50 ms and more for each.

    Points that differ in values alone, of keys that are there, share one composition. A value is converted and checked
    by OmegaConf, once for each; interpolations and whatever else could make a difference are left to Hydra.
    """

    VALUE = re.compile(r"(seed|\w+(\.\w+)+)=")  # no choice of a group, nothing added or deleted

    NODE = re.compile(r"[+~]+\w+(\.\w+)+(=|$)|[+~]*[\w.]+=\{")  # added, deleted, or several keys at once

    def __init__(self, loader: ConfigLoader, cfg: DictConfig) -> None:
        self.loader, self.cfg = loader, cfg
        self.parse = OverridesParser.create(config_loader=loader).parse_override
        self.base = lru_cache(None)(self._base)
        self.value = lru_cache(None)(self._value)

    def compose(self, point: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
        """What was chosen, and the validated configuration."""
        values = {override.partition("=")[0]: override for override in point if self.VALUE.match(override)}
        fixed = tuple(override for override in point if not self.VALUE.match(override))
        # Where two overrides reach the same key, their order counts.
        others = [o.lstrip("+~").partition("=")[0] for o in fixed if self.NODE.match(o)]
        nested = any(f"{a}.".startswith(f"{b}.") for a in values for b in [*values, *others] if a is not b)
        nested |= any(b.startswith(f"{a}.") for a in values for b in others)
        choices, _, plain = self.base(fixed)
        try:
            if plain is None or nested or len(values) + len(fixed) < len(point):
                raise LookupError
            config = copy.deepcopy(plain)
            for key, override in values.items():
                *path, last = key.split(".")
                # Only the keys of a mixer are not those of the schema, and differ from choice to choice.
                of = fixed if path[:1] == ["mixer"] else self.first
                reduce(dict.__getitem__, path, config)[last] = copy.copy(self.value(of, override))
        except Exception:
            composed = self.loader.load_sweep_config(self.cfg, list(point))
            return choices_of(composed.hydra), validate(composed)
        return choices, check(config)

    def _base(self, fixed: tuple[str, ...]) -> tuple[dict[str, str], DictConfig, dict[str, Any] | None]:
        composed = self.loader.load_sweep_config(self.cfg, list(fixed))
        self.first = getattr(self, "first", fixed)
        choices, base = choices_of(composed.hydra), composed
        with open_dict(base):  # a masked copy would forget the type of `seed`, and that no key may be added
            del base["hydra"]
        plain: Any = OmegaConf.to_container(base, resolve=False)
        told = json.dumps(plain, default=str)
        return choices, base, None if "${" in told or "???" in told else plain

    def _value(self, fixed: tuple[str, ...], override: str) -> Any:
        parsed, base = self.parse(override), copy.deepcopy(self.base(fixed)[1])
        if isinstance(value := parsed.value(), dict):
            raise LookupError  # what it is merged with differs from choice to choice
        OmegaConf.update(base, parsed.key_or_group, value, merge=True)  # an error where there is no such key
        found = OmegaConf.select(base, parsed.key_or_group)
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def expand(arguments: Sequence[str]) -> list[Planned]:
    """The runs that a command line describes, without launching any: what `train -m` with it would go through."""
    register_config()
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        cfg = hydra.compose_config("train", list(arguments), run_mode=RunMode.MULTIRUN)
        return plan(hydra.config_loader, cfg, list(cfg.hydra.overrides.task))


def register() -> None:
    """Make the sweeper known to Hydra, which takes plugins from the namespace `hydra_plugins` only."""
    sys.modules["hydra_plugins.metaformer"] = sys.modules[__name__]
    Plugins.instance().register(StudySweeper)


def _factors(keys: Mapping[int, str]) -> dict[int, str]:
    """A short name for each key that varies, but the seed: its last word, or the whole where that is not enough."""
    short = {i: re.split(r"[./]", key)[-1] for i, key in keys.items() if key != "seed"}
    return {i: name if list(short.values()).count(name) == 1 else keys[i] for i, name in short.items()}


def _word(override: str) -> str:
    """`mixer=pooling` -> `pooling`, `+experiments/x=row` -> `row`, `recipe.lr=0.1` -> `lr=0.1`."""
    key, _, value = override.lstrip("+").partition("=")
    return value if key in GROUPS or "/" in key else f"{key.rpartition('.')[2]}={value}"


def _note_other_code(results: Any, console: Console) -> None:
    """One line where finished runs were made by another version of the code than this one."""
    others = sum(1 for result in results if result.get("code") != code_version())
    if others:
        console.print(f"note: {others} finished runs were made by other code; runtime.force=true trains them again")
