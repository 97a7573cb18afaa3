"""A search finds rates on validation images and on seeds of its own, with the same budget for every mixer."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from hydra.errors import MissingConfigException

from metaformer import config as cfg
from metaformer.schema import ConfigError
from metaformer.study import expand

SEARCH = ("-m", "hydra/sweeper=search", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=found", *TINY, "recipe.epochs=1")


def results() -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("*/result.json")}


def best_of() -> dict:
    return yaml.safe_load(Path("found/optimization_results.yaml").read_text())


def test_a_search_is_repeatable_judged_on_validation_and_goes_on(cli):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling")
    assert done.returncode == 0, done.stderr
    trials = results()
    assert len(trials) == 3
    assert {result["seed"] for result in trials.values()} == {1000}
    best = best_of()
    chosen = max(trials.values(), key=lambda result: result["metrics"]["val_accuracy"])
    assert best["best_value"] == chosen["metrics"]["val_accuracy"]
    assert best["best_params"]["recipe.lr"] == chosen["config"]["recipe"]["lr"]
    assert done.stderr.count(": lr 0.0") == 3

    again = cli("train", *SEARCH, "mixer=pooling", "hydra.sweeper.n_trials=4")
    assert again.returncode == 0, again.stderr
    assert len(results()) == 4  # the first three were found
    assert results().items() >= trials.items()


def test_a_trial_that_diverges_is_a_bad_one_and_not_the_end(cli):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling", "hydra/launcher=basic", "recipe.lr=choice(1e-2,1e20)")
    assert done.returncode == 0, done.stderr
    best = best_of()
    assert best["best_params"]["recipe.lr"] == 0.01
    assert "diverged: loss is nan" in done.stderr


def test_seeds_of_studies_and_of_searches_are_not_mixed(cli):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling", "seed=3", "hydra/launcher=basic")
    assert done.returncode == 2, done.stderr
    assert "error: seed=3: a search has seeds from 1000 on, which no study reports" in done.stderr
    with pytest.raises(ConfigError, match="seed=1000: seeds from 1000 on are those of searches"):
        expand(["experiments=quickstart", "seed=0,1000"])


def test_a_search_that_would_minimise_accuracy_is_refused(cli):
    pytest.importorskip("optuna")
    options = ("hydra/sweeper=optuna", "hydra/launcher=basic", *TINY, "seed=1000", "recipe.lr=choice(1e-2,1e-3)")
    done = cli("train", "-m", *options)
    assert done.returncode == 2, done.stderr
    assert "error: hydra.sweeper.direction: expected maximize" in done.stderr


def test_a_wrong_configuration_ends_a_search(cli):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling", "recipe.batch=0", "hydra/launcher=basic")
    assert done.returncode == 2, done.stderr
    assert "error: recipe.batch=0: expected at least 1" in done.stderr


@pytest.mark.parametrize(("name", "extra"), [("optuna", "optuna"), ("submitit_slurm", "slurm")])
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(name, extra):
    error = MissingConfigException(missing_cfg_file=f"hydra/x/{name}", message="", options=["basic"])
    assert cfg.explain(error) == f"hydra/x={name}: not installed; it comes with pip install 'metaformer-bench[{extra}]'"
