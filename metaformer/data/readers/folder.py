"""Photographs from folders and tar files: train/<class>/, train*.tar, webdataset's shards."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from metaformer.config.schema import Data
from metaformer.data.decoded import photographs
from metaformer.data.fingerprint import IMAGES, SPLITS
from metaformer.data.images import Images, Photos, open_image, photos_of
from metaformer.system.errors import ConfigError


def image_folder(data: Data, cache: Path) -> Images:
    """The splits under `data.root`. A set that has `val` and no `test` is tested on `val`, as ImageNet is."""
    splits, classes = local_splits(data.root)
    return photographs(splits, classes, data, cache)


@dataclass
class Files:
    """Image files."""

    paths: list[Path]

    def __getitem__(self, i: int) -> Image:
        return open_image(self.paths[i], str(self.paths[i]))


@dataclass
class Tars:
    """Members of tar files: (file, offset, size, name)."""

    members: list[tuple[str, int, int, str]]

    def __getitem__(self, i: int) -> Image:
        tar, offset, size, name = self.members[i]
        with Path(tar).open("rb") as file:
            file.seek(offset)
            return open_image(io.BytesIO(file.read(size)), f"{tar}: {name}")


def local_splits(root: str | None) -> tuple[dict[str, Photos], list[str]]:
    if root is None:
        raise ConfigError("data.root: expected the folder of the images, with train/<class>/ and test/<class>/")
    found = {split: _paths_of(Path(root), split) for split in SPLITS}
    found = {split: paths for split, paths in found.items() if paths}
    if "train" not in found or len(found) < 2:
        missing = "train" if "train" not in found else "test"
        raise ConfigError(
            f"data.root={root}: expected a folder '{missing}' in it, with one folder for each class, or {missing}*.tar"
        )
    classes: list[str] = []
    splits = {}
    for split, paths in found.items():
        names, files, labels = _read_tars(paths) if paths[0].is_file() else _read_folder(paths[0])
        classes = classes or names
        if len(classes) < 2:
            raise ConfigError(f"{paths[0]}: {len(classes)} class folders, expected at least 2")
        if names != classes:
            odd = sorted(set(names) ^ set(classes))
            raise ConfigError(f"{paths[0]}: its classes are not those of train; first difference: '{odd[0]}'")
        splits[split] = photos_of(files, labels)
    return splits, classes


def _paths_of(root: Path, split: str) -> list[Path]:
    """The folder of a split, or its tar files, in the folder or beside it."""
    folder = root / split
    inside = list(folder.glob("*.tar"))
    if folder.is_dir() and not inside:
        return [folder]
    return sorted([*root.glob(f"{split}*.tar"), *inside])


def _read_folder(folder: Path) -> tuple[list[str], Files, list[int]]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGES)
        if not images:
            raise ConfigError(f"{folder / name}: no image in this class folder ({', '.join(IMAGES)})")
        files += images
        labels += [label] * len(images)
    return classes, Files(files), labels


def _read_tars(paths: Sequence[Path]) -> tuple[list[str], Tars, list[int]]:
    """Images of <class>/<name>.jpg, or of webdataset's <key>.jpg beside <key>.cls with the number of the class."""
    members: list[tuple[str, int, int, str]] = []
    words: list[str] = []
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                inside = [info for info in tar if info.isfile()]
                keys = {_key(info.name): _text(tar, info) for info in inside if info.name.endswith(".cls")}
        except (OSError, tarfile.TarError) as error:
            raise ConfigError(f"{path}: cannot be read as a tar file ({error})") from error
        for info in inside:
            if Path(info.name).suffix.lower() not in IMAGES:
                continue
            word = keys.get(_key(info.name)) or Path(info.name).parent.name
            if not word:
                raise ConfigError(f"{path}: {info.name} has no class, neither a folder nor a .cls beside it")
            members.append((str(path), info.offset_data, info.size, info.name))
            words.append(word)
    if not members:
        raise ConfigError(f"{paths[0]}: no image in it ({', '.join(IMAGES)})")
    classes = sorted(set(words), key=lambda word: (int(word) if word.isdecimal() else -1, word))
    index = {word: i for i, word in enumerate(classes)}
    return classes, Tars(members), [index[word] for word in words]


def _key(name: str) -> str:
    """What the files of one sample of a webdataset share: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    file = tar.extractfile(info)
    return file.read().decode().strip() if file else ""
