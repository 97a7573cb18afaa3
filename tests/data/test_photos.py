"""Photographs from folders, tar files and timm's data sets; augmentation that is a function of (seed, epoch, place)."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from PIL import Image
from trained import equal, go, steps_of, stop_at

from metaformer.config.schema import Config
from metaformer.data import decoded, fingerprint, registry
from metaformer.data.batches import Share
from metaformer.data.images import Images, Photos, Split
from metaformer.data.images import load as read
from metaformer.data.module import ImageData, evaluation_transform, training_transform
from metaformer.system import files
from metaformer.system.errors import ConfigError

CLASSES = ("cat", "dog", "emu")
AUGMENTED = ("recipe.scale=[0.3,1]", "recipe.crop=0", "recipe.auto_augment=rand-m9-mstd0.5-inc1", "recipe.erasing=0.5")


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_folder(root: Path, splits: dict[str, int]) -> Path:
    for s, (split, each) in enumerate(splits.items()):
        for c, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                (root / split / name / f"{i}.jpg").write_bytes(jpeg(1000 * s + 100 * c + i))
    return root


def pack(root: Path, out: Path, webdataset: bool = False) -> Path:
    """The images of a folder as tar files, with folders inside, or as two shards of a webdataset for each split."""
    out.mkdir()
    for split in root.iterdir():
        files = sorted(split.rglob("*.jpg"))
        shards = (files[::2], files[1::2]) if webdataset else (files,)
        for number, shard in enumerate(shards):
            with tarfile.open(out / f"{split.name}-{number:06}.tar", "w") as tar:
                for i, path in enumerate(shard):
                    if not webdataset:
                        tar.add(path, path.relative_to(split))
                        continue
                    tar.add(path, f"{number}{i:05}.seg.jpg")
                    label = str(CLASSES.index(path.parent.name)).encode()
                    info = tarfile.TarInfo(f"{number}{i:05}.cls")
                    info.size = len(label)
                    tar.addfile(info, io.BytesIO(label))
    return out


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pets", {"train": 12, "test": 4})


def config_of(root: Path, *overrides: str) -> Config:
    return compose("data=image_folder", f"data.root={root}", "data.size=16", "data.val=6", *overrides)


def load(root: Path, *overrides: str) -> Images:
    return read(config_of(root, *overrides).data)


def test_images_are_decoded_once_and_shared(pets, monkeypatch, capfd):
    first = load(pets)
    assert "decoding 36 images once, to " in capfd.readouterr().err
    monkeypatch.setattr(decoded, "_decode", lambda *_: pytest.fail("decoded again"))
    again = load(pets)
    assert isinstance(again.train, Split)
    assert torch.equal(first.train.images, again.train.images)
    assert again.train.pixels.data_ptr() == again.val.pixels.data_ptr()  # nothing is copied
    assert again.train.images.shape == (30, 16, 16, 3)
    assert again.shape == (3, 16, 16)


def test_another_size_and_another_content_are_decoded_anew(pets, tmp_path):
    load(pets)
    assert load(pets, "data.size=8").train.images.shape[1] == 8
    (tmp_path / "copy").mkdir()
    other = write_folder(tmp_path / "copy" / "pets", {"train": 12, "test": 4})
    same = fingerprint.fingerprint(config_of(pets).data)
    assert fingerprint.fingerprint(config_of(other).data) == same  # wherever it lies
    (other / "train" / "cat" / "0.jpg").write_bytes(jpeg(7, (50, 50)))
    fingerprint.folder_fingerprint.cache_clear()
    assert fingerprint.fingerprint(config_of(other).data) != fingerprint.fingerprint(config_of(pets).data)
    assert not torch.equal(load(other).train.images, load(pets).train.images)


def test_no_room_for_decoded_images(pets, monkeypatch, tmp_path):
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match=r"runtime.cache: .* has 0.0 GB free and 36 decoded images take 0.0; set"):
        load(pets)
    with pytest.raises(ConfigError, match=r"runtime.cache: /proc/nowhere/.* cannot be written or read"):
        read(config_of(pets).data, "/proc/nowhere")


@pytest.mark.parametrize("webdataset", [False, True])
def test_tar_files_hold_the_same_images(pets, tmp_path, webdataset):
    packed = pack(pets, tmp_path / "tars", webdataset)
    plain, tarred = load(pets, "data.decode=always"), load(packed, "data.decode=always")
    assert tarred.classes == (["0", "1", "2"] if webdataset else list(CLASSES))
    assert sorted(tarred.test.labels.tolist()) == sorted(plain.test.labels.tolist())

    def seen(split: Photos) -> set[tuple[int, bytes]]:
        return {(int(split.labels[i]), split.read(i).tobytes()) for i in range(len(split))}

    assert seen(tarred.test) == seen(plain.test)
    assert len(tarred.train) == 30


def test_a_val_folder_alone_is_the_test_set(tmp_path):
    root = write_folder(tmp_path / "imagenet", {"train": 6, "val": 2})
    images = load(root)
    assert [len(images.train), len(images.val), len(images.test)] == [12, 6, 6]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tars: (tars / "train-000000.tar").write_bytes(b"no tar"), "train-000000.tar: cannot be read as a tar"),
        (lambda tars: [p.unlink() for p in tars.glob("train*")], "expected a folder 'train' in it"),
        (lambda tars: tarfile.open(tars / "train-000000.tar", "w").close(), "train-000000.tar: no image in it"),
    ],
)
def test_a_bad_tar_is_named(pets, tmp_path, spoil, message):
    packed = pack(pets, tmp_path / "tars")
    spoil(packed)
    with pytest.raises(ConfigError, match=message):
        load(packed)


def test_an_image_that_cannot_be_read_is_named_from_a_worker_too(tmp_path):
    root = write_folder(tmp_path / "pets", {"train": 12, "test": 4})
    (root / "train" / "dog" / "3.jpg").write_bytes(jpeg(3)[:300])
    for workers in (0, 1):
        source = images_of(root, workers)
        with pytest.raises(ConfigError, match=r"^/.*train/dog/3.jpg: cannot be read as an image \(.*\)$"):
            list(source.train_dataloader())


def images_of(root: Path, workers: int, *overrides: str) -> ImageData:
    config = config_of(root, "data.decode=always", *AUGMENTED, "recipe.batch=10", *overrides)
    return ImageData(read(config.data), config.recipe, 0, crop_pct=0.9, workers=workers)


def test_the_transform_of_the_paper():
    config = compose("recipe=poolformer")
    shape, pixels = (3, 224, 224), {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    train = training_transform(config.recipe, shape, pixels)
    names = [type(t).__name__ for t in train.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert names[-1] == "RandomErasing"
    assert not any("Jitter" in name for name in names)
    assert train.transforms[0].scale == (0.08, 1.0)
    assert (train.transforms[-1].probability, train.transforms[-1].min_count) == (0.25, 1)
    evaluation = evaluation_transform(0.9, shape, pixels)
    assert "248" in str(evaluation.transforms[0])
    assert "224" in str(evaluation.transforms[1])
    with pytest.raises(ConfigError, match=r"recipe.auto_augment=nonsense: timm does not know it"):
        training_transform(replace(config.recipe, auto_augment="nonsense"), shape, pixels)


def test_augmentation_does_not_depend_on_the_number_of_workers(pets):
    alone, helped = (list(images_of(pets, workers).train_dataloader()) for workers in (0, 2))
    assert len(alone) == 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, helped, strict=True))
    assert alone[0][0].shape == (10, 3, 16, 16)


def test_another_epoch_and_another_seed_draw_other_images(pets):
    source = images_of(pets, 0)
    dataset = source.streams["train"].loader.dataset
    first = dataset[0, 5][0]
    assert torch.equal(first, dataset[0, 5][0])
    assert not torch.equal(first, dataset[1, 5][0])
    dataset.seed = 1
    assert not torch.equal(first, dataset[0, 5][0])


def test_the_images_of_two_devices_are_those_of_one(pets):
    source = images_of(pets, 0)
    order = torch.arange(30)
    stream = source.streams["train"]
    whole = [batch[0] for batch in stream.of(list(Share().of(order, 10)), 0)]
    halves = [[batch[0] for batch in stream.of(list(Share(rank, 2).of(order, 10)), 0)] for rank in range(2)]
    for step, images in enumerate(whole):
        assert torch.equal(images, torch.cat([halves[0][step], halves[1][step]]))


def test_decoded_photos_are_cropped_out_of_larger_squares(pets):
    config = config_of(pets, *AUGMENTED, "data.decoded_size=24", "recipe.batch=10")
    images = read(config.data)
    assert images.train.pixels.shape[1:3] == (24, 24)
    assert images.shape == (3, 16, 16)
    source = ImageData(images, config.recipe, 0, crop_pct=0.9)
    assert next(iter(source.train_dataloader()))[0].shape == (10, 3, 16, 16)
    assert next(iter(source.test_dataloader()))[0].shape == (12, 3, 16, 16)


def test_small_sets_in_memory_can_be_augmented_one_by_one_too():
    config = compose(*TINY, "recipe.scale=[0.5,1]", "recipe.crop=0", "recipe.erasing=0.5")
    source = ImageData(read(config.data), config.recipe, 0)
    images, labels = next(iter(source.train_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert len(labels) == 64
    with pytest.raises(ConfigError, match=r"recipe.auto_augment=rand-m9: needs images in colour"):
        ImageData(read(config.data), replace(config.recipe, auto_augment="rand-m9"), 0)


def test_a_run_on_photos_that_is_stopped_ends_with_the_same_bits(pets, monkeypatch):
    import signal

    options = (
        *("data=image_folder", f"data.root={pets}", "data.size=16", "data.val=6", "data.decode=always", *AUGMENTED),
        *("recipe.batch=6", "recipe.mixup=0.8", "recipe.ema=0.9", "runtime.workers=2", "recipe.epochs=3"),
    )
    whole = go(*options, "runtime.runs=whole").folder
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=7)  # of 5 an epoch
        with pytest.raises(SystemExit):
            go(*options)
    seen = steps_of(monkeypatch)
    folder = go(*options, "runtime.workers=1").folder
    assert seen == list(range(8, 15))
    assert equal(folder, whole)


def test_photos_read_at_every_access_need_a_crop(cli, pets):
    done = cli("train", *TINY[1:], "data=image_folder", f"data.root={pets}", "data.decode=always", "data.val=6")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "recipe.scale: expected a random resized crop, as in recipe=poolformer, since data.decode=always" in done.stderr
    )


def test_a_folder_of_many_files_keeps_its_fingerprint(pets, monkeypatch):
    whole = fingerprint.folder_fingerprint.__wrapped__(str(pets))
    monkeypatch.setattr(fingerprint, "MANY", 10)
    assert fingerprint.folder_fingerprint.__wrapped__(str(pets)) == whole
    (kept,) = files.cache_dir().glob("*.fingerprint")
    assert kept.read_text() == whole
    kept.write_text("kept")
    assert fingerprint.folder_fingerprint.__wrapped__(str(pets)) == "kept"  # the images are not read again


def test_data_sets_of_timm(tmp_path, pets):
    pytest.importorskip("datasets", reason="hfds/ needs the package datasets")
    images = read(compose("data=timm", f"data.dataset=hfds/{pets}", "data.size=16", "data.val=6").data)
    assert images.classes == list(CLASSES)
    assert [len(images.train), len(images.val), len(images.test)] == [30, 6, 12]
    assert torch.equal(images.test.images, load(pets).test.images)


def test_what_timm_does_not_have_is_one_line(tmp_path):
    for dataset, message in {
        "wds/imagenet": "data.dataset=wds/imagenet: a stream has no order that a run could go on in",
        "torch/nothing": "data.dataset=torch/nothing: AssertionError: Unknown torchvision dataset nothing",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read(compose("data=timm", f"data.dataset={dataset}").data)
    with pytest.raises(ConfigError, match=r"data.dataset: expected one that timm reads"):
        registry.check(compose("data=timm").data, compose().recipe)
