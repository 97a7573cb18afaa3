"""A loss that is not finite is found at its step, also where losses are read at every n-th step only."""

import json
import signal
from pathlib import Path

import pytest
import torch
from trained import equal, go, stop_at

from metaformer.mixers import Pooling
from metaformer.tasks import learner
from metaformer.tasks.divergence import Watch, every


def nan_from(step: int):
    """Pooling whose output is NaN from some training step on."""
    forward, calls = Pooling.forward, []

    def broken(self, x):
        calls.append(self.training)
        return forward(self, x) * (float("nan") if sum(calls) >= step else 1)

    return broken


@pytest.fixture
def reads(monkeypatch):
    """A processor that is treated as a GPU; the steps at which its losses are read."""
    seen = []
    read = Watch.read

    def watched(self, *args):
        if self.unread:
            seen.append(self.unread[-1].step)
        read(self, *args)

    monkeypatch.setattr(learner, "every", lambda device: 5)
    monkeypatch.setattr(Watch, "read", watched)
    return seen


def test_how_often():
    assert [every(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [1, 50, 50]


def test_losses_are_read_at_every_nth_step_before_a_checkpoint_and_at_the_end_of_an_epoch(reads):
    plain = go("runtime.runs=plain", "runtime.checkpoint_minutes=0").folder
    assert reads[:3] == [1, 2, 3]  # each step has a checkpoint
    reads.clear()
    assert equal(plain, go().folder)
    assert reads == [5, 10, 15, 18, 20, 25, 30, 35, 36]


def test_the_step_is_named_though_it_is_read_later(reads, monkeypatch):
    blocks = 4  # a call of each in a step
    monkeypatch.setattr(Pooling, "forward", nan_from(blocks * 6 + 1))
    with pytest.raises(FloatingPointError, match=r"^diverged: loss is nan at step 7 \(epoch 1\), lr [\d.e-]+$"):
        go("recipe.warmup_epochs=0")
    assert reads == [5, 10]
    assert "step 7" in json.loads(next(Path("runs").glob("*/failed.json")).read_text())["reason"]


def test_no_checkpoint_of_a_run_that_has_diverged(reads, monkeypatch):
    monkeypatch.setattr(Pooling, "forward", nan_from(4 * 6 + 1))
    stop_at(monkeypatch, signal.SIGTERM, at=8)
    with pytest.raises(FloatingPointError, match="at step 7"):
        go()
    assert not list(Path("runs").glob("*/*.ckpt"))
