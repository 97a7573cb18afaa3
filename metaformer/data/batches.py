"""Which images make up which batch, and how they are augmented on the way to the model.

Whatever is drawn is a function of (seed, pass over the images, place of the image): the same for every mixer, for any
number of devices, accumulated parts and worker processes, and after a resume in the middle of an epoch. An epoch is
such a pass, or with `recipe.validate_steps` steps of a part of one, or of the end of one and the begin of the next.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metaformer.config.tasks import FILLED
from metaformer.data.images import Images
from metaformer.data.splits import Split
from metaformer.system.errors import ConfigError
from metaformer.system.seeds import derive, seed_globals

EVAL_BATCH = 500
EVAL_LOGITS = 2**23  # of a batch of images with masks at most
EVAL_PHOTOS = 100  # a batch of larger images
Passes = Sequence[tuple[int, range]]  # the number of each pass over the images, and which of its steps
Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] fp32, and labels [B] int64 or masks [B, H, W] uint8


@dataclass(frozen=True)
class Share:
    """The part of each global batch that one device trains on, in `accumulate` parts one after the other."""

    rank: int = 0
    devices: int = 1
    accumulate: int = 1

    def of(self, order: Tensor, batch: int) -> Iterator[Tensor]:
        """The rows [B] of each part; an incomplete last batch is dropped."""
        size = batch // (self.devices * self.accumulate)
        for start in range(0, len(order) // batch * batch, batch):
            for part in range(self.accumulate):
                first = start + (part * self.devices + self.rank) * size
                yield order[first : first + size]

    def evaluated(self, images: int, most: int) -> tuple[Tensor, ...]:
        """Every `devices`-th row of a split in order, in batches of `most` over the parts.

        All devices have as many rows, for they wait for each other at each batch: those beyond the images only fill
        up, and have the label -1, or FILLED masks.
        """
        rows = torch.arange(self.rank, -(-images // self.devices) * self.devices, self.devices)
        batches: tuple[Tensor, ...] = rows.split(-(-most // self.accumulate))
        return batches


WHOLE = Share()


def pass_generator(seed: int, number: int) -> torch.Generator:
    """Draws the order of a pass over the images, and after it the crops and flips of whole batches."""
    return torch.Generator().manual_seed(derive(seed, "epoch", number))


def of_steps(order: Tensor, steps: range, batch: int) -> Tensor:
    """What some steps of a pass see, of what all of them do."""
    return order[steps.start * batch : steps.stop * batch]


def repeated(order: Tensor, times: int) -> Tensor:
    """The places [N] of a pass that sees fewer images, each `times` one after the other (arXiv:1901.09335).

    As timm has it, a pass has as many places as there are images. A place is the row of an image plus N for each time
    that it was there before, so that each time draws its own augmentation.
    """
    images = len(order)
    return (order.repeat_interleave(times) + images * torch.arange(times).repeat(images))[:images]


class Batches:
    """The batches of one epoch out of memory, shuffled, cropped and flipped as a whole, where the images are.

    All is drawn on the processor, before the first batch of a pass: the draws are those of every device.
    """

    def __init__(
        self,
        data: Images,
        batch: int,
        *,
        seed: int,
        passes: Passes,
        crop: int = 0,
        flip: bool = False,
        share: Share = WHOLE,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        assert isinstance(data.train, Split)
        self.data, self.split, self.batch, self.crop, self.flip = data, data.train, batch, crop, flip
        self.seed, self.passes, self.share, self.done = seed, passes, share, done

    def __len__(self) -> int:
        return sum(len(steps) for _, steps in self.passes) * self.share.accumulate

    def __iter__(self) -> Iterator[Batch]:
        for index, corner, mirrored in islice(self._drawn(), self.done(), None):
            picked, targets = self.split.windows(index, corner[index] - self.crop, mirrored[index])
            yield self.data.normalise(picked), targets

    def _drawn(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The rows [B] of each batch, and of all images the corners [N, 2] of their crops and which are flipped [N]."""
        images, device = len(self.split), self.split.labels.device
        for number, steps in self.passes:
            generator = pass_generator(self.seed, number)
            order = torch.randperm(images, generator=generator)
            corner = torch.randint(2 * self.crop + 1, (images, 2), generator=generator)
            mirrored = torch.rand(images, generator=generator) < (0.5 if self.flip else 0.0)
            order, corner, mirrored = (drawn.to(device) for drawn in (order, corner, mirrored))
            for index in self.share.of(of_steps(order, steps, self.batch), self.batch):
                yield index, corner, mirrored


class EvalBatches:
    """A device's images of a split out of memory, in order and without augmentation."""

    def __init__(self, data: Images, split: Split, share: Share = WHOLE) -> None:
        self.data, self.split = data, split
        most = EVAL_BATCH if split.masks is None else EVAL_LOGITS // (len(data.classes) * data.size[0] * data.size[1])
        self.batches = share.evaluated(len(split), max(1, min(EVAL_BATCH, most)))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        images = len(self.split)
        for batch in self.batches:
            rows = batch.to(self.split.labels.device)
            there = rows % images
            targets, fills = self.split.targets(there), rows >= images
            targets[fills] = -1 if self.split.masks is None else FILLED
            yield self.data.normalise(self.split.pixels[self.split.places(there)]), targets


class Transformed(Dataset[tuple[Tensor, Any]]):
    """The items of a split at (pass, place): an image [C, H, W] and its label. Without a pass nothing is drawn.

    A place is the row of an image, or more where it is repeated, or where it only fills up an evaluation (label -1).
    """

    def __init__(self, split: Any, transform: Callable[..., Any], seed: int = 0) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, where: tuple[int | None, int]) -> tuple[Tensor, Any]:
        number, place = where
        if number is not None:
            seed_globals(self.seed, "image", number, place)  # of a worker process
        image, target = self.item(place % len(self.split))
        return image, -1 if number is None and place >= len(self.split) else target

    def item(self, row: int) -> tuple[Tensor, Any]:
        """An image and its target, augmented by the global generators."""
        return self.transform(self.split.read(row)), int(self.split.labels[row])


Read = tuple[int | None, Tensor]  # the pass over the images that a batch is of, none of evaluation, and its places [B]


@dataclass
class Places:
    """What worker processes are to read: (pass, place) of every image of each batch."""

    batches: Sequence[Read]

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        for number, rows in self.batches:
            yield [(number, row) for row in rows.tolist()]


# As torch starts them, by its name: a worker of joblib has a way of its own, which starts no process of torch's
START = "fork" if sys.platform == "linux" else "spawn"


class Stream:
    """Batches of images that are read and transformed one at a time, ahead of time and in worker processes."""

    def __init__(self, dataset: Transformed, workers: int) -> None:
        self.dataset, self.workers = dataset, workers
        self.end()

    def end(self) -> None:
        """End the worker processes, if there are any; new ones start with the next batch."""
        self.places = Places([])
        self.loader = DataLoader(
            self.dataset, batch_sampler=self.places, num_workers=self.workers, persistent_workers=self.workers > 0,
            multiprocessing_context=START if self.workers else None,
        )  # fmt: skip

    def of(self, batches: Sequence[Read], done: Callable[[], int] = lambda: 0) -> "Stream":
        """The same worker processes, about to read these batches without the first `done()` of them."""
        self.batches, self.done = batches, done
        return self

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self.places.batches = self.batches[self.done() :]
        try:
            yield from self.loader
        except ConfigError as error:  # of a worker, whose traceback torch puts into the message
            raise ConfigError(str(error).rpartition("ConfigError: ")[2].strip()) from None
