"""Photographs through timm: Hugging Face's data sets and torchvision's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from metaformer.config.schema import Data
from metaformer.data.decoded import photographs
from metaformer.data.images import Images, Photos, open_image, photos_of
from metaformer.system.errors import ConfigError


def timm_set(data: Data, cache: Path) -> Images:
    """The splits of the data set that `data.dataset` names."""
    splits, classes = timm_splits(str(data.dataset), data.root)
    return photographs(splits, classes, data, cache)


@dataclass
class Timm:
    """A data set of timm or torchvision that can be indexed."""

    dataset: Any

    def __getitem__(self, i: int) -> Image:
        # Not through timm's dataset, which puts the next image in place of one that it cannot read.
        reader = getattr(self.dataset, "reader", None)
        return self.dataset[i][0].convert("RGB") if reader is None else open_image(reader[i][0], f"image {i}")


def timm_splits(name: str, root: str | None) -> tuple[dict[str, Photos], list[str]]:
    from timm.data import create_dataset

    if name.partition("/")[0].lower() in ("wds", "tfds", "hfids"):
        raise ConfigError(
            f"data.dataset={name}: a stream has no order that a run could go on in; expected hfds/ or torch/. "
            "The tar files of a webdataset are read by data=image_folder, from train*.tar and test*.tar"
        )
    splits, classes = {}, None
    for split, names in {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}.items():
        for word in names:
            try:
                dataset = create_dataset(name, root=root, split=word)
                splits[split] = photos_of(Timm(dataset), _labels_of(dataset))
            except ConfigError:
                raise
            except (Exception, SystemExit) as error:
                if split == "train":
                    reason = " ".join(str(error).split())[:200]
                    raise ConfigError(f"data.dataset={name}: {type(error).__name__}: {reason}") from error
                continue
            classes = classes or _classes_of(dataset)
            break
    # The test images of a challenge come without labels.
    splits = {split: part for split, part in splits.items() if int(part.labels.min()) >= 0}
    if "train" not in splits or len(splits) < 2:
        raise ConfigError(f"data.dataset={name}: expected the splits train and validation or test, with labels")
    return splits, classes or [str(i) for i in range(int(splits["train"].labels.max()) + 1)]


def _labels_of(dataset: Any) -> list[int]:
    reader = getattr(dataset, "reader", None)
    if reader is not None and hasattr(reader, "iter_targets"):
        return [int(target) for target in reader.iter_targets()]
    for owner in (reader, dataset):
        if hasattr(owner, "targets"):
            return [int(target) for target in owner.targets]  # type: ignore[union-attr]
    raise ConfigError(f"data.dataset: {type(reader or dataset).__name__} does not list its labels")


def _classes_of(dataset: Any) -> list[str] | None:
    names = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    return sorted(names, key=names.__getitem__) if names else None
