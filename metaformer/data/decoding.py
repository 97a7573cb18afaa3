"""From encoded bytes to pixels, by one rule for every way in which images are kept. Imports no torch.

- The first frame, turned upright by its EXIF orientation.
- Palettes, CMYK and other colour spaces become RGB, or grey with `data.channels=1`.
- What is transparent shows white behind it.
- 16 bits are scaled by 65535. 32 bits and floating point have no range of their own: `data.range=[low, high]` gives it.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from metaformer.config.schema import Data
from metaformer.system.errors import ConfigError

VERSION = 2  # of these rules: raise it when they change, since decoded images are kept
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *((".avif",) if features.check("avif") else ()),
    *((".jp2", ".j2k") if features.check("jpg_2000") else ()),
)
# Of broken EXIF and of palettes. Here, since threads decode, and what changes filters for a while is not safe with them
warnings.filterwarnings("ignore", module=r"PIL\.")
BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST  # of images, of masks
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(content: bytes, name: str, data: Data) -> Image.Image:
    """An image in RGB, or in grey where `data.channels` is 1.

    Raises:
        ConfigError: it cannot be read; in one line, with its name.
    """
    with opened(content, name) as file:
        ImageOps.exif_transpose(file, in_place=True)
        image = plain(file, name, data)
        image.load()  # before the file is closed; what needs no conversion is not copied
        return image


@contextmanager
def opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """An encoded image as Pillow opens it, by the one door through which contents of strangers come in.

    Raises:
        ConfigError: it cannot be read, also while it is used; in one line, with its name.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as file:
            yield file
    except ConfigError:
        raise
    except Exception as error:  # Pillow raises more than OSError: a decompression bomb, a syntax error in a TIFF
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise ConfigError(f"{name}: cannot be read as an image ({reason})") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image as `decode` turns it, from its header alone."""
    if image.format == "TIFF" and image.size != (image.tag_v2.get(256), image.tag_v2.get(257)):  # type: ignore[attr-defined]
        return image.size  # Pillow has turned it already
    lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (image.height, image.width) if lies else image.size


@cache
def _formats() -> list[str]:
    """All that Pillow reads but PostScript, which it would have Ghostscript run, whatever the file is called."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def plain(image: Image.Image, name: str, data: Data) -> Image.Image:
    """An image with eight bits a channel, nothing transparent, in the channels that are wanted."""
    wanted = "L" if data.channels == 1 else "RGB"
    deep = image.mode in DEEP or image.mode in ("I", "F")
    if data.range is not None and not deep:
        raise ConfigError(f"{name}: is read with eight bits a channel, which show all; expected data.range=null")
    if deep:
        return Image.fromarray(scaled(np.asarray(image), image.mode in DEEP, name, data)).convert(wanted)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(behind, image)
    if image.mode == wanted:
        return image
    return image.convert("RGB").convert(wanted) if image.mode != "L" else image.convert(wanted)


def fit(image: Image.Image, size: tuple[int, int], method: Image.Resampling = BICUBIC) -> Image.Image:
    """An image cut about its middle to the proportions of (height, width), and brought to that size."""
    return ImageOps.fit(image, size[::-1], method=method)


def unfit(values: np.ndarray, size: tuple[int, int], beyond: int) -> np.ndarray:
    """The pixels [h, w] of what `fit` made, back at their places in the image of (height, width), each the nearest.

    Args:
        beyond: the value of what was cut off.
    """
    cut = min(size[0] / values.shape[0], size[1] / values.shape[1])  # pixels of the image for one of what was made
    rows, columns = (
        np.floor((np.arange(whole) + 0.5 - (whole - cut * part) / 2) / cut).astype(int)
        for whole, part in zip(size, values.shape, strict=True)
    )
    inside = [(places >= 0) & (places < part) for places, part in zip((rows, columns), values.shape, strict=True)]
    found = np.full(size, beyond, values.dtype)
    found[np.ix_(*inside)] = values[np.ix_(rows[inside[0]], columns[inside[1]])]
    return found


def scaled(values: np.ndarray, sixteen: bool, name: str, data: Data) -> np.ndarray:
    """Numbers of more than eight bits, as eight bits of their range, which of 16 bits is known."""
    if data.range is None and not sixteen:
        raise ConfigError(f"{name}: {values.dtype}, whose range nobody can know; set data.range=[low,high]")
    low, high = data.range if data.range is not None else (0, 65535)
    if not np.isfinite(values).all():
        raise ConfigError(f"{name}: has NaN or infinity among its pixels; expected numbers")
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.asarray((255 * shares.clip(0, 1)).round(), dtype=np.uint8)
