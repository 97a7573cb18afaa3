"""The newest row of a run's metrics.csv while others write to it. Of each file only what was added is read."""

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """How far a file has been read."""

    inode: int = 0
    bytes: int = 0  # up to the end of its last whole row
    header: list[str] = field(default_factory=list)
    row: dict[str, str] | None = None


_seen: dict[Path, Seen] = {}


def last_row(folder: Path) -> dict[str, str] | None:
    """The newest whole row of a run's curve, or None."""
    path = folder / "metrics.csv"
    try:
        now, seen = path.stat(), _seen.get(folder, Seen())
        if now.st_ino != seen.inode or now.st_size < seen.bytes:
            seen = Seen(now.st_ino)  # a run that goes on writes its curve anew
        if now.st_size > seen.bytes:
            seen = _read_on(path, seen)
    except OSError:
        return None
    _seen[folder] = seen
    return seen.row


def _read_on(path: Path, seen: Seen) -> Seen:
    with path.open("rb") as file:
        file.seek(seen.bytes)
        whole, newline, _ = file.read().rpartition(b"\n")
    rows = [row for row in csv.reader(whole.decode().splitlines()) if row]
    header = seen.header or (rows.pop(0) if rows else [])
    row = dict(zip(header, rows[-1], strict=False)) if rows else seen.row
    return replace(seen, bytes=seen.bytes + len(whole + newline), header=header, row=row)
