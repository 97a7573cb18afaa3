"""A worker of a sweep ends with the process that launched it, however that one ends, after a checkpoint."""

import multiprocessing
import os
import signal
import threading
import time

EVERY = 0.5  # seconds between two looks at the parent
_launcher: list[int] = []  # of this process, if it is a worker


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
