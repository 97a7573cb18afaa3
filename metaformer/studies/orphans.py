"""A worker of a sweep ends with the process that launched it, however that one ends, after a checkpoint."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 0.5  # seconds between two looks at the parent
_launcher: list[int] = []  # of this process, if it is a worker


@contextmanager
def say_what_is_kept() -> Iterator[None]:
    """Say what a SIGTERM to the launcher of workers means; it ends as it would, and they hear of that by themselves."""

    def say(number: int, _: Any) -> None:
        kept = "what is finished is kept, the workers save and stop, and the same command goes on from here"
        print(f"SIGTERM: {kept}", file=sys.stderr, flush=True)
        signal.signal(number, before)
        signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, say)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def leave_if_orphaned() -> None:
    """End this process where its launcher is gone: there may be more runs in its queue."""
    if _launcher and os.getppid() != _launcher[0]:
        os._exit(128 + signal.SIGTERM)


def _watch() -> None:
    while os.getppid() == _launcher[0]:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)  # a run that trains saves and stops, and what waits for one ends at once
