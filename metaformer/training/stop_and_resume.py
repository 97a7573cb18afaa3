"""Checkpoints of a run, and what it does when it is told to stop: save at the exact step, then give way.

`last.ckpt` is written at the end of every epoch, every `minutes`, and at the step at which a signal asks the run to
stop (Ctrl-C, a time limit, a preemption); the one before it stays as `previous.ckpt`.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from metaformer.config.schema import Config
from metaformer.config.training_rules import check_runtime
from metaformer.system.errors import ConfigError
from metaformer.system.files import replacing

NAMES = ("last.ckpt", "previous.ckpt")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # SIGUSR2: submitit's for a time limit or a preemption
ASKED = 10  # steps between two looks of several GPUs, whose agreement waits until all steps before are computed
SAVE = -1  # among the signals: it is time for a checkpoint


@dataclass(frozen=True)
class Saved:
    """A checkpoint, and what a run has to keep to end with the same bits."""

    path: Path
    step: int  # of the optimizer
    threads: int  # sums depend on their number in the last bits
    accumulate: int  # and the places in the middle of an epoch on the parts of a batch


def read(folder: Path) -> Saved | None:
    """The newest checkpoint of a run that can be read, or None where there is none.

    Raises:
        ConfigError: there are some, and none can be read.
    """
    errors = []
    for path in (folder / name for name in NAMES):
        if not path.exists():
            continue
        try:
            found = torch.load(path, weights_only=True, map_location="cpu")
            step, threads, accumulate, _ = (found[key] for key in ("global_step", "threads", "accumulate", "sums"))
        except Exception as error:  # whatever torch raises of half a file
            errors.append(f"{path}: cannot be read ({type(error).__name__})")
            continue
        if errors:
            print(f"{errors[0]}; going on from {path.name}, step {step}", file=sys.stderr)
        return Saved(path, step, threads, accumulate)
    if errors:
        raise ConfigError(f"{'; '.join(errors)}; remove it to train from the start")
    return None


def check_parts(saved: Saved, config: Config) -> None:
    """A ConfigError where as many parts of a batch as a checkpoint has do not go with the devices of today."""
    try:
        check_runtime(replace(config.runtime, accumulate=saved.accumulate), config.recipe)
    except ConfigError as error:
        words = f"was saved with {saved.accumulate} parts of a batch, which the run keeps; {error}"
        raise ConfigError(f"{saved.path}: {words}; expected as many devices as before, or remove it") from error


def agreed(trainer: L.Trainer, own: Saved | None) -> Saved | None:
    """What the first process has found, for all that train a run: each might see files that another is removing.

    The processes meet here for the first time; Lightning starts those of this machine where nobody else did.
    """
    if trainer.world_size == 1:
        return own

    def ask() -> Saved | None:
        trainer.strategy.setup_environment()
        found: Saved | None = trainer.strategy.broadcast(own)
        return found

    launcher = trainer.strategy.launcher  # None where others have started the processes
    told: Saved | None = launcher.launch(ask, trainer=trainer) if launcher else ask()
    return told


def remove(folder: Path) -> None:
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Writes the checkpoints of a run, with what it has to keep, and stops it where a signal asks for that.

    Lightning's own handlers stop at once, in the middle of a step. Here a signal is noted and obeyed after the step,
    on several devices after the same one, of GPUs every tenth; then whoever listened to it before has his turn, as
    submitit, which requeues a job. The same signal for a second time goes straight to him.
    """

    def __init__(self, folder: Path, minutes: float, kept: Mapping[str, int]) -> None:
        self.folder, self.seconds, self.kept = folder, 60 * minutes, kept
        self.asked, self.listener = 0, None
        self.stopped = False
        self.listeners: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = self.stopped  # by a callback, before this run was interrupted
        self.saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self.listeners = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.listener = number, self.listeners.pop(number)
        signal.signal(number, self.listener)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return  # there is no step to save at, or the end of the epoch will save
        if trainer.world_size > 1 and trainer.strategy.root_device.type != "cpu" and trainer.global_step % ASKED:
            return
        asked = self._agreed(trainer)
        if asked:
            self.save(trainer)
        if asked > 0:
            self.stop(trainer, asked)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.save(trainer)
        if (asked := self._agreed(trainer)) > 0:
            self.stop(trainer, asked)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {**self.kept, "should_stop": trainer.should_stop}

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.stopped = checkpoint.get("should_stop", False)

    def _agreed(self, trainer: L.Trainer) -> int:
        """The signal that the first device has seen, SAVE where it is time for a checkpoint, or 0."""
        asked = self.asked or (SAVE if time.monotonic() - self.saved >= self.seconds else 0)
        if trainer.world_size == 1:
            return asked
        shared = torch.tensor(asked, device=trainer.strategy.root_device)
        torch.distributed.broadcast(shared, src=0)
        return int(shared)

    def save(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt` whole, and keep the one before it."""
        last, previous = (self.folder / name for name in NAMES)
        if trainer.is_global_zero:
            with replacing(last) as part:
                trainer.save_checkpoint(part)
                if last.exists():
                    last.replace(previous)
        else:
            trainer.save_checkpoint(last)  # which the first device writes
        self.saved = time.monotonic()

    def stop(self, trainer: L.Trainer, number: int) -> None:
        """Hand the signal on to whoever listened before."""
        if trainer.is_global_zero:
            print(f"{signal.Signals(number).name}: saved and stopped at step {trainer.global_step}", file=sys.stderr)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGUSR2:
            if callable(self.listener):
                self.listener(number, None)  # submitit's: on the first device it requeues the job and leaves
            if not trainer.is_global_zero:
                time.sleep(60)  # it is to end with the first device, and not before it
        raise SystemExit(128 + number)


@contextlib.contextmanager
def listening(trainer: L.Trainer) -> Iterator[None]:
    """Fit and test within: afterwards signals go where they went before, and so does one that came too late for a step.

    Lightning leaves a listener for SIGTERM behind that takes note of it and does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    try:
        yield
    except SIGTERMException as stopped:  # it came before the first step; as Lightning has it, the status would be 0
        raise SystemExit(128 + signal.SIGTERM) from stopped
    finally:
        for number, listener in before.items():
            signal.signal(number, listener)
    asked = max((c.asked for c in trainer.callbacks if isinstance(c, Checkpoints)), default=0)  # type: ignore[attr-defined]
    if late := asked or (signal.SIGTERM if trainer.received_sigterm else 0):
        signal.raise_signal(late)
