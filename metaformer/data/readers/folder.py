"""Images in folders, or in tar files in their places: train/<class>/..., train*.tar with the same inside.

Images with masks are in folders of pairs, which have the same names but for their suffixes: train/images and
train/masks, or images/train and masks/train.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaformer.config.schema import Data
from metaformer.data.decoding import SUFFIXES
from metaformer.data.digests import changed, digests_of
from metaformer.data.listing import WORDS, Findings, Found, hidden, natural, not_read, once, root_of, split_of, wanted
from metaformer.data.readers.tars import in_tars
from metaformer.system.errors import ConfigError, nearest, tell

EXPECTED = "a folder with train/<class>/ and test/<class>/, or train*.tar and test*.tar"
MASKS = ("masks", "annotations")  # what their folder may be called, beside one of images
SHARD = re.compile(rf"({'|'.join(WORDS)})([-_.]?\d+)?\.tar", re.IGNORECASE)


@dataclass
class Files:
    """Image files."""

    names: list[str]

    def read(self, place: int) -> bytes:
        try:
            return Path(self.names[place]).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.names[place]}: cannot be read ({error.strerror})") from error

    def stamps(self) -> Sequence[tuple[str, int, int]]:
        found = ((name, Path(name).stat()) for name in self.names)
        return [(str(Path(name).absolute()), stat.st_size, changed(stat)) for name, stat in found]


def find(data: Data) -> Findings:
    """The splits under `data.root`, in folders or tar files, called as in `listing.WORDS`."""
    root = root_of(data, EXPECTED)
    if root.is_file():
        raise ConfigError(f"data.root={data.root}: is a file; expected {EXPECTED}")
    there = sorted((path for path in root.iterdir() if not hidden(path.name)), key=lambda path: natural(path.name))
    if masks := _masks_beside(root):
        return _pairs_by_split(root / "images", masks)
    folders = {path: split for path in there if path.is_dir() and (split := split_of(path.name))}
    shards: dict[str, list[Path]] = {}
    for path in there:
        if path.is_file() and (match := SHARD.fullmatch(path.name)):
            shards.setdefault(WORDS[match[1].lower()], []).append(path)
    once(((split, path.name) for path, split in folders.items()), str(root))
    known = {tar for tars in shards.values() for tar in tars}
    skipped: Counter[str] = Counter(path.name for path in there if path.suffix == ".tar" and path not in known)
    splits, empty = {}, list[str]()
    for path, split in folders.items():
        inside = [p for p in sorted(path.iterdir(), key=lambda p: natural(p.name)) if not hidden(p.name)]
        tars = [p for p in inside if p.suffix == ".tar"]
        if tars and (split in shards or len(tars) < len(inside)):
            raise ConfigError(
                f"{path}: has tar files and other images of {split}, like {tars[0].name}; expected one kind"
            )
        splits[split] = in_tars(tars, skipped) if tars else _in_folder(path, skipped)
        labels = set(splits[split].labels)
        empty += [f"{path.name}/{p.name}" for p in inside if p.is_dir() and labels and p.name not in labels]
    for split, tars in shards.items():
        if split in splits:
            raise ConfigError(f"{root}: has {tars[0].name} and a folder of the {split} split; expected one of them")
        splits[split] = in_tars(tars, skipped)
    if not splits and any(path.is_dir() for path in there):
        splits["train"] = _in_folder(root, skipped)  # a folder for each class, and data.test of them are for the test
    if not any(len(found) for found in splits.values()):
        raise ConfigError(f"data.root={data.root}: no images in it; expected {EXPECTED}")
    notes = [f"{path.name} is no split{nearest(path.name, WORDS)}, and not read" for path in there
             if path.is_dir() and path not in folders and (folders or shards)]  # fmt: skip
    if empty:
        notes.append(f"no image in {empty[0]}{f' and {len(empty) - 1} more folders of classes' * (len(empty) > 1)}")
    if loose := [path.name for path in there if path.is_file() and path.suffix.lower() in SUFFIXES]:
        notes.append(f"in no split, and not read: {loose[0]}{f' and {len(loose) - 1} more' * (len(loose) > 1)}")
    return Findings(splits, skipped, notes)


def images_below(data: Data) -> Files:
    """Every image below `data.root`, in however many folders and whatever these are called; or that one file.

    Raises:
        ConfigError: there is none.
    """
    expected = "a folder of images"
    root = root_of(data, expected)
    skipped: Counter[str] = Counter()
    files = [path for path, _ in _walk(str(root), "", frozenset())] if root.is_dir() else [str(root)]
    names = [path for path in files if wanted(path, skipped)]
    told = not_read(skipped) if skipped else ""
    if not names:
        raise ConfigError(f"data.root={data.root}: no images in it; expected {expected}{told and f'; {told}'}")
    if told:
        tell(f"{data.root}: {told}")
    return Files(names)


def contents(data: Data) -> str:
    """A hash of `data.dataset` and of every file under `data.root`, for readers that are not ours."""
    root = root_of(data, "the folder of the data set")
    files = [path for path, _ in _walk(str(root), "", frozenset())] if root.is_dir() else [str(root)]
    digest = hashlib.sha256(str(data.dataset).encode())
    for path, own in zip(files, digests_of(Files(files)), strict=True):
        digest.update(os.path.relpath(path, root).encode() + own)
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------ folders


def _in_folder(folder: Path, skipped: Counter[str]) -> Found:
    """The images of a split: the class is the first folder below it."""
    if masks := _masks_beside(folder):
        return _pairs(folder / "images", masks, skipped)
    names, labels = [], []
    for path, inside in _walk(str(folder), "", frozenset()):
        if not wanted(path, skipped):
            continue
        if not inside:
            raise ConfigError(f"{path}: has no class; expected it in a folder {folder.name}/<class>/")
        names.append(path)
        labels.append(inside.partition("/")[0])
    return Found(Files(names), labels)


def _masks_beside(folder: Path) -> Path | None:
    """The folder of masks, where a folder holds one and one of images and nothing else."""
    inside = {path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name)}
    masks = inside - {"images"}
    if len(inside) == 2 and len(masks & set(MASKS)) == 1:
        return folder / masks.pop()
    if len(inside) == 2 and "images" in {name.lower() for name in inside}:
        told = " and ".join(sorted(inside))
        raise ConfigError(f"{folder}: has {told}; expected images and {' or '.join(MASKS)}, where images have masks")
    return None


def _pairs_by_split(images: Path, masks: Path) -> Findings:
    """The splits of images/train and masks/train, and so on."""
    skipped: Counter[str] = Counter()
    folders = {path: split for path in images.iterdir() if path.is_dir() and (split := split_of(path.name))}
    once(((split, path.name) for path, split in folders.items()), str(images))
    for folder in sorted([*images.iterdir(), *masks.iterdir()]) if folders else []:
        if folder.is_dir() and not hidden(folder.name) and images / folder.name not in folders:
            what = "has no images beside it" if split_of(folder.name) else "is no split"
            raise ConfigError(f"{folder}: {what}; there are {', '.join(sorted(path.name for path in folders))}")
    found = {split: _pairs(path, masks / path.name, skipped) for path, split in folders.items()}
    return Findings(found or {"train": _pairs(images, masks, skipped)}, skipped)


def _pairs(images: Path, masks: Path, skipped: Counter[str]) -> Found:
    """Images and the masks of the same names."""
    if not masks.is_dir():
        raise ConfigError(f"{masks}: no such folder; expected the masks of {images}")

    def by_name(folder: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for path, _ in _walk(str(folder), "", frozenset()):
            name = str(Path(path).relative_to(folder).with_suffix(""))
            if wanted(path, skipped) and found.setdefault(name, path) != path:
                raise ConfigError(f"{path}: has the name of {found[name]}; expected one, as masks go by names")
        return found

    there, beside = by_name(images), by_name(masks)
    for name, path in there.items():
        if name not in beside:
            raise ConfigError(f"{path}: has no mask; expected {masks / name}.png")
    if alone := sorted(beside.keys() - there.keys()):
        raise ConfigError(f"{beside[alone[0]]}: is a mask without an image in {images}")
    return Found(Files(list(there.values())), [], Files([beside[name] for name in there]))


def _walk(folder: str, inside: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Every file under a folder with its place in it, links followed, but not in a circle."""
    try:
        own = Path(folder).stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read ({error.strerror})") from error
    here = (own.st_dev, own.st_ino)
    if here in above:
        return
    for entry in entries:
        if hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{inside}/{entry.name}" if inside else entry.name, above | {here})
        elif entry.is_file():
            yield entry.path, inside
        elif entry.is_symlink():
            raise ConfigError(f"{entry.path}: is a link that leads nowhere")
