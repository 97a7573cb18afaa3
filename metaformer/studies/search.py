"""A search: one run for each trial, and Hydra's Optuna sweeper, before whose first trial a bad value is refused."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from metaformer.config.compose import config_of, key_of
from metaformer.config.hydra_internals import parsed
from metaformer.config.metrics import in_words, metric_of, selecting
from metaformer.data.registry import fingerprint
from metaformer.studies.points import FIRST_SEED, Cells
from metaformer.studies.refusal import refuse, warn
from metaformer.studies.worker import job
from metaformer.system.errors import ConfigError


class SearchSweeper(Sweeper):
    """Hydra's Optuna sweeper: it refuses before it begins what no trial could run, and says what it found."""

    __module__ = "hydra_plugins.metaformer"  # as that of studies

    config: DictConfig
    context: HydraContext

    def __init__(self, **options: Any) -> None:
        """`options` are those of Hydra's Optuna sweeper."""
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper

        self.optuna = OptunaSweeper(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, choices = hydra_context, config, config.hydra.runtime.choices
        if config.hydra.sweep.dir == ".":  # a search for each mixer, model and data set has its own file
            place = f"{choices.mixer}-{choices.model}-{choices.data}"
            config.hydra.sweep.dir = str(Path(config.runtime.runs) / "searches" / place)
        self.optuna.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        _check_direction(self.config.hydra.sweeper)
        for name in ("n_trials", "n_jobs"):
            if type(number := self.config.hydra.sweeper.get(name)) is not int or number < 1:
                raise ConfigError(f"hydra.sweeper.{name}={number}: expected a number of at least 1")
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        params = [f"{key!s}={value}" for key, value in (self.config.hydra.sweeper.params or {}).items()]
        self._refuse([*params, *arguments])
        self.optuna.sweep(arguments)
        found = yaml.safe_load((file := folder / "optimization_results.yaml").read_text())
        chosen = " ".join(f"{key}={_short(value)}" for key, value in found["best_params"].items())
        trials = self.optuna.sweeper.n_trials  # a grid may have fewer than were asked for
        print(f"best of {trials} trials: {chosen}: {_told(self.config, found['best_value'])}\n{file}")

    def _refuse(self, words: Sequence[str]) -> None:
        """Compose and prepare each value that a word can have, the others at their first, before any trial runs."""
        values = {key_of(word): list(self._values(word)) for word in words}  # the last of several words of a key counts
        if empty := [word for word in words if not values[key_of(word)]]:
            raise ConfigError(f"{empty[-1]}: expected a value at least")
        first = {key: listed[0] for key, listed in values.items()}
        cells, tried = Cells(self.context.config_loader, self.config, fingerprint), {}
        for key, listed in values.items():
            for word in listed:
                run, _ = cells.run_of([*{**first, key: word}.values()])
                check_seed(run.config.seed)
                tried[run.choices["mixer"] if word == first[key] else word] = run.config
        refuse(tried, here=str(self.config.hydra.runtime.choices["hydra/launcher"]) not in ("slurm", "ray"))

    def _values(self, word: str) -> Iterator[str]:
        """What a word can become: `a=choice(1,2)` a=1 and a=2, `a=interval(1,2)` its ends, any other itself."""
        (override,) = parsed(self.context.config_loader, [word])
        if override.is_interval_sweep():
            ends = override.value()
            yield from (f"{override.get_key_element()}={end}" for end in (ends.start, ends.end))  # type: ignore[union-attr]
        elif override.is_sweep_override():
            yield from (f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator())
        else:
            yield word


def trial(cfg: DictConfig) -> float:
    """Train or find one run; the study's metric on validation images, larger is better, and its worst where it failed.

    A rate at which a run diverges is a bad one.

    Raises:
        ConfigError: it cannot be run at all, now or ever, or it has the seed of a study.
    """
    check_seed(cfg.seed)
    _check_direction(HydraConfig.get().sweeper)
    warn(config_of(cfg))
    outcome = job(cfg)
    if outcome.status in ("refused", "held", "stopped"):
        raise ConfigError(f"{outcome.name}: {outcome.reason}" if outcome.status == "stopped" else outcome.reason)
    name = selecting(cfg.study.analysis.metric)
    metric = metric_of(name)
    value = (outcome.result.metrics[name] if outcome.result else metric.worst) * (1 if metric.higher else -1)
    rates = f"lr {cfg.recipe.lr:.3g}, weight decay {cfg.recipe.weight_decay:.3g}"
    print(f"{outcome.name}: {rates}: {outcome.reason or _told(cfg, value)}", file=sys.stderr)
    return value


def _told(cfg: DictConfig, value: float) -> str:
    """What a trial returned, in words: a metric of which less is better is negated."""
    name = selecting(cfg.study.analysis.metric)
    metric = metric_of(name)
    return f"{in_words(name)} {metric.told(value if metric.higher else -value)}"


def check_seed(seed: int) -> None:
    """Refuse the seed of a study.

    Raises:
        ConfigError: it is one.
    """
    if seed < FIRST_SEED:
        raise ConfigError(f"seed={seed}: a search has seeds from {FIRST_SEED} on, which no study reports")


def _check_direction(sweeper: Any) -> None:
    if not str(sweeper.get("direction", "maximize")).endswith("maximize"):  # Optuna's own default is the opposite
        raise ConfigError(
            "hydra.sweeper.direction: expected maximize, a metric that falls is negated; hydra/sweeper=search has it"
        )


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
