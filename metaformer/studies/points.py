"""The points of a grid: every run that a command line describes, composed, validated and resolved, none launched."""

import contextlib
import copy
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metaformer.config.compose import Choices, check_words, choices_of, config_of, given_words, key_of, loader
from metaformer.config.hydra_internals import load, node_of, parsed, points_of, size_of, with_values
from metaformer.config.identity import content_of
from metaformer.config.schema import GROUPS, Config, Data
from metaformer.config.validate import check_fields, judged
from metaformer.data.registry import check, fingerprint
from metaformer.runs.folder import Planned, folders_by_id, planned
from metaformer.runs.launch import Entry
from metaformer.studies.budget import Match, matched
from metaformer.system.errors import ConfigError

FIRST_SEED = 1000  # of searches; studies have smaller ones


Identify = Callable[[Data], str | None]  # a data set -> the fingerprint of its images


@dataclass(frozen=True)
class Point:
    """A run of a study before it is launched."""

    cell: str  # what was varied, as it was typed, without the seed
    levels: dict[str, str]  # the same by factor: {"mixer": "pooling", "lr": "0.01"}
    overrides: list[str]  # what makes it, on a command line
    run: Planned
    match: Match | None = None  # how it was matched to a budget

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def entry(self) -> Entry:
        """The point as launch.json lists it."""
        return Entry(self.cell, self.levels, self.run.choices["mixer"], self.config.seed, self.run.run_id)


def resolve(
    config: Config, choices: Choices, known: Mapping[str, list[Path]] | None = None, identify: Identify = fingerprint
) -> tuple[Planned, Match | None]:
    """From a validated configuration to the run that it is: it meets its budget, its images are known, it has ids.

    Args:
        known: `folders_by_id`, where it is asked for many runs.
        identify: the fingerprint of the images of a data set.
    """
    check(config.data, config.recipe, config.task)
    config, match = matched(config)
    config = replace(config, study=judged(config))
    return planned(config, choices, identify(config.data), known), match


def unread(data: Data) -> None:
    """An `identify` for those who want no ids: the images need not even be there."""


def expand(arguments: Sequence[str], identify: Identify = fingerprint) -> list[Point]:
    """The runs that a command line describes: what `train -m` with it would go through."""
    check_words(arguments)
    cfg = load(loader(), arguments, multirun=True)
    return points(loader(), cfg, given_words(cfg), identify)


def points(
    config_loader: ConfigLoader, cfg: DictConfig, arguments: Sequence[str], identify: Identify = fingerprint
) -> list[Point]:
    """Every run of the grid of a composed study; a run that two points of the grid describe is listed once."""
    grid = [f"{key!s}={values}" for key, values in (cfg.hydra.sweeper.params or {}).items()]
    _check_size(size_of(config_loader, [*grid, *arguments]), cfg.runtime.most_runs)
    found = points_of(config_loader, [*grid, *arguments])
    if not found:
        empty = next(word for word in [*grid, *arguments] if not points_of(config_loader, [word]))
        raise ConfigError(f"{empty}: expected a value at least, or the grid has no point")
    varied = {i: values[0] for i, values in enumerate(zip(*found, strict=True)) if len(set(values)) > 1}
    factors = _factors({i: key_of(override) for i, override in varied.items()})
    cells = Cells(config_loader, cfg, identify)
    made: dict[Path, Point] = {}
    for point in found:
        run, match = cells.run_of(point)
        choices = run.choices
        levels = {factor: point[i].partition("=")[2] for i, factor in factors.items()} or {"mixer": choices["mixer"]}
        cell = " ".join(_word(point[i]) for i in factors) or choices["mixer"]
        made.setdefault(run.folder, Point(cell, levels, [*point, *(match.overrides if match else [])], run, match))
    return list(made.values())


def _check_size(runs: int, most: int) -> None:
    """Refuse what is rarely meant, and say what takes its time: a thousand runs need seconds until they are planned."""
    if runs > most:
        raise ConfigError(f"{runs:,} runs: more than runtime.most_runs={most}; set it higher where they are meant")
    if runs > 1000:
        print(f"{runs:,} runs: planning them takes a moment", file=sys.stderr)


class Cells:
    """The runs of the points of a grid, exactly as Hydra composes them, and 50 times faster.

    Hydra takes 50 ms and more to compose. Here it composes once for each choice of files, whatever the mixer is where
    no file but its own has to do with it; values go over a copy of that, by Hydra's own function; and the seeds of a
    cell share what was found of it.
    """

    def __init__(self, config_loader: ConfigLoader, cfg: DictConfig, identify: Identify) -> None:
        self.loader, self.cfg, self.identify = config_loader, cfg, identify
        self.folders = folders_by_id(Path(cfg.runtime.runs))
        self.composed: dict[tuple[str, ...], tuple[DictConfig, Choices]] = {}  # by the words that choose files
        self.without: dict[tuple[str, ...], tuple[DictConfig, Choices] | None] = {}  # the same, for any mixer
        self.known: dict[tuple[str, ...], tuple[Planned, Match | None, dict[str, Any]]] = {}  # by words but the seed
        self.images: dict[str, str | None] = {}

    def run_of(self, point: Sequence[str]) -> tuple[Planned, Match | None]:
        """The run that a point of the grid is, and how it was matched to its budget."""
        seeds = [word for word in point if key_of(word) == "seed"]
        cell = tuple(word for word in point if word not in seeds)
        if cell in self.known and len(seeds) == 1 and re.fullmatch(r"seed=\d+", seeds[0]):
            run, match, content = self.known[cell]
            config = replace(run.config, seed=int(seeds[0].removeprefix("seed=")))
            check_fields(config, "seed")  # the rest of the cell was validated
            _check_point(config)
            content = {**content, "seed": config.seed}
            return planned(config, run.choices, run.fingerprint, self.folders, content), match
        with self.compose(point) as (composed, choices):
            config, interpolated = config_of(composed), _interpolated(composed)
        _check_point(config)
        run, match = resolve(config, choices, self.folders, self._identified)
        if not interpolated:  # what is may depend on the seed
            self.known[cell] = run, match, content_of(run.config, run.fingerprint)
        return run, match

    @contextlib.contextmanager
    def compose(self, point: Sequence[str]) -> Iterator[tuple[DictConfig, Choices]]:
        """What Hydra composes of a point, but for its own node, and what is chosen in the groups; to be looked at."""
        words = parsed(self.loader, point)
        values = [word for word in words if _is_value(word)]
        files = tuple(str(word.input_line) for word in words if word not in values)
        if any(isinstance(word.value(), dict) for word in words if word not in values):
            yield self._whole(point)  # a node for a group: its place counts
            return
        if files not in self.composed:
            self.composed[files] = self._with_mixer(words, files) or self._whole(files)
        composed, choices = self.composed[files]
        with with_values(composed, values) as changed:
            yield changed, choices

    def _with_mixer(self, words: Sequence[Override], files: tuple[str, ...]) -> tuple[DictConfig, Choices] | None:
        """What is composed of files, by what they are without a mixer; None where others look at it or change it."""
        nodes = [(word, node) for word in words if (node := node_of(self.loader, "mixer", word)) is not None]
        if len(nodes) != 1:
            return None
        [(word, node)] = nodes
        others = tuple("~mixer" if name == word.input_line else name for name in files)
        if others not in self.without:
            self.without[others] = self._without_mixer(others)
        if (found := self.without[others]) is None:
            return None
        composed = copy.deepcopy(found[0])
        with open_dict(composed):
            composed.mixer = node
        return composed, {**found[1], "mixer": str(word.value())}

    def _without_mixer(self, words: Sequence[str]) -> tuple[DictConfig, Choices] | None:
        try:
            composed = self.loader.load_sweep_config(self.cfg, list(words))
        except (HydraException, OmegaConfBaseException):
            return None  # a file is named after the mixer
        return None if composed.mixer else _parts(composed)

    def _whole(self, words: Sequence[str]) -> tuple[DictConfig, Choices]:
        return _parts(self.loader.load_sweep_config(self.cfg, list(words)))

    def _identified(self, data: Data) -> str | None:
        if (key := repr(data)) not in self.images:
            self.images[key] = self.identify(data)
        return self.images[key]


def _parts(composed: DictConfig) -> tuple[DictConfig, Choices]:
    """A composed configuration without Hydra's own node, and what that tells of the choices."""
    choices = choices_of(composed.hydra)
    with open_dict(composed):  # a masked copy would no longer refuse keys that are not there
        del composed["hydra"]
    return composed, choices


def _is_value(word: Override) -> bool:
    """Whether a word sets the seed or a key below a node of the schema, and chooses no file."""
    key = str(word.key_or_group)
    return (
        ("." in key or key == "seed")
        and "/" not in key
        and key.partition(".")[0] in Config.__dataclass_fields__
        and not word.package
    )


def _interpolated(composed: DictConfig) -> bool:
    return "${" in str(OmegaConf.to_container(composed, resolve=False))


def _check_point(config: Config) -> None:
    if config.study.name and config.seed >= FIRST_SEED:
        raise ConfigError(f"seed={config.seed}: seeds from {FIRST_SEED} on are those of searches")
    if config.debug.mode != "none":
        raise ConfigError(f"debug={config.debug.mode}: is for one run, not for a sweep")


def _factors(keys: Mapping[int, str]) -> dict[int, str]:
    """A short name for each key that varies, but the seed: its last word, or the whole where that is not enough."""
    short = {i: re.split(r"[./]", key)[-1] for i, key in keys.items() if key != "seed"}
    return {i: name if list(short.values()).count(name) == 1 else keys[i] for i, name in short.items()}


def _word(override: str) -> str:
    """`mixer=pooling` -> `pooling`, `+experiments/x=row` -> `row`, `recipe.lr=0.1` -> `lr=0.1`."""
    key, _, value = override.lstrip("+").partition("=")
    return value if key in GROUPS or "/" in key else f"{key.rpartition('.')[2]}={value}"
