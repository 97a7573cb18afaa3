"""The one file that uses Hydra's private interfaces; tests/config/test_hydra_internals.py tells when they change.

Composition without a command of Hydra's, beside one that is running too: Hydra's public `compose` goes through a global
state, which belongs to whoever set it up first.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import Container, DictConfig


def loader_of(folder: Path) -> ConfigLoader:
    """A loader for the configuration files in a folder."""
    Plugins.instance()
    setup_globals()
    return ConfigLoaderImpl(create_config_search_path(str(folder)))


def load(loader: ConfigLoader, overrides: Sequence[str], *, multirun: bool = False) -> DictConfig:
    """Compose `train.yaml` with overrides; in a multirun they may be sweeps, which are not expanded here."""
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    return loader.load_configuration("train", list(overrides), run_mode=mode)


@contextlib.contextmanager
def with_values(composed: DictConfig, values: Sequence[Override]) -> Iterator[DictConfig]:
    """A composed configuration with values over it: what composing it with them gives, but for Hydra's own node.

    It is as it was afterwards. Only the nodes that the values change are copied: to copy all of it takes 10 ms.
    """
    content = composed.__dict__["_content"]
    before = dict(content)
    try:
        for name in {str(value.key_or_group).partition(".")[0] for value in values} & set(content):
            content[name] = copy.deepcopy(content[name])
        ConfigLoaderImpl._apply_overrides_to_config(list(values), composed)
        yield composed
    finally:
        content.clear()
        content.update(before)


def node_of(loader: ConfigLoader, group: str, word: Override) -> Container | None:
    """The whole of what a word chooses; None where it is no file of a group, or one with defaults or a package."""
    if word.get_key_element() != group or word.type != OverrideType.CHANGE or not isinstance(word.value(), str):
        return None
    found = loader.repository.load_config(f"{group}/{word.value()}")  # type: ignore[attr-defined]
    plain = found and not found.defaults_list and not any(found.header.values())
    return found.config if plain else None


def parsed(loader: ConfigLoader, words: Sequence[str]) -> list[Override]:
    """The words of a command line as Hydra reads them."""
    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def size_of(loader: ConfigLoader, words: Sequence[str]) -> int:
    """How many points a grid has, without making them."""
    sweeps = [override.value() for override in parsed(loader, words) if override.is_discrete_sweep()]
    return math.prod(_values(sweep) for sweep in sweeps)


def _values(sweep: Any) -> int:
    if isinstance(sweep, RangeSweep):
        return max(0, math.ceil((sweep.stop - sweep.start) / sweep.step))  # type: ignore[operator]
    return len(sweep.list) if isinstance(sweep, ChoiceSweep) else 1  # the names that a glob finds are few


def points_of(loader: ConfigLoader, words: Sequence[str]) -> list[list[str]]:
    """Every point of a grid, as the overrides that describe it, in the order of Hydra's own sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # not before Hydra has loaded its plugins

    return BasicSweeper.split_arguments(parsed(loader, words), None)[0]


def make_launcher(context: HydraContext, task: TaskFunction, cfg: DictConfig) -> Launcher:
    """The launcher that a configuration names, about to run `task`."""
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)


@contextlib.contextmanager
def in_mode(mode: RunMode | None) -> Iterator[None]:
    """Spare Hydra's command to compose only to learn whether it is a multirun."""
    asked = Hydra.get_mode
    Hydra.get_mode = lambda self, config_name, overrides: mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = asked  # type: ignore[method-assign]


def flags() -> list[str]:
    """What Hydra's own command line knows beside overrides, like --cfg."""
    return [*get_args_parser()._option_string_actions]


def begin_workers_with(launcher: Launcher, options: Mapping[str, Any]) -> None:
    """Give joblib's launcher more options for its workers than Hydra lets it have; other launchers have no workers."""
    if type(launcher).__name__ == "JoblibLauncher":
        vars(launcher)["joblib"] |= options


def lost(error: Exception) -> JobReturn:
    """In place of what a job returns whose process is gone; of a failed job Hydra would print and raise the error."""
    return JobReturn(_return_value=error, status=JobStatus.COMPLETED)


def launched(launcher: Launcher, jobs: Sequence[Sequence[str]]) -> list[Any]:
    """What each job returned, or the error of one whose process is gone where the launcher tells which it was.

    That of submitit raises the first such error at once, while the other jobs still train.
    """
    if "BaseSubmititLauncher" not in (kind.__name__ for kind in type(launcher).__mro__):
        return [job.return_value for job in launcher.launch(jobs, initial_job_idx=0)]
    from submitit import Job

    results = Job.results

    def or_its_error(job: Any) -> list[Any]:
        try:
            return results(job)
        except Exception as error:  # whatever ended it
            return [lost(error)]

    Job.results = or_its_error  # type: ignore[assignment, method-assign]
    try:
        return [job.return_value for job in launcher.launch(jobs, initial_job_idx=0)]
    finally:
        Job.results = results  # type: ignore[method-assign]


def register_plugin(plugin: type[Plugin]) -> None:
    """Make a sweeper or a launcher known to Hydra."""
    Plugins.instance().register(plugin)
