"""A data set: fixed splits of images, held as one uint8 tensor or read one at a time."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from metaformer.config.named_code import import_object
from metaformer.config.schema import Config, Data
from metaformer.config.tasks import IGNORED
from metaformer.data.listing import Contents, check_overlap, without_images
from metaformer.data.registry import check_task, find
from metaformer.data.splits import Photos, Split, balanced, stratified
from metaformer.system.errors import ConfigError, few, tell
from metaformer.system.files import cache_dir

T = TypeVar("T")
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
    notes: list[str] = field(default_factory=list)  # what its user should know of the splits that were taken out

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
    def masked(self) -> bool:
        """Whether each pixel has a class, and not the image."""
        return isinstance(self.test, Split) and self.test.masks is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what a model sees."""
        return self.channels, *self.size

    def normalise(self, images: Tensor) -> Tensor:
        """[B, H, W, C] uint8 -> [B, C, H, W] fp32 in channels_last, zero mean and unit variance per channel.

        It is done on the device of `on`, to which bytes are sent where they are not there.
        """
        if images.device != self.mean.device:
            images = images.pin_memory().to(self.mean.device, non_blocking=True)
        return images.to(torch.float32, copy=True).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def on(self, device: torch.device) -> "Images":
        """The same images for training on a device: on a GPU, in its memory where they take a quarter of it at most."""
        parts = [part for part in self.splits().values() if isinstance(part, Split)]
        if device.type != "cuda" or not parts:
            return self
        there = copy.copy(self)
        there.mean, there.std = self.mean.to(device), self.std.to(device)
        # splits may share one
        stores = {id(store): store for part in parts for store in (part.pixels, part.masks) if store is not None}
        if sum(store.nbytes for store in stores.values()) <= torch.cuda.mem_get_info(device)[0] // 4:
            moved = {key: store.to(device) for key, store in stores.items()}
            there.train, there.val, there.test = (
                part.on(device, moved) if isinstance(part, Split) else part for part in self.splits().values()
            )
        return there

    def named(self, classes: Sequence[str], source: str) -> "Images":
        """The same images with labels by the order of `classes`, which are those of trained weights.

        Raises:
            ConfigError: a class is none of them, and it shows the first difference; or masks have other classes.
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
        if self.masked:
            raise ConfigError(f"data: its masks have {len(self.classes)} classes, those of {source} {len(classes)}")
        train, val, test = (replace(part, labels=index[part.labels]) for part in self.splits().values())
        named = replace(self, train=train, val=val, test=test, classes=list(classes))
        named.mean, named.std = self.mean, self.std
        return named

    def splits(self) -> dict[str, Split | Photos]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def class_counts(self) -> Tensor:
        """Training images [classes] of each class, or pixels of their masks."""
        if not self.masked:
            return self.train.labels.bincount(minlength=len(self.classes))
        assert isinstance(self.train, Split)
        counts = torch.zeros(256, dtype=torch.int64)
        for rows in torch.arange(len(self.train)).split(256):
            counts += self.train.targets(rows).flatten().bincount(minlength=256)
        return counts[: len(self.classes)]

    def sample(self) -> Tensor:
        """Two images of noise [2, C, H, W], to try a model on."""
        noise = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0))
        return noise.to(memory_format=torch.channels_last)


def _by_use(splits: Mapping[str, T], data: Data) -> dict[str, T]:
    """What there is of each split, where one of validation alone is that of the test, as ImageNet's is."""
    found = dict(splits)
    if "test" not in found and "val" in found and data.test is None:
        found["test"] = found.pop("val")
    return found


def check_carving(sizes: Mapping[str, int], data: Data) -> None:
    """Before images are decoded: a ConfigError where a split is asked for that is there, or there is none to test on.

    Args:
        sizes: how many images each split has; one of the test alone is not for training.
    """
    if sizes.keys() == {"test"}:
        return
    there = _by_use(sizes, data)
    for name, asked in (("test", data.test), ("val", data.val)):
        if name in there and asked is not None:
            raise ConfigError(f"data.{name}={asked}: there is a {name} split of {there[name]} images; leave it out")
    if "test" not in there and data.test is None:
        raise ConfigError("data.test: there is no test split; set how many images are taken out of the training images")


def carved(
    splits: Mapping[str, Split | Photos],
    classes: list[str],
    data: Data,
    seen: tuple[int, int] | None = None,
    channels: int = 0,
    contents: Contents | None = None,
) -> Images:
    """A data set whose missing splits are taken out of its training images, always the same ones.

    Args:
        contents: of the training images, where they are known: none of them is to be in two splits.

    Raises:
        ConfigError: a split is asked for that is there already, there is none to test on, or one that is taken out has
            an image that is left in as well.
    """
    if splits.keys() == {"test"}:
        test = splits["test"]
        return Images(test, test, test, classes, seen, channels, only_test=True)
    check_carving({name: len(part) for name, part in splits.items()}, data)
    parts, taken = _by_use(splits, data), dict[str, Tensor]()
    for name, asked in (("test", data.test), ("val", data.val)):
        if name in parts:
            continue
        train = parts["train"]
        count = asked if asked is not None else max(len(train) // 10, 1)
        masked = isinstance(train, Split) and train.masks is not None  # of which all labels are the same
        chosen, rest = stratified(train.labels, count, f"data.{name}", [] if masked else classes)
        parts[name], parts["train"] = train[chosen], train[rest]
        left = taken.get("train", torch.arange(len(train)))
        taken[name], taken["train"] = left[chosen], left[rest]
    if contents is not None and data.overlap == "refuse":
        check_overlap({name: contents.of(rows.tolist()) for name, rows in taken.items()})
    found = Images(parts["train"], parts["val"], parts["test"], classes, seen, channels)
    found.notes = [] if found.masked else [note for name in taken for note in _empty(name, parts[name], classes, data)]
    return found


def _empty(split: str, part: Split | Photos, classes: Sequence[str], data: Data) -> list[str]:
    return [f"data={data.name}: {note}" for note in without_images(split, classes, part.labels.numpy())]


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
    notes = [] if images.masked else _empty("train", part, images.classes, data)
    return replace(images, train=part, notes=[*images.notes, *notes])


def check_masks(config: Config, images: Images) -> None:
    """A ConfigError where the classes of the images are not what the task learns, or masks have too few.

    Those that the training masks have no pixel of are told.
    """
    check_task(config.data, config.task, masked=images.masked)
    for split, part in images.splits().items():
        masks = part.masks if isinstance(part, Split) else None
        if masks is not None and masks.numel() and (masks == IGNORED).all():
            raise ConfigError(f"data={config.data.name}: no pixel of the {split} masks has a class{_ignored(config)}")
    if not images.masked or images.only_test:
        return
    if ((counts := images.class_counts) > 0).sum() < 2:
        told = f"the training masks have pixels of one class alone{_ignored(config)}"
        raise ConfigError(f"data={config.data.name}: {told}; expected two")
    if absent := [name for name, count in zip(images.classes, counts.tolist(), strict=True) if not count]:
        tell(f"data={config.data.name}: the training masks have no pixel of {few(absent)}")


def _ignored(config: Config) -> str:
    return "" if config.data.ignore is None else f" (those of data.ignore={config.data.ignore} have none)"
