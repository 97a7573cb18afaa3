"""What else this machine did while a run trained: without that, its time is no cost.

Each process that trains holds a lock file of its own, which is touched when it begins and when it ends. So a run sees
at its end all that were at work in its time, also those that came and went.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from metaformer.system import locks

STAT = Path("/proc/stat")
WEEK = 7 * 86_400  # seconds, after which the file of a process that is gone is removed


@dataclass
class Company:
    """The other runs of this bench, and the cores that other processes had on average; None where nobody can tell."""

    runs: int | None = None
    cores: float | None = None


@contextmanager
def company() -> Iterator[Company]:
    """Look at what else the machine does until the block ends; what was found is there afterwards."""
    folder, found = locks.own_folder("training"), Company()
    own = folder / f"{os.getpid()}.lock"
    with ExitStack() as stack:
        with suppress(TimeoutError):  # a process of another container has our number
            stack.enter_context(locks.held(own, locks.LOOK))
            stack.enter_context(_looked_at(folder, own, found))
        yield found


@contextmanager
def _looked_at(folder: Path, own: Path, found: Company) -> Iterator[None]:
    began, busy, used = _touch(own), _busy(), _used()
    start = time.monotonic()
    there = _at_work(folder, own, None)
    yield
    found.runs = len(there | _at_work(folder, own, began))
    if busy is not None and (now := _busy()) is not None:
        found.cores = round(max(0.0, now - busy - (_used() - used)) / (time.monotonic() - start), 3)
    _touch(own)


def _touch(path: Path) -> int:
    """Give the file the time of now, which is returned: the kernel's own mark is as coarse as its ticks."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    return path.stat().st_mtime_ns  # as the file system keeps it


def _at_work(folder: Path, own: Path, since: int | None) -> set[str]:
    """The files of others that are held, or were touched since then (nanoseconds of the clock)."""
    found = set()
    for path in folder.glob("*.lock"):
        if path == own:
            continue
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        if locks.is_held(path) or (since is not None and touched >= since):
            found.add(path.name)
        elif time.time() - touched / 1e9 > WEEK:
            path.unlink(missing_ok=True)
    return found


def _used() -> float:
    """Seconds of processors that this process has had, and all that it has started, like those that read images."""
    import psutil  # not in the first second of each command

    spent = sum(os.times()[:4])  # of children those that ended
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            spent += sum(child.cpu_times()[:4])
    return spent


def _busy() -> float | None:
    """Seconds that all processors have worked for anybody; None beside Linux."""
    try:
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, STAT.read_text().split("\n")[0].split()[1:])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
