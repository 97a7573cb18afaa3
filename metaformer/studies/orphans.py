"""A worker of a sweep ends with the process that launched it, however that one ends, after a checkpoint."""

import multiprocessing
import os
import signal
import threading
import time

EVERY = 0.5  # seconds between two looks at the parent
_watched: list[int] = []  # the launcher's process


def end_with_launcher() -> None:
    """Watch the launcher from a worker of joblib; in any other process, as in a job of SLURM, do nothing.

    Linux can signal a child when its parent dies, but means the thread that started it, and joblib starts workers from
    several.
    """
    if type(multiprocessing.current_process()).__name__ != "LokyProcess":
        return
    leave_if_orphaned()
    if not _watched:
        _watched.append(os.getppid())
        threading.Thread(target=_watch, daemon=True).start()


def leave_if_orphaned() -> None:
    """End this process where its launcher is gone: there may be more runs in its queue."""
    if _watched and os.getppid() != _watched[0]:
        os._exit(128 + signal.SIGTERM)


def _watch() -> None:
    while os.getppid() == _watched[0]:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)  # a run that trains saves and stops, and what waits for one ends at once
