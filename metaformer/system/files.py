"""Files: written whole or not at all, hashed; and what a process prints, sent to one."""

import contextlib
import csv
import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from metaformer.system.errors import ConfigError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # errors that are not of this package
PART = ".part-"  # how the name of a file begins that is not whole yet


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`: there whole or not at all, and on the disk.

    Until then it has a name that no other process writes to, on whatever machine. Its folder is made.

    Raises:
        ConfigError: the disk is full or read-only, or the folder is somebody else's.
    """
    part = path.with_name(f"{PART}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        flush(part)
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
        raise
    with contextlib.suppress(OSError):  # not every file system has this for folders
        flush(path.parent)


def write(path: Path, content: str | bytes) -> None:
    """Write a file by `replacing` it."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def try_folder(folder: Path) -> None:
    """An OSError where a folder is not there and cannot be made; nothing is left of the trial."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        for path in absent:
            with contextlib.suppress(OSError):  # it was not made, or somebody else has written into it by now
                path.rmdir()


def flush(path: Path) -> None:
    """Wait until a file, or the list of the files in a folder, is on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def keys_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of all rows, each where it comes first."""
    return list(dict.fromkeys(key for row in rows for key in row))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under a header; where a row lacks a column its cell is empty."""
    text = StringIO()
    writer = csv.DictWriter(text, keys_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def written_since(path: Path, since: float) -> bool:
    """Whether a file is there and was written after `since` (seconds of the clock)."""
    return path.exists() and path.stat().st_mtime >= since


def file_hash(path: str | Path) -> str:
    """A hash of a file's contents, 16 hex digits; read again only when its time of modification changes."""
    return _hash(str(path), Path(path).stat().st_mtime_ns)


@cache
def _hash(path: str, modified: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cache_dir() -> Path:
    """Where decoded images and the fingerprints of large folders are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaformer"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Append what this process prints, libraries in C included, to a file; None leaves it as it is."""
    if path is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in zip(saved, (1, 2), strict=True):
            os.dup2(stream, descriptor)
            os.close(stream)
