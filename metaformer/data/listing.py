"""The one list of the images of a data set: it is counted, hashed, cached and read. Imports no torch.

A reader finds encoded images and the names of their classes, split by split. Here they are put in order: classes by
name, images by their contents. So the same images are the same run, wherever they lie, whatever their files are called,
and whether they come from folders, tar files or a table.
"""

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from metaformer.config.schema import Data
from metaformer.config.tasks import MOST_CLASSES
from metaformer.data.decoding import SUFFIXES
from metaformer.data.digests import Items, digests_of
from metaformer.system.errors import ConfigError, few

WORDS = {  # what a split may be called
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class Found:
    """What a reader finds of one split."""

    items: Items
    labels: list[str]  # the names of the classes; none of images with masks
    masks: Items | None = None  # in the order of the items

    def __len__(self) -> int:
        return len(self.items.names)


@dataclass
class Findings:
    """What a reader finds of a data set."""

    splits: dict[str, Found]  # train, val and test, as far as they are there
    skipped: Counter[str] = field(default_factory=Counter)  # kinds of files that are not read
    notes: list[str] = field(default_factory=list)  # what else its user should know


@dataclass(frozen=True)
class Part:
    """One split in its order."""

    items: Items
    places: np.ndarray  # [N] of `items`, in the order of their contents
    labels: np.ndarray  # [N] int64, by the order of the classes; 0 for images with masks
    digests: list[bytes]  # [N] of the contents
    masks: Items | None = None  # at the places of `items`
    mask_digests: list[bytes] = field(default_factory=list)

    def name(self, row: int) -> str:
        return self.items.names[int(self.places[row])]

    @property
    def contents(self) -> "Contents":
        return Contents(self.digests, self.name)


@dataclass(frozen=True)
class Listing:
    """A data set of encoded images."""

    classes: list[str]  # in natural order: 1, 2, 10
    parts: dict[str, Part]
    fingerprint: str  # of the contents and classes of all splits
    notes: list[str]  # what its user should know


def arrange(findings: Findings, data: Data, *, training: bool = True) -> Listing:
    """Put what was found in order.

    Args:
        training: otherwise there need be no training images: the one split that there is may be what is tested.

    Raises:
        ConfigError: a split is missing, classes do not agree, or an image is in two splits.
    """
    source = data.root or data.dataset
    splits = {name: found for name, found in findings.splits.items() if len(found)}
    if not training and len(splits) == 1 and data.test is None:
        splits = {"test": next(iter(splits.values()))}
    elif "train" not in splits:
        raise ConfigError(f"data.root={source}: no training images; expected a split 'train'")
    named = splits.get("train", splits.get("test"))
    assert named is not None
    if len({found.masks is None for found in splits.values()}) > 1:
        raise ConfigError(f"data.root={source}: some splits have masks; expected them in all")
    classes = _classes(named, data, str(source), training)
    parts: dict[str, Part] = {}
    notes = list(findings.notes)
    for name in ("train", "val", "test"):
        if name in splits:
            part = parts[name] = _part(splits[name], classes, name)
            if named.masks is None:
                notes += [*without_images(name, classes, part.labels), *_two_labels(name, part)]
    if findings.skipped:
        notes.append(not_read(findings.skipped))
    if data.overlap == "refuse":
        check_overlap({name: part.contents for name, part in parts.items()})
    return Listing(classes, parts, _fingerprint(classes, parts), [f"{source}: {note}" for note in notes])


def _classes(found: Found, data: Data, source: str, training: bool) -> list[str]:
    """The names of the classes of the images, or numbers for those of their pixels."""
    if found.masks is not None:
        if data.classes is None or data.classes > MOST_CLASSES:
            raise ConfigError(f"data.classes={data.classes}: expected the number of classes in the masks of {source}, "
                              f"up to {MOST_CLASSES}")  # fmt: skip
        return class_names(data, data.classes)
    classes = sorted({normal(label) for label in found.labels}, key=natural)
    if len(classes) < 2 and training:
        raise ConfigError(f"data.root={source}: the training images have the class {classes[0]} only, expected two")
    if training and data.classes not in (None, len(classes)):
        raise ConfigError(f"data.classes={data.classes}: {source} has {len(classes)} classes")
    return classes


def not_read(skipped: Counter[str]) -> str:
    """How many files there are of each kind that is not read, in words."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(skipped.items(), key=lambda k: (-k[1], k[0])))
    return f"{skipped.total()} file{'s' * (skipped.total() > 1)} of kinds that are not read: {kinds}"


def class_names(data: Data, classes: int) -> list[str]:
    """The names of the classes of masks: those that are given, or the numbers that the masks have.

    Raises:
        ConfigError: a name is there twice, or there are more or fewer names than classes.
    """
    if data.class_names is None:
        return [str(i + (data.ignore is not None and i >= data.ignore)) for i in range(classes)]
    names = [normal(name) for name in data.class_names]
    if len(names) != classes or len(set(names)) != classes or not all(names):
        told = f"{len(names)} names, {len(set(names))} of them different, for {classes} classes"
        raise ConfigError(f"data.class_names: {told}; expected a name for each")
    return names


def _part(found: Found, classes: list[str], split: str) -> Part:
    """One split in the order of its contents."""
    index = {name: i for i, name in enumerate(classes)}
    labels = [normal(label) for label in found.labels]
    if unknown := sorted(set(labels) - index.keys(), key=natural):
        raise ConfigError(f"{split}: its class '{unknown[0]}' is none of the training images; they have "
                          f"{few(classes)}")  # fmt: skip
    digests = digests_of(found.items)
    of_masks = digests_of(found.masks) if found.masks else [b""] * len(digests)
    numbers = [0] * len(digests) if found.masks else [index[label] for label in labels]
    order = sorted(range(len(digests)), key=lambda i: (digests[i], numbers[i], of_masks[i]))
    digests, of_masks = [digests[i] for i in order], [of_masks[i] for i in order]
    return Part(found.items, np.array(order), np.array([numbers[i] for i in order]), digests, found.masks, of_masks)


def without_images(split: str, classes: Sequence[str], labels: np.ndarray) -> list[str]:
    """A note where a split has no image of some classes."""
    there = set(np.unique(labels).tolist())
    empty = [name for i, name in enumerate(classes) if i not in there]
    return [f"{split} has no image of {few(empty)}"] if empty else []


def _two_labels(split: str, part: Part) -> list[str]:
    """A note where an image is in a split twice, as two classes; the images are in the order of their contents."""
    labelled = pairwise(zip(part.digests, part.labels.tolist(), strict=True))
    rows = [row for row, ((one, a), (other, b)) in enumerate(labelled) if one == other and a != b]
    if not rows:
        return []
    pair = f"{part.name(rows[0])} and {part.name(rows[0] + 1)}"
    return [f"{split} has an image twice, as two classes: {pair}; in all {len(rows)}"]


@dataclass(frozen=True)
class Contents:
    """What tells the images of a split apart, whatever they are called."""

    digests: Sequence[bytes]
    name: Callable[[int], str]  # of an image, by its place among them

    def of(self, rows: Sequence[int]) -> "Contents":
        """Those of some of the images."""
        return Contents([self.digests[row] for row in rows], lambda place: self.name(rows[place]))


def check_overlap(splits: Mapping[str, Contents]) -> None:
    """An image of two splits would be selected or tested on after it was trained on: a ConfigError."""
    names = [name for name in ("train", "val", "test") if name in splits]
    for one, other in combinations(names, 2):
        before, later = splits[one], splits[other]
        rows = {digest: row for row, digest in enumerate(before.digests)}
        if shared := [(rows[d], row) for row, d in enumerate(later.digests) if d in rows]:
            raise ConfigError(
                f"{len(shared)} of the {len(later.digests)} images of {other} are in {one} too, like "
                f"{later.name(shared[0][1])} and {before.name(shared[0][0])}; remove them, or set data.overlap=allow"
            )


def _fingerprint(classes: list[str], parts: dict[str, Part]) -> str:
    digest = hashlib.sha256(repr(classes).encode())
    for name, part in sorted(parts.items()):
        digest.update(f"{name} {len(part.labels)}\n".encode() + b"".join(part.digests) + part.labels.tobytes())
        digest.update(b"".join(part.mask_digests))  # nothing where there are no masks
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------ names


def normal(name: str) -> str:
    """A name as it looks: file systems write the same letters in two ways."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that puts 2 before 10, as timm does."""
    pieces = re.split(r"(\d+)", name.lower())
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces] + [(1, 0, name)]


def split_of(word: str) -> str | None:
    """The split that a word names, or None."""
    return WORDS.get(word.lower())


OF_SYSTEMS = ("@eaDir", "__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")


def hidden(name: str) -> bool:
    """Whether a file or folder is that of an operating system or a tool, like `.ipynb_checkpoints`."""
    return name.startswith(".") or name in OF_SYSTEMS


def wanted(name: str, skipped: Counter[str]) -> bool:
    """Whether a file is of a kind that is read; others are counted."""
    suffix = posixpath.splitext(name)[1].lower()
    if suffix not in SUFFIXES:
        skipped[suffix or "without a suffix"] += 1
    return suffix in SUFFIXES


def once(splits: Iterable[tuple[str, str]], where: str) -> None:
    """A ConfigError where two words name the same split: (split, word) each."""
    seen: dict[str, str] = {}
    for split, word in splits:
        if split in seen:
            raise ConfigError(f"{where}: '{seen[split]}' and '{word}' are both the {split} split; expected one of them")
        seen[split] = word


def root_of(data: Data, what: str) -> Path:
    """The folder or file of a data set; a ConfigError that says `what` was expected where it is not there."""
    if data.root is None:
        raise ConfigError(f"data.root: expected {what}")
    root = Path(data.root).expanduser()
    if not root.exists():
        raise ConfigError(f"data.root={data.root}: no such file or folder; expected {what}")
    return root
