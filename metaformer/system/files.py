"""Files: written whole or not at all, hashed; and what a process prints, sent to one."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write a file that is either there whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


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
