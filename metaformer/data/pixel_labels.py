"""Masks: the class of each pixel of an image, as encoded images of one channel or as arrays. Imports no torch.

Pixels with the number `data.ignore` have no class. The classes are the other numbers in their order: with ignore=0 the
first class is 1, as in ADE20K.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from metaformer.config.schema import Data
from metaformer.config.tasks import IGNORED, MOST_CLASSES
from metaformer.data.decoding import opened, upright_size
from metaformer.data.listing import Part
from metaformer.system.errors import ConfigError

LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
SPREAD = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies what has two or four bits
EXPECTED = "one channel of whole numbers, those of the classes"


def labels_of(values: np.ndarray, name: str, data: Data, classes: int) -> np.ndarray:
    """The numbers of a mask, or of masks, as labels from 0 and IGNORED, uint8.

    Raises:
        ConfigError: a number that is no class.
    """
    if classes > MOST_CLASSES:
        raise ConfigError(f"{name}: have {classes} classes; expected {MOST_CLASSES} at most")
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise ConfigError(f"{name}: is {values.dtype}; expected {EXPECTED}")
    ignore = data.ignore
    ignored = np.zeros(values.shape, bool) if ignore is None else values == ignore
    largest = classes if ignore is not None and ignore < classes else classes - 1
    classed = values[~ignored]
    wrong = classed[(classed < 0) | (classed > largest)]
    if wrong.size:
        if values.ndim == 3:
            name += f", row {int((values == wrong[0]).any((1, 2)).argmax())}"
        kept = "" if ignore is None else f", or data.ignore={ignore} for none"
        raise ConfigError(f"{name}: has the number {wrong[0]}; expected 0 to {largest} for {classes} classes{kept}")
    labels = values.astype(np.int16)
    above = 0 if ignore is None else labels > ignore
    return np.where(ignored, IGNORED, labels - above).astype(np.uint8)


def numbers_of(labels: np.ndarray, data: Data) -> np.ndarray:
    """What `labels_of` was given, uint8; without `data.ignore` no class is 255."""
    if data.ignore is None:
        return labels
    return np.where(labels == IGNORED, data.ignore, labels + (labels >= data.ignore)).astype(np.uint8)


def picture_of(numbers: np.ndarray) -> Image.Image:
    """A mask as an image that viewers show in the colours of PASCAL VOC, and whose values are still the numbers."""
    image = Image.fromarray(numbers)
    bits = (np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3))) & 1
    image.putpalette((bits << np.arange(7, -1, -1)[:, None]).sum(1).astype(np.uint8).tobytes())
    return image


@dataclass
class Masks:
    """The masks of a part, decoded at every access."""

    part: Part
    data: Data
    classes: int

    def __getitem__(self, row: int) -> Image.Image:
        part, place = self.part, int(self.part.places[row])
        assert part.masks is not None
        name = part.masks.names[place]
        with opened(part.masks.read(place), name) as mask:
            if mask.format in LOSSY:
                told = f"is a {mask.format}, whose compression makes other numbers of some"
                raise ConfigError(f"{name}: {told}; expected a PNG")
            tiles = getattr(mask, "tile", ())
            spread = SPREAD.get(tiles[0].args, 1) if mask.format == "PNG" and tiles else 1
            values = np.asarray(ImageOps.exif_transpose(mask)) // spread  # as its image is turned
        if values.ndim != 2:
            raise ConfigError(f"{name}: has {values.shape[-1]} channels; expected {EXPECTED}")
        with opened(part.items.read(place), part.name(row)) as image:
            size = upright_size(image)
        if size != values.shape[::-1]:
            sizes = [f"{width} x {height}" for width, height in (values.shape[::-1], size)]
            raise ConfigError(f"{name}: has {sizes[0]} pixels, its image {part.name(row)} {sizes[1]}")
        return Image.fromarray(labels_of(values, name, self.data, self.classes))
