"""A search finds rates on validation images and on seeds of its own, with the same budget for every mixer."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import HERE, TINY
from hydra.errors import MissingConfigException

from metaformer.config.compose import loader
from metaformer.config.explain import explain
from metaformer.config.hydra_internals import load
from metaformer.studies import search, worker
from metaformer.studies.points import expand
from metaformer.system.errors import ConfigError, install

SEARCH = ("-m", "hydra/sweeper=search", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=found", *TINY, "recipe.epochs=1")


def results() -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("*/result.json")}


def best_of() -> dict:
    return yaml.safe_load(Path("found/optimization_results.yaml").read_text())


def test_a_search_is_repeatable_judged_on_validation_and_goes_on(cli):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling", HERE)
    assert done.returncode == 0, done.stderr
    trials = results()
    assert len(trials) == 3
    assert {result["seed"] for result in trials.values()} == {1000}
    best = best_of()
    chosen = max(trials.values(), key=lambda result: result["metrics"]["val_accuracy"])
    assert best["best_value"] == chosen["metrics"]["val_accuracy"]
    assert best["best_params"]["recipe.lr"] == chosen["config"]["recipe"]["lr"]
    assert done.stderr.count(": lr 0.0") == 3
    rate, accuracy = f"recipe.lr={best['best_params']['recipe.lr']:.4g}", f"{best['best_value']:.2%}"
    assert f"best of 3 trials: {rate} recipe.weight_decay=" in done.stdout
    assert done.stdout.endswith(f": validation accuracy {accuracy}\nfound/optimization_results.yaml\n")

    again = cli("train", *SEARCH, "mixer=pooling", "hydra.sweeper.n_trials=4", HERE)
    assert again.returncode == 0, again.stderr
    assert len(results()) == 4  # the first three were found
    assert results().items() >= trials.items()


def test_a_trial_that_diverges_is_a_bad_one_and_not_the_end(cli):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling", "hydra/launcher=basic", "recipe.lr=choice(1e-2,1e18)")
    assert done.returncode == 0, done.stderr
    best = best_of()
    assert best["best_params"]["recipe.lr"] == 0.01
    assert "diverged: loss is nan" in done.stderr


@pytest.mark.parametrize("status", ["refused", "held", "stopped"])
def test_a_trial_that_did_not_run_is_no_bad_one(monkeypatch, status):
    monkeypatch.setattr(search.HydraConfig, "get", lambda: SimpleNamespace(sweeper={}))
    monkeypatch.setattr(search, "job", lambda _: worker.Outcome("pooling", status, reason="for a reason"))
    with pytest.raises(ConfigError, match="for a reason"):
        search.trial(load(loader(), ["seed=1000"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=3"], "seed=3: a search has seeds from 1000 on, which no study reports"),
        (["recipe.batch=0"], "recipe.batch=0: expected at least 1"),
        (["recipe.batch=choice(16,0)"], "recipe.batch=0: expected at least 1"),
        (["recipe.epochs=range(1,1)"], "recipe.epochs=range(1,1): expected a value at least"),
        (["recipe.lr=interval(-1,1)"], "recipe.lr=-1.0: expected at least 0"),
        (["recipe.optimizer=sgdd"], "recipe.optimizer=sgdd: not one of timm's; did you mean 'sgd'? (cell pooling)"),
        (["hydra.sweeper.n_jobs=-1"], "hydra.sweeper.n_jobs=-1: expected a number of at least 1"),
        (["hydra.sweeper.direction=minimize"], "hydra.sweeper.direction: expected maximize"),
        (["hydra/sweeper=optuna", "seed=1000", "recipe.lr=choice(1e-2,1e-3)"], "hydra.sweeper.direction: expected"),
    ],
)
def test_a_search_that_cannot_be_right_ends_with_one_line(cli, overrides, message):
    pytest.importorskip("optuna")
    done = cli("train", *SEARCH, "mixer=pooling", "hydra/launcher=basic", *overrides)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    if "hydra/sweeper=optuna" not in overrides:  # before the first trial
        assert len(done.stderr.splitlines()) == 1
    assert not Path("runs").exists()


def test_the_best_of_a_search_has_a_file_for_each_mixer_model_and_data_set(cli):
    pytest.importorskip("optuna")
    words = [word for word in SEARCH if not word.startswith("hydra.sweep.dir")]
    done = cli("train", *words, "hydra/launcher=basic", "hydra.sweeper.n_trials=1")
    assert done.returncode == 0, done.stderr
    assert Path("runs/searches/pooling-tiny-digits/optimization_results.yaml").exists()


def test_seeds_of_searches_are_not_those_of_studies():
    with pytest.raises(ConfigError, match="seed=1000: seeds from 1000 on are those of searches"):
        expand(["experiments=quickstart", "seed=0,1000"])


@pytest.mark.parametrize(("name", "extra"), [("optuna", "optuna"), ("submitit_slurm", "slurm")])
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(name, extra):
    error = MissingConfigException(missing_cfg_file=f"hydra/x/{name}", message="", options=["basic"])
    assert explain(error) == f"hydra/x={name}: not installed; it comes with {install(extra)}"
