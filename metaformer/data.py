"""Data sets: fixed splits of images, held as one uint8 tensor or read one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from metaformer.identity import cache_dir
from metaformer.schema import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from metaformer.photos import Photos

ASSETS = Path(__file__).resolve().parent / "assets"


@dataclass
class Split:
    """Images in memory, or mapped into it: the `rows` of `pixels` [M, H, W, C] uint8, and `labels` [N] int64."""

    pixels: Tensor
    labels: Tensor
    rows: Tensor | None = None  # None: all of them

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        return Split(self.pixels, self.labels[rows], self.places(rows))

    def places(self, rows: Tensor) -> Tensor:
        """Where some rows of the split are in `pixels`."""
        return rows if self.rows is None else self.rows[rows]

    @property
    def images(self) -> Tensor:
        """[N, H, W, C] uint8."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def read(self, row: int) -> "Image":
        """One image for a transform of PIL's images."""
        from PIL import Image

        place = row if self.rows is None else int(self.rows[row])
        return Image.fromarray(self.pixels[place].numpy().squeeze())


MEASURED_PIXELS = 2 * 10**8  # mean and deviation of larger sets are those of every n-th image


@dataclass
class Images:
    """A data set: its three splits and the names of its classes; mean and std of its pixels, from 0 to 255.

    Photographs that are read one at a time have the mean and deviation of ImageNet.
    """

    train: "Split | Photos"
    val: "Split | Photos"
    test: "Split | Photos"
    classes: list[str]
    side: int | None = None  # of the images that a model sees, where they are cut out of larger ones

    def __post_init__(self) -> None:
        if not isinstance(self.train, Split):
            self.mean, self.std = (255 * torch.tensor(v) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
            return
        every = -(-len(self.train) * self.train.pixels[0, :, :, 0].numel() // MEASURED_PIXELS)
        pixels = self.train.pixels[self.train.places(torch.arange(0, len(self.train), every))].flatten(0, 2)
        # In integers, so that the result does not depend on the number of threads.
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels.T]).double()
        values = torch.arange(256).double()
        mean = counts @ values / counts.sum(1)
        std = (counts @ values**2 / counts.sum(1) - mean**2).sqrt().clamp_min(1.0)
        self.mean, self.std = mean.float(), std.float()

    @property
    def size(self) -> tuple[int, int]:
        if self.side is not None:
            return self.side, self.side
        assert isinstance(self.train, Split)
        return self.train.pixels.shape[1], self.train.pixels.shape[2]

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what a model sees."""
        return self.channels, *self.size

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] fp32 in channels_last, zero mean and unit variance per channel."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def sample(self) -> Tensor:
        """Two images of noise [2, C, H, W], to try a model on."""
        noise = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(memory_format=torch.channels_last)


# ------------------------------------------------------------------ data sets


def load(config: Mapping[str, Any], cache: str | None = None) -> Images:
    """Read the data set that the `data` node of a configuration names.

    Args:
        cache: the folder of decoded images; None for the user's own.
    """
    data = LOADERS[config["name"]]({**config, "cache": cache})
    if config["train"] is not None:
        part = data.train[balanced(data.train.labels, config["train"], "data.train")[0]]
        data = Images(part, data.val, data.test, data.classes, data.side)
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
    if config["name"] in SHAPES:
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


def _carve(train: Any, test: Any, classes: list[str], config: Mapping[str, Any], side: int | None = None) -> Images:
    """A fixed, class-balanced validation split out of the training set."""
    val, rest = balanced(train.labels, config["val"], "data.val")
    return Images(train[rest], train[val], test, classes, side)


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


def _photos(config: Mapping[str, Any]) -> Images:
    """Photographs, decoded once into squares of `decoded_size` or at every access; seen at `size`."""
    from metaformer import photos

    opened, classes = photos.open_splits(config)
    splits: dict[str, Any] = dict(opened)
    side = config["size"]
    if config["decode"] == "once":
        kept = config["decoded_size"] or side
        name = config.get("fingerprint") or config["dataset"].replace("/", "_")
        folder = Path(config["cache"] or cache_dir())
        for split, part in opened.items():
            pixels = photos.decoded(part, kept, folder / f"{name}-{split}-{kept}.npy")
            splits[split] = Split(pixels, part.labels)
    if "val" in splits:
        return Images(splits["train"], splits["val"], splits["test"], classes, side)
    return _carve(splits["train"], splits["test"], classes, config, side)


LOADERS = {
    "fashion_small": _fashion_small,
    "fashion_mnist": _torchvision,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
    "image_folder": _photos,
    "timm": _photos,
    "digits": _digits,
}
