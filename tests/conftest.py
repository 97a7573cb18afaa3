import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metaformer import config as cfg
from metaformer.launch import Run
from metaformer.validation import validate

torch.set_num_threads(1)
MIXERS = ("identity", "pooling", "attention", "fourier", "spatial_mlp", "depthwise", "sepconv", "random")
MIXERS += ("shift", "max_pooling", "global_filter", "afno", "window_attention", "linear_attention")
MIXERS += ("spatial_reduction", "large_kernel")
TINY = ("data=digits", "recipe.epochs=2", "runtime.threads=1", "runtime.progress=false")


def compose(*overrides: str) -> dict:
    """A validated configuration, as a run gets it."""
    return validate(cfg.compose(overrides))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test works in an empty folder, as a user of the installed package does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}-cache")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def cli(tmp_path):
    """Run `python -m metaformer.<verb> ...` in the test's folder."""

    def call(verb: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"metaformer.{verb}", *arguments]
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, **options)

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


def repository() -> Path:
    return Path(__file__).resolve().parent.parent


def readme_blocks() -> list[tuple[str, str]]:
    """The README's blocks of code: language and text."""
    return re.findall(r"```(\w+)\n(.*?)```", (repository() / "README.md").read_text(), re.DOTALL)


def write_readme_files(folder: Path) -> None:
    """The files that the README tells its reader to write: a mixer, its configuration, a study."""
    for kind, text in readme_blocks():
        name = re.search(r"^# (\S+\.(?:py|yaml))$", text, re.MULTILINE)
        if kind in ("python", "yaml") and name:
            (folder / name[1]).parent.mkdir(exist_ok=True)
            (folder / name[1]).write_text(text)


STUDY = {
    "name": "mine",
    "question": "Which?",
    "reference": "pooling",
    "analysis": {
        "metric": "test_accuracy",
        "factor": "mixer",
        "margin": 1.0,
        "alpha": 0.05,
        "correction": "holm",
        "tolerance": 0.1,
        "tuned": [],
    },
}


def study(**analysis) -> dict:
    return {**STUDY, "analysis": {**STUDY["analysis"], **analysis}}


def result_of(seed: int, accuracy: float, identity: str = "", **changes) -> dict:
    """A result.json as a run leaves it; `model_norm="layer"` changes a key of its configuration."""
    nodes = {"model": {"norm": "group"}, "data": {"name": "digits"}, "recipe": {"lr": 0.01}}
    config = {"mixer": {"_target_": "x"}, **nodes, "seed": seed, "study": {}, "reference": {"top1": None}}
    for key in [key for key in changes if "_" in key]:
        group, _, name = key.partition("_")
        config[group] = {**config[group], name: changes.pop(key)}
    metrics = dict.fromkeys(("train_accuracy", "val_accuracy", "test_accuracy"), accuracy)
    return {
        "name": f"run-{identity}", "run_id": identity, "cell_id": "c", "seed": seed, "metrics": metrics, "params": 1000,
        "trainable": 1000, "macs": 2_000_000, "seconds": 10.0, "code": "a", "versions": {"torch": "2"}, "git": None,
        "choices": {}, "python": "3.11", "device": "cpu", "threads": 1, "finished": "2026-01-02T00:00:00+00:00",
        "config": config, **changes,
    }  # fmt: skip


def runs_of(**cells: list[float]) -> list[Run]:
    """Finished runs: `pooling=[0.7, 0.8]` or, with an architecture, `flat_pooling=[...]`, a value for each seed."""
    made = []
    for name, accuracies in cells.items():
        architecture, _, mixer = name.rpartition("_")
        levels = {"architecture": architecture, "mixer": mixer} if architecture else {"mixer": mixer}
        changes = {"model_depth": architecture} if architecture else {}
        for seed, accuracy in enumerate(accuracies):
            changes["mixer__target_"] = mixer
            result = result_of(seed, accuracy, f"{name}{seed}".replace("_", ""), **changes)
            cell = " ".join(levels.values())
            made.append(Run(cell, levels, mixer, seed, result["run_id"], None, result))
    return made


def on_disk(runs: list[Run], folder: Path, images: int = 200) -> list[dict]:
    """Write the folders of finished runs; returns them as launch.json lists them."""
    random = np.random.default_rng(0)
    for run in runs:
        place = folder / run.result["name"]
        place.mkdir(parents=True)
        right = round(images * run.result["metrics"]["test_accuracy"])
        labels = np.zeros(images, dtype=np.int16)
        predictions = random.permutation(np.repeat([0, 1], [right, images - right])).astype(np.int16)
        np.savez_compressed(place / "predictions.npz", predictions=predictions, labels=labels)
        run.result["metrics"]["test_accuracy"] = right / images
        curve = "".join(f"{epoch},{0.1 * epoch}\n" for epoch in (1, 2, 3))
        (place / "metrics.csv").write_text("epoch,val_accuracy\n" + curve)
        (place / "result.json").write_text(json.dumps(run.result))
    return [
        {"cell": r.cell, "levels": dict(r.levels), "mixer": r.mixer, "seed": r.seed, "run_id": r.run_id} for r in runs
    ]
