"""A data set: fixed splits of images, held as one uint8 tensor or read one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image as pil
from PIL.Image import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from metaformer.config.named_code import import_object
from metaformer.config.schema import Data
from metaformer.data.registry import find
from metaformer.system.errors import ConfigError
from metaformer.system.files import cache_dir


class Source(Protocol):
    """Images by their places, decoded when they are asked for."""

    def __getitem__(self, place: int, /) -> Image: ...


@dataclass
class Photos:
    """A split that is read image by image: `source[rows[i]]` is a PIL image in RGB, `labels[i]` (int64) its class."""

    source: Source
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Photos":
        return Photos(self.source, self.labels[rows], self.rows[rows])

    def read(self, row: int) -> Image:
        """One image for a transform of PIL's images."""
        return self.source[int(self.rows[row])]


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

    def read(self, row: int) -> Image:
        """One image for a transform of PIL's images."""
        place = row if self.rows is None else int(self.rows[row])
        return pil.fromarray(self.pixels[place].numpy().squeeze())


MEASURED_PIXELS = 2 * 10**8  # mean and deviation of larger sets are those of every n-th image


@dataclass
class Images:
    """A data set: its three splits and the names of its classes; mean and std of its pixels, from 0 to 255.

    Photographs that are read one at a time have the mean and deviation of ImageNet.
    """

    train: Split | Photos
    val: Split | Photos
    test: Split | Photos
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


def carved(
    train: Split | Photos, test: Split | Photos, classes: list[str], val: int, side: int | None = None
) -> Images:
    """A data set whose validation split of `val` images is taken out of its training images."""
    chosen, rest = balanced(train.labels, val, "data.val")
    return Images(train[rest], train[chosen], test, classes, side)


def open_image(file: Any, name: str) -> Image:
    try:
        with pil.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises more than OSError: a decompression bomb, a syntax error in a TIFF
        raise ConfigError(f"{name}: cannot be read as an image ({error})") from error


def photos_of(source: Source, labels: Sequence[int]) -> Photos:
    """A split of all images of a source."""
    return Photos(source, torch.tensor(labels), torch.arange(len(labels)))


def load(data: Data, cache: str | None = None) -> Images:
    """Read a data set.

    Args:
        cache: the folder of decoded images; None for the user's own.

    Raises:
        ConfigError: it is not there, or not as it should be; it names the file or the key.
    """
    reader = import_object(find(data.name).reader, "data.name")
    images: Images = reader(data, Path(cache) if cache else cache_dir())
    if data.train is None:
        return images
    part = images.train[balanced(images.train.labels, data.train, "data.train")[0]]
    return Images(part, images.val, images.test, images.classes, images.side)
