"""Data sets that are small enough for memory: the embedded one, torchvision's, scikit-learn's digits, and yours."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.config.schema import Data
from metaformer.data.digests import digest
from metaformer.data.images import Images, carved
from metaformer.data.listing import Contents, check_overlap, without_images
from metaformer.data.pixel_labels import labels_of
from metaformer.data.readers import arrays
from metaformer.data.registry import size_of
from metaformer.data.splits import Split, balanced
from metaformer.system import locks
from metaformer.system.errors import ConfigError, tell

ASSETS = Path(__file__).resolve().parent.parent / "assets"
FASHION_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def fashion_small(data: Data, cache: Path) -> Images:
    with np.load(ASSETS / "fashion_small.npz") as file:
        found = {name: torch.from_numpy(file[name]) for name in file.files}
    train, val, test = (
        Split(found[f"{split}_images"][..., None], found[f"{split}_labels"].long())
        for split in ("train", "val", "test")
    )
    return Images(train, val, test, FASHION_CLASSES)


def torchvision_set(data: Data, cache: Path) -> Images:
    from torchvision import datasets

    kind = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    root = Path(data.root or "data").expanduser()
    splits = []
    for train in (True, False):
        try:
            found = _found(partial(kind[data.name], root, train=train), root)
        except Exception as error:
            raise ConfigError(
                f"data={data.name}: not found under {root} and could not be downloaded "
                f"({error}); set data.root to the folder that holds it"
            ) from error
        images = torch.as_tensor(found.data)
        splits.append(Split(images if images.ndim == 4 else images[..., None], torch.as_tensor(found.targets)))
    train_split, test_split = splits
    return carved({"train": train_split, "test": test_split}, list(found.classes), data)


def _found(reader: Callable[..., Any], root: Path) -> Any:
    """What is under `root`, which may be read-only, or else is downloaded to it by one process at a time."""
    try:
        return reader()
    except Exception:  # it is not there, or another process is about to write it
        root.mkdir(parents=True, exist_ok=True)
        with locks.held(root / ".download.lock"):
            return reader(download=True)


def digits(data: Data, cache: Path) -> Images:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).astype("uint8"))[..., None]
    everything = Split(images, torch.from_numpy(found.target))
    test, rest = balanced(everything.labels, 300, "data.test")
    return carved({"train": everything[rest], "test": everything[test]}, [str(i) for i in range(10)], data)


def custom(data: Data, cache: Path) -> Images:
    """What a function of yours returns; a ConfigError where that is not what has told which images they are."""
    found, classes = arrays.returned(data)
    first = arrays.first_hashes.get(repr(data))
    if first is not None and first != arrays.contents_of(found, classes):
        told = "returns other images at each call; expected the same ones, as of a random generator with a seed"
        raise ConfigError(f"data._target_={data._target_}: {told}")
    return _images(found, classes, data)


def npz(data: Data, cache: Path) -> Images:
    """A file of arrays, as MedMNIST has them."""
    found = arrays.read(data)
    return _images(found, arrays.numbered(found, data), data)


def _split(pixels: np.ndarray, labels: np.ndarray, name: str, data: Data, classes: int) -> Split:
    if labels.ndim == 1:
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels))
    masks = torch.from_numpy(labels_of(labels, f"data={data.name}: the masks of {name}", data, classes))
    return Split(torch.from_numpy(pixels), torch.zeros(len(masks), dtype=torch.int64), masks=masks)


def _images(found: arrays.Arrays, classes: list[str], data: Data) -> Images:
    """A data set of arrays; a ConfigError where what the data node says of its shape is not true."""
    masks = {name: y for name, (_, y) in found.items() if y.ndim == 3}
    if masks and len(masks) < len(found):
        raise ConfigError(f"data={data.name}: some splits have masks ({', '.join(masks)}); expected them in all")
    splits = {name: _split(pixels, y, name, data, len(classes)) for name, (pixels, y) in found.items()}
    shapes = {name: tuple(split.pixels.shape[1:]) for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise ConfigError(f"data={data.name}: the splits have images of several shapes ({told}); expected one")
    if (most := max(int(split.labels.max()) for split in splits.values())) >= len(classes):
        raise ConfigError(f"data={data.name}: there is a label {most} and {len(classes)} names of classes")
    contents = {
        name: Contents([digest(row.tobytes()) for row in pixels], f"{name} {{}}".format)
        for name, (pixels, _) in (found.items() if data.overlap == "refuse" else ())
    }
    images = carved(splits, classes, data, contents=contents.get("train"))
    if data.classes not in (None, len(images.classes)):
        raise ConfigError(f"data.classes={data.classes}: the data set has {len(images.classes)} classes")
    if data.size != Data().size and size_of(data.size) != images.size:
        raise ConfigError(f"data.size={data.size}: the images have {images.size[0]}x{images.size[1]} pixels")
    if data.channels not in (None, images.channels):
        raise ConfigError(f"data.channels={data.channels}: the images have {images.channels}")
    for name, (_, labels) in found.items() if not masks else ():
        for note in without_images(name, classes, labels):
            tell(f"{data.root or data._target_}: {note}")
    check_overlap(contents)
    return images
