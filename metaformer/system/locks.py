"""Locks, which end with their process however that one ends.

Where a file system has no locks (some of Lustre, NFS without its daemon), one in the folder for temporary files takes
their place. It keeps out the processes of this machine alone, and that is said.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from metaformer.system.errors import ConfigError

NONE_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
EVERY = 0.1  # seconds between two tries
LOOK = 2 * EVERY  # after which those are gone who only look whether a lock is held


def take(path: Path) -> int | None:
    """Take a lock, whose file is made where it is not there: what `free` gets, or None where somebody has it."""
    return _try(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)


def free(lock: int) -> None:
    """Let go of a lock."""
    fcntl.flock(lock, fcntl.LOCK_UN)  # also for the copies that the children of this process have
    os.close(lock)


@contextlib.contextmanager
def held(path: Path, seconds: float = float("inf")) -> Iterator[None]:
    """Hold a lock, after waiting for it for so long at most; then there is a TimeoutError."""
    end = time.monotonic() + seconds
    while (lock := take(path)) is None:
        if time.monotonic() >= end:
            raise TimeoutError(f"{path} is held by another process")
        time.sleep(EVERY)
    try:
        yield
    finally:
        free(lock)


def is_held(path: Path) -> bool:
    """Whether somebody has a lock; nothing is written, and the file may be another user's."""
    try:
        lock = _try(path, os.O_RDONLY, fcntl.LOCK_SH)
    except (FileNotFoundError, PermissionError):
        return False
    if lock is not None:
        free(lock)
    return lock is None


def own_folder(purpose: str) -> Path:
    """A folder of this user on this machine, that no other machine sees."""
    folder = Path(tempfile.gettempdir()) / f"metaformer-{purpose}-{os.getuid()}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}); it is for the {purpose}") from error
    return folder


def stand_in(path: Path) -> Path:
    """The lock in place of one on a file system that has none."""
    return own_folder("locks") / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def _try(path: Path, flags: int, kind: int) -> int | None:
    file = os.open(path, flags, 0o666)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return file
    except OSError as error:
        os.close(file)
        if isinstance(error, BlockingIOError):
            return None
        if error.errno not in NONE_HERE:
            raise
    place = stand_in(path)
    if path.parent == place.parent:
        raise ConfigError(f"{path.parent}: its file system has no locks; set TMPDIR to a folder of this machine")
    _tell(path.parent.parent.resolve())
    return _try(place, os.O_RDWR | os.O_CREAT, kind)


@cache
def _tell(folder: Path) -> None:
    print(
        f"note: the file system of {folder} has no locks (flock): two commands on one machine still wait for each "
        "other, commands on two machines do not; start a study on one machine at a time",
        file=sys.stderr,
    )
