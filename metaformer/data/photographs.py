"""Encoded images as a data set: decoded once into a memory-mapped file that all runs share, or at every access."""

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from metaformer.config.schema import Data
from metaformer.data.decoding import BICUBIC, NEAREST, VERSION, decode, fit
from metaformer.data.images import Images, carved, check_carving
from metaformer.data.listing import Contents, Listing, Part
from metaformer.data.pixel_labels import Masks
from metaformer.data.registry import listing_of, size_of
from metaformer.data.splits import Photos, Split
from metaformer.system import locks
from metaformer.system.errors import ConfigError
from metaformer.system.files import PART, replacing

DAY = 86_400  # seconds
BLOCK = 512  # images that are decoded before the next ones are begun


@dataclass
class Decoded:
    """The images of a part, decoded at every access."""

    part: Part
    data: Data

    def __getitem__(self, row: int) -> Image.Image:
        content = self.part.items.read(int(self.part.places[row]))
        return decode(content, self.part.name(row), self.data)


def photographs(data: Data, cache: Path, training: bool = True) -> Images:
    """The encoded images that a reader finds, in the order of `listing`, whose argument `training` is."""
    listing = listing_of(data, training=training)
    check_carving({name: len(part.labels) for name, part in listing.parts.items()}, data)
    if any(part.masks for part in listing.parts.values()):
        return _masked(listing, data, cache)
    splits = {
        name: Photos(Decoded(part, data), torch.from_numpy(part.labels), torch.arange(len(part.labels)), part.name)
        for name, part in listing.parts.items()
    }
    return seen(splits, listing.fingerprint, listing.classes, data, cache, _trained(listing))


def _trained(listing: Listing) -> Contents | None:
    """The contents of the images to train on; None where there are none."""
    return listing.parts["train"].contents if "train" in listing.parts else None


def _masked(listing: Listing, data: Data, cache: Path) -> Images:
    """Images with masks, decoded once: both are cut about the middle and brought to `data.size`.

    Those to train on have `data.decoded_size`, out of which the recipe crops.
    """
    if data.decode != "once":
        raise ConfigError(f"data.decode={data.decode}: images with masks are kept decoded; expected once")
    classes, size, channels = len(listing.classes), size_of(data.size), data.channels or 3

    def kept(name: str, sides: tuple[int, int]) -> Split:
        part, shape = listing.parts[name], (*sides, channels)
        labels, rows = torch.from_numpy(part.labels), torch.arange(len(part.labels))
        images, masks = Photos(Decoded(part, data), labels, rows), Photos(Masks(part, data, classes), labels, rows)
        pixels = decoded(images, shape, cache / _file(listing.fingerprint, name, shape, data))
        file = f"{listing.fingerprint}-{name}-masks-{sides[0]}x{sides[1]}-{classes}-{data.ignore}-v{VERSION}m.npy"
        found = decoded(masks, sides, cache / file, NEAREST)
        return Split(pixels, labels, masks=found, uncut=(images, masks), named=part.name)

    splits = {name: kept(name, size) for name in listing.parts}
    images = carved(splits, listing.classes, data, size, channels, _trained(listing))
    if images.only_test or (larger := size_of(data.decoded_size or data.size)) == size:
        return images
    assert isinstance(images.train, Split)
    train = kept("train", larger)
    return replace(images, train=replace(images.train, pixels=train.pixels, masks=train.masks))


def _file(fingerprint: str, split: str, shape: tuple[int, ...], data: Data) -> str:
    """The name of the decoded images of a split."""
    scale = "" if data.range is None else f"-{data.range[0]!r}-{data.range[1]!r}"
    return f"{fingerprint}-{split}-{'x'.join(map(str, shape))}{scale}-v{VERSION}.npy"


def seen(
    splits: dict[str, Photos],
    fingerprint: str,
    classes: list[str],
    data: Data,
    cache: Path,
    contents: Contents | None = None,
) -> Images:
    """A data set of photographs, seen at `data.size`.

    Args:
        fingerprint: of their contents, under which decoded images are kept.
        cache: the folder of the decoded images.
        contents: as of `carved`.
    """
    kept: dict[str, Split | Photos] = dict(splits)
    size, channels = size_of(data.decoded_size or data.size), data.channels or 3
    if data.decode == "once":
        for name, photos in splits.items():
            file = _file(fingerprint, name, (*size, channels), data)
            pixels = decoded(photos, (*size, channels), cache / file)
            kept[name] = Split(pixels, photos.labels, named=photos.named)
    return carved(kept, classes, data, size_of(data.size), channels, contents)


def decoded(split: Photos, shape: tuple[int, ...], file: Path, method: Resampling = BICUBIC) -> Tensor:
    """All images [N, *shape] uint8, cut to (height, width, channels), in a memory-mapped file that is written once.

    Its name says of which images it is, by their contents; one that does not fit is written again, and that is said.
    """
    whole = (len(split), *shape)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and (pixels := _kept(file, whole)) is not None:
            return torch.from_numpy(pixels)
        with locks.held(file.with_suffix(".lock")):
            if not file.exists() or _kept(file, whole) is None:
                _decode(split, whole, file, method)
        return torch.from_numpy(np.load(file, mmap_mode="c"))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"runtime.cache: {file} cannot be written or read ({reason})") from error


def _kept(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels in a file, or None where they are not those that are wanted."""
    try:
        pixels: np.ndarray = np.load(file, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
    else:
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return pixels
        reason = f"it holds {pixels.shape} of {pixels.dtype}, expected {shape}"
    print(f"note: {file} does not fit ({reason}) and is written again", file=sys.stderr)
    return None


def _decode(split: Photos, shape: tuple[int, ...], file: Path, method: Resampling) -> None:
    need, free = int(np.prod(shape)), shutil.disk_usage(file.parent).free
    if need > free:
        raise ConfigError(
            f"runtime.cache: {file.parent} has {free / 1e9:.1f} GB free and {len(split):,} decoded images take "
            f"{need / 1e9:.1f}; set runtime.cache to another folder, or data.decode=always"
        )
    for left in file.parent.glob(f"{PART}*-{file.name}"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > DAY:
            left.unlink(missing_ok=True)
    print(f"decoding {len(split):,} images once, to {file} ({need / 1e9:.2f} GB)", file=sys.stderr)
    with replacing(file) as part, ThreadPoolExecutor() as pool:
        pixels = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # a file with holes on a full disk would end the process by a signal
            with part.open("r+b") as file_of_part:
                os.posix_fallocate(file_of_part.fileno(), 0, part.stat().st_size)

        def write(row: int) -> None:
            pixels[row] = np.asarray(fit(split.read(row), (shape[1], shape[2]), method)).reshape(shape[1:])

        for start in range(0, len(split), BLOCK):
            list(pool.map(write, range(start, min(start + BLOCK, len(split)))))
        pixels.flush()
