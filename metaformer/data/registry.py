"""Every data set in one place: its shape, the keys that it reads, and who reads it. Imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaformer.config.identity import COLUMNS
from metaformer.config.named_code import import_object
from metaformer.config.schema import COLOURS, Data, Recipe
from metaformer.config.tasks import Task
from metaformer.data.listing import Listing, arrange
from metaformer.system.errors import ConfigError, by_closeness, tell

READERS = "metaformer.data.readers"
SPLITS = ("root", "train", "val", "test", "classes")
PHOTOGRAPHS = (*SPLITS, "ignore", "class_names", "size", "channels", "decode", "decoded_size", "range", "overlap")


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set without reading it, and who reads it, by the dotted paths of functions."""

    reads: tuple[str, ...] = ("train",)  # keys of the data node that it looks at, beside `name`
    reader: str = "metaformer.data.photographs.photographs"  # (Data, cache: Path) -> Images
    find: str = ""  # (Data) -> Findings: the encoded images for that reader; without torch
    contents: str = ""  # (Data) -> str: a hash of the images of a reader, where its name does not tell; without torch
    shape: tuple[int, int, int] | None = None  # channels, height, width; None: the data node says it
    classes: int | None = None
    images: int | None = None  # of the training set, those of a carved validation split included
    tested: int | None = None  # images of the test set
    masks: bool | None = None  # whether it has a class for each pixel; None: its images say it


def _known(reader: str, shape: tuple[int, int, int], classes: int, images: int, tested: int, *reads: str) -> DataSet:
    reads, reader = ("train", *reads), f"{READERS}.in_memory.{reader}"
    return DataSet(reads, reader, shape=shape, classes=classes, images=images, tested=tested, masks=False)


DATASETS = {
    "fashion_small": _known("fashion_small", (1, 28, 28), 10, 8000, 3000),
    "fashion_mosaics": DataSet(
        reader=f"{READERS}.mosaics.fashion_mosaics", shape=(1, 64, 64), classes=11, images=2000, tested=750, masks=True
    ),
    "fashion_mnist": replace(
        _known("torchvision_set", (1, 28, 28), 10, 60000, 10000, "root", "val"),
        contents=f"{READERS}.arrays.contents_of_fashion_mnist",
    ),
    "cifar10": _known("torchvision_set", (3, 32, 32), 10, 50000, 10000, "root", "val"),
    "cifar100": _known("torchvision_set", (3, 32, 32), 100, 50000, 10000, "root", "val"),
    "digits": _known("digits", (1, 8, 8), 10, 1497, 300, "val"),
    "image_folder": DataSet(PHOTOGRAPHS, find=f"{READERS}.folder.find"),
    "table": DataSet((*PHOTOGRAPHS, *COLUMNS), find=f"{READERS}.columns.find"),
    "hub": DataSet(("dataset", *PHOTOGRAPHS[1:], *COLUMNS[:-1]), find=f"{READERS}.columns.find_on_hub"),
    "npz": DataSet(
        (*SPLITS, "ignore", "class_names", "size", "channels", "range", "overlap"),
        reader=f"{READERS}.in_memory.npz",
        contents=f"{READERS}.arrays.contents_of_file",
    ),
    "timm": DataSet(
        ("dataset", *PHOTOGRAPHS[:-1]), reader=f"{READERS}.timm_sets.timm_set", contents=f"{READERS}.folder.contents"
    ),
    "custom": DataSet(
        (*SPLITS, "ignore", "class_names", "size", "channels", "range", "overlap", "_target_", "options"),
        reader=f"{READERS}.in_memory.custom",
        contents=f"{READERS}.arrays.contents_of_custom",
    ),
}


def find(name: str) -> DataSet:
    """The data set of that name; a ConfigError that names the nearest where there is none."""
    if name not in DATASETS:
        raise ConfigError(f"data.name={name}: expected one of {', '.join(by_closeness(name, DATASETS))}")
    return DATASETS[name]


def tested_images(data: Data) -> int:
    """How many test images a data set has, as far as that is known without reading it; 0 where it is not."""
    return data.test or find(data.name).tested or 0


def listing_of(data: Data, *, training: bool = True) -> Listing:
    """The encoded images of a data set, of those that have a `find`; `training` as in `arrange`."""
    return arrange(import_object(find(data.name).find, "data.name")(data), data, training=training)


def fingerprint(data: Data) -> str | None:
    """The hash of the images of a data set; None where its name says which they are, or nothing says where.

    What the user should know of the images is told.
    """
    known = find(data.name)
    if data.root is data.dataset is data._target_ is None:
        return None
    if known.find:
        listing = listing_of(data)
        for note in listing.notes:
            tell(note)
        return listing.fingerprint
    return import_object(known.contents, "data.name")(data) if known.contents else None


def check(data: Data, recipe: Recipe, task: Task) -> None:
    """Raise a ConfigError for a key that the data set would not read, or that does not fit the recipe or the task."""
    known, default = find(data.name), Data()
    if known.masks is not None:
        check_task(data, task, masked=known.masks)
    for key in Data.__dataclass_fields__:
        value = getattr(data, key)
        if key not in ("name", *known.reads) and value != getattr(default, key):
            raise ConfigError(f"data.{key}={value}: data={data.name} does not read it")
    if "dataset" in known.reads and data.dataset is None:
        expected = "torch/NAME" if data.name == "timm" else "a folder, or a name on the hub"
        raise ConfigError(f"data.dataset: expected {expected}, since data={data.name}")
    if data.name == "custom" and data._target_ is None:
        raise ConfigError("data._target_: expected the dotted path of a function that returns the images")
    if data.root is not None and not Path(data.root).expanduser().exists():
        raise ConfigError(f"data.root={data.root}: no such file or folder")
    if data.mask_column is not None and data.label_column is not None:
        told = f"with data.mask_column={data.mask_column} nothing reads it"
        raise ConfigError(f"data.label_column={data.label_column}: {told}; expected one of them")
    if data.channels not in (None, *COLOURS) and "decode" in known.reads:
        raise ConfigError(f"data.channels={data.channels}: expected 1 for grey or 3 for colour")
    if data.range is not None and (len(data.range) != 2 or not data.range[0] < data.range[1]):
        raise ConfigError(f"data.range={data.range}: expected what is black and what is white, like [0, 4095]")
    _, height, width = known.shape or (0, *size_of(data.size))
    if recipe.crop >= min(height, width):
        raise ConfigError(f"recipe.crop={recipe.crop}: expected less than the {min(height, width)} pixels of an image")
    _check_decoding(data, recipe)


def check_task(data: Data, task: Task, *, masked: bool) -> None:
    """A ConfigError where the classes of the images are not what the task learns."""
    if task.segments and not masked:
        raise ConfigError(f"task={task.name}: data={data.name} has a class for each image; expected masks")
    if masked and not task.segments:
        raise ConfigError(f"task={task.name}: data={data.name} has masks; expected task=segmentation")


def _check_decoding(data: Data, recipe: Recipe) -> None:
    """Images are kept at the size at which they are seen, or cut out of larger ones, each by its own crop."""
    if data.decoded_size is None:
        return
    size, kept = size_of(data.size), size_of(data.decoded_size, "decoded_size")
    if recipe.crops_by is None and kept != size:
        raise ConfigError(f"data.decoded_size={data.decoded_size}: needs a random resized crop (recipe.scale)")
    if recipe.crops_by and (kept[0] < size[0] or kept[1] < size[1] or data.decode == "always"):
        raise ConfigError(
            f"data.decoded_size={data.decoded_size}: expected at least data.size={data.size}, with data.decode=once"
        )


def size_of(size: Any, key: str = "size") -> tuple[int, int]:
    """Height and width of `data.size`, a side or [height, width]."""
    sides = [size, size] if isinstance(size, int) and not isinstance(size, bool) else size
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(isinstance(n, int) and 0 < n <= 65_536 for n in sides)
    ):
        raise ConfigError(f"data.{key}={size}: expected a number of pixels, or [height, width]")
    return sides[0], sides[1]


def shape(data: Data) -> tuple[tuple[int, int, int], int]:
    """Channels, height and width of the images of a data set, and its number of classes, without reading it."""
    known = find(data.name)
    if known.shape is not None and known.classes is not None:
        return known.shape, known.classes
    if data.classes is None:
        raise ConfigError("data.classes: expected the number of classes, since the images are not read here")
    return (data.channels or 3, *size_of(data.size)), data.classes
