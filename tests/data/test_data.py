"""Splits that never change, augmentation that is a function of position, and clear refusals."""

import numpy as np
import pytest
import torch
from conftest import compose
from kept import write_raw
from torch.utils._python_dispatch import TorchDispatchMode

from metaformer.config.schema import Recipe
from metaformer.data.batches import Batches, EvalBatches, Share, Transformed
from metaformer.data.images import Images, load
from metaformer.data.readers import in_memory
from metaformer.data.registry import fingerprint, shape
from metaformer.data.splits import Split
from metaformer.system.errors import ConfigError
from metaformer.tasks.scores import in_order


@pytest.fixture(scope="module")
def fashion() -> Images:
    return load(compose().data)


def synthetic(count: int = 20, size: int = 6, channels: int = 1) -> Images:
    pixels = torch.randint(
        1, 256, (count, size, size, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = Split(pixels, torch.arange(count))
    return Images(split, split, split, [str(i) for i in range(count)])


def test_the_embedded_set(fashion):
    assert [len(fashion.train), len(fashion.val), len(fashion.test)] == [8000, 2000, 3000]
    assert (fashion.size, fashion.channels, len(fashion.classes)) == ((28, 28), 1, 10)
    for split, each in ((fashion.train, 800), (fashion.val, 200), (fashion.test, 300)):
        assert split.labels.bincount().tolist() == [each] * 10
    assert fashion.train.images.dtype == torch.uint8
    total = sum(int(s.images.long().sum()) for s in (fashion.train, fashion.val, fashion.test))
    assert total == FASHION_SUM
    assert (in_memory.ASSETS / "fashion_small.npz").stat().st_size < 6e6


FASHION_SUM = 743839854


def test_no_image_is_in_two_splits(fashion):
    train, val, test = ({bytes(image.numpy()) for image in s.images} for s in fashion.splits().values())
    assert not (train & val) | (train & test) | (val & test)


def test_normalisation_gives_zero_mean_and_unit_variance(fashion):
    x = fashion.normalise(fashion.train.images)
    assert x.shape == (8000, 1, 28, 28)
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-3
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_without_augmentation_an_epoch_is_a_permutation():
    data = synthetic()
    batches = list(Batches(data, 5, seed=0, passes=[(0, range(4))]))
    labels = torch.cat([y for _, y in batches])
    assert sorted(labels.tolist()) == list(range(20))
    assert labels.tolist() != list(range(20))
    images = torch.cat([x for x, _ in batches])
    assert torch.equal(images, data.normalise(data.train.images)[labels])


def test_no_epoch_copies_all_images():
    """They may be a map that is larger than memory."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.uint8 and not function.is_view:
                made.append(out.numel())
            return out

    data = synthetic(count=200)
    with Watch():
        assert len(list(Batches(data, 5, seed=0, passes=[(0, range(40))], crop=1, flip=True))) == 40
    assert max(made) == 5 * 6 * 6


def test_a_gather_takes_images_that_lie_in_memory_in_another_order():
    data = synthetic(channels=3)
    other = Split(data.train.pixels.transpose(0, 3).contiguous().transpose(0, 3), data.train.labels)
    assert torch.equal(other.pixels, data.train.pixels)
    rows, corners = torch.arange(7), torch.randint(-1, 2, (7, 2))
    found = [split.windows(rows, corners, rows % 2 == 0)[0] for split in (other, data.train)]
    assert torch.equal(*found)


def test_crop_and_flip_of_every_image_is_a_window_of_the_padded_image():
    data = synthetic(channels=3)
    padded = torch.nn.functional.pad(data.train.images, (0, 0, 2, 2, 2, 2))
    windows = padded.unfold(1, 6, 1).unfold(2, 6, 1).permute(0, 1, 2, 4, 5, 3)  # [N, 5, 5, 6, 6, C]
    flips = 0
    for x, y in Batches(data, 10, seed=1, passes=[(3, range(2))], crop=2, flip=True):
        for image, label in zip(x, y, strict=True):
            choices = data.normalise(windows[label].reshape(25, 6, 6, 3))
            plain, flipped = (choices == image).flatten(1).all(1), (choices.flip(3) == image).flatten(1).all(1)
            assert plain.sum() + flipped.sum() == 1
            flips += int(flipped.sum())
    assert 0 < flips < 20


def test_batches_are_a_function_of_seed_and_epoch():
    def first(seed: int, epoch: int) -> torch.Tensor:
        torch.rand(3)  # the global generator does not matter
        return next(iter(Batches(synthetic(), 5, seed=seed, passes=[(epoch, range(4))], crop=1, flip=True)))[0]

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_an_incomplete_last_batch_is_dropped():
    batches = Batches(synthetic(), 8, seed=0, passes=Recipe(batch=8).passes_of(0, 20))
    assert len(batches) == len(list(batches)) == 2


def test_the_parts_of_a_batch_are_those_of_one_device():
    order = torch.randperm(50)
    whole = list(Share().of(order, 16))
    assert [len(rows) for rows in whole] == [16, 16, 16]
    parts = [list(Share(rank, 2, 4).of(order, 16)) for rank in range(2)]
    for step, rows in enumerate(whole):
        together = [parts[r][4 * step + part] for part in range(4) for r in range(2)]
        assert torch.equal(torch.cat(together), rows)


def test_evaluation_keeps_the_order_and_every_image(fashion):
    batches = EvalBatches(fashion, fashion.test)
    assert len(list(batches)) == len(batches) == 6
    assert torch.equal(torch.cat([y for _, y in batches]), fashion.test.labels)


@pytest.mark.parametrize("images", [2, 1001, 1501])
def test_all_devices_evaluate_as_many_batches(fashion, images):
    """Where one had a batch more, it would wait for ever for the others: DDP sends the buffers at each batch."""
    split = fashion.test[torch.arange(images)]
    all_of = [list(EvalBatches(fashion, split, Share(rank, 3, 2))) for rank in range(3)]
    sizes = [[len(labels) for _, labels in batches] for batches in all_of]
    assert sizes[0] == sizes[1] == sizes[2]
    assert max(sizes[0]) <= 250  # the parts count here too: what does not fit in training would not fit in evaluation
    labels = in_order(torch.stack([torch.cat([y for _, y in batches]) for batches in all_of]))
    assert torch.equal(labels[labels >= 0], split.labels)
    assert torch.equal(all_of[1][0][0][0], next(iter(EvalBatches(fashion, split)))[0][1])


def test_a_photograph_that_only_fills_up_has_no_label():
    class Two:
        labels = (7, 8)

        def __len__(self) -> int:
            return 2

        def read(self, row: int) -> int:
            return row

    seen = Transformed(Two(), lambda image: image)
    assert [seen[None, place] for place in range(3)] == [(0, 7), (1, 8), (0, -1)]
    assert seen[0, 2] == (0, 7)  # in training it is an image that is repeated


def test_a_balanced_part_of_the_training_set():
    data = load(compose("data.train=1000").data)
    assert data.train.labels.bincount().tolist() == [100] * 10
    assert len(data.val) == 2000
    again = load(compose("data.train=1000").data)
    assert torch.equal(data.train.images, again.train.images)
    with pytest.raises(ConfigError, match=r"data\.train=9000: expected between 1 and 8000"):
        load(compose("data.train=9000").data)


def test_classes_without_an_image_in_what_was_taken_out_are_told():
    assert load(compose("data=digits").data).notes == []
    few = load(compose("data=digits", "data.val=8", "data.train=9").data)
    there = set(few.val.labels.tolist())
    empty = ", ".join(str(i) for i in range(10) if i not in there)
    assert few.notes == [f"data=digits: val has no image of {empty}", "data=digits: train has no image of 9"]


def test_digits():
    data = load(compose("data=digits").data)
    assert [len(data.train), len(data.val), len(data.test)] == [1197, 300, 300]
    assert data.val.labels.bincount().tolist() == [30, 31, 29, 31, 30, 30, 30, 30, 29, 30]  # in proportion
    assert int(data.train.images.max()) == 255


def test_shapes_are_known_without_reading():
    for name in ("fashion_small", "digits"):
        config = compose(f"data={name}").data
        data = load(config)
        assert shape(config) == (data.shape, len(data.classes))
    assert shape(compose("data=imagenet").data) == ((3, 224, 224), 1000)
    with pytest.raises(ConfigError, match=r"data\.classes: expected the number"):
        shape(compose("data=image_folder").data)


def test_a_set_that_is_not_there_says_where_it_was_looked_for(monkeypatch, tmp_path):
    from torchvision import datasets

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(ConfigError, match=r"data=cifar10: not found under .* \(no network\); set data.root"):
        load(compose("data=cifar10", f"data.root={tmp_path}").data)


def test_torchvision_sets_are_found_locally(tmp_path):
    """The raw files of Fashion-MNIST, written here from the embedded images, are read as torchvision reads them."""
    fashion = load(compose().data)
    write_raw(tmp_path / "FashionMNIST" / "raw", fashion)
    data = load(compose("data=fashion_mnist", f"data.root={tmp_path}").data)
    assert [len(data.train), len(data.val), len(data.test)] == [5000, 5000, 3000]
    assert torch.equal(data.test.images, fashion.test.images)
    assert data.classes == fashion.classes


def test_files_that_are_not_those_of_fashion_mnist_are_other_images(tmp_path):
    words = ("data=fashion_mnist", f"data.root={tmp_path}")
    assert fingerprint(compose(*words).data) is None  # they are downloaded when it trains
    write_raw(tmp_path / "FashionMNIST" / "raw", load(compose("data.train=500").data))
    others = fingerprint(compose(*words).data)
    labels = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x07")
    assert len({None, others, fingerprint(compose(*words).data)}) == 3


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_torchvisions_sets_in_colour(monkeypatch, name, kind):
    from torchvision import datasets

    class Theirs:
        """As torchvision has them: an array in colour, and a list of labels."""

        classes = ["cat", "dog"]  # noqa: RUF012

        def __init__(self, root, train):
            self.data = np.full((40, 32, 32, 3), (10, 20, 30) if train else (1, 2, 3), np.uint8)
            self.targets = [0, 1] * 20

    monkeypatch.setattr(datasets, kind, Theirs)
    images = load(compose(f"data={name}", "data.val=10").data)
    assert [len(part) for part in images.splits().values()] == [30, 10, 40]
    assert (images.shape, images.classes) == ((3, 32, 32), ["cat", "dog"])
    assert images.mean.tolist() == [10, 20, 30]
    assert images.test.pixels[0, 0, 0].tolist() == [1, 2, 3]


def test_large_sets_are_measured_by_every_nth_image(monkeypatch):
    monkeypatch.setattr("metaformer.data.images.MEASURED_PIXELS", 7 * 36)  # of 20 images of 36 pixels
    data = synthetic()
    some = data.train.pixels[::3].double()
    assert data.mean.tolist() == pytest.approx([some.mean().item()])
    assert data.std.tolist() == pytest.approx([some.std(correction=0).item()])


def test_a_channel_that_is_the_same_everywhere_is_not_divided_by_nothing():
    split = Split(torch.full((4, 2, 2, 1), 7, dtype=torch.uint8), torch.arange(4) % 2)
    data = Images(split, split, split, ["a", "b"])
    assert data.std.tolist() == [1]
    assert not data.normalise(split.pixels).any()
