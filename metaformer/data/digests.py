"""Hashes of the contents of images, each read once: an index keeps them by name, size and time of the last change.

Reading and hashing takes as long as the disk needs: seconds for 10,000 photographs, up to half an hour for the 140 GB
of ImageNet. After that only files that changed are read. METAFORMER_REHASH=1 in the environment reads all.
"""

import contextlib
import hashlib
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from metaformer.system.files import cache_dir

BLOCK = 2048  # images that are read before their hashes are kept
TABLE = "contents"  # of an index; older ones have another, with times that a rename leaves as they are
Known = dict[tuple[str, int, int], bytes]  # hashes by key, size and time
SLOW = 20_000  # images, from which on a line says that they are read


class Items(Protocol):
    """Encoded images by their places."""

    @property
    def names(self) -> Sequence[str]: ...  # for messages

    def read(self, place: int) -> bytes: ...

    def stamps(self) -> Sequence[tuple[str, int, int]] | None:
        """A key, a size and `changed` for each: where they are the same, so are the bytes."""
        ...


def changed(file: os.stat_result) -> int:
    """A number that is another one once a file was written, or got another name or place (nanoseconds)."""
    return file.st_mtime_ns + file.st_ctime_ns


def digest(content: bytes) -> bytes:
    """16 bytes that tell contents apart."""
    return hashlib.blake2b(content, digest_size=16).digest()


def digests_of(items: Items) -> list[bytes]:
    """The hash of each image, in the order of the items."""
    stamps = items.stamps()
    if stamps is None:
        return [digest(items.read(i)) for i in range(len(items.names))]
    with _index(stamps[0][0] if stamps else "") as (index, known):
        known = {} if os.environ.get("METAFORMER_REHASH") else known
        found = [known.get(stamp) for stamp in stamps]
        todo = [i for i, hashed in enumerate(found) if hashed is None]
        if len(todo) > SLOW:
            print(f"reading {len(todo):,} images once, to know their contents", file=sys.stderr)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(todo), BLOCK):
                block = todo[start : start + BLOCK]
                hashes = list(pool.map(lambda i: digest(items.read(i)), block))
                for i, hashed in zip(block, hashes, strict=True):
                    found[i] = hashed
                _keep(index, [(*stamps[i], hashed) for i, hashed in zip(block, hashes, strict=True)])
    return [hashed for hashed in found if hashed is not None]


@contextlib.contextmanager
def _index(first: str) -> Iterator[tuple[sqlite3.Connection | None, Known]]:
    """The index of the folder in which the images are, and what it knows; nothing where none can be written."""
    folder = cache_dir()
    file = folder / f"digests-{hashlib.sha256(str(Path(first).parent.parent).encode()).hexdigest()[:16]}.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            connection, known = _opened(file)
        except sqlite3.OperationalError:  # another process has it for a minute, or it may not be written
            raise
        except sqlite3.DatabaseError as error:
            print(f"note: {file} is damaged ({error}) and is written again", file=sys.stderr)
            file.unlink(missing_ok=True)
            connection, known = _opened(file)
    except (OSError, sqlite3.Error):
        yield None, {}
        return
    try:
        yield connection, known
    finally:
        connection.close()


def _opened(file: Path) -> tuple[sqlite3.Connection, Known]:
    connection = sqlite3.connect(file, timeout=60)
    try:
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, size INT, time INT, digest BLOB)"
        )
        rows = connection.execute(f"SELECT key, size, time, digest FROM {TABLE}")
        return connection, {(key, size, time): hashed for key, size, time, hashed in rows}
    except sqlite3.Error:
        connection.close()
        raise


def _keep(index: sqlite3.Connection | None, rows: list[tuple[str, int, int, bytes]]) -> None:
    if index is not None:
        with contextlib.suppress(sqlite3.Error), index:
            index.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?, ?)", rows)
