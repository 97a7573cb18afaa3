"""A hash of the images of a data set that its name alone does not tell. Imports no torch."""

import contextlib
import hashlib
import os
from functools import cache
from pathlib import Path

from metaformer.config.schema import Data
from metaformer.system.files import cache_dir

SPLITS = ("train", "val", "test")
MANY = 100_000  # files, from which on a fingerprint is kept
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def _split_of(path: Path) -> int:
    return next(i for i, split in enumerate(SPLITS) if path.parts[0].startswith(split))


def fingerprint(data: Data) -> str | None:
    """The hash of the images of a data set; None where its name says which they are."""
    if data.name == "image_folder" and data.root is not None:
        return folder_fingerprint(data.root)
    return None


@cache
def folder_fingerprint(root: str) -> str:
    """A hash of name, size and first 4 KiB of every image file of the splits under `root`, but not of where it lies.

    Reading the heads of a million files takes minutes: their fingerprint is kept until a folder among them changes.
    """
    files: list[Path] = []
    listing = hashlib.sha256(str(Path(root).resolve()).encode())
    for folder, inner, names in os.walk(root, followlinks=True):
        inner.sort()
        place = Path(folder).relative_to(root).parts
        if place and place[0] not in SPLITS:
            inner.clear()
            continue
        images = [name for name in sorted(names) if Path(name).suffix.lower() in IMAGES] if place else []
        tars = [name for name in sorted(names) if name.endswith(".tar") and (place or name.startswith(SPLITS))]
        files += [Path(folder, name) for name in images + tars]
        listing.update(f"{'/'.join(place)} {Path(folder).stat().st_mtime_ns} {len(images + tars)}\n".encode())
    kept = cache_dir() / f"{listing.hexdigest()[:16]}.fingerprint"
    if len(files) > MANY and kept.exists():
        return kept.read_text()
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: (_split_of(path.relative_to(root)), path)):
        with path.open("rb") as file:
            head = file.read(4096)
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + head)
    if len(files) > MANY:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(digest.hexdigest()[:16])
    return digest.hexdigest()[:16]
