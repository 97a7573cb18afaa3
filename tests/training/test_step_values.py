"""What wandb gets of single steps, and that it costs no result and no step between."""

import signal
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import wandb
from torch.overrides import TorchFunctionMode
from trained import equal, go, stop_at
from wandb_server import Server, serving

from metaformer.config.schema import Logger
from metaformer.runs import wandb_sync
from metaformer.runs.result import read_steps
from metaformer.runs.wandb_place import MARK, discard
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.training import fit
from metaformer.training.step_values import StepValues


@pytest.fixture
def server(monkeypatch):
    with serving(Server()) as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        yield server


@pytest.fixture
def seen(monkeypatch):
    """The losses of all parts, and the rate and the norm of the gradient of all steps."""
    losses, steps = [], []
    step = Classifier.training_step

    def watched(self, batch):
        loss = step(self, batch)
        losses.append(loss.item())
        return loss

    def before(self, optimizer):
        squares = sum(p.grad.double().square().sum() for p in self.parameters() if p.grad is not None)
        steps.append((optimizer.param_groups[0]["lr"], squares.sqrt().item()))

    monkeypatch.setattr(Classifier, "training_step", watched)
    monkeypatch.setattr(Classifier, "on_before_optimizer_step", before)
    return losses, steps


@pytest.mark.parametrize(("every", "parts"), [(7, 1), (7, 2), (1, 2)])
def test_wandb_gets_every_nth_step(server, seen, every, parts):
    outcome = go("logger=wandb", "logger.entity=e", f"logger.every={every}", f"runtime.accumulate={parts}")
    rows = [row for row in server.history[outcome.result.run_id] if "step/loss" in row]
    assert [row["_step"] for row in rows] == list(range(every, 37, every))
    losses, steps = seen
    for row in rows:
        step = row["_step"]
        assert row["step/loss"] == pytest.approx(np.mean(losses[(step - 1) * parts : step * parts]), rel=1e-5)
        assert (row["step/lr"], row["step/grad_norm"]) == pytest.approx(steps[step - 1], rel=1e-4)
        assert row["step/images_per_second"] > 0
    assert [row["_step"] for row in server.history[outcome.result.run_id] if "epoch" in row] == [18, 36]


def test_a_run_ends_with_classes_examples_and_weights(server):
    run = go("logger=wandb", "logger.entity=e", "logger.weights=true").result
    last = {key: value for row in server.history[run.run_id] for key, value in row.items()}
    assert (last["classes"]["nrows"], last["classes"]["ncols"]) == (10, 4)
    for kind in ("same", "worst"):
        assert (last[f"examples/{kind}"]["_type"], last[f"examples/{kind}"]["count"]) == ("images/separated", 16)
    assert len(set(last["examples/worst"]["captions"])) > 1
    assert f"weights-{run.name}" in server.artifacts
    told = r"this model has 0\.\d+ MB of weights, more than logger\.weights_limit=0\.01"
    with pytest.raises(ConfigError, match=told):
        go("logger=wandb", "logger.weights=true", "logger.weights_limit=0.01", "seed=1")


def test_a_run_is_the_same_with_and_without_wandb(server, monkeypatch):
    callbacks = []
    trainer = fit.fitting_trainer  # made once to refuse what cannot work, and once to train
    monkeypatch.setattr(fit, "fitting_trainer", lambda *a, **k: (callbacks.append(a[2]), trainer(*a, **k))[1])
    told = go("logger=wandb", "logger.every=1", "recipe.clip_grad=0.5", "runtime.runs=a").folder
    silent = go("recipe.clip_grad=0.5", "runtime.runs=b").folder
    assert equal(told, silent)
    with np.load(told / "predictions.npz") as a, np.load(silent / "predictions.npz") as b:
        assert all(np.array_equal(a[key], b[key]) for key in a)
    go("logger=wandb", "logger.every=0", "runtime.runs=c")
    assert [any(isinstance(c, StepValues) for c in each) for each in callbacks[1::2]] == [True, False, False]


def test_a_stopped_run_that_was_written_offline_has_each_step_once(server, monkeypatch):
    words = ("logger=wandb", "logger.mode=offline", "logger.every=4")
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=24)  # of 18 an epoch
        with pytest.raises(SystemExit):
            go(*words)
    run = go(*words)
    assert not server.runs
    assert wandb_sync.sync([run.folder], None, Logger(wandb=True, entity="e")).now == 1
    history = server.history[run.result.run_id]
    assert [row["_step"] for row in history if "step/loss" in row] == list(range(4, 37, 4))
    assert [row["_step"] for row in history if "epoch" in row] == [18, 36]
    assert server.summary[run.result.run_id]["final/test_accuracy"] == pytest.approx(
        run.result.metrics["test_accuracy"]
    )


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("before", ["offline", "disabled"])
def test_a_killed_run_has_each_step_once(server, monkeypatch, before, mode):
    """Killed at step 31, after the checkpoint of epoch 1: what it has said of the steps from 19 is said again."""

    def killed(self, batch):
        if self.trainer.global_step == 30:
            raise MemoryError
        return step(self, batch)

    step = Classifier.training_step
    words = ("logger=wandb", "logger.every=4", "logger.entity=e")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", killed)
        with pytest.raises(MemoryError):
            go(*([*words, "logger.mode=offline"] if before == "offline" else []))
    (folder,) = Path("runs").glob("*-*")
    if before == "offline":
        steps = folder / "steps.csv"
        assert [row["step"] for row in read_steps(folder)] == ["4", "8", "12", "16", "20", "24", "28"]
        steps.write_bytes(steps.read_bytes()[:-5] + b"\r\n1")  # as it is where a kill cuts a line
    run = go(*words, f"logger.mode={mode}").result
    assert bool(server.runs) == (mode == "online")
    wandb_sync.sync([folder], None, Logger(wandb=True, entity="e"))
    history = server.history[run.run_id]
    assert [row["_step"] for row in history if "epoch" in row] == [18, 36]
    first = 4 if before == "offline" else 20
    assert [row["_step"] for row in history if "step/loss" in row] == list(range(first, 37, 4))
    assert [int(row["step"]) for row in read_steps(folder)] == list(range(first, 37, 4))
    assert len(list(folder.glob("wandb/*run-*"))) == 1


def test_what_is_sent_later_has_the_steps_of_the_file(server):
    run = go("logger=wandb", "logger.mode=offline", "logger.every=12")
    discard(run.folder)  # and with it the file that waited, as where it was never written
    (run.folder / MARK).unlink()
    assert wandb_sync.sync([run.folder], None, Logger(wandb=True, entity="e")).now == 1
    history = server.history[run.result.run_id]
    told = {row["_step"]: row["step/loss"] for row in history if "step/loss" in row}
    assert told == {int(row["step"]): float(row["loss"]) for row in read_steps(run.folder)}
    assert list(told) == [12, 24, 36]


def test_steps_between_compute_nothing(monkeypatch):
    """No operation, and with it no copy to the host, in the hooks of a step that is not sent."""
    monkeypatch.setattr(wandb, "init", lambda **_: MagicMock())
    used: dict[int, list[str]] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            used[self.step].append(str(function))
            return function(*args, **(kwargs or {}))

    def watched(name, before):
        hook = getattr(StepValues, name)

        def call(self, trainer, *arguments):
            watch = Watch()
            watch.step = trainer.global_step + before
            used.setdefault(watch.step, [])
            with watch:
                hook(self, trainer, *arguments)

        monkeypatch.setattr(StepValues, name, call)

    watched("on_train_batch_start", 1)
    watched("on_before_optimizer_step", 1)
    watched("on_train_batch_end", 0)
    go("logger=wandb", "logger.every=6")
    assert {step for step, operations in used.items() if operations} == {6, 12, 18, 24, 30, 36}
    assert len(used) == 36
    assert sum("tolist" in operation for operation in used[6]) == 1  # the only copy to the host
