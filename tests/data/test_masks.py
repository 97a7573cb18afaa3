"""Images with masks: in every way in which they are kept, and image and mask augmented as one."""

import csv
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from kept import encoded
from PIL import ExifTags, Image

from metaformer.config.tasks import FILLED, IGNORED
from metaformer.data.batches import Batches, EvalBatches, Share
from metaformer.data.decoding import NEAREST, fit, unfit
from metaformer.data.images import Images, check_masks, load
from metaformer.data.module import ImageData
from metaformer.data.pixel_labels import labels_of, numbers_of, picture_of
from metaformer.data.registry import fingerprint
from metaformer.studies.points import resolve
from metaformer.system.errors import ConfigError, tell

SPLITS = {"train": 12, "test": 5}
WORDS = ("task=segmentation", "data.size=[8,12]", "data.classes=3")


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 8, 12, 3], and masks in which 255 is no class."""
    random = np.random.default_rng(len(split))
    images = random.integers(0, 256, (SPLITS[split], 8, 12, 3)).astype(np.uint8)
    return images, random.choice(np.array([0, 1, 2, 255], np.uint8), (SPLITS[split], 8, 12))


def pairs(root: Path, *, by_split: bool = True) -> Path:
    """train/images and train/masks, or images/training and annotations/training."""
    for split in SPLITS:
        for place, (image, mask) in enumerate(zip(*arrays(split), strict=True)):
            for kind, pixels in (("images", image), ("masks" if by_split else "annotations", mask)):
                folder = root / (f"{split}/{kind}" if by_split else f"{kind}/{split}ing")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{place:02}.png").write_bytes(encoded(Image.fromarray(pixels)))
    return root


def table(root: Path) -> Path:
    pairs(root)
    with (root / "t.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "seg", "split"])
        for split, count in SPLITS.items():
            writer.writerows([f"{split}/images/{i:02}.png", f"{split}/masks/{i:02}.png", split] for i in range(count))
    return root / "t.csv"


def npz(root: Path, name: str = "masks") -> Path:
    root.mkdir(exist_ok=True)
    found = {f"{split}_{kind}": a for split in SPLITS for kind, a in zip(("images", name), arrays(split), strict=True)}
    np.savez(root / "a.npz", **found)
    return root / "a.npz"


def read(kind: str, root: Path, *words: str) -> Images:
    return load(compose(f"data={kind}", f"data.root={root}", "data.val=2", *WORDS, *words).data)


def content(images: Images) -> set[tuple[bytes, bytes]]:
    parts = images.splits().values()
    return {
        (i.numpy().tobytes(), m.numpy().tobytes())
        for part in parts
        for i, m in zip(part.images, part.targets(torch.arange(len(part))), strict=True)
    }


def test_every_way_gives_the_same_pairs(tmp_path):
    folder = read("image_folder", pairs(tmp_path / "a"))
    assert ([len(part) for part in folder.splits().values()], folder.masked) == ([10, 2, 5], True)
    assert (folder.shape, folder.classes) == ((3, 8, 12), ["0", "1", "2"])
    others = (
        read("image_folder", pairs(tmp_path / "b", by_split=False)),
        read("table", table(tmp_path / "c"), "data.mask_column=seg"),
        read("npz", npz(tmp_path / "d"), "data.size=224"),
    )
    assert all(content(other) == content(folder) for other in others)
    torch.testing.assert_close(others[0].train.images, folder.train.images)  # by their contents, not by their names


def test_a_mask_is_part_of_what_the_images_are(tmp_path):
    words = ("data=image_folder", f"data.root={pairs(tmp_path / 'a')}", *WORDS)
    before = fingerprint(compose(*words).data)
    mask = np.zeros((8, 12), np.uint8)
    (tmp_path / "a/train/masks/03.png").write_bytes(encoded(Image.fromarray(mask)))
    assert fingerprint(compose(*words).data) != before


def test_the_classes_of_a_file_of_arrays_are_counted(tmp_path):
    images = load(compose("data=npz", f"data.root={npz(tmp_path)}", "data.val=2", "task=segmentation").data)
    assert images.classes == ["0", "1", "2"]


def test_the_number_of_classes_is_part_of_a_run_with_masks_and_of_no_other(tmp_path):
    """The network has as many outputs as there are classes, whether the masks have a pixel of them or not."""
    words = (f"data.root={npz(tmp_path)}", "data.val=2", "task=segmentation", "model=tiny_pyramid")
    three, told, five = (
        resolve(compose("data=npz", *words, *more), {"mixer": "x", "model": "y"})[0].run_id
        for more in ((), ("data.classes=3",), ("data.classes=5",))
    )
    assert three == told != five


@pytest.mark.parametrize("lying", [(), ("images",), ("masks",), ("images", "masks")])
def test_a_mask_lies_as_its_image_is_seen(tmp_path, lying):
    """Each is turned by its own EXIF."""
    pairs(tmp_path)
    for kind, values in zip(("images", "masks"), arrays("train"), strict=True):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if kind in lying else 1
        picture = Image.fromarray(values[3])
        stored = picture.transpose(Image.Transpose.ROTATE_90) if kind in lying else picture
        (tmp_path / f"train/{kind}/03.png").write_bytes(encoded(stored, exif=exif))
    assert content(read("image_folder", tmp_path)) == content(read("npz", npz(tmp_path / "b"), "data.size=224"))


def test_where_nothing_is_the_class_0_the_others_count_from_1(tmp_path):
    usual, from_one = read("npz", npz(tmp_path / "a"), "data.size=224"), tmp_path / "b.npz"
    with np.load(tmp_path / "a/a.npz") as file:
        changed = {k: (a + 1 if k.endswith("masks") else a) for k, a in file.items()}  # 255 + 1 is 0
    np.savez(from_one, **changed)
    found = read("npz", from_one, "data.size=224", "data.ignore=0")
    assert content(found) == content(usual)
    assert set(found.train.masks.unique().tolist()) == {0, 1, 2, IGNORED}


def test_image_and_mask_are_cropped_and_flipped_as_one(tmp_path):
    images = read("npz", npz(tmp_path), "data.size=224")
    marked = images.train.masks.clone()
    images.train.pixels[..., 0] = marked  # so that each pixel says its class
    steps = range(len(images.train) // 5)
    for epoch in range(3):
        for pixels, masks in Batches(images, 5, seed=1, passes=[(epoch, steps)], crop=2, flip=True):
            said = (pixels[:, 0] * images.std[0] + images.mean[0]).round().long()
            inside = masks != IGNORED
            assert torch.equal(said[inside], masks[inside].long())
            assert (masks[:, 0, 0] == IGNORED).any()  # beside the image
    plain = [masks for _, masks in Batches(images, 5, seed=1, passes=[(0, steps)])]
    assert torch.equal(torch.cat(plain).flatten(1).sort(0).values, marked[images.train.rows].flatten(1).sort(0).values)


def test_an_evaluation_reads_all_masks_in_order_and_fills_up(tmp_path):
    images = read("npz", npz(tmp_path), "data.size=224")
    seen = [list(EvalBatches(images, images.test, Share(rank, 2))) for rank in range(2)]
    masks = torch.stack([torch.cat([m for _, m in batches]) for batches in seen]).transpose(0, 1).flatten(0, 1)
    assert torch.equal(masks[:5], images.test.masks)
    assert (masks[5:] == FILLED).all()


def spoilt(root: Path, spoil: str) -> Path:
    pairs(root)
    masks = root / "train/masks"
    match spoil:
        case "missing":
            (masks / "04.png").unlink()
        case "alone":
            (root / "train/images/04.png").unlink()
        case "size":
            (masks / "04.png").write_bytes(encoded(Image.new("L", (8, 8))))
        case "value":
            (masks / "04.png").write_bytes(encoded(Image.new("L", (12, 8), 7)))
        case "colour":
            (masks / "04.png").write_bytes(encoded(Image.new("RGB", (12, 8))))
        case "text":
            (masks / "04.png").write_text("no image")
        case "folder":
            shutil.rmtree(root / "test/masks")
    return root


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        ("missing", (), "train/images/04.png: has no mask; expected .*train/masks/04.png"),
        ("alone", (), "train/masks/04.png: is a mask without an image in .*train/images"),
        ("size", (), "train/masks/04.png: has 8 x 8 pixels, its image .*train/images/04.png 12 x 8"),
        ("value", (), "04.png: has the number 7; expected 0 to 2 for 3 classes, or data.ignore=255 for none"),
        ("colour", (), "train/masks/04.png: has 3 channels; expected one channel of whole numbers"),
        ("text", (), "train/masks/04.png: cannot be read as an image"),
        ("folder", (), "^data.root=.*: some splits have masks; expected them in all$"),
        ("", ("data.classes=null",), "data.classes=None: expected the number of classes in the masks of .*, up to 254"),
        ("", ("data.decode=always",), "data.decode=always: images with masks are kept decoded; expected once"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, spoil, words, message):
    with pytest.raises(ConfigError, match=message):
        read("image_folder", spoilt(tmp_path, spoil), *words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_masks": np.zeros((12, 8, 8), np.uint8)}, r"\(12, 8, 12, 3\) with masks \(12, 8, 8\); expected"),
        ({"train_masks": np.zeros((12, 8, 12))}, "the masks of train: is float64; expected one channel of whole"),
        ({"train_labels": np.zeros(12, int)}, "has train_images and train_labels and train_masks"),
        ({"train_masks": np.zeros((12, 8, 12, 5), np.uint8)}, r"train_masks: \(12, 8, 12, 5\); expected \[N, H, W\]"),
        ({"train_masks": np.zeros((12, 96), np.uint8)}, r"train_masks: \(12, 96\); expected \[N, H, W\]"),
        ({"train_images": np.zeros((12, 8, 12, 17), np.uint8)}, r"\(12, 8, 12, 17\): volumes are not read; expected"),
        ({"val_images": np.zeros((0, 8, 12, 3), np.uint8), "val_masks": np.zeros((0, 8, 12), int)}, "holds no image"),
    ],
)
def test_what_is_wrong_with_a_file_of_arrays_is_said(tmp_path, change, message):
    with np.load(npz(tmp_path)) as file:
        np.savez(tmp_path / "b.npz", **{**file, **change})
    with pytest.raises(ConfigError, match=message):
        read("npz", tmp_path / "b.npz", "data.size=224")


def test_masks_with_a_channel_are_masks(tmp_path):
    with np.load(npz(tmp_path)) as file:
        np.savez(tmp_path / "b.npz", **{k: a[..., None] if k.endswith("masks") else a for k, a in file.items()})
    one, other = (read("npz", path, "data.size=224") for path in (tmp_path / "a.npz", tmp_path / "b.npz"))
    assert content(one) == content(other)


def test_masks_without_any_class_are_refused_in_every_split(tmp_path):
    words = ("data=npz", "task=segmentation", "model=tiny_pyramid", "data.classes=3")
    for split in ("train", "test"):
        with np.load(npz(tmp_path / split)) as file:
            np.savez(tmp_path / "b.npz", **{**file, f"{split}_masks": np.full_like(file[f"{split}_masks"], 255)})
        config = compose(*words, f"data.root={tmp_path / 'b.npz'}", "data.val=2")
        line = rf"no pixel of the {split} masks has a class \(those of data.ignore=255 have none\)"
        with pytest.raises(ConfigError, match=line):
            check_masks(config, load(config.data))


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_two_files_of_one_name_are_refused(tmp_path, kind):
    root = pairs(tmp_path)
    shutil.copy(root / f"train/{kind}/03.png", root / f"train/{kind}/03.bmp")
    with pytest.raises(ConfigError, match=r"03\.png: has the name of .*03\.bmp; expected one"):
        read("image_folder", root)


@pytest.mark.parametrize("names", [("images", "labels"), ("Images", "Masks")])
def test_pairs_in_folders_of_other_names_are_told(tmp_path, names):
    root = pairs(tmp_path)
    for old, new in zip(("images", "masks"), names, strict=True):
        (root / "train" / old).rename(root / "train" / new)
    with pytest.raises(
        ConfigError, match=rf"train: has {' and '.join(names)}; expected images and masks or annotations"
    ):
        read("image_folder", root)


def test_folders_of_pairs_that_are_no_split_or_half_of_one_are_refused(tmp_path):
    root = pairs(tmp_path, by_split=False)
    shutil.copytree(root / "images/training", root / "images/extra")
    with pytest.raises(ConfigError, match=r"images/extra: is no split; there are testing, training"):
        read("image_folder", root)
    shutil.rmtree(root / "images/extra")
    shutil.rmtree(root / "images/testing")
    with pytest.raises(ConfigError, match=r"annotations/testing: has no images beside it; there are training"):
        read("image_folder", root, "data.test=2")


def test_a_mask_that_is_a_jpeg_is_refused(tmp_path):
    root = pairs(tmp_path)
    mask = root / "train/masks/03.png"
    mask.write_bytes(encoded(Image.fromarray(np.zeros((8, 12), np.uint8)), "JPEG"))
    with pytest.raises(ConfigError, match=r"03\.png: is a JPEG, whose compression makes other numbers"):
        read("image_folder", root)


def test_more_classes_than_a_byte_tells_apart(tmp_path):
    with np.load(npz(tmp_path)) as file:
        np.savez(tmp_path / "b.npz", **{**file, "train_masks": np.full((12, 8, 12), 300)})
    with pytest.raises(ConfigError, match="the masks of train: have 300 classes; expected 254 at most"):
        read("npz", tmp_path / "b.npz", "data.size=224", "data.classes=null")


def test_mosaics_are_made_of_images_of_their_split_and_are_the_same_for_ever():
    images, fashion = load(compose("data=fashion_mosaics").data), load(compose("data=fashion_small").data)
    assert ([len(part) for part in images.splits().values()], images.shape) == ([2000, 500, 750], (1, 64, 64))
    assert [int(part.pixels.long().sum()) for part in images.splits().values()] == [1029488012, 260541964, 387148171]
    mask, corner = images.test.masks[0], fashion.test.labels[0] + 1
    assert mask[:32, :32].unique().tolist() == [0, corner]


@pytest.mark.parametrize("ignore", [None, 0, 2, 255])
def test_predicted_labels_have_the_numbers_of_the_masks_and_can_be_masks(ignore, tmp_path):
    data = compose(*WORDS, f"data.ignore={'null' if ignore is None else ignore}").data
    numbers = np.array([n for n in range(4) if n != ignore][:3] + ([] if ignore is None else [ignore]), np.uint8)
    labels = labels_of(numbers[None], "mask", data, 3)
    assert labels.tolist() == [[0, 1, 2, *([] if ignore is None else [IGNORED])]]
    assert numbers_of(labels, data).tolist() == [numbers.tolist()]
    picture_of(numbers[None]).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as picture:
        assert np.asarray(picture).tolist() == [numbers.tolist()]
        colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 255: (224, 224, 192)}  # VOC's
        assert np.asarray(picture.convert("RGB")).tolist() == [[list(colours[n]) for n in numbers]]


@pytest.mark.parametrize("size", [(8, 12), (16, 24), (40, 24), (16, 50), (5, 5), (301, 200)])
def test_what_was_fitted_goes_back_to_its_pixels(size):
    """Against the coordinates of the pixels, fitted by Pillow as an image is."""
    values = np.arange(96, dtype=np.uint8).reshape(8, 12)
    back = unfit(values, size, IGNORED)
    assert back.shape == size
    cut = min(size[0] / 8, size[1] / 12)
    for whole, part, axis in zip(size, (8, 12), (1, 0), strict=True):
        kept = (back != IGNORED).any(axis)
        assert kept.sum() == pytest.approx(cut * part, abs=1)
        assert np.flatnonzero(kept).mean() == pytest.approx((whole - 1) / 2, abs=0.51)  # about the middle
    if cut >= 1:  # each value was kept, and what goes there and comes back is the same
        assert np.array_equal(np.asarray(fit(Image.fromarray(back), (8, 12), NEAREST)), values)


def same(one: tuple[torch.Tensor, ...], two: tuple[torch.Tensor, ...]) -> bool:
    return all(map(torch.equal, one, two))


def scaled(images: Images, workers: int = 0, **options) -> ImageData:
    recipe = compose(
        *WORDS, "recipe.crop=0", "recipe.scale=[0.3,1]", "recipe.color_jitter=0.4", "recipe.batch=4"
    ).recipe
    return ImageData(images, replace(recipe, **options), seed=3, workers=workers)


def test_a_random_resized_crop_takes_the_same_pixels_of_image_and_mask(tmp_path):
    """A mask that is a function of its image still is one, but where pixels of the image were mixed."""
    masks = np.zeros((12, 8, 12), np.uint8)
    for place in range(12):
        masks[place, 2 + place % 3 :, 3 + place % 5 :] = 1
    images = np.repeat(255 * masks[..., None], 3, axis=3)
    np.savez(tmp_path / "a.npz", train_images=images, train_masks=masks, test_images=images, test_masks=masks)
    found = read("npz", tmp_path / "a.npz", "data.classes=2", "data.overlap=allow")
    batches = list(scaled(found, color_jitter=None).train_dataloader())
    assert len(batches) == len(found.train) // 4
    for pictures, labels in batches:
        assert (pictures.shape[1:], labels.shape[1:]) == ((3, 8, 12), (8, 12))
        assert (pictures.dtype, labels.dtype) == (torch.float32, torch.uint8)
        bright = pictures * (found.std / 255)[:, None, None] + (found.mean / 255)[:, None, None]
        assert ((bright[:, 0] > 0.5) == (labels == 1)).float().mean() > 0.93
        assert set(labels.unique().tolist()) <= {0, 1}
    whole = [found.train.targets(torch.arange(len(found.train))), torch.cat([labels for _, labels in batches])]
    assert len({mask.numpy().tobytes() for mask in torch.cat(whole)}) > len(found.train)  # they were cut


def test_images_are_resized_by_factors_of_a_range_and_what_is_beside_them_has_no_class(tmp_path):
    """Of a bright square of half the side on a dark ground the side says by how much an image was resized."""
    masks = np.zeros((16, 24, 24), np.uint8)
    masks[:, 6:18, 6:18] = 1
    images = np.repeat(200 * masks[..., None], 3, axis=3)
    np.savez(tmp_path / "a.npz", train_images=images, train_masks=masks, test_images=images[:1], test_masks=masks[:1])
    found = read("npz", tmp_path / "a.npz", "data.classes=2", "data.overlap=allow", "data.size=24")

    def seen(*factors: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        loader = scaled(found, scale=None, resize=list(factors), color_jitter=None, flip=False).train_dataloader()
        return [pair for pictures, labels in loader for pair in zip(pictures, labels, strict=True)]

    for factor, side in ((0.5, 12), (1, 24)):
        for picture, labels in seen(factor, factor):
            inside = labels != IGNORED
            assert inside.sum() == side**2
            assert (labels == 1).sum() == side**2 / 4
            bright = picture * (found.std / 255)[:, None, None] + (found.mean / 255)[:, None, None]
            assert torch.equal(bright[0] > 0.4, labels == 1)
            assert (255 * bright[:, ~inside] - found.mean[:, None]).abs().max() <= 0.5 if side < 24 else inside.all()
    larger = [labels for _, labels in seen(2, 2)]
    assert all((labels != IGNORED).all() for labels in larger)
    assert len({labels.numpy().tobytes() for labels in larger}) > 8  # of crops of 24 out of 48
    sides = {int((labels != IGNORED).sum()) ** 0.5 for _ in range(3) for _, labels in seen(0.5, 0.75)}
    assert sides <= {12, 13, 14, 15, 16, 17, 18}
    assert len(sides) > 3


def test_images_to_train_on_may_be_kept_larger_than_they_are_seen(tmp_path):
    """Those to validate on are the same as without, whether they are taken out of the training images or not."""
    words = ("recipe.crop=0", "recipe.resize=[0.5,2]", "data.size=[8,8]", "recipe.batch=4")
    plain = read("image_folder", pairs(tmp_path / "a"), *words)
    wide = read("image_folder", tmp_path / "a", *words, "data.decoded_size=[8,12]")
    assert wide.size == plain.size == (8, 8)
    rows = torch.arange(len(plain.train))
    assert wide.train.images.shape[1:3] == (8, 12)
    assert torch.equal(wide.train.images[:, :, 2:10], plain.train.images)  # those are cut about the middle
    assert torch.equal(wide.train.targets(rows)[:, :, 2:10], plain.train.targets(rows))
    for split in ("val", "test"):
        one, other = getattr(wide, split), getattr(plain, split)
        assert same(
            (one.images, one.targets(torch.arange(len(one)))), (other.images, other.targets(torch.arange(len(one))))
        )
    pictures, labels = next(iter(scaled(wide, scale=None, resize=[0.5, 2.0]).train_dataloader()))
    assert (pictures.shape[2:], labels.shape[1:]) == ((8, 8), (8, 8))


def test_draws_depend_on_seed_epoch_and_image_alone(tmp_path):
    found = read("npz", npz(tmp_path))
    here, there = scaled(found), scaled(found, workers=1)
    first = list(here.train_dataloader())
    assert all(map(same, first, there.train_dataloader()))
    assert all(map(same, first, here.train_dataloader()))
    jittered, plain = first[0][0], next(iter(scaled(found, color_jitter=None).train_dataloader()))
    assert not torch.equal(jittered, plain[0])
    assert not [key for key in ("val", "test") if key in here.streams]  # evaluated as they are kept
    assert isinstance(scaled(found, scale=None).batches_of(0), Batches)


def test_without_ignore_a_number_below_0_is_no_class(tmp_path):
    data = compose("data=npz", f"data.root={npz(tmp_path)}", *WORDS, "data.ignore=null").data
    assert labels_of(np.array([[0, 1, 2]]), "m", data, 3).tolist() == [[0, 1, 2]]
    with pytest.raises(ConfigError, match=r"^m: has the number -1; expected 0 to 2 for 3 classes$"):
        labels_of(np.array([[0, -1]]), "m", data, 3)


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_have_the_numbers_that_are_in_them(tmp_path, bits):
    """Pillow spreads them from 0 to 255."""
    root = pairs(tmp_path)
    for file in root.glob("*/masks/*.png"):
        numbers = np.asarray(Image.open(file)).copy()
        numbers[numbers == IGNORED] = 3  # a fourth class
        header = struct.pack(">IIBBBBB", 12, 8, bits, 0, 0, 0, 0)
        rows = b"".join(b"\0" + np.packbits(_bits(row, bits)).tobytes() for row in numbers)
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows))
                         + _chunk(b"IEND", b""))  # fmt: skip
    images = read("image_folder", root, "data.classes=4", "data.ignore=null")
    expected = np.where(arrays("test")[1] == 255, 3, arrays("test")[1])
    rows = torch.arange(len(images.test))
    assert {m.numpy().tobytes() for m in images.test.targets(rows)} == {m.tobytes() for m in expected}


def _bits(row: np.ndarray, bits: int) -> np.ndarray:
    return (row[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).flatten()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000"])
def test_masks_that_lose_numbers_are_refused(tmp_path, kind):
    root = pairs(tmp_path)
    for file in root.glob("*/masks/*.png"):
        suffix = {"JPEG": ".jpg", "WEBP": ".webp", "JPEG2000": ".jp2"}[kind]
        file.with_suffix(suffix).write_bytes(encoded(Image.open(file), kind))
        file.unlink()
    with pytest.raises(ConfigError, match=rf"is a {kind}, whose compression makes other numbers of some; expected a P"):
        read("image_folder", root)


def test_a_tiff_that_lies_has_the_size_that_is_seen(tmp_path):
    """Pillow turns its size when it opens one, and no other kind."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("PNG", "TIFF"):
        root = pairs(tmp_path / kind)
        for file in list(root.glob("*/images/*.png")):
            stored = Image.open(file).transpose(Image.Transpose.ROTATE_90)
            file.unlink()
            file.with_suffix(f".{kind.lower()}").write_bytes(encoded(stored, kind, exif=exif))
        assert len(read("image_folder", root).train) == 10


def test_more_than_there_are_cannot_be_taken_out_of_images_with_masks(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.val=12: expected between 1 and 11, of 12 images$"):
        load(compose("data=image_folder", f"data.root={pairs(tmp_path)}", "data.val=12", *WORDS).data)


def test_a_column_of_labels_beside_one_of_masks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data.label_column=x: with data.mask_column=seg nothing reads it; expected"):
        resolve(compose("data=table", f"data.root={table(tmp_path)}", "data.mask_column=seg", "data.label_column=x",
                        *WORDS), {"mixer": "pooling", "model": "tiny"})  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [(("data.ignore=null",), "has the number 255"), (("data.classes=2",), "has the number 2; expected 0 to 1")],
)
def test_masks_are_decoded_anew_for_other_numbers(tmp_path, words, message):
    root = pairs(tmp_path)
    read("image_folder", root)
    with pytest.raises(ConfigError, match=message):
        read("image_folder", root, *words)


def test_masks_of_other_classes_than_those_of_weights_are_refused(tmp_path):
    found = read("npz", npz(tmp_path))
    assert found.named(found.classes, "w.pt") is found
    with pytest.raises(ConfigError, match=r"^data: its masks have 3 classes, those of w\.pt 4$"):
        found.named([*found.classes, "more"], "w.pt")


def test_classes_of_masks_are_called_by_their_numbers_or_as_they_are_named(tmp_path, capsys):
    root = scenes_of(tmp_path / "a", [1, 2, 3])
    words = ("task=segmentation", "data=image_folder", f"data.root={root}", "data.size=[8,12]", "data.val=2")
    for given, names in (
        (["data.ignore=0", "data.classes=3"], ["1", "2", "3"]),
        (["data.ignore=null", "data.classes=4"], ["0", "1", "2", "3"]),
        (["data.classes=4"], ["0", "1", "2", "3"]),
        (["data.ignore=2", "data.classes=3"], ["0", "1", "3"]),
        (["data.ignore=0", "data.classes=3", "data.class_names=[wall,floor,sky]"], ["wall", "floor", "sky"]),
    ):
        config = compose(*words, *given)
        images = load(config.data)
        assert images.classes == names
        capsys.readouterr()
        tell.cache_clear()  # a note is told once in a process
        check_masks(config, images)
        told = "note: data=image_folder: the training masks have no pixel of 0\n" if "0" in names else ""
        assert capsys.readouterr().err == told
    named, numbered = (
        resolve(compose(*words, "data.ignore=0", "data.classes=3", *more), {"mixer": "x", "model": "y"})[0].run_id
        for more in (["data.class_names=[wall,floor,sky]"], [])
    )
    assert named != numbered
    with pytest.raises(ConfigError, match=r"data.class_names: 2 names, 1 of them different, for 3 classes; expected a"):
        load(compose(*words, "data.ignore=0", "data.classes=3", "data.class_names=[wall,wall]").data)
    with pytest.raises(ConfigError, match=r"data.class_names=.*: belongs to task=segmentation"):
        compose("data=image_folder", "data.class_names=[a,b]")


def scenes_of(root: Path, numbers: list[int]) -> Path:
    """Noise, and masks that have all of some numbers."""
    random = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for place in range(count):
            pixels = random.integers(0, 256, (8, 12, 3)).astype(np.uint8)
            for kind, values in (("images", pixels), ("masks", np.resize(np.array(numbers, np.uint8), (8, 12)))):
                (folder := root / split / kind).mkdir(parents=True, exist_ok=True)
                (folder / f"{place:02}.png").write_bytes(encoded(Image.fromarray(values)))
    return root
