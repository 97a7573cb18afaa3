"""Garments on a grey ground: a small data set for segmentation that is made of the embedded images.

It is a test of the tools and a task for small models, not of photographs: up to four garments a mosaic, one in each
quarter, none in front of another. Every image of Fashion-MNIST is in one mosaic at most, and in that of its own split.
"""

from pathlib import Path

import numpy as np
import torch

from metaformer.config.schema import Data
from metaformer.data.images import Images
from metaformer.data.readers.in_memory import FASHION_CLASSES, fashion_small
from metaformer.data.splits import Photos, Split

SIDE, CELL = 64, 32  # pixels of a mosaic, and of a quarter of it
EMPTY = 0.2  # share of the quarters without a garment
FAINT = 24  # grey values up to this are the ground round a garment


def fashion_mosaics(data: Data, cache: Path) -> Images:
    """The three splits; class 0 is the ground."""
    source = fashion_small(Data(), cache)
    train, val, test = (_mosaics(part, seed) for seed, part in enumerate(source.splits().values()))
    return Images(train, val, test, ["ground", *FASHION_CLASSES])


def _mosaics(split: Split | Photos, seed: int) -> Split:
    """One mosaic for each four garments of a split."""
    assert isinstance(split, Split)
    garments, labels = split.images, split.labels
    random, count, side = np.random.RandomState(seed), len(garments) // 4, garments.shape[1]  # the same for ever
    pixels = random.randint(32, 192, (count, 1, 1)) + random.randint(-16, 17, (count, SIDE, SIDE))
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    corners = random.randint(0, CELL - side + 1, (count, 4, 2))
    there = random.random_sample((count, 4)) >= EMPTY
    for i, quarter in np.argwhere(there):
        y, x = CELL * np.array(divmod(quarter, 2)) + corners[i, quarter]
        garment, label = garments[4 * i + quarter, :, :, 0].numpy(), int(labels[4 * i + quarter])
        window = np.s_[i, y : y + side, x : x + side]
        pixels[window] = np.where(garment > FAINT, garment, pixels[window])
        masks[window] = np.where(garment > FAINT, label + 1, 0)
    images = torch.from_numpy(pixels.astype(np.uint8)[..., None])
    return Split(images, torch.zeros(count, dtype=torch.int64), masks=torch.from_numpy(masks))
