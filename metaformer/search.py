"""A search over keys of one cell with hydra/sweeper=search: each trial is a run, judged by its validation accuracy."""

import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metaformer.run import job
from metaformer.schema import ConfigError

FIRST_SEED = 1000  # of searches; studies report smaller ones


def trial(cfg: DictConfig) -> float:
    """Train or find one run; its validation accuracy, and 0 where it failed: a rate at which it diverges is a bad one.

    Raises:
        ConfigError: it cannot be run at all, or it has the seed of a study.
    """
    if cfg.seed < FIRST_SEED:
        raise ConfigError(f"seed={cfg.seed}: a search has seeds from {FIRST_SEED} on, which no study reports")
    sweeper = HydraConfig.get().sweeper
    if not str(sweeper.get("direction", "maximize")).endswith("maximize"):  # Optuna's own default is the opposite
        raise ConfigError("hydra.sweeper.direction: expected maximize, an accuracy; hydra/sweeper=search has it")
    outcome = job(cfg)
    if outcome["status"] == "refused":
        raise ConfigError(outcome["reason"])
    accuracy = outcome["result"]["metrics"]["val_accuracy"] if "result" in outcome else 0.0
    words = outcome.get("reason") or f"val {accuracy:.2%}"
    rates = f"lr {cfg.recipe.lr:.3g}, weight decay {cfg.recipe.weight_decay:.3g}"
    print(f"{outcome['name']}: {rates}: {words}", file=sys.stderr)
    return accuracy
