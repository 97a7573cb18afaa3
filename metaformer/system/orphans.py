"""A worker of a sweep ends with the process that launched it, however that one ends, after a checkpoint."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metaformer.system.locks import stand_in

EVERY = 0.5  # seconds between two looks at the parent
GRACE = 120.0  # seconds that runs have to save at their step when a sweep is stopped
PATIENCE = 2.0  # seconds until those are asked that the signal has not reached
_launcher: list[int] = []  # of this process, if it is a worker


@contextmanager
def saved_before_the_end(locks: Sequence[Path]) -> Iterator[None]:
    """While workers train: a Ctrl-C ends the sweep when they have saved, and a SIGTERM says what is kept.

    joblib kills its workers as soon as the launcher raises. After a SIGTERM they hear by themselves that it is gone.

    Args:
        locks: those of the runs, each held while a worker trains it, or a process of somebody else's.
    """

    def interrupted(number: int, _: Any) -> None:
        signal.signal(number, before[number])  # the second one does not wait
        start, asked = time.monotonic(), False
        while (workers := holding(locks)) and (waited := time.monotonic() - start) < GRACE:
            if waited > PATIENCE and not asked:
                asked = True
                for worker in workers:
                    worker.terminate()
            time.sleep(EVERY / 5)
        raise KeyboardInterrupt

    def terminated(number: int, _: Any) -> None:
        kept = "what is finished is kept, the workers save and stop, and the same command goes on from here"
        print(f"SIGTERM: {kept}", file=sys.stderr, flush=True)
        signal.signal(number, before[number])
        signal.raise_signal(number)

    listeners = {signal.SIGINT: interrupted, signal.SIGTERM: terminated}
    before: dict[int, Any] = {number: signal.signal(number, listener) for number, listener in listeners.items()}
    try:
        yield
    finally:
        for number, listener in before.items():
            signal.signal(number, listener)


def holding(locks: Collection[Path], parent: int | None = None) -> list[Any]:
    """The children of a process, or of this one, that have one of the locks, as psutil has processes."""
    import psutil

    paths = {str(path) for lock in locks for path in (lock.resolve(), stand_in(lock))}
    found = []
    for child in psutil.Process(parent).children() if paths else []:
        with suppress(psutil.Error):
            if paths & {file.path for file in child.open_files()}:
                found.append(child)
    return found


def first_of_workers() -> dict[str, Any]:
    """What joblib's workers of this process do first, as options of whoever starts them."""
    return {"initializer": end_with_launcher, "initargs": (os.getpid(),)}


def end_with_launcher(launcher: int) -> None:
    """What a worker of joblib does first: nobody would give it a run, or stop the one it has, once its parent is gone.

    Linux can signal a child when its parent dies, but means the thread that started it, and joblib starts workers from
    several.
    """
    _launcher[:] = [launcher]
    leave_if_orphaned()
    threading.Thread(target=_watch, daemon=True).start()


def end_with_parent() -> None:
    """The same at the first run of a worker that another sweeper started, as that of a search; elsewhere nothing."""
    if not _launcher and type(multiprocessing.current_process()).__name__ == "LokyProcess":
        end_with_launcher(os.getppid())


def is_worker() -> bool:
    """Whether this process is a worker of joblib."""
    return bool(_launcher)


def leave_if_orphaned() -> None:
    """End this process where its launcher is gone: there may be more runs in its queue."""
    if _launcher and os.getppid() != _launcher[0]:
        os._exit(128 + signal.SIGTERM)


def _watch() -> None:
    while os.getppid() == _launcher[0]:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)  # a run that trains saves and stops, and what waits for one ends at once
