"""Runs that tests train in this process, what is left of them, and signals that stop them."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from conftest import TINY, compose

from metaformer.studies.points import resolve
from metaformer.studies.worker import Outcome, run
from metaformer.tasks.classification import Classifier
from metaformer.tasks.learner import Learner

CHOICES = {"mixer": "pooling", "model": "tiny"}


def go(*overrides: str) -> Outcome:
    """Train a small run."""
    return run(resolve(compose(*TINY, *overrides), CHOICES)[0])


def start(*arguments: str) -> subprocess.Popen:
    """Train in a session of its own, which signals may end."""
    command = [sys.executable, "-m", "metaformer.train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}

    def hear_ctrl_c() -> None:  # which the tests themselves ignore where a shell started them in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, preexec_fn=hear_ctrl_c, **pipes)


def metrics(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)["state_dict"]


def first_epoch(root: str = "runs") -> str:
    """That of the one run that is there, as its metrics.csv has it. The seconds tell one training from another."""
    (path,) = Path(root).glob("*/metrics.csv")
    header, first, *_ = path.read_text().splitlines()
    assert header.endswith("seconds")
    return first


def equal(a: Path, b: Path) -> bool:
    return metrics(a) == metrics(b) and same(weights(a), weights(b))


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two networks have the same weights, bit for bit, and none that the other lacks."""
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def steps_of(monkeypatch) -> list[int]:
    """The steps that are trained from here on."""
    seen: list[int] = []
    step = Classifier.training_step

    def watch(self, batch):
        seen.append(self.global_step)
        return step(self, batch)

    monkeypatch.setattr(Classifier, "training_step", watch)
    return seen


def stop_at(monkeypatch, number: signal.Signals, at: int, kind: type[Learner] = Classifier) -> None:
    """Send a signal in the middle of a step."""
    step = kind.training_step

    def signalled(self, batch):
        if self.global_step == at:
            os.kill(os.getpid(), number)
        return step(self, batch)

    monkeypatch.setattr(kind, "training_step", signalled)
