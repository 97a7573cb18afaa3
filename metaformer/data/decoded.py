"""Photographs as a data set: decoded once into a memory-mapped file that all runs share, or at every access."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor

from metaformer.config.schema import Data
from metaformer.data.fingerprint import fingerprint
from metaformer.data.images import Images, Photos, Split, carved
from metaformer.system.errors import ConfigError


def photographs(splits: dict[str, Photos], classes: list[str], data: Data, cache: Path) -> Images:
    """A data set of photographs, seen at `data.size`.

    Args:
        splits: train, and test or val or both; without a test split val is the test split, without val it is carved.
        cache: the folder of the decoded images.
    """
    if data.classes not in (None, len(classes)):
        raise ConfigError(f"data.classes={data.classes}: {data.root or data.dataset} has {len(classes)} classes")
    if "test" not in splits:
        splits = {"train": splits["train"], "test": splits["val"]}
    kept: dict[str, Split | Photos] = dict(splits)
    if data.decode == "once":
        side = data.decoded_size or data.size
        name = fingerprint(data) or str(data.dataset).replace("/", "_")
        for split, part in splits.items():
            kept[split] = Split(decoded(part, side, cache / f"{name}-{split}-{side}.npy"), part.labels)
    if "val" in kept:
        return Images(kept["train"], kept["val"], kept["test"], classes, data.size)
    return carved(kept["train"], kept["test"], classes, data.val, data.size)


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
