import os
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preloaded import Preloaded

from metaformer.config import compose as composition
from metaformer.config.schema import Config, Model, Recipe, Runtime
from metaformer.config.study_nodes import Analysis, Study
from metaformer.runs.launch import Entry, Run
from metaformer.runs.result import Result, reported, write_result

torch.set_num_threads(1)
MIXERS = ("identity", "pooling", "attention", "fourier", "spatial_mlp", "depthwise", "sepconv", "random")
MIXERS += ("shift", "max_pooling", "global_filter", "afno", "window_attention", "linear_attention")
MIXERS += ("spatial_reduction", "large_kernel", "conv", "grouped_conv", "neighbourhood_attention", "state_space")
MIXERS += ("xca", "outlook_attention", "focal_modulation", "gated_conv", "spatial_gating")
TINY = ("data=digits", "recipe.epochs=2", "runtime.threads=1", "runtime.progress=false")
HERE = "hydra.launcher.n_jobs=1"  # a sweep that is not about its workers, which import all for seconds of a core each


_composed: dict[tuple[str, ...], Config] = {}  # Hydra takes a tenth of a second


def compose(*overrides: str) -> Config:
    """A validated configuration, as a run gets it; composed once where no file of the test can be meant."""
    if any(Path.cwd().iterdir()):
        return composition.compose(overrides)
    if overrides not in _composed:
        _composed[overrides] = composition.compose(overrides)
    return deepcopy(_composed[overrides])


def configured(name: str, dim: int = 32, resolution: tuple[int, int] = (7, 5), *overrides: str) -> torch.nn.Module:
    """A mixer of conf/mixer, with the weights of seed 0."""
    from metaformer.mixers.factory import build, from_config

    torch.manual_seed(0)
    return build(from_config(compose(f"mixer={name}", *overrides).mixer, 4)[0], dim, resolution)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test works in an empty folder, as a user of the installed package does."""
    torch.manual_seed(0)  # whatever ran before in this process
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}-cache")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(scope="session")
def preloaded():
    server = Preloaded()
    yield server
    server.close()


@pytest.fixture
def cli(tmp_path_factory, preloaded):
    """Run `python -m metaformer.<verb> ...` in the folder where the test is."""

    def call(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "200"}
        said = tmp_path_factory.mktemp("said")
        return preloaded.run(f"metaformer.{verb}", arguments, Path.cwd(), environment, said)

    return call


@pytest.fixture
def refusal(capsys, monkeypatch):
    """The one line that a command (its module), run in this process, says of arguments that it refuses."""

    def call(command, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
        with pytest.raises(SystemExit) as left:
            command.main()
        said = capsys.readouterr().err
        assert (left.value.code, said.count("\n")) == (2, 1), said
        return said

    return call


LONG = ("test_readme.py", "test_speed.py", "test_tutorial.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes goes first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


def repository() -> Path:
    return Path(__file__).resolve().parent.parent


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The blocks of code of a page: language and text."""
    return re.findall(r"```(\w+)\n(.*?)```", (repository() / page).read_text(), re.DOTALL)


def write_readme_files(folder: Path) -> None:
    """The files that the pages tell their reader to write: a mixer, its configuration, a study, a data set."""
    for kind, text in (
        block for page in ("README.md", "experiments/README.md", "conf/README.md") for block in blocks_of(page)
    ):
        name = re.search(r"^# (\S+\.(?:py|yaml))$", text, re.MULTILINE)
        if kind in ("python", "yaml") and name:
            (folder / name[1]).parent.mkdir(exist_ok=True)
            (folder / name[1]).write_text(text)


def study(**analysis: Any) -> Study:
    return Study("mine", "Which?", "pooling", Analysis(**{"tolerance": 0.1, **analysis}))


NODES = {"model": Model, "recipe": Recipe, "runtime": Runtime}


def result_of(seed: int, accuracy: float, identity: str = "", **changes: Any) -> Result:
    """A result as a run leaves it; `model={"norm": "layer"}` changes a node of its configuration."""
    mixer = {"_target_": changes.pop("mixer", "x")}
    nodes = {name: kind(**changes.pop(name, {})) for name, kind in NODES.items()}
    config = Config(mixer=mixer, seed=seed, **nodes)
    result = Result(
        metrics=dict.fromkeys(reported("classification"), accuracy), recall={"cat": accuracy, "dog": 0.5},
        confusion=[[300, 100], [200, 200]], params=1000, trainable=1000, macs=2_000_000, uncounted_ops=[],
        epochs=config.recipe.epochs, tested_epoch=1, images=100, seconds=10.0, threads=1, devices=1, accumulate=1,
        device="cpu", versions={"torch": "2"},
        name=f"run-{identity}", choices={"mixer": "pooling", "model": "tiny"}, run_id=identity, cell_id="c", seed=seed,
        host="here", python="3.11", training_version=1, git=None, finished="2026-01-02T00:00:00+00:00",
        fingerprint=None, config=config,
    )  # fmt: skip
    return replace(result, **changes)


def runs_of(**cells: list[float]) -> list[Run]:
    """Finished runs: `pooling=[0.7, 0.8]` or, with an architecture, `flat_pooling=[...]`, a value for each seed."""
    made = []
    for name, accuracies in cells.items():
        architecture, _, mixer = name.rpartition("_")
        levels = {"architecture": architecture, "mixer": mixer} if architecture else {"mixer": mixer}
        changes: dict[str, Any] = {"model": {"name": architecture}} if architecture else {}
        for seed, accuracy in enumerate(accuracies):
            result = result_of(seed, accuracy, f"{name}{seed}".replace("_", ""), mixer=mixer, **changes)
            cell = " ".join(levels.values())
            made.append(Run(cell, levels, mixer, seed, result.run_id, None, result))
    return made


def on_disk(runs: list[Run], folder: Path, images: int = 200) -> list[Entry]:
    """Write the folders of finished runs; returns them as launch.json lists them."""
    random = np.random.default_rng(0)
    for run in runs:
        place = folder / run.result.name
        place.mkdir(parents=True)
        right = round(images * run.result.metrics["test_accuracy"])
        labels = np.zeros(images, dtype=np.int16)
        predictions = random.permutation(np.repeat([0, 1], [right, images - right])).astype(np.int16)
        np.savez_compressed(place / "predictions.npz", predictions=predictions, labels=labels)
        run.result.metrics["test_accuracy"] = right / images
        curve = "".join(f"{epoch},{0.1 * epoch}\n" for epoch in (1, 2, 3))
        (place / "metrics.csv").write_text("epoch,val_accuracy\n" + curve)
        write_result(place, run.result)
    return [Entry(r.cell, dict(r.levels), r.mixer, r.seed, r.run_id) for r in runs]
