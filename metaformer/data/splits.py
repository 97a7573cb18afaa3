"""The images of one split, held as one uint8 tensor or read one at a time, and parts that are taken out of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image as pil
from PIL.Image import Image
from torch import Tensor

from metaformer.config.schema import COLOURS
from metaformer.config.tasks import IGNORED
from metaformer.system.errors import ConfigError


class Source(Protocol):
    """Images by their places, decoded when they are asked for."""

    def __getitem__(self, place: int, /) -> Image: ...


Named = Callable[[int], str]  # what an image is called, by its place


@dataclass
class Photos:
    """A split that is read image by image: `source[rows[i]]` is a PIL image in RGB, `labels[i]` (int64) its class."""

    source: Source
    labels: Tensor
    rows: Tensor
    named: Named | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Photos":
        return Photos(self.source, self.labels[rows], self.rows[rows], self.named)

    def name(self, row: int) -> str | None:
        """Of one image: its file, or its place in one; None where it has no name."""
        return self.named and self.named(int(self.rows[row]))

    def read(self, row: int) -> Image:
        """One image for a transform of PIL's images."""
        return self.source[int(self.rows[row])]


@dataclass
class Split:
    """Images in memory, or mapped into it: the `rows` of `pixels` [M, H, W, C] uint8, and `labels` [N] int64.

    With masks [M, H, W] uint8, the classes are those of their pixels, and the labels say nothing.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor | None = None  # None: all of them
    masks: Tensor | None = None
    uncut: tuple[Photos, Photos] | None = None  # images and masks before they were cut, where they were
    named: Named | None = None

    def __post_init__(self) -> None:
        self.pixels = self.pixels.contiguous()  # a batch is picked pixel by pixel; a map is so already

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Split":
        uncut = self.uncut and (self.uncut[0][rows], self.uncut[1][rows])
        return Split(self.pixels, self.labels[rows], self.places(rows), self.masks, uncut, self.named)

    def name(self, row: int) -> str | None:
        """Of one image: its file, or its place in one; None where it has no name."""
        return self.named and self.named(row if self.rows is None else int(self.rows[row]))

    def places(self, rows: Tensor) -> Tensor:
        """Where some rows of the split are in `pixels`."""
        return rows if self.rows is None else self.rows[rows]

    def targets(self, rows: Tensor) -> Tensor:
        """The labels of some rows [B], or their masks [B, H, W]."""
        return self.labels[rows] if self.masks is None else self.masks[self.places(rows)]

    def on(self, device: torch.device, moved: Mapping[int, Tensor]) -> "Split":
        """The same on a device, where its pixels and masks are already, by the id of what they are here."""
        rows = None if self.rows is None else self.rows.to(device)
        masks = None if self.masks is None else moved[id(self.masks)]
        return Split(moved[id(self.pixels)], self.labels.to(device), rows, masks)

    def windows(self, rows: Tensor, corners: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of the size of an image [B, H, W, C] uint8, black where they lie beside it, and their targets.

        Args:
            rows: of the split [B].
            corners: where in its image a window has its first row and column [B, 2]; below 0 it is beside it.
            mirrored: left for right [B].
        """
        window = self.places(rows), corners, mirrored
        picked, inside = _picked(self.pixels, *window)
        picked.mul_(inside)
        if self.masks is None:
            return picked, self.labels[rows]
        labels, inside = _picked(self.masks[..., None], *window)
        return picked, labels.where(inside, IGNORED).squeeze(3)

    @property
    def images(self) -> Tensor:
        """[N, H, W, C] uint8."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def array(self, row: int) -> np.ndarray:
        """One image [H, W, C] uint8."""
        image: np.ndarray = self.pixels[row if self.rows is None else int(self.rows[row])].numpy()
        return image

    def read(self, row: int) -> Image:
        """One image for a transform of PIL's images, or for people; in grey where it has more channels than colours."""
        image = self.array(row)
        return pil.fromarray(image.squeeze(2) if image.shape[2] == 1 else shown(image))


def shown(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] for people: as it is, or the mean [H, W] of channels that are no colours."""
    return image if image.shape[2] in COLOURS else image.mean(2).astype(np.uint8)


def _picked(pixels: Tensor, places: Tensor, corners: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
    """Windows of `pixels` [M, H, W, C] in one gather, and where they lie in them [B, H, W, 1]."""
    height, width, channels = pixels.shape[1:]
    y, x = (torch.arange(side, device=places.device) for side in (height, width))
    y, x = corners[:, :1] + y, corners[:, 1:] + torch.where(mirrored[:, None], x.flip(0), x)
    inside_y, inside_x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    where = (places[:, None, None] * height + inside_y[:, :, None]) * width + inside_x[:, None, :]
    picked = pixels.view(-1, channels).index_select(0, where.flatten()).view(*where.shape, channels)
    return picked, ((y == inside_y)[:, :, None] & (x == inside_x)[:, None, :])[..., None]


def balanced(labels: Tensor, count: int, key: str) -> tuple[Tensor, Tensor]:
    """Rows of `count` images with the same number of each class (up to one), and the other rows; always the same."""
    if not 0 < count <= len(labels):
        raise ConfigError(f"{key}={count}: expected between 1 and {len(labels)}, as there are training images")
    chosen = (_places(labels) * (int(labels.max()) + 1) + labels).argsort()
    return chosen[:count].sort().values, chosen[count:].sort().values


def stratified(labels: Tensor, count: int, key: str, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows of `count` images, of each class in proportion, and the other rows, which keep one of each class at least.

    Args:
        classes: their names; none of images with masks.

    Raises:
        ConfigError: there are not so many; it names a class that would be left without an image.
    """
    sizes = labels.bincount(minlength=len(classes))
    most = (sizes - 1).clamp_min(0)
    if not 0 < count <= int(most.sum()):
        if not classes:
            raise ConfigError(f"{key}={count}: expected between 1 and {int(most.sum())}, of {len(labels)} images")
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
    mine = _places(labels) < quota[labels]
    return mine.nonzero().flatten(), (~mine).nonzero().flatten()


def _places(labels: Tensor) -> Tensor:
    """The place of each image among those of its class, in an order that is drawn once for all."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts, place = labels.bincount(), torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return place
