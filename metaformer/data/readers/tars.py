"""Images in tar files, with the folders of their classes inside or as webdataset's shards. They are not unpacked."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaformer.data.digests import changed
from metaformer.data.listing import Found, hidden, split_of, wanted
from metaformer.system.errors import ConfigError


@dataclass
class Members:
    """Members of tar files, read by their places in the file."""

    names: list[str]
    members: list[tuple[str, int, int]]  # tar file, offset, size

    def read(self, place: int) -> bytes:
        tar, offset, size = self.members[place]
        try:
            with Path(tar).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise ConfigError(f"{tar}: cannot be read ({error.strerror})") from error

    def stamps(self) -> Sequence[tuple[str, int, int]]:
        times = {tar: changed(Path(tar).stat()) for tar in {tar for tar, _, _ in self.members}}
        return [(f"{Path(tar).absolute()}::{offset}", size, times[tar]) for tar, offset, size in self.members]


def in_tars(paths: Sequence[Path], skipped: Counter[str]) -> Found:
    """The images of a split in its tar files.

    Raises:
        ConfigError: one has no class, a sample has two images, or a file is cut; it names the member.
    """
    names: list[str] = []
    members: list[tuple[str, int, int]] = []
    labels: list[str] = []
    for path in paths:
        inside, texts = _members(path)
        samples: dict[str, str] = {}
        for name, (offset, size) in inside.items():
            if name.endswith(".cls") or not wanted(name, skipped):
                continue
            if texts and (other := samples.setdefault(_key(name), name)) != name:
                raise ConfigError(f"{path}: {other} and {name} are of one sample; expected one image beside each .cls")
            names.append(f"{path}: {name}")
            members.append((str(path), offset, size))
            labels.append(_class_of(name, texts, path))
    return Found(Members(names, members), labels)


def _members(path: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """The place of every file of a tar by its name, links resolved, and the classes in webdataset's .cls files."""
    inside: dict[str, tuple[int, int]] = {}
    texts: dict[str, str] = {}
    compressed = False
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                name = posixpath.normpath(info.name).lstrip("/")
                if any(hidden(part) for part in name.split("/")):
                    continue
                if info.isfile():
                    inside[name] = (info.offset_data, info.size)
                elif info.islnk() or info.issym():
                    base = "" if info.islnk() else posixpath.dirname(name)
                    target = posixpath.normpath(posixpath.join(base, info.linkname))
                    if target not in inside:
                        raise ConfigError(f"{path}: {name} is a link to {target}, which is not before it in the file")
                    inside[name] = inside[target]
                if info.isfile() and name.endswith(".cls"):
                    text = tar.extractfile(info)
                    texts[_key(name)] = text.read().decode("ascii").strip() if text else ""
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(512) != bytes(512):
                last = next(reversed(inside), "its beginning")
                raise ConfigError(f"{path}: is cut or damaged after {last}; expected the end of a tar file there")
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        reason = "it is compressed; unpack it, since images are read from the middle" if compressed else error
        raise ConfigError(f"{path}: cannot be read as a tar file ({reason})") from error
    return inside, texts


def _class_of(name: str, texts: dict[str, str], path: Path) -> str:
    """The class of a member: by the .cls beside it where the tar has any, or else the first folder, as in folders."""
    if texts:
        if not texts.get(_key(name)):
            raise ConfigError(f"{path}: {name} has no .cls beside it, as others have")
        return texts[_key(name)]
    parts = name.split("/")
    if split_of(parts[0]) and len(parts) > 2:
        parts = parts[1:]  # packed with the folder of its split
    if len(parts) < 2:
        raise ConfigError(f"{path}: {name} has no class, neither a folder nor a .cls beside it")
    return parts[0]


def _key(name: str) -> str:
    """What the files of one sample of a webdataset share: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
