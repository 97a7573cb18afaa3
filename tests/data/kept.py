"""Small data sets, written here in every way in which people keep images."""

import csv
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from metaformer.data.images import Images


class Item(NamedTuple):
    """An encoded image of a split and a class."""

    split: str
    label: str
    name: str
    content: bytes


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder(items: list[Item], root: Path) -> Path:
    for item in items:
        (root / item.split / item.label).mkdir(parents=True, exist_ok=True)
        (root / item.split / item.label / item.name).write_bytes(item.content)
    return root


def member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def tars(items: list[Item], root: Path) -> Path:
    root.mkdir(parents=True)
    for split in dict.fromkeys(item.split for item in items):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for item in items:
                if item.split == split:
                    member(tar, f"{item.label}/{item.name}", item.content)
    return root


def webdataset(items: list[Item], root: Path) -> Path:
    """Two shards for each split, the class in a .cls beside each image."""
    root.mkdir(parents=True)
    for split in dict.fromkeys(item.split for item in items):
        own = [item for item in items if item.split == split]
        for shard in range(2):
            with tarfile.open(root / f"{split}-{shard:06}.tar", "w") as tar:
                for i, item in enumerate(own[shard::2]):
                    member(tar, f"{shard}{i:05}.seg{Path(item.name).suffix}", item.content)
                    member(tar, f"{shard}{i:05}.cls", item.label.encode())
    return root


def table(items: list[Item], root: Path, delimiter: str = ",") -> Path:
    folder(items, root / "images")
    file = root / ("labels.csv" if delimiter == "," else "labels.tsv")
    with file.open("w", newline="") as out:
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow(["path", "label", "split"])
        writer.writerows([f"images/{i.split}/{i.label}/{i.name}", i.label, i.split] for i in items)
    return file


def parquet(items: list[Item], root: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as pq

    root.mkdir(parents=True)
    columns = {
        "image": [i.content for i in items],
        "label": [i.label for i in items],
        "split": [i.split for i in items],
    }
    pq.write_table(pa.table(columns), root / "labels.parquet")
    return root / "labels.parquet"


def hub(items: list[Item], root: Path) -> Path:
    """As `datasets` saves it: images in a column of images, classes by number."""
    import datasets

    names = sorted({item.label for item in items})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    parts = {}
    for split in dict.fromkeys(item.split for item in items):
        own = [item for item in items if item.split == split]
        images = [{"bytes": item.content, "path": None} for item in own]
        columns = {"image": images, "label": [names.index(item.label) for item in own]}
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root))
    return root


def npz(arrays: dict[str, np.ndarray], root: Path) -> Path:
    root.mkdir(parents=True)
    np.savez_compressed(root / "set.npz", **arrays)
    return root / "set.npz"


WAYS = {  # how each is read
    "folder": (folder, "image_folder", "root"),
    "tar": (tars, "image_folder", "root"),
    "webdataset": (webdataset, "image_folder", "root"),
    "csv": (table, "table", "root"),
    "parquet": (parquet, "table", "root"),
    "hub": (hub, "hub", "dataset"),
}


def words(way: str, items: list[Item], root: Path) -> list[str]:
    """Write the items in some way; what a command line says to read them."""
    write, name, key = WAYS[way]
    return [f"data={name}", f"data.{key}={write(items, root / way)}"]


def write_raw(folder: Path, images: Images) -> None:
    """The raw files of Fashion-MNIST, as torchvision reads them: train is both of train and validation."""
    folder.mkdir(parents=True)
    train = [torch.cat([getattr(images.train, key), getattr(images.val, key)]) for key in ("images", "labels")]
    for name, (pixels, labels) in {"train": train, "t10k": (images.test.images, images.test.labels)}.items():
        header = b"".join(v.to_bytes(4, "big") for v in (len(labels), 28, 28))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + header + pixels.numpy().tobytes())
        raw = labels.to(torch.uint8).numpy().tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + header[:4] + raw)
