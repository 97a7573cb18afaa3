"""The same images give the same tensors, labels and ids, however they are kept and whatever their pixels are."""

import numpy as np
import pytest
import torch
from conftest import compose
from kept import WAYS, Item, encoded, npz, words
from PIL import Image

from metaformer.data.images import load
from metaformer.studies.points import resolve

SIDE = 8
CHOICES = {"mixer": "pooling", "model": "tiny"}


def noise(seed: int, *shape: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape)


def eight(seed: int):
    pixels = noise(seed, SIDE, SIDE, 3).astype(np.uint8)
    return encoded(Image.fromarray(pixels)), pixels


def sixteen(seed: int):
    pixels = noise(seed, SIDE, SIDE, most=65536).astype(np.uint16)
    return encoded(Image.fromarray(pixels)), np.round(pixels / 65535 * 255).astype(np.uint8)[..., None]


def floating(seed: int):
    """From -1 to 1, which `data.range` says."""
    pixels = (noise(seed, SIDE, SIDE, most=1001) / 500 - 1).astype(np.float32)
    scaled = np.round((pixels.astype(float) + 1) / 2 * 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "TIFF"), scaled[..., None]


def palette(seed: int):
    colours, places = noise(seed, 16, 3).astype(np.uint8), noise(seed + 1, SIDE, SIDE, most=16).astype(np.uint8)
    image = Image.fromarray(places, mode="P")
    image.putpalette(colours.tobytes())
    return encoded(image), colours[places]


def alpha(seed: int):
    """What cannot be seen is white."""
    pixels = noise(seed, SIDE, SIDE, 4).astype(np.uint8)
    pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    return encoded(Image.fromarray(pixels)), np.where(pixels[..., 3:] == 255, pixels[..., :3], 255).astype(np.uint8)


def cmyk(seed: int):
    pixels = noise(seed, SIDE, SIDE, 4).astype(np.uint8)
    pixels[..., 3] = 0  # no black ink: the other three are what light is missing
    return encoded(Image.fromarray(pixels, mode="CMYK"), "TIFF"), 255 - pixels[..., :3]


UPRIGHT = {  # what EXIF's orientations do to the stored rows and columns, from its specification
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


def turned(orientation: int):
    def made(seed: int):
        pixels = noise(seed, SIDE, SIDE, 3).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encoded(Image.fromarray(pixels), exif=exif), UPRIGHT[orientation](pixels)

    return made


GREY = ("data.channels=1",)
PIXELS = {  # how an encoded image is made, with its pixels by hand; its suffix; what has to be said
    "8-bit": (eight, "png", ()),
    "16-bit": (sixteen, "png", GREY),
    "float": (floating, "tiff", (*GREY, "data.range=[-1,1]")),
    "palette": (palette, "png", ()),
    "alpha": (alpha, "png", ()),
    "CMYK": (cmyk, "tiff", ()),
    **{f"EXIF {i}": (turned(i), "png", ()) for i in UPRIGHT},
}


def set_of(kind: str) -> tuple[list[Item], dict[str, dict[bytes, str]]]:
    """Encoded images of three splits, and what their pixels are: by split, the class of each."""
    make, suffix, _ = PIXELS[kind]
    items, expected = [], {}
    for s, split in enumerate(("train", "val", "test")):
        for i in range(8 if split == "train" else 4):
            label = ("class 10", "class 9")[i % 2]
            content, pixels = make(1000 * s + 10 * i)
            items.append(Item(split, label, f"{i}.{suffix}", content))
            expected.setdefault(split, {})[np.ascontiguousarray(pixels).tobytes()] = label
    return items, expected


def seen(images, split: str) -> dict[bytes, str]:
    part = images.splits()[split]
    return {i.numpy().tobytes(): images.classes[y] for i, y in zip(part.images, part.labels.tolist(), strict=True)}


@pytest.mark.parametrize("kind", PIXELS)
def test_every_way_gives_the_same_tensors_and_ids(kind, tmp_path):
    items, expected = set_of(kind)
    ids, first = set(), None
    for way in WAYS:
        if way == "hub":
            pytest.importorskip("datasets")
        if way == "parquet":
            pytest.importorskip("pyarrow")
        config = compose(*words(way, items, tmp_path), f"data.size={SIDE}", *PIXELS[kind][2])
        images = load(config.data)
        assert images.classes == ["class 9", "class 10"]  # in natural order
        assert {split: seen(images, split) for split in expected} == expected, way
        first = first or images
        for a, b in zip(images.splits().values(), first.splits().values(), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
        ids.add(resolve(config, CHOICES)[0].run_id)
    assert len(ids) == 1


@pytest.mark.parametrize("kind", PIXELS)
def test_arrays_hold_the_same_pixels(kind, tmp_path):
    """16-bit and floating point arrays are scaled by the same rule; others hold the pixels themselves."""
    _, expected = set_of(kind)
    make, _, overrides = PIXELS[kind]
    arrays = {}
    for s, split in enumerate(("train", "val", "test")):
        count = 8 if split == "train" else 4
        made = [make(1000 * s + 10 * i) for i in range(count)]
        if kind == "16-bit":
            images = [noise(1000 * s + 10 * i, SIDE, SIDE, most=65536).astype(np.uint16) for i in range(count)]
        elif kind == "float":
            raw = [noise(1000 * s + 10 * i, SIDE, SIDE, most=1001) / 500 - 1 for i in range(count)]
            images = [values.astype(np.float32) for values in raw]
        else:
            images = [pixels for _, pixels in made]
        arrays |= {f"{split}_images": np.stack(images), f"{split}_labels": np.arange(count)[:, None] % 2}
    config = compose("data=npz", f"data.root={npz(arrays, tmp_path / 'npz')}", *overrides)
    images = load(config.data)
    names = {"0": "class 10", "1": "class 9"}
    for split, pixels in expected.items():
        assert {key: names[label] for key, label in seen(images, split).items()} == pixels


def test_whatever_changes_is_another_run(tmp_path):
    items, _ = set_of("8-bit")

    def id_of(changed: list[Item], place: str, *overrides: str) -> str:
        config = compose(*words("folder", changed, tmp_path / place), f"data.size={SIDE}", *overrides)
        return resolve(config, CHOICES)[0].run_id

    whole = id_of(items, "whole")
    assert id_of([item._replace(name=f"other {item.name}") for item in items], "renamed") == whole
    first = items[0]
    for place, other in {
        "byte": first._replace(content=first.content[:-1] + b"!"),  # its last byte, which no decoder looks at
        "label": first._replace(label="class 9", name="other.png"),
        "split": first._replace(split="test", name="other.png"),
    }.items():
        assert id_of([other, *items[1:]], place) != whole
    assert id_of(items[1:], "one less") != whole
    assert id_of([i._replace(label=i.label.replace("10", "eleven")) for i in items], "class") != whole
    assert len({whole, id_of(items, "size", "data.size=6"), id_of(items, "grey", *GREY)}) == 3


def test_grey_and_colour_and_any_shape(tmp_path):
    items, _ = set_of("8-bit")
    found = words("folder", items, tmp_path)
    grey = load(compose(*found, f"data.size={SIDE}", *GREY).data)
    assert grey.shape == (1, SIDE, SIDE)
    wide = load(compose(*found, "data.size=[4,6]").data)
    assert wide.shape == (3, 4, 6)
    assert wide.train.images.shape == (8, 4, 6, 3)


def test_alpha_between_is_mixed_with_white(tmp_path):
    pixels = np.full((SIDE, SIDE, 4), (100, 0, 255, 128), dtype=np.uint8)
    items, _ = set_of("8-bit")
    items[0] = items[0]._replace(content=encoded(Image.fromarray(pixels)))
    images = load(compose(*words("folder", items, tmp_path), f"data.size={SIDE}").data)
    found = [i for i in images.train.images if (i == i[0, 0]).all()]
    assert [i[0, 0].tolist() for i in found] == [[177, 127, 255]]  # half of it and half of white
