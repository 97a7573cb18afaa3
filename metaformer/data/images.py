"""A data set: fixed splits of images, held as one uint8 tensor or read one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

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
    seen: tuple[int, int] | None = None  # height and width that a model sees, where they are cut out of larger ones
    channels: int = 0  # of images that are read one at a time; 0: those of the pixels
    only_test: bool = False  # there are no images to train on

    def __post_init__(self) -> None:
        if not isinstance(self.train, Split):
            colours = (255 * torch.tensor(v) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
            self.mean, self.std = (v.mean(0, keepdim=True) if self.channels == 1 else v for v in colours)
            return
        every = -(-len(self.train) * self.train.pixels[0, :, :, 0].numel() // MEASURED_PIXELS)
        pixels = self.train.pixels[self.train.places(torch.arange(0, len(self.train), every))].flatten(0, 2)
        # In integers, so that the result does not depend on the number of threads.
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels.T]).double()
        values = torch.arange(256).double()
        mean = counts @ values / counts.sum(1)
        std = (counts @ values**2 / counts.sum(1) - mean**2).sqrt().clamp_min(1.0)
        self.mean, self.std, self.channels = mean.float(), std.float(), len(mean)

    @property
    def size(self) -> tuple[int, int]:
        if self.seen is not None:
            return self.seen
        assert isinstance(self.train, Split)
        return self.train.pixels.shape[1], self.train.pixels.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what a model sees."""
        return self.channels, *self.size

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] fp32 in channels_last, zero mean and unit variance per channel."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def named(self, classes: Sequence[str], source: str) -> "Images":
        """The same images with labels by the order of `classes`, which are those of trained weights.

        Raises:
            ConfigError: a class is none of them; it shows the first difference.
        """
        if list(classes) == self.classes:
            return self
        places = {name: i for i, name in enumerate(classes)}
        for i, name in enumerate(self.classes):
            if name not in places:
                other = f"'{classes[i]}'" if i < len(classes) else "none"
                raise ConfigError(
                    f"data: its class {i} of {len(self.classes)} is '{name}', that of {source} is {other} "
                    f"of {len(classes)}; expected the same names"
                )
        index = torch.tensor([places[name] for name in self.classes])
        train, val, test = (replace(part, labels=index[part.labels]) for part in self.splits().values())
        named = replace(self, train=train, val=val, test=test, classes=list(classes))
        named.mean, named.std = self.mean, self.std
        return named

    def splits(self) -> dict[str, Split | Photos]:
        return {"train": self.train, "val": self.val, "test": self.test}

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


def stratified(labels: Tensor, count: int, key: str, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows of `count` images, of each class in proportion, and the other rows, which keep one of each class at least.

    Raises:
        ConfigError: there are not so many; it names a class that would be left without an image.
    """
    sizes = labels.bincount(minlength=len(classes))
    most = (sizes - 1).clamp_min(0)
    if not 0 < count <= int(most.sum()):
        scarce = int(torch.where(sizes > 0, sizes, len(labels) + 1).argmin())
        raise ConfigError(
            f"{key}={count}: would leave no training image of some class, like '{classes[scarce]}' with "
            f"{int(sizes[scarce])}; at most {int(most.sum())} of the {len(labels)} images can be taken out"
        )
    exact = sizes.double() * count / len(labels)
    quota = exact.floor().long().minimum(most)
    while (left := count - int(quota.sum())) > 0:  # to those that are furthest behind, as far as they have any
        behind = torch.where(quota < most, exact - quota, -torch.inf)
        quota[behind.argsort(descending=True, stable=True)[: min(left, int((quota < most).sum()))]] += 1
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rows = [shuffled[labels[shuffled] == label][: int(n)] for label, n in enumerate(quota)]
    chosen = torch.cat(rows).sort().values
    return chosen, _others(chosen, len(labels))


def _others(rows: Tensor, count: int) -> Tensor:
    left = torch.ones(count, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()


def carved(
    splits: Mapping[str, Split | Photos],
    classes: list[str],
    data: Data,
    seen: tuple[int, int] | None = None,
    channels: int = 0,
) -> Images:
    """A data set whose missing splits are taken out of its training images, always the same ones.

    Raises:
        ConfigError: a split is asked for that is there already, or there is none to test on.
    """
    parts = dict(splits)
    if parts.keys() == {"test"}:
        return Images(parts["test"], parts["test"], parts["test"], classes, seen, channels, only_test=True)
    if "test" not in parts and "val" in parts and data.test is None:
        parts["test"] = parts.pop("val")  # as ImageNet is
    for name, asked in (("test", data.test), ("val", data.val)):
        if name in parts:
            if asked is not None:
                raise ConfigError(
                    f"data.{name}={asked}: there is a {name} split of {len(parts[name])} images; leave it out"
                )
            continue
        if asked is None and name == "test":
            raise ConfigError(
                "data.test: there is no test split; set how many images are taken out of the training images"
            )
        train = parts["train"]
        count = asked if asked is not None else max(len(train) // 10, 1)
        chosen, rest = stratified(train.labels, count, f"data.{name}", classes)
        parts[name], parts["train"] = train[chosen], train[rest]
    return Images(parts["train"], parts["val"], parts["test"], classes, seen, channels)


def load(data: Data, cache: str | None = None, *, training: bool = True) -> Images:
    """Read a data set.

    Args:
        cache: the folder of decoded images; None for the user's own.
        training: otherwise a set of photographs need not have any to train on.

    Raises:
        ConfigError: it is not there, or not as it should be; it names the file or the key.
    """
    known, place = find(data.name), Path(cache).expanduser() if cache else cache_dir()
    options = {"training": training} if known.find else {}
    images: Images = import_object(known.reader, "data.name")(data, place, **options)
    if images.only_test:
        return images
    if data.train is None or data.train == len(images.train):
        return images
    part = images.train[balanced(images.train.labels, data.train, "data.train")[0]]
    return replace(images, train=part)
