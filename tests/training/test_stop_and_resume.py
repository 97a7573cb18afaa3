"""A run that is stopped goes on at the exact step and ends with the same bits; a spoilt checkpoint is not the end."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import compose
from lightning import Trainer
from test_train import rows, start, wait_for
from trained import equal, first_epoch, go, same, steps_of, stop_at

from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.training import stop_and_resume
from metaformer.training.curve_file import CurveFile
from metaformer.training.stop_and_resume import Checkpoints, Saved, check_parts

EVERYTHING = (
    *("recipe.ema=0.9", "recipe.mixup=0.4", "recipe.cutmix=1.0", "recipe.flip=true", "model.drop_path=0.2"),
    *("recipe.clip_grad=1.0", "recipe.epochs=3"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    return go(*EVERYTHING, f"runtime.runs={tmp_path_factory.mktemp('whole')}").folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_saves_at_the_step_and_the_run_goes_on_there(whole, monkeypatch, capfd, number):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, number, at=24)  # of 18 an epoch
        expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
        with pytest.raises(expected) as stopped:
            go(*EVERYTHING)
    if number != signal.SIGINT:
        assert stopped.value.code == 128 + number
    signal.signal(number, before)
    folder = next(Path("runs").glob("*-*"))
    assert f"{number.name}: saved and stopped at step 25" in capfd.readouterr().err
    assert not (folder / "failed.json").exists()
    assert not (folder / "result.json").exists()
    seen = steps_of(monkeypatch)
    assert go(*EVERYTHING).status == "finished"
    assert seen == list(range(25, 54))  # nothing twice, nothing left out
    assert equal(folder, whole)


def test_after_a_run_signals_go_where_they_went_before():
    """Lightning leaves a listener behind that does nothing: a later SIGTERM would be lost."""
    before = {number: signal.getsignal(number) for number in stop_and_resume.SIGNALS}
    assert go("recipe.epochs=1").status == "finished"
    assert {number: signal.getsignal(number) for number in stop_and_resume.SIGNALS} == before


def test_a_signal_that_comes_during_the_test_is_obeyed_after_it(monkeypatch):
    heard: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", heard.append)
    own = Classifier.test_step

    def signalled(self, batch):
        if not heard:
            heard.append(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return own(self, batch)

    monkeypatch.setattr(Classifier, "test_step", signalled)
    go("recipe.epochs=1")
    assert heard == [0, signal.SIGTERM]


def test_a_signal_that_comes_before_the_first_step_is_no_success(monkeypatch):
    """Lightning's own answer would end the process with the status 0."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(CurveFile, "on_train_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as stopped:
            go("recipe.epochs=1")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert go("recipe.epochs=1").status == "finished"


def test_a_loss_that_is_no_number_keeps_the_training(monkeypatch):
    own = Classifier.on_test_epoch_end

    def spoilt(self):
        own(self)
        self.log("test_loss", float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_test_epoch_end", spoilt)
        with pytest.raises(FloatingPointError, match=r"test_loss is nan; the training is kept in .*last\.ckpt"):
            go("recipe.epochs=1")
    seen = steps_of(monkeypatch)
    assert go("recipe.epochs=1").status == "finished"
    assert seen == []


def test_at_the_last_step_of_an_epoch_it_is_validated_first(whole, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=35)
        with pytest.raises(SystemExit):
            go(*EVERYTHING)
    folder = next(Path("runs").glob("*-*"))
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    seen = steps_of(monkeypatch)
    go(*EVERYTHING)
    assert seen[0] == 36
    assert equal(folder, whole)


def test_several_stops_in_one_epoch_and_accumulated_parts(monkeypatch):
    options = (*EVERYTHING, "runtime.accumulate=2")
    whole = go(*options, "runtime.runs=whole").folder
    for at in (3, 4, 20):
        with monkeypatch.context() as patch:
            stop_at(patch, signal.SIGTERM, at)
            with pytest.raises(SystemExit):
                go(*options)
    assert go(*options).status == "finished"
    assert equal(next(Path("runs").glob("*-*")), whole)


def test_after_the_last_epoch_only_the_test_is_left(whole, monkeypatch):
    """Of the averaged weights, although nothing is trained any more."""
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_test_epoch_start", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(*EVERYTHING)
    seen = steps_of(monkeypatch)
    resumed = go(*EVERYTHING)
    assert seen == []
    assert equal(resumed.folder, whole)
    first = json.loads((whole / "result.json").read_text())["metrics"]
    assert resumed.result.metrics == first


def test_a_checkpoint_every_few_minutes_is_where_a_killed_run_goes_on(whole, monkeypatch):
    with monkeypatch.context() as patch:
        step = Classifier.training_step
        patch.setattr(Classifier, "training_step", lambda s, b: 1 / 0 if s.global_step == 30 else step(s, b))
        with pytest.raises(ZeroDivisionError):
            go(*EVERYTHING, "runtime.checkpoint_minutes=0")
    seen = steps_of(monkeypatch)
    folder = go(*EVERYTHING).folder
    assert seen[0] == 30
    assert equal(folder, whole)


def interrupted(monkeypatch, at: int) -> Path:
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at)
        with pytest.raises(SystemExit):
            go(*EVERYTHING)
    return next(Path("runs").glob("*-*"))


@pytest.mark.parametrize("spoil", ["half", "empty", "missing"])
def test_a_checkpoint_cut_in_half_falls_back_to_the_one_before(whole, monkeypatch, capfd, spoil):
    folder = interrupted(monkeypatch, at=24)
    last = folder / "last.ckpt"
    content = last.read_bytes()
    last.unlink() if spoil == "missing" else last.write_bytes(content[: len(content) // 2] if spoil == "half" else b"")
    seen = steps_of(monkeypatch)
    assert go(*EVERYTHING).status == "finished"
    if spoil != "missing":
        assert f"{last}: cannot be read (" in (err := capfd.readouterr().err)
        assert "going on from previous.ckpt, step 18" in err
    assert seen[0] == 18
    assert equal(folder, whole)
    assert not list(folder.glob("*.ckpt"))


def test_where_no_checkpoint_can_be_read_it_is_said(monkeypatch):
    folder = interrupted(monkeypatch, at=24)
    for name in stop_and_resume.NAMES:
        (folder / name).write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match=r"last.ckpt: cannot be read .*previous.ckpt: cannot be read .*remove it"):
        go(*EVERYTHING)


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(monkeypatch):
    save = Trainer.save_checkpoint

    def full(self, path, **options):
        if self.global_step > 20:
            Path(path).write_bytes(b"half of a check")
            raise OSError(28, "No space left on device")
        save(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", full)
        with pytest.raises(ConfigError, match=r"runs/.*last.ckpt: cannot be written \(No space left on device\)"):
            go(*EVERYTHING)
    assert not list(Path("runs").glob("*/.part-*"))
    seen = steps_of(monkeypatch)
    assert go(*EVERYTHING).status == "finished"
    assert seen[0] == 18


@pytest.mark.parametrize("first", [True, False])
def test_other_devices_wait_for_the_first_to_requeue_the_job(monkeypatch, first):
    """submitit's listener leaves on the first and returns on the others, whose end would be the end of the first."""
    done = []
    callback = Checkpoints(Path(), 15, {})
    callback.listener = lambda number, frame: done.append("listened")
    monkeypatch.setattr(stop_and_resume.time, "sleep", lambda seconds: done.append("waited"))
    trainer = type("Trainer", (), {"is_global_zero": first, "global_step": 3})()
    with pytest.raises(SystemExit):
        callback.stop(trainer, signal.SIGUSR2)
    assert done == (["listened"] if first else ["listened", "waited"])


@pytest.mark.processes
def test_a_command_that_is_terminated_goes_on(cli, tmp_path):
    command = ("data.train=1500", "recipe.epochs=4", "runtime.threads=1", "recipe.ema=0.9")
    process = start(*command)
    wait_for(lambda: any(p.read_text().count("\n") >= 2 for p in tmp_path.glob("runs/*/metrics.csv")), process)
    before = first_epoch()
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.count("\n") == 1
    assert "SIGTERM: saved and stopped at step" in err
    done = cli("train", *command)
    assert done.returncode == 0, done.stderr
    assert first_epoch() == before  # it was not trained again
    whole = cli("train", *command, "runtime.runs=whole")
    assert whole.returncode == 0, whole.stderr
    assert rows(tmp_path / "runs") == rows(tmp_path / "whole")
    a, b = (torch.load(next(tmp_path.glob(f"{r}/*/weights.pt")), weights_only=True) for r in ("runs", "whole"))
    assert same(a["state_dict"], b["state_dict"])


def test_parts_of_a_checkpoint_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match=r"^x: was saved with 3 parts of a batch, which the run keeps; recipe.batch="):
        check_parts(Saved(Path("x"), 7, 1, 3), compose("recipe.batch=64"))
