"""Every data set in one place: its shape, the keys that it reads, and who reads it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from metaformer.config.schema import Data, Recipe
from metaformer.system.errors import ConfigError, by_closeness

PHOTOGRAPHS = ("root", "val", "size", "classes", "decode", "decoded_size")


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set without reading it, and who reads it."""

    reader: str  # the dotted path of a function (data: Data, cache: Path) -> metaformer.data.images.Images
    reads: tuple[str, ...] = ()  # keys of the data node that it looks at, beside `name` and `train`
    shape: tuple[int, int, int] | None = None  # channels, side, classes; None: the data node says it
    images: int | None = None  # of the training set, those of a carved validation split included


DATASETS = {
    "fashion_small": DataSet("metaformer.data.readers.in_memory.fashion_small", (), (1, 28, 10), 8000),
    "fashion_mnist": DataSet("metaformer.data.readers.in_memory.torchvision_set", ("root", "val"), (1, 28, 10), 60000),
    "cifar10": DataSet("metaformer.data.readers.in_memory.torchvision_set", ("root", "val"), (3, 32, 10), 50000),
    "cifar100": DataSet("metaformer.data.readers.in_memory.torchvision_set", ("root", "val"), (3, 32, 100), 50000),
    "digits": DataSet("metaformer.data.readers.in_memory.digits", ("val",), (1, 8, 10), 1497),
    "image_folder": DataSet("metaformer.data.readers.folder.image_folder", PHOTOGRAPHS),
    "timm": DataSet("metaformer.data.readers.timm_sets.timm_set", ("dataset", *PHOTOGRAPHS)),
    "custom": DataSet("metaformer.data.readers.in_memory.custom", ("_target_", "options", "val", "size", "classes")),
}


def find(name: str) -> DataSet:
    """The data set of that name; a ConfigError that names the nearest where there is none."""
    if name not in DATASETS:
        raise ConfigError(f"data.name={name}: expected one of {', '.join(by_closeness(name, DATASETS))}")
    return DATASETS[name]


def check(data: Data, recipe: Recipe) -> None:
    """Raise a ConfigError for a key that the data set would not read, or that does not fit the recipe."""
    found, default = find(data.name), Data()
    for key in Data.__dataclass_fields__:
        value = getattr(data, key)
        if key not in ("name", "train", *found.reads) and value != getattr(default, key):
            raise ConfigError(f"data.{key}={value}: data={data.name} does not read it")
    if data.name == "timm" and data.dataset is None:
        raise ConfigError("data.dataset: expected one that timm reads, like hfds/imagenet-1k, since data=timm")
    if data.name == "custom" and data._target_ is None:
        raise ConfigError("data._target_: expected the dotted path of a function that returns the images")
    if data.root is not None and not Path(data.root).is_dir():
        raise ConfigError(f"data.root={data.root}: no such folder")
    if found.shape and recipe.crop >= found.shape[1]:
        raise ConfigError(f"recipe.crop={recipe.crop}: expected less than the {found.shape[1]} pixels of an image")
    _check_decoding(data, recipe)


def _check_decoding(data: Data, recipe: Recipe) -> None:
    """Photographs are kept at the size at which they are seen, or cut out of larger ones with recipe.scale."""
    size, kept = data.size, data.decoded_size
    if recipe.scale is None:
        if kept not in (None, size):
            raise ConfigError(f"data.decoded_size={kept}: needs a random resized crop (recipe.scale), of size {size}")
    elif kept is not None and (kept < size or data.decode == "always"):
        raise ConfigError(f"data.decoded_size={kept}: expected at least data.size={size}, with data.decode=once")


def shape(data: Data) -> tuple[int, int, int]:
    """Channels, side in pixels and number of classes of a data set, without reading it."""
    if (known := find(data.name).shape) is not None:
        return known
    if data.classes is None:
        raise ConfigError("data.classes: expected the number of classes, since the images are not read here")
    return 3, data.size, data.classes
