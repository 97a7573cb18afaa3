"""Data sets of arrays: of an .npz file, and of a function of one's own."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import compose
from kept import npz

from metaformer.data.images import load
from metaformer.data.registry import fingerprint
from metaformer.studies.points import resolve
from metaformer.system.errors import ConfigError
from metaformer.training.fit import prepare


def pixels(count: int, *shape: int, dtype: type = np.uint8, most: int = 256) -> np.ndarray:
    return np.random.default_rng(count).integers(0, most, (count, *shape)).astype(dtype)


def medmnist(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """The names, shapes and types of MedMNIST's files."""
    arrays = {}
    for split, count in {"train": 20, "val": 6, "test": 10}.items():
        arrays[f"{split}_images"] = pixels(count, 28, 28, 3)
        arrays[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    return arrays | changes


def data_of(path: Path, *overrides: str):
    return compose("data=npz", f"data.root={path}", *overrides).data


def test_a_file_of_medmnist(tmp_path):
    images = load(data_of(npz(medmnist(), tmp_path / "a")))
    assert [len(part) for part in images.splits().values()] == [20, 6, 10]
    assert (images.shape, images.classes) == ((3, 28, 28), ["0", "1", "2"])
    assert images.train.labels[:4].tolist() == [0, 1, 2, 0]
    grey = medmnist(**{f"{s}_images": pixels(n, 14, 20) for s, n in {"train": 20, "val": 6, "test": 10}.items()})
    assert load(data_of(npz(grey, tmp_path / "b"), "data.classes=3")).shape == (1, 14, 20)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_does_not_have_has_to_be_expected(split, tmp_path):
    labels = medmnist()[f"{split}_labels"]
    labels[-1] = 4
    path = npz(medmnist(**{f"{split}_labels": labels}), tmp_path / "a")
    line = (
        rf"^data.classes: {split} has the class 4, and the last one of train is 2; expected how many classes there are$"
    )
    with pytest.raises(ConfigError, match=line):
        load(data_of(path))
    assert load(data_of(path, "data.classes=5")).classes == ["0", "1", "2", "3", "4"]


def test_what_is_in_the_file_is_what_counts(tmp_path):
    packed = npz(medmnist(), tmp_path / "a")
    np.savez(tmp_path / "plain.npz", **medmnist())
    assert packed.read_bytes() != (tmp_path / "plain.npz").read_bytes()
    assert fingerprint(data_of(packed)) == fingerprint(data_of(tmp_path / "plain.npz"))
    labels = medmnist()["test_labels"][::-1]
    assert fingerprint(data_of(npz(medmnist(test_labels=labels), tmp_path / "b"))) != fingerprint(data_of(packed))


def test_a_file_that_takes_the_place_of_one_as_old_and_as_large_is_read_again(tmp_path):
    for name, last in (("a.npz", 0), ("b.npz", 1)):
        labels = medmnist()["train_labels"]
        labels[-1] = last
        np.savez(tmp_path / name, **medmnist(train_labels=labels))
        os.utime(tmp_path / name, ns=(10**18, 10**18))  # as archives have them, in whole seconds
    first, other = (fingerprint(data_of(tmp_path / name)) for name in ("a.npz", "b.npz"))
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    assert fingerprint(data_of(tmp_path / "a.npz")) == other != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": pixels(20, 28, 28, 28, 1)}, "train_images: .*: volumes are not read; expected"),
        ({"train_images": pixels(20, 28, 28, 28)}, "train_images: .*: volumes are not read; expected"),
        ({"train_images": pixels(20, 3, 28, 28)}, r"\(20, 3, 28, 28\): has its channels first; expected \[N, H"),
        ({"train_labels": pixels(20, 14, most=2)}, "train_labels: has 14 labels for each image; expected one class"),
        ({"train_labels": np.full(20, 0.5)}, "train_labels: float64; expected whole numbers from 0"),
        ({"train_labels": np.arange(19)}, r"train_images: \(20, 28, 28, 3\) with 19 labels; expected"),
        ({"val_images": pixels(6, 32, 32, 3)}, r"several shapes \(train 28x28x3, val 32x32x3, test 28x28x3\)"),
        (
            {"train_images": pixels(20, 28, 28, 3).astype(np.float32)},
            r"float32, whose range nobody can know; set data.range=\[low,high\]",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(data_of(npz(medmnist(**changes), tmp_path / "a")))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_such_file(tmp_path):
    arrays = medmnist()
    del arrays["train_labels"]
    with pytest.raises(ConfigError, match="has train_images and neither train_labels nor train_masks; it holds"):
        load(data_of(npz(arrays, tmp_path / "a")))
    with pytest.raises(ConfigError, match=r"has x; expected a file .npz with train_images, train_labels"):
        load(data_of(npz({"x": np.zeros(3)}, tmp_path / "b")))
    with pytest.raises(ConfigError, match="'val' and 'validation' are both the val split; expected one of them"):
        load(data_of(npz(medmnist() | {"validation_images": pixels(6, 28, 28, 3)}, tmp_path / "two")))
    np.save(tmp_path / "one.npy", pixels(6, 28, 28, 3))
    with pytest.raises(ConfigError, match=r"one\.npy: cannot be read as arrays"):
        load(data_of(tmp_path / "one.npy"))
    (tmp_path / "c.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"c\.npz: cannot be read as arrays"):
        load(data_of(tmp_path / "c.npz"))
    with pytest.raises(ConfigError, match=r"data\.val=3: there is a val split of 6 images; leave it out"):
        load(data_of(npz(medmnist(), tmp_path / "d"), "data.val=3"))
    with pytest.raises(ConfigError, match=r"data\.size=32: the images have 28x28 pixels"):
        load(data_of(tmp_path / "d" / "set.npz", "data.size=32"))


MINE = """
import numpy as np
import torch

SPREAD = 3


def load(images=20, classes=None):
    pixels = np.random.default_rng(images).integers(0, 256, (images, 6, 6), dtype=np.uint8)
    labels = torch.arange(images) % SPREAD
    found = {"train": (pixels[6:], labels[6:]), "test": (pixels[:6], labels[:6])}
    return found | ({"classes": classes} if classes else {})


def broken():
    return 1 / 0


def nothing():
    return {"images": 3}
"""


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_x.py").write_text(MINE)

    def config(*overrides: str, target: str = "mine_x.load"):
        return compose("data=custom", f"data._target_={target}", "data.val=3", *overrides)

    images = load(config().data)
    assert [len(part) for part in images.splits().values()] == [11, 3, 6]
    assert (images.shape, images.classes) == ((1, 6, 6), ["0", "1", "2"])
    assert load(config("+data.options.classes=[a,b,c]").data).classes == ["a", "b", "c"]
    choices = {"mixer": "pooling", "model": "tiny"}
    ids = {resolve(config(*o), choices)[0].run_id for o in ((), ("+data.options.images=20",))}
    assert len(ids) == 1  # the same images
    ids |= {resolve(config(f"+data.options.{o}"), choices)[0].run_id for o in ("images=21", "classes=[a,b,c]")}
    (tmp_path / "mine_x.py").write_text(MINE.replace("def broken", "# another text\ndef broken"))
    ids.add(resolve(config(), choices)[0].run_id)
    assert len(ids) == 4  # other images, other names, other code
    for target, message in {
        "mine_x.broken": "data._target_=mine_x.broken: ZeroDivisionError: division by zero",
        "mine_x.nothing": "data._target_=mine_x.nothing: returned the keys images; expected a dict with train",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load(config(target=target).data)
    with pytest.raises(ConfigError, match="there is a label 2 and 2 names of classes"):
        load(config("+data.options.classes=[a,b]").data)


def test_an_image_in_two_splits_is_refused(tmp_path):
    arrays = medmnist()
    arrays["val_images"][3] = arrays["train_images"][5]
    path = npz(arrays, tmp_path / "a")
    line = (
        r"^1 of the 6 images of val are in train too, like val 3 and train 5; remove them, or set data.overlap=allow$"
    )
    with pytest.raises(ConfigError, match=line):
        load(data_of(path))
    assert len(load(data_of(path, "data.overlap=allow")).val) == 6


def test_a_class_without_images_is_told(tmp_path, capfd):
    load(data_of(npz(medmnist(train_labels=(np.arange(20) % 2 * 4).astype(np.uint8)), tmp_path / "a")))
    assert "note: " in (told := capfd.readouterr().err)
    assert "train has no image of 1, 2, 3" in told


def test_a_split_of_another_name_is_refused(tmp_path, monkeypatch):
    arrays = medmnist()
    arrays |= {f"vaild_{kind}": arrays.pop(f"val_{kind}") for kind in ("images", "labels")}
    line = "has vaild_images, which is no split; expected train, val or test; did you mean 'valid'?"
    with pytest.raises(ConfigError, match=line.replace("?", r"\?")):
        load(data_of(npz(arrays, tmp_path / "a")))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def make(n): return np.random.default_rng(n).integers(0, 256, (n, 8, 8), dtype=np.uint8), np.arange(n) % 2\n"
        "def good(): return {'train': make(20), 'valid': make(6), 'test': make(10)}\n"
        "def bad(): return {'train': make(20), 'tset': make(10)}\n"
        "def few(): return {'train': make(20), 'test': make(10), 'classes': 2}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def own(name: str):
        return load(compose("data=custom", f"data._target_=mine.{name}").data)

    assert [len(part) for part in own("good").splits().values()] == [20, 6, 10]
    with pytest.raises(ConfigError, match=r"mine.bad: returned tset, which is no split; expected .* mean 'test'"):
        own("bad")
    with pytest.raises(ConfigError, match=r"mine.few: classes is 2; expected the names of the classes"):
        own("few")


def test_the_id_of_masks_does_not_hang_on_what_was_read_before(tmp_path):
    arrays = {}
    for split, count in {"train": 12, "val": 4, "test": 4}.items():
        arrays[f"{split}_images"] = pixels(count, 8, 8)
        arrays[f"{split}_masks"] = np.where(pixels(count, 8, 8) < 128, 1, 2).astype(np.uint8)
    path = npz(arrays, tmp_path / "a")
    words = ("task=segmentation", "model=tiny_pyramid")
    before = fingerprint(data_of(path, *words, "data.ignore=2"))
    assert before != fingerprint(data_of(path, *words))
    assert before == fingerprint(data_of(path, *words, "data.ignore=2"))
    wide = {name: a.astype(np.int64) if name.endswith("masks") else a for name, a in arrays.items()}
    assert fingerprint(data_of(npz(wide, tmp_path / "b"), *words)) == fingerprint(data_of(path, *words))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_images": np.array(5), "train_labels": np.arange(3)}, "train_images: is no array of images"),
        ({"train_images": np.full((4, 8, 8), np.nan), "train_labels": np.arange(4)}, "has NaN or infinity among its"),
    ],
)
def test_what_is_no_image_is_one_line(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        load(data_of(npz(content, tmp_path / "a"), "data.range=[0,1]"))


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **medmnist())
    content = bytearray(path.read_bytes())
    content[300:500] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as arrays"):
        load(data_of(path))


def test_a_crop_is_compared_with_the_images_that_there_are(tmp_path):
    path = npz(medmnist(), tmp_path / "a")
    config = compose("data=npz", f"data.root={path}", "recipe.crop=30", "recipe.batch=4")
    with pytest.raises(ConfigError, match=r"^recipe.crop=30: expected less than the 28 pixels of an image$"):
        prepare(config)


def test_arrays_that_nobody_reads_are_told_or_refused(tmp_path, capfd):
    named = {name.replace("val_images", "val_image"): array for name, array in medmnist().items()}
    with pytest.raises(ConfigError, match=r"set\.npz: has val_labels without val_images; did you mean 'val_image'\?"):
        load(data_of(npz(named, tmp_path / "a")))
    path = npz(medmnist(weights=np.ones(3)), tmp_path / "b")
    assert load(data_of(path)).shape == (3, 28, 28)
    assert f"note: {path}: not read: weights\n" in capfd.readouterr().err


def test_a_range_is_for_more_than_eight_bits(tmp_path):
    with pytest.raises(ConfigError, match=r"train_images: has eight bits a number, all of which are shown"):
        load(data_of(npz(medmnist(), tmp_path / "a"), "data.range=[0,100]"))
    little, big = (
        load(data_of(npz({k: a.astype(kind) if k.endswith("images") else a for k, a in medmnist().items()}, folder)))
        for kind, folder in (("<u2", tmp_path / "b"), (">u2", tmp_path / "c"))
    )
    assert np.array_equal(little.train.images, big.train.images)


def test_a_split_that_is_taken_out_of_arrays_has_no_image_that_is_left_in(tmp_path):
    arrays = {name: array for name, array in medmnist().items() if not name.startswith("val")}
    twice = {name: np.concatenate([array, array]) if "train" in name else array for name, array in arrays.items()}
    with pytest.raises(ConfigError, match=r"of the 8 images of val are in train too, like train \d+ and train \d+; re"):
        load(data_of(npz(twice, tmp_path / "a"), "data.val=8"))
    assert len(load(data_of(npz(arrays, tmp_path / "b"), "data.val=8")).val) == 8


def test_a_function_that_draws_anew_is_refused(tmp_path, monkeypatch):
    (tmp_path / "drawn.py").write_text(
        "import numpy as np\n\n\ndef load(seed=None):\n    random = np.random.default_rng(seed)\n"
        "    return {s: (random.integers(0, 256, (n, 8, 8), dtype=np.uint8), np.arange(n) % 2)\n"
        "            for s, n in (('train', 40), ('test', 10))}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = compose("data=custom", "data._target_=drawn.load").data
    fingerprint(data)
    with pytest.raises(ConfigError, match=r"data._target_=drawn.load: returns other images at each call; expected the"):
        load(data)
    seeded = compose("data=custom", "data._target_=drawn.load", "+data.options.seed=1").data
    assert fingerprint(seeded) == fingerprint(seeded)
    assert len(load(seeded).test) == 10
