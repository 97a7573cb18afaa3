import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaformer import config as cfg
from metaformer.validation import validate

torch.set_num_threads(1)
MIXERS = ("identity", "pooling", "attention", "fourier", "spatial_mlp", "depthwise", "sepconv", "random")
TINY = ("data=digits", "recipe.epochs=2", "runtime.threads=1", "runtime.progress=false")


def compose(*overrides: str) -> dict:
    """A validated configuration, as a run gets it."""
    return validate(cfg.compose(overrides))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test works in an empty folder, as a user of the installed package does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def cli(tmp_path):
    """Run `python -m metaformer.<verb> ...` in the test's folder."""

    def call(verb: str, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"metaformer.{verb}", *arguments]
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, **options)

    return call


def repository() -> Path:
    return Path(__file__).resolve().parent.parent
