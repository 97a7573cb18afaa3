"""The points of a grid: every run that a command line describes, composed, validated and resolved, none launched."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from metaformer.config.compose import Choices, check_words, choices_of, config_of, key_of, loader, without_hydra
from metaformer.config.hydra_internals import load, points_of, size_of
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
    check(config.data, config.recipe)
    config, match = matched(config)
    config = replace(config, study=judged(config))
    return planned(config, choices, identify(config.data), known), match


def unread(data: Data) -> None:
    """An `identify` for those who want no ids: the images need not even be there."""


def expand(arguments: Sequence[str], identify: Identify = fingerprint) -> list[Point]:
    """The runs that a command line describes: what `train -m` with it would go through."""
    check_words(arguments)
    cfg = load(loader(), arguments, multirun=True)
    return points(loader(), cfg, list(cfg.hydra.overrides.task), identify)


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
    known, cells = folders_by_id(Path(cfg.runtime.runs)), Cells(config_loader, cfg)
    images: dict[str, str | None] = {}

    def identified(data: Data) -> str | None:
        if (key := repr(data)) not in images:
            images[key] = identify(data)
        return images[key]

    made: dict[Path, Point] = {}
    for point in found:
        choices, config = cells.compose(point)
        if config.study.name and config.seed >= FIRST_SEED:
            raise ConfigError(f"seed={config.seed}: seeds from {FIRST_SEED} on are those of searches")
        if config.debug.mode != "none":
            raise ConfigError(f"debug={config.debug.mode}: is for one run, not for a sweep")
        run, match = resolve(config, choices, known, identified)
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
    """Composes the points of a grid by Hydra. It takes 50 ms and more, so that the seeds of a cell share it."""

    def __init__(self, config_loader: ConfigLoader, cfg: DictConfig) -> None:
        self.loader, self.cfg = config_loader, cfg
        self.known: dict[tuple[str, ...], tuple[Choices, Config]] = {}

    def compose(self, point: Sequence[str]) -> tuple[Choices, Config]:
        """What was chosen, and the validated configuration."""
        seeds = [word for word in point if re.fullmatch(r"seed=\d+", word)]
        cell = tuple(word for word in point if word not in seeds)
        if any(key_of(word) == "seed" for word in cell):
            seeds = []  # two words set it, and their order counts
        if len(seeds) == 1 and cell in self.known:
            choices, config = self.known[cell]
            config = replace(config, seed=int(seeds[0].removeprefix("seed=")))
            check_fields(config, "seed")  # the rest of the cell was validated
            return choices, config
        composed = self.loader.load_sweep_config(self.cfg, list(point))
        choices, config = choices_of(composed.hydra), config_of(composed)
        if "${" not in OmegaConf.to_yaml(
            without_hydra(composed), resolve=False
        ):  # what is interpolated may depend on the seed
            self.known[cell] = choices, config
        return choices, config


def _factors(keys: Mapping[int, str]) -> dict[int, str]:
    """A short name for each key that varies, but the seed: its last word, or the whole where that is not enough."""
    short = {i: re.split(r"[./]", key)[-1] for i, key in keys.items() if key != "seed"}
    return {i: name if list(short.values()).count(name) == 1 else keys[i] for i, name in short.items()}


def _word(override: str) -> str:
    """`mixer=pooling` -> `pooling`, `+experiments/x=row` -> `row`, `recipe.lr=0.1` -> `lr=0.1`."""
    key, _, value = override.lstrip("+").partition("=")
    return value if key in GROUPS or "/" in key else f"{key.rpartition('.')[2]}={value}"
