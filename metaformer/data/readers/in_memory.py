"""Data sets that are small enough for memory: the embedded one, torchvision's, scikit-learn's digits, and yours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from metaformer.config.named_code import import_object
from metaformer.config.schema import Data
from metaformer.data.images import Images, Split, balanced, carved
from metaformer.system.errors import ConfigError

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
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    train, val, test = (
        Split(arrays[f"{split}_images"][..., None], arrays[f"{split}_labels"].long())
        for split in ("train", "val", "test")
    )
    return Images(train, val, test, FASHION_CLASSES)


def torchvision_set(data: Data, cache: Path) -> Images:
    from torchvision import datasets

    kind = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    root = Path(data.root or "data")
    splits = []
    root.mkdir(parents=True, exist_ok=True)
    for train in (True, False):
        try:
            with FileLock(root / ".download.lock"):  # the runs of a sweep would all download it at once
                found = kind[data.name](root, train=train, download=True)
        except Exception as error:
            raise ConfigError(
                f"data={data.name}: not found under {root} and could not be downloaded "
                f"({error}); set data.root to the folder that holds it"
            ) from error
        images = torch.as_tensor(found.data)
        splits.append(Split(images if images.ndim == 4 else images[..., None], torch.as_tensor(found.targets)))
    train_split, test_split = splits
    return carved(train_split, test_split, list(found.classes), data.val)


def digits(data: Data, cache: Path) -> Images:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).astype("uint8"))[..., None]
    everything = Split(images, torch.from_numpy(found.target))
    test, rest = balanced(everything.labels, 300, "data.test")
    return carved(everything[rest], everything[test], [str(i) for i in range(10)], data.val)


def custom(data: Data, cache: Path) -> Images:
    """What the function `data._target_` returns: `train`, `test` and perhaps `val`, each with images and labels.

    Images are [N, H, W, C] or [N, H, W] uint8 and labels [N] whole numbers, as arrays or tensors; `classes`, their
    names, may be left out. Without `val`, `data.val` images are carved out of `train`.

    Raises:
        ConfigError: something else is returned; it says what.
    """
    function = import_object(str(data._target_), "data._target_")
    found = function(**data.options)
    if not isinstance(found, Mapping) or not {"train", "test"} <= found.keys():
        what = f"the keys {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise ConfigError(f"data._target_={data._target_}: returned {what}; expected a dict with train, test, (val)")
    names = [name for name in ("train", "val", "test") if name in found]
    splits = {name: _split(found[name], f"{data._target_}: {name}") for name in names}
    number = 1 + max(int(split.labels.max()) for split in splits.values())
    classes = list(found.get("classes") or map(str, range(number)))
    if "val" in splits:
        return Images(splits["train"], splits["val"], splits["test"], classes)
    return carved(splits["train"], splits["test"], classes, data.val)


def _split(pair: Any, name: str) -> Split:
    try:
        images, labels = torch.as_tensor(pair[0]), torch.as_tensor(pair[1]).long()
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(f"{name}: expected images and labels ({error})") from error
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != torch.uint8 or len(images) != len(labels):
        raise ConfigError(
            f"{name}: images {list(images.shape)} of {images.dtype} and {len(labels)} labels; expected "
            "[N, H, W, 1 or 3] of torch.uint8, and as many labels"
        )
    return Split(images, labels)
