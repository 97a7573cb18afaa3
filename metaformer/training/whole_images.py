"""Whole images of any shape with their masks: seen in their own proportions, judged pixel by pixel at their own size.

Published results of segmentation are measured so.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from metaformer.data.batches import Batch
from metaformer.data.decoding import BICUBIC
from metaformer.data.splits import Split
from metaformer.models.decoders import resized
from metaformer.models.encoder_decoder import EncoderDecoder
from metaformer.system.errors import in_a_line
from metaformer.tasks.pixels import PixelScores, scores_of
from metaformer.tasks.segmentation import Segmenter
from metaformer.training.restored import normalised

AT_ONCE = 8  # images that are read ahead
T = TypeVar("T")


def in_turn(read: Callable[[int], T], count: int, at_once: int) -> Iterator[list[T]]:
    """What `read` gives of each place, in their order: so many by threads, then the next."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, at_once):
            yield list(pool.map(read, range(start, min(start + at_once, count))))


@dataclass(frozen=True)
class WholeTransform:
    """A PIL image in grey or RGB -> [C, H, W] fp32, as large as where it is cut to `size` about its middle.

    The side that nothing is cut of has as many pixels as there; the other is rounded up to a multiple of the stride.
    """

    size: tuple[int, int]  # height and width of what the network was trained on
    stride: int  # of the coarsest map
    mean: Tensor  # of each channel, from 0 to 255
    std: Tensor

    def __call__(self, image: Image.Image) -> Tensor:
        sides = self.sides(image.height, image.width)
        coloured = image.convert("L" if len(self.mean) == 1 else "RGB")
        return normalised(pil_to_tensor(coloured.resize(sides[::-1], BICUBIC)), self.mean, self.std)

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which an image is seen."""
        factor = max(self.size[0] / height, self.size[1] / width)
        seen = [round(side * factor) for side in (height, width)]
        up = [side if side == own else math.ceil(side / self.stride) * self.stride
              for side, own in zip(seen, self.size, strict=True)]  # fmt: skip
        return up[0], up[1]


@dataclass(frozen=True)
class WholePairs:
    """The images of a split and their masks as they were before they were cut: batches of one, each of its own size."""

    split: Split
    transform: WholeTransform

    def __len__(self) -> int:
        return len(self.split)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pairs in in_turn(self._pair, len(self), AT_ONCE):
            yield from pairs

    def _pair(self, row: int) -> tuple[Tensor, Tensor]:
        assert self.split.uncut is not None
        image, mask = (photos.read(row) for photos in self.split.uncut)
        return self.transform(image)[None], torch.from_numpy(np.array(mask))[None]


class WholeSegmenter(Segmenter):
    """A segmenter that is judged at the size of the masks, to which its logits are brought, and not its decisions."""

    def predict_step(self, batch: Tensor | Batch) -> Tensor:
        """Images -> logits as large as they are seen."""
        logits: Tensor = self.net(batch)
        return logits.float()

    def judged(self, batch: Batch) -> PixelScores:
        logits = resized(self.net(batch[0]).float(), batch[1].shape[1:])
        return replace(scores_of(logits, batch[1]), shown=torch.empty(0))  # pictures of several sizes are no tensor


def why_not_whole(net: nn.Module, transform: WholeTransform) -> str:
    """Why a network takes no images of other proportions, as one with a matrix over all places; or nothing."""
    height, width = transform.size
    noise = torch.zeros(1, len(transform.mean), *transform.sides(height, width + 2 * transform.stride))
    try:
        with torch.no_grad():
            net(noise)
    except (RuntimeError, ValueError) as error:
        return f"this network sees images of {height} x {width} pixels alone ({in_a_line(error)})"
    return ""


def whole_transform(net: nn.Module, size: Sequence[int], mean: Tensor, std: Tensor) -> WholeTransform:
    """How a segmenter sees whole images."""
    assert isinstance(net, EncoderDecoder)
    return WholeTransform((size[0], size[1]), net.stride, mean, std)
