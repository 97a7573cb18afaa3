"""Hashes of the contents of images, each read once: an index keeps them by name, size and time of modification.

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
SLOW = 20_000  # images, from which on a line says that they are read


class Items(Protocol):
    """Encoded images by their places."""

    @property
    def names(self) -> Sequence[str]: ...  # for messages

    def read(self, place: int) -> bytes: ...

    def stamps(self) -> Sequence[tuple[str, int, int]] | None:
        """A key, a size and a time of modification for each: where they are the same, so are the bytes."""
        ...


def digest(content: bytes) -> bytes:
    """16 bytes that tell contents apart."""
    return hashlib.blake2b(content, digest_size=16).digest()


def digests_of(items: Items) -> list[bytes]:
    """The hash of each image, in the order of the items."""
    stamps = items.stamps()
    if stamps is None:
        return [digest(items.read(i)) for i in range(len(items.names))]
    with _index(stamps[0][0] if stamps else "") as index:
        known = {} if os.environ.get("METAFORMER_REHASH") else _known(index)
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
def _index(first: str) -> Iterator[sqlite3.Connection | None]:
    """The index of the folder in which the images are; None where none can be written."""
    folder = cache_dir()
    name = hashlib.sha256(str(Path(first).parent.parent).encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / f"digests-{name}.sqlite", timeout=60)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS digests (key TEXT PRIMARY KEY, size INT, mtime INT, digest BLOB)"
        )
    except (OSError, sqlite3.Error):
        yield None
        return
    try:
        yield connection
    finally:
        connection.close()


def _known(index: sqlite3.Connection | None) -> dict[tuple[str, int, int], bytes]:
    if index is None:
        return {}
    rows = index.execute("SELECT key, size, mtime, digest FROM digests")
    return {(key, size, mtime): hashed for key, size, mtime, hashed in rows}


def _keep(index: sqlite3.Connection | None, rows: list[tuple[str, int, int, bytes]]) -> None:
    if index is not None:
        with contextlib.suppress(sqlite3.Error), index:
            index.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)
