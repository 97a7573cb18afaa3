"""Images held in memory as one uint8 tensor, fixed splits, and augmentation of whole batches.

Order, crops and flips are drawn once per epoch from (seed, epoch): batches are a function of position, the same for
every mixer and after a resume.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from metaformer.identity import IMAGES
from metaformer.schema import ConfigError
from metaformer.seeds import derive

EVAL_BATCH = 500
ASSETS = Path(__file__).resolve().parent / "assets"


@dataclass
class Split:
    """`images` [N, H, W, C] uint8 and `labels` [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        return Split(self.images[rows], self.labels[rows])


@dataclass
class Images:
    """A data set: its three splits and the names of its classes."""

    train: Split
    val: Split
    test: Split
    classes: list[str]

    def __post_init__(self) -> None:
        pixels = self.train.images.flatten(0, 2)
        # In integers, so that the result does not depend on the number of threads.
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels.T]).double()
        values = torch.arange(256).double()
        mean = counts @ values / counts.sum(1)
        std = (counts @ values**2 / counts.sum(1) - mean**2).sqrt().clamp_min(1.0)
        self.mean, self.std = mean.float(), std.float()

    @property
    def size(self) -> tuple[int, int]:
        return self.train.images.shape[1], self.train.images.shape[2]

    @property
    def channels(self) -> int:
        return self.train.images.shape[3]

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] fp32 in channels_last, zero mean and unit variance per channel."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


class Batches:
    """The augmented batches of one epoch, as (images [B, C, H, W], labels [B]); an incomplete last one is dropped."""

    def __init__(self, data: Images, batch: int, *, seed: int, epoch: int, crop: int = 0, flip: bool = False) -> None:
        self.data, self.batch, self.crop, self.flip = data, batch, crop, flip
        self.seed, self.epoch = seed, epoch
        height, width = data.size
        self.rows, self.columns = torch.arange(height), torch.arange(width)
        pad = (0, 0, crop, crop, crop, crop)
        self.padded = torch.nn.functional.pad(data.train.images, pad) if crop else data.train.images

    def __len__(self) -> int:
        return len(self.data.train) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = len(self.data.train)
        generator = torch.Generator().manual_seed(derive(self.seed, "epoch", self.epoch))
        order = torch.randperm(images, generator=generator)
        corner = torch.randint(2 * self.crop + 1, (images, 2), generator=generator)
        mirrored = torch.rand(images, generator=generator) < (0.5 if self.flip else 0.0)
        for start in range(0, len(self) * self.batch, self.batch):
            index = order[start : start + self.batch]
            rows = corner[index, :1] + self.rows
            columns = corner[index, 1:] + torch.where(mirrored[index, None], self.columns.flip(0), self.columns)
            # One gather shuffles, crops and flips.
            picked = self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield self.data.normalise(picked), self.data.train.labels[index]


class EvalBatches:
    """A split in order and without augmentation."""

    def __init__(self, data: Images, split: Split) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return -(-len(self.split) // EVAL_BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(
            self.split.images.split(EVAL_BATCH), self.split.labels.split(EVAL_BATCH), strict=True
        ):
            yield self.data.normalise(images), labels


class ImageData(L.LightningDataModule):
    """What the Trainer asks for. It has to ask at every epoch: the training batches are those of that epoch."""

    def __init__(self, data: Images, recipe: Mapping[str, Any], seed: int, augment: bool = True) -> None:
        super().__init__()
        self.data, self.recipe, self.seed, self.augment = data, recipe, seed, augment

    def train_dataloader(self) -> Batches:
        crop, flip = (self.recipe["crop"], self.recipe["flip"]) if self.augment else (0, False)
        epoch = self.trainer.current_epoch if self.trainer else 0
        return Batches(self.data, self.recipe["batch"], seed=self.seed, epoch=epoch, crop=crop, flip=flip)

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self.data, self.data.val)

    def test_dataloader(self) -> EvalBatches:
        return EvalBatches(self.data, self.data.test)


# ------------------------------------------------------------------ data sets


def load(config: Mapping[str, Any]) -> Images:
    """Read the data set that the `data` node of a configuration names."""
    data = LOADERS[config["name"]](config)
    if config["train"] is not None:
        data = Images(
            data.train[balanced(data.train.labels, config["train"], "data.train")[0]],
            data.val,
            data.test,
            data.classes,
        )
    return data


SHAPES = {  # channels, side, classes
    "fashion_small": (1, 28, 10),
    "fashion_mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "digits": (1, 8, 10),
}


def shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, side in pixels and number of classes of a data set, without reading it."""
    if config["name"] != "image_folder":
        return SHAPES[config["name"]]
    if config["classes"] is None:
        raise ConfigError("data.classes: expected the number of classes, since the images are not read here")
    return 3, config["size"], config["classes"]


def balanced(labels: Tensor, count: int, key: str) -> tuple[Tensor, Tensor]:
    """Rows of `count` images with the same number of each class (up to one), and the other rows; always the same."""
    if not 0 < count < len(labels):
        raise ConfigError(
            f"{key}={count}: expected between 1 and {len(labels) - 1} of the {len(labels)} training images"
        )
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    classes = int(labels.max()) + 1
    rank = torch.empty(len(labels), dtype=torch.long)  # of an image among those of its class
    for label in range(classes):
        rows = shuffled[labels[shuffled] == label]
        rank[rows] = torch.arange(len(rows))
    chosen = (rank * classes + labels).argsort()
    return chosen[:count].sort().values, chosen[count:].sort().values


def _carve(train: Split, test: Split, classes: list[str], config: Mapping[str, Any]) -> Images:
    """A fixed, class-balanced validation split out of the training set."""
    val, rest = balanced(train.labels, config["val"], "data.val")
    return Images(train[rest], train[val], test, classes)


def _fashion_small(_: Mapping[str, Any]) -> Images:
    with np.load(ASSETS / "fashion_small.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    train, val, test = (
        Split(arrays[f"{split}_images"][..., None], arrays[f"{split}_labels"].long())
        for split in ("train", "val", "test")
    )
    return Images(train, val, test, FASHION_CLASSES)


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


def _torchvision(config: Mapping[str, Any]) -> Images:
    from torchvision import datasets

    kind = {
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    root = Path(config["root"] or "data")
    splits = []
    root.mkdir(parents=True, exist_ok=True)
    for train in (True, False):
        try:
            with FileLock(root / ".download.lock"):  # the runs of a sweep would all download it at once
                found = kind[config["name"]](root, train=train, download=True)
        except Exception as error:
            raise ConfigError(
                f"data={config['name']}: not found under {root} and could not be downloaded "
                f"({error}); set data.root to the folder that holds it"
            ) from error
        images = torch.as_tensor(found.data)
        splits.append(Split(images if images.ndim == 4 else images[..., None], torch.as_tensor(found.targets)))
    train_split, test_split = splits
    return _carve(train_split, test_split, list(found.classes), config)


def _digits(config: Mapping[str, Any]) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).astype("uint8"))[..., None]
    everything = Split(images, torch.from_numpy(digits.target))
    test, rest = balanced(everything.labels, 300, "data.test")
    return _carve(everything[rest], everything[test], [str(i) for i in range(10)], config)


def _image_folder(config: Mapping[str, Any]) -> Images:
    if config["root"] is None:
        raise ConfigError("data.root: expected the folder of the images, with train/<class>/ and test/<class>/")
    root = Path(config["root"])
    folders = {split: root / split for split in ("train", "val", "test")}
    for split in ("train", "test"):
        if not folders[split].is_dir():
            raise ConfigError(f"data.root={root}: expected a folder '{split}' in it, with one folder for each class")
    classes = sorted(p.name for p in folders["train"].iterdir() if p.is_dir())
    if len(classes) < 2:
        raise ConfigError(f"{folders['train']}: {len(classes)} class folders, expected at least 2")
    if config["classes"] not in (None, len(classes)):
        raise ConfigError(f"data.classes={config['classes']}: {folders['train']} has {len(classes)} class folders")
    splits = {name: _read_folder(path, classes, config["size"]) for name, path in folders.items() if path.is_dir()}
    if "val" in splits:
        return Images(splits["train"], splits["val"], splits["test"], classes)
    return _carve(splits["train"], splits["test"], classes, config)


def _read_folder(folder: Path, classes: list[str], size: int) -> Split:
    found = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise ConfigError(f"{folder}: its classes are not those of train; first difference: '{odd[0]}'")
    files, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in IMAGES)
        if not images:
            raise ConfigError(f"{folder / name}: no image in this class folder ({', '.join(IMAGES)})")
        files += images
        labels += [label] * len(images)
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda file: _read_image(file, size), files))
    return Split(torch.from_numpy(np.stack(arrays)), torch.tensor(labels))


def _read_image(file: Path, size: int) -> np.ndarray:
    """[size, size, 3] uint8: the short side resized (bicubic), then the centre."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), method=Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow raises more than OSError: a decompression bomb, a syntax error in a TIFF
        raise ConfigError(f"{file}: cannot be read as an image ({error})") from error
    return np.asarray(square)


LOADERS = {
    "fashion_small": _fashion_small,
    "fashion_mnist": _torchvision,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
    "image_folder": _image_folder,
    "digits": _digits,
}
