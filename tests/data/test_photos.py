"""Photographs, decoded once or at every access; augmentation that is a function of (seed, epoch, place)."""

import io
import multiprocessing
import os
import random
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from kept import write_raw
from PIL import Image, ImageOps
from trained import equal, go, steps_of, stop_at

from metaformer.config.schema import Config
from metaformer.data import photographs, registry
from metaformer.data.batches import Share
from metaformer.data.images import Images
from metaformer.data.images import load as read
from metaformer.data.module import ImageData, evaluation_transform, posterized, training_transform
from metaformer.data.splits import Split
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
    monkeypatch.setattr(photographs, "_decode", lambda *_: pytest.fail("decoded again"))
    again = load(pets)
    assert isinstance(again.train, Split)
    assert torch.equal(first.train.images, again.train.images)
    assert again.train.pixels.data_ptr() == again.val.pixels.data_ptr()  # nothing is copied
    assert again.train.images.shape == (30, 16, 16, 3)
    assert again.shape == (3, 16, 16)


def test_another_size_is_decoded_anew_and_what_does_not_fit_again(pets, capfd):
    first = load(pets)
    assert load(pets, "data.size=8").train.images.shape[1] == 8
    (kept,) = Path(f"{Path.cwd()}-cache").rglob("*-train-16x16x3-v2.npy")
    assert registry.fingerprint(config_of(pets).data) in kept.name  # whatever is in it is of these images
    for spoil in (b"half a file", kept.read_bytes()[:-100]):
        kept.unlink()  # it is mapped
        kept.write_bytes(spoil)
        capfd.readouterr()
        assert torch.equal(load(pets).train.images, first.train.images)
        said = capfd.readouterr().err
        assert f"note: {kept} does not fit (" in said
        assert "and is written again" in said


def test_no_room_for_decoded_images(pets, monkeypatch, tmp_path):
    monkeypatch.setattr(photographs.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match=r"runtime.cache: .* has 0.0 GB free and 36 decoded images take 0.0; set"):
        load(pets)
    with pytest.raises(ConfigError, match=r"runtime.cache: /proc/nowhere/.* cannot be written or read"):
        read(config_of(pets).data, "/proc/nowhere")


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
    evaluation = evaluation_transform(0.9, shape, pixels, "bicubic")
    assert "248" in str(evaluation.transforms[0])
    assert "224" in str(evaluation.transforms[1])
    with pytest.raises(ConfigError, match=r"recipe.auto_augment=nonsense: timm does not know it"):
        training_transform(replace(config.recipe, auto_augment="nonsense"), shape, pixels)


@pytest.mark.parametrize(
    "words", ["rand-m9-mstd0.5-inc1", "rand-m9-mmax30-mstd20-inc1", "rand-m9-mstd5", "original", "v0"]
)
def test_no_draw_of_an_augmentation_is_an_error(words):
    """With rare ones: of some no bit is left, which Pillow refuses since 13."""
    recipe = replace(compose("recipe=poolformer").recipe, auto_augment=words)
    transform = training_transform(recipe, (3, 8, 8), {"mean": (0.5,) * 3, "std": (0.2,) * 3})
    image = Image.effect_noise((8, 8), 99).convert("RGB")
    random.seed(0)
    np.random.seed(0)
    assert all(transform(image).shape == (3, 8, 8) for _ in range(1500))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_of_which_no_bit_is_kept_is_black(mode):
    image = Image.effect_noise((8, 8), 99).convert(mode)
    assert posterized(image, 0).getextrema() == Image.new(mode, (8, 8)).getextrema()
    assert np.array_equal(posterized(image, 3), ImageOps.posterize(image, 3))
    assert posterized(image, 8) is image


def test_augmentation_does_not_depend_on_the_number_of_workers(pets):
    alone, helped = (list(images_of(pets, workers).train_dataloader()) for workers in (0, 2))
    assert len(alone) == 3
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, helped, strict=True))
    assert alone[0][0].shape == (10, 3, 16, 16)


def test_a_data_module_goes_without_the_garbage_collector(pets):
    """Which would wait five seconds for each worker process: it takes the queues apart before the workers are told."""
    images = images_of(pets, 0)
    assert len(list(images.train_dataloader())) == 3
    gone = weakref.ref(images)
    del images
    assert gone() is None


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

    def read(share: Share) -> list[torch.Tensor]:
        return [batch[0] for batch in stream.of([(0, rows) for rows in share.of(order, 10)])]

    whole, halves = read(Share()), [read(Share(rank, 2)) for rank in range(2)]
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
    before = multiprocessing.active_children()
    folder = go(*options, "runtime.workers=1").folder
    assert seen == list(range(8, 15))
    assert equal(folder, whole)
    assert {*multiprocessing.active_children()} <= {*before}  # what read the images has ended with the run


def test_photos_read_at_every_access_need_a_crop(cli, pets):
    done = cli("train", *TINY[1:], "data=image_folder", f"data.root={pets}", "data.decode=always", "data.val=6")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "recipe.scale: expected a random resized crop, as in recipe=poolformer, since data.decode=always" in done.stderr
    )


def test_the_workers_of_a_sweep_have_processes_that_read(cli, pets):
    """joblib has a way of its own to start processes, which is the default of whatever runs in its workers."""
    words = ("data=image_folder", f"data.root={pets}", "data.size=32", "recipe.scale=[0.5,1]", "recipe.epochs=1")
    small = ("model.dims=[8,8,8,8]", "recipe.batch=4", "runtime.threads=1", "runtime.workers=1")
    done = cli("train", "-m", "mixer=pooling", "seed=0,1", "hydra.launcher.n_jobs=2", *words, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cli("train", "mixer=pooling", "seed=1", *words, *small, "runtime.runs=alone").returncode == 0
    (alone,) = Path("alone").glob("*-*")
    assert equal(alone, Path("runs") / alone.name)


def test_data_sets_of_timm(tmp_path):
    """timm gives the test images of torchvision's sets for validation too: here it is carved out of the others."""
    fashion = read(compose("data.train=500").data)
    write_raw(tmp_path / "FashionMNIST" / "raw", fashion)
    words = ("data=timm", "data.dataset=torch/fashion_mnist", f"data.root={tmp_path}", "data.size=28")
    images = read(compose(*words, "data.val=500", "data.channels=1").data)
    assert images.classes == fashion.classes
    assert [len(images.train), len(images.val), len(images.test)] == [2000, 500, 3000]
    assert torch.equal(images.test.images, fashion.test.images)
    seen = [{bytes(image.numpy()) for image in part.images} for part in images.splits().values()]
    assert not seen[0] & seen[1]


def test_what_timm_reads_is_known_by_its_contents(pets, tmp_path):
    other = write_folder(tmp_path / "pets", {"train": 12, "test": 4})
    marks = []
    for change in (None, "train/cat/0.jpg"):
        if change:
            (other / change).write_bytes(jpeg(7))
        data = compose("data=timm", "data.dataset=torch/x", f"data.root={other}").data
        marks.append(registry.fingerprint(data))
    same = registry.fingerprint(compose("data=timm", "data.dataset=torch/x", f"data.root={pets}").data)
    assert marks[0] == same != marks[1]
    named = registry.fingerprint(compose("data=timm", "data.dataset=torch/y", f"data.root={pets}").data)
    assert named != same


def test_what_timm_does_not_have_is_one_line(pets):
    for dataset, message in {
        "hfds/imagenet-1k": "data.dataset=hfds/imagenet-1k: expected torch/NAME; data=hub reads",
        "torch/image_folder": "data.dataset=torch/image_folder: expected torch/NAME",
        "torch/Image_Folder": "data.dataset=torch/Image_Folder: expected torch/NAME",
        "torch/folder": "data.dataset=torch/folder: expected torch/NAME",
        "torch/nothing": "data.dataset=torch/nothing: AssertionError: Unknown torchvision dataset nothing",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read(compose("data=timm", f"data.dataset={dataset}", f"data.root={pets}").data)
    with pytest.raises(ConfigError, match=r"data.dataset: expected torch/NAME, since data=timm"):
        registry.check(compose("data=timm").data, compose().recipe, compose().task)
    with pytest.raises(ConfigError, match=r"data.root: expected the folder of the data set"):
        registry.fingerprint(compose("data=timm", "data.dataset=torch/mnist").data)


def test_a_disk_that_fills_while_images_are_decoded_is_one_line(pets, monkeypatch, tmp_path):
    """A file with holes would end the process by a signal instead, at the first pixel for which there is no room."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"\.npy: cannot be written \(No space left on device\)"):
        read(config_of(pets).data, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.npy"))
    assert not list((tmp_path / "cache").glob(".part-*"))


def test_what_a_killed_process_has_left_in_the_cache_goes(pets, tmp_path):
    read(config_of(pets).data, str(tmp_path / "cache"))
    kept = sorted((tmp_path / "cache").glob("*.npy"))
    for name, age in (("old", 2), ("new", 0)):
        left = tmp_path / "cache" / f".part-{name}-{kept[0].name}"
        left.touch()
        os.utime(left, (time.time() - 86_400 * age,) * 2)
    kept[0].unlink()
    read(config_of(pets).data, str(tmp_path / "cache"))
    assert [path.name.split("-")[1] for path in (tmp_path / "cache").glob(".part-*")] == ["new"]


def test_a_range_is_for_images_of_more_than_eight_bits(pets):
    with pytest.raises(ConfigError, match=r"is read with eight bits a channel, which show all; expected data.range"):
        read(config_of(pets, "data.range=[0,100]").data)
