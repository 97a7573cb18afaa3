"""Arrays of images: of an .npz file, as MedMNIST has them, and of a function of yours. Imports no torch itself."""

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaformer.config.named_code import import_object
from metaformer.config.schema import COLOURS, MOST_CHANNELS, Data
from metaformer.data.decoding import scaled
from metaformer.data.digests import changed, digest, digests_of
from metaformer.data.listing import WORDS, class_names, once, root_of, split_of
from metaformer.data.readers.folder import Files
from metaformer.system.errors import ConfigError, nearest, tell

EXPECTED = "a file .npz with train_images, train_labels (or train_masks), test_images, test_labels"
SHAPES = "[N, H, W] or [N, H, W, C]"
FASHION_MNIST = "09847be8f4ba0c5c"  # of the four files of its authors
# By split: images [N, H, W, C] uint8, and labels [N] int64 or masks [N, H, W] of any integers
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


first_hashes: dict[str, str] = {}  # hashes of what functions of yours returned last in this process, by the data node


@dataclass
class Whole:
    """A file of arrays as one item: its contents are those of the arrays, compressed or not.

    Masks count with the number of their classes, which the data node may say.
    """

    names: list[str]
    data: Data

    def read(self, place: int) -> bytes:
        arrays = read(self.data)
        masked = any(labels.ndim == 3 for _, labels in arrays.values())
        return _bytes_of(arrays) + (repr(numbered(arrays, self.data)).encode() if masked else b"")

    def stamps(self) -> Sequence[tuple[str, int, int]]:
        stat = Path(self.names[0]).stat()
        scale = "" if self.data.range is None else f"::{self.data.range}"
        classes = "" if self.data.classes is None else f"::{self.data.classes} classes"
        classes += "" if self.data.ignore is None else f"::{self.data.ignore} ignored"
        return [(f"{Path(self.names[0]).absolute()}{scale}{classes}", stat.st_size, changed(stat))]


def contents_of_file(data: Data) -> str:
    """A hash of what a file of arrays holds."""
    return digests_of(Whole([str(root_of(data, EXPECTED))], data))[0].hex()[:16]


def contents_of_custom(data: Data) -> str:
    """A hash of what a function of yours returns."""
    first_hashes[repr(data)] = found = contents_of(*returned(data))
    return found


def contents_of(arrays: Arrays, classes: list[str]) -> str:
    """A hash of arrays and of the names of their classes."""
    return digest(_bytes_of(arrays) + repr(classes).encode()).hex()[:16]


def contents_of_fashion_mnist(data: Data) -> str | None:
    """A hash of its files where they are not those of its authors, which torchvision does not look at."""
    files = sorted((root_of(data, "the folder of FashionMNIST") / "FashionMNIST" / "raw").glob("*-ubyte"))
    found = digest(b"".join(digests_of(Files([str(file) for file in files])))).hex()[:16]
    return found if files and found != FASHION_MNIST else None


def _bytes_of(arrays: Arrays) -> bytes:
    parts = (
        s.encode() + repr(i.shape).encode() + i.tobytes() + t.astype(np.int64).tobytes()
        for s, (i, t) in sorted(arrays.items())
    )
    return b"".join(parts)


def returned(data: Data) -> tuple[Arrays, list[str]]:
    """What the function `data._target_` returns: `train`, `test` and perhaps `val`, each with images and labels.

    Images are [N, H, W, C] or [N, H, W] uint8 and labels [N] whole numbers, as arrays or tensors; `classes`, their
    names, may be left out. Missing splits are carved out of `train`.

    Raises:
        ConfigError: something else is returned; it says what.
    """
    function = import_object(str(data._target_), "data._target_")
    try:
        found = function(**data.options)
    except ConfigError:
        raise
    except Exception as error:  # whatever a function of yours raises
        raise ConfigError(f"data._target_={data._target_}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping) or "train" not in found:
        what = f"the keys {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise ConfigError(
            f"data._target_={data._target_}: returned {what}; expected a dict with train, and test or val"
        )
    words = _splits([str(key) for key in found if key != "classes"], f"data._target_={data._target_}", "returned {}")
    arrays = {split: _pair(found[word], f"{data._target_}: {word}", data) for split, word in words}
    names = found.get("classes", [])
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"data._target_={data._target_}: classes is {names!r}; expected the names of the classes")
    given = [str(name) for name in names]
    if given and data.class_names is not None:
        raise ConfigError(f"data.class_names: data._target_={data._target_} has names of its own; expected null")
    return arrays, given or numbered(arrays, data)


def _splits(words: Sequence[str], where: str, told: str) -> list[tuple[str, str]]:
    """The splits that words name, with these words; a ConfigError for one that names none."""
    for word in words:
        if split_of(word) is None:
            what = f"{told.format(word)}, which is no split"
            raise ConfigError(f"{where}: {what}; expected train, val or test{nearest(word, WORDS)}")
    splits = [(str(split_of(word)), word) for word in words]
    once(splits, where)
    return splits


def numbered(arrays: Arrays, data: Data) -> list[str]:
    """Names for classes that have none: as many as there are numbers, or, of masks, as `data.classes` says.

    Raises:
        ConfigError: `data.classes` says nothing, and a split has a number beyond those to train on.
    """
    masked = arrays["train"][1].ndim == 3
    if data.classes is not None and masked:
        return class_names(data, data.classes)
    ignored = data.ignore if masked else None
    largest = {}
    for split, (_, labels) in arrays.items():
        numbers = np.unique(labels).astype(np.int64)
        largest[split] = int(numbers[numbers != ignored].max(initial=-1))
    if data.classes is None:
        for split in ("val", "test"):
            if largest.get(split, -1) > (last := largest["train"]):
                told = f"{split} has the class {largest[split]}, and the last one of train is {last}"
                raise ConfigError(f"data.classes: {told}; expected how many classes there are")
    classes = 1 + max(largest.values())
    if not masked:
        return [str(i) for i in range(classes)]
    return class_names(data, classes - (ignored is not None and ignored < classes))


def _pair(pair: Any, name: str, data: Data) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = (np.asarray(part) for part in pair)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: expected images and labels ({error})") from error
    labels = labels if labels.ndim == 3 else _labels(labels, f"{name}: labels")
    return _pixels(images, labels, f"{name}: images", data), labels


def read(data: Data) -> Arrays:
    """The splits of a file of arrays.

    Raises:
        ConfigError: what is in it is not images with one class each.
    """
    path = root_of(data, EXPECTED)
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}  # TypeError where the file is one array
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"data.root={path}: cannot be read as arrays ({error}); expected {EXPECTED}") from error
    found: Arrays = {}
    words = [name.removesuffix("_images") for name in arrays if name.endswith("_images")]
    for split, word in _splits(words, str(path), "has {}_images"):
        name, own = f"{word}_images", [key for key in (f"{word}_labels", f"{word}_masks") if key in arrays]
        if len(own) != 1:
            there = " and ".join(own) or f"neither {word}_labels nor {word}_masks"
            raise ConfigError(f"{path}: has {name} and {there}; it holds {', '.join(arrays)}")
        if foreign := [key for key in (name, own[0]) if not isinstance(arrays[key], np.ndarray)]:
            raise ConfigError(f"{path}: {foreign[0]}: is no array")  # but another file in the zip
        checked = _masks if own[0].endswith("masks") else _labels
        labels = checked(arrays[own[0]], f"{path}: {own[0]}")
        found[split] = (_pixels(arrays[name], labels, f"{path}: {name}", data), labels)
    if "train" not in found:
        raise ConfigError(f"{path}: has {', '.join(arrays) or 'nothing'}; expected {EXPECTED}")
    for name in (unread := [key for key in arrays if key.rpartition("_")[0] not in words]):
        word, _, what = name.rpartition("_")
        if what in ("labels", "masks") and split_of(word):
            raise ConfigError(f"{path}: has {name} without {word}_images{nearest(f'{word}_images', unread)}")
    if unread:
        tell(f"{path}: not read: {', '.join(unread)}")
    return found


def _labels(labels: np.ndarray, name: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ConfigError(f"{name}: has {labels.shape[1]} labels for each image; expected one class for each")
    flat = labels.reshape(-1)
    if not np.issubdtype(flat.dtype, np.integer) or (len(flat) and flat.min() < 0):
        raise ConfigError(f"{name}: {flat.dtype}; expected whole numbers from 0")
    return flat.astype(np.int64)


def _masks(masks: np.ndarray, name: str) -> np.ndarray:
    """[N, H, W], of which there may be one channel."""
    masks = masks[..., 0] if masks.ndim == 4 and masks.shape[3] == 1 else masks
    if masks.ndim != 3:
        raise ConfigError(f"{name}: {masks.shape}; expected [N, H, W], the number of the class of each pixel")
    return masks


def _pixels(images: np.ndarray, labels: np.ndarray, name: str, data: Data) -> np.ndarray:
    if images.ndim == 0:
        raise ConfigError(f"{name}: is no array of images; expected {SHAPES}")
    if not len(images):
        raise ConfigError(f"{name}: holds no image")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 5 or (images.ndim == 4 and images.shape[3] > MOST_CHANNELS):
        if images.ndim == 4 and images.shape[1] in COLOURS:
            raise ConfigError(f"{name}: {images.shape}: has its channels first; expected [N, H, W, C]")
        expected = f"{SHAPES} with {MOST_CHANNELS} channels at most"
        raise ConfigError(f"{name}: {images.shape}: volumes are not read; expected {expected}")
    if labels.ndim == 3 and labels.shape != images.shape[:3]:
        raise ConfigError(f"{name}: {images.shape} with masks {labels.shape}; expected [N, H, W] of the same sizes")
    if images.ndim != 4 or len(images) != len(labels):
        raise ConfigError(f"{name}: {images.shape} with {len(labels)} labels; expected {SHAPES}")
    if images.dtype == np.uint8:
        if data.range is not None:
            raise ConfigError(f"{name}: has eight bits a number, all of which are shown; expected data.range=null")
        return np.ascontiguousarray(images)
    return scaled(images, images.dtype.kind == "u" and images.dtype.itemsize == 2, name, data)
