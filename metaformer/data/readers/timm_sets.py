"""Data sets of torchvision through timm, whose files are in a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from timm.data import create_dataset

from metaformer.config.schema import Data
from metaformer.data.decoding import plain
from metaformer.data.images import Images
from metaformer.data.photographs import seen
from metaformer.data.registry import fingerprint
from metaformer.data.splits import Photos
from metaformer.system.errors import ConfigError, in_a_line

EXPECTED = (
    "expected torch/NAME; data=hub reads Hugging Face's sets, data=image_folder reads folders and the tar files of a "
    "webdataset, in an order that a run can go on in"
)


@dataclass
class Torchvision:
    """A data set of torchvision, which decodes itself."""

    dataset: Any
    data: Data

    def __getitem__(self, i: int) -> Image:
        return plain(self.dataset[i][0], f"image {i}", self.data)


def timm_set(data: Data, cache: Path) -> Images:
    """The splits of the data set that `data.dataset` names.

    timm gives the images of the test for validation too: the validation split is carved.
    """
    name = str(data.dataset)
    if not name.lower().startswith("torch/") or name.lower().endswith(("/image_folder", "/folder")):
        raise ConfigError(f"data.dataset={name}: {EXPECTED}")
    splits, classes = {}, None
    for split in ("train", "test"):
        dataset = _open(name, str(Path(str(data.root)).expanduser()), split)
        labels = _labels_of(dataset)
        splits[split] = Photos(Torchvision(dataset, data), torch.tensor(labels), torch.arange(len(labels)))
        classes = classes or _classes_of(dataset) or [str(i) for i in range(max(labels) + 1)]
    assert classes is not None
    return seen(splits, f"{name.replace('/', '_')}-{fingerprint(data)}", classes, data, cache)


def _open(name: str, root: str, split: str) -> Any:
    try:
        return create_dataset(name, root=root, split=split)
    except (Exception, SystemExit) as error:  # whatever timm and torchvision raise
        raise ConfigError(f"data.dataset={name}: {in_a_line(error)}") from error


def _labels_of(dataset: Any) -> list[int]:
    if not hasattr(dataset, "targets"):
        raise ConfigError(f"data.dataset: {type(dataset).__name__} does not list its labels")
    try:
        return [int(target) for target in dataset.targets]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data.dataset: {type(dataset).__name__} has no single label for each image") from error


def _classes_of(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "class_to_idx", None)
    return sorted(names, key=names.__getitem__) if names else None
