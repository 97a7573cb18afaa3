"""Photographs: read from folders, tar files or timm's data sets, augmented one at a time by timm's transforms.

`Photos` is a split that is read image by image; `decoded` is the same split as squares in one memory-mapped file.
"""

import io
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor

from metaformer.identity import IMAGES, SPLITS
from metaformer.schema import ConfigError


@dataclass
class Photos:
    """A split that is read image by image: `source[rows[i]]` is a PIL image in RGB, `labels[i]` (int64) its class."""

    source: Sequence[Image.Image]
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Photos":
        return Photos(self.source, self.labels[rows], self.rows[rows])

    def read(self, place: int) -> Image.Image:
        return self.source[int(self.rows[place])]


def photos(source: Any, labels: Sequence[int]) -> Photos:
    return Photos(source, torch.tensor(labels), torch.arange(len(labels)))


# ------------------------------------------------------------------ sources


@dataclass
class Files:
    """Image files."""

    paths: list[Path]

    def __getitem__(self, i: int) -> Image.Image:
        return _open(self.paths[i], str(self.paths[i]))


@dataclass
class Tars:
    """Members of tar files: (file, offset, size, name)."""

    members: list[tuple[str, int, int, str]]

    def __getitem__(self, i: int) -> Image.Image:
        tar, offset, size, name = self.members[i]
        with Path(tar).open("rb") as file:
            file.seek(offset)
            return _open(io.BytesIO(file.read(size)), f"{tar}: {name}")


@dataclass
class Timm:
    """A data set of timm or torchvision that can be indexed."""

    dataset: Any

    def __getitem__(self, i: int) -> Image.Image:
        # Not through timm's dataset, which puts the next image in place of one that it cannot read.
        reader = getattr(self.dataset, "reader", None)
        return self.dataset[i][0].convert("RGB") if reader is None else _open(reader[i][0], f"image {i}")


def _open(file: Any, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises more than OSError: a decompression bomb, a syntax error in a TIFF
        raise ConfigError(f"{name}: cannot be read as an image ({error})") from error


def open_splits(config: Mapping[str, Any]) -> tuple[dict[str, Photos], list[str]]:
    """The splits that a `data` node of name image_folder or timm has on disk, and the names of the classes.

    A set that has `val` and no `test` is tested on `val`, as ImageNet is.
    """
    splits, classes = _timm_splits(config) if config["name"] == "timm" else _local_splits(config["root"])
    if config["classes"] not in (None, len(classes)):
        raise ConfigError(f"data.classes={config['classes']}: {config['root']} has {len(classes)} classes")
    if "test" not in splits:
        splits["test"] = splits.pop("val")
    return splits, classes


def _local_splits(root: str | None) -> tuple[dict[str, Photos], list[str]]:
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
        splits[split] = photos(files, labels)
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


def _timm_splits(config: Mapping[str, Any]) -> tuple[dict[str, Photos], list[str]]:
    from timm.data import create_dataset

    name, root = config["dataset"], config["root"]
    if name.partition("/")[0].lower() in ("wds", "tfds", "hfids"):
        raise ConfigError(
            f"data.dataset={name}: a stream has no order that a run could go on in; expected hfds/ or torch/. "
            "The tar files of a webdataset are read by data=image_folder, from train*.tar and test*.tar"
        )
    splits, classes = {}, None
    for split, names in {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}.items():
        for word in names:
            try:
                dataset = create_dataset(name, root=root, split=word)
                splits[split] = photos(Timm(dataset), _labels_of(dataset))
            except ConfigError:
                raise
            except (Exception, SystemExit) as error:
                if split == "train":
                    reason = " ".join(str(error).split())[:200]
                    raise ConfigError(f"data.dataset={name}: {type(error).__name__}: {reason}") from error
                continue
            classes = classes or _classes_of(dataset)
            break
    # The test images of a challenge come without labels.
    splits = {split: part for split, part in splits.items() if int(part.labels.min()) >= 0}
    if "train" not in splits or len(splits) < 2:
        raise ConfigError(f"data.dataset={name}: expected the splits train and validation or test, with labels")
    return splits, classes or [str(i) for i in range(int(splits["train"].labels.max()) + 1)]


def _labels_of(dataset: Any) -> list[int]:
    reader = getattr(dataset, "reader", None)
    if reader is not None and hasattr(reader, "iter_targets"):
        return [int(target) for target in reader.iter_targets()]
    for owner in (reader, dataset):
        if hasattr(owner, "targets"):
            return [int(target) for target in owner.targets]  # type: ignore[union-attr]
    raise ConfigError(f"data.dataset: {type(reader or dataset).__name__} does not list its labels")


def _classes_of(dataset: Any) -> list[str] | None:
    names = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    return sorted(names, key=names.__getitem__) if names else None


# ------------------------------------------------------------------ decoded once


def decoded(split: Photos, side: int, file: Path) -> Tensor:
    """All images as squares [N, side, side, 3] uint8, in a memory-mapped file that is written once and shared."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                _decode(split, side, file)
        return torch.from_numpy(np.load(file, mmap_mode="c"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"runtime.cache: {file} cannot be written or read ({reason})") from error


def _decode(split: Photos, side: int, file: Path) -> None:
    shape = (len(split), side, side, 3)
    need, free = int(np.prod(shape)), shutil.disk_usage(file.parent).free
    if need > free:
        raise ConfigError(
            f"runtime.cache: {file.parent} has {free / 1e9:.1f} GB free and {len(split):,} decoded images take "
            f"{need / 1e9:.1f}; set runtime.cache to another folder, or data.decode=always"
        )
    print(f"decoding {len(split):,} images once, to {file} ({need / 1e9:.2f} GB)", file=sys.stderr)
    part = file.with_suffix(".part")
    squares = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
    size, way = (side, side), Image.Resampling.BICUBIC

    def decode(place: int) -> None:
        squares[place] = np.asarray(ImageOps.fit(split.read(place), size, method=way))

    try:
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, range(len(split))):
                pass
    except BaseException:
        part.unlink()
        raise
    squares.flush()
    part.replace(file)


# ------------------------------------------------------------------ augmentation


def training_transform(recipe: Mapping[str, Any], shape: tuple[int, int, int], pixels: Mapping[str, Any]) -> Any:
    """timm's: random resized crop, flip, auto-augment, erasing. `shape` is (channels, height, width)."""
    if recipe["auto_augment"] and shape[0] != 3:
        raise ConfigError(f"recipe.auto_augment={recipe['auto_augment']}: needs images in colour")
    try:
        return create_transform(
            shape,
            is_training=True,
            scale=tuple(recipe["scale"]),
            hflip=0.5 if recipe["flip"] else 0.0,
            color_jitter=None,  # type: ignore[arg-type]  # timm's default, which it drops where there is an auto-augment
            auto_augment=recipe["auto_augment"],
            interpolation="random",
            re_prob=recipe["erasing"],
            re_mode="pixel",
            **pixels,
        )
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"recipe.auto_augment={recipe['auto_augment']}: timm does not know it ({type(error).__name__}: {error})"
        ) from error


def evaluation_transform(crop_pct: float, shape: tuple[int, int, int], pixels: Mapping[str, Any]) -> Any:
    """timm's: resize and centre crop."""
    return create_transform(shape, is_training=False, interpolation="bicubic", crop_pct=crop_pct, **pixels)
