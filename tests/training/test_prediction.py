"""The table of predictions says of test images what the test said, from folders and from the run's own data set."""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from PIL import Image
from trained import go

from metaformer import predict as verb
from metaformer.data.images import load
from metaformer.runs.answers import read_answers
from metaformer.system.errors import install
from metaformer.training.prediction import predict


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def table(file: str) -> tuple[list[str], np.ndarray]:
    """The predicted classes and the probabilities."""
    found = rows(file)
    numbers = [[float(value) for key, value in row.items() if key.startswith("p_")] for row in found]
    return [row["class"] for row in found], np.array(numbers)


def recorded(run: Path) -> np.ndarray:
    return torch.from_numpy(np.load(run / "predictions.npz")["logits"]).float().softmax(1).numpy()


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the verb in this process; what it prints."""

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["predict", *words])
        verb.main()
        return "".join(capsys.readouterr())

    return call


def test_several_devices_are_refused(run, command, capsys):
    with pytest.raises(SystemExit):
        command(f"run={run}", "runtime.devices=2")
    assert "runtime.devices, runtime.nodes: expected 1 of each" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return go("mixer=pooling", f"runtime.runs={tmp_path_factory.mktemp('run')}").folder


def test_a_folder_of_images_and_the_test_images_of_the_run(run, command):
    """In batches; nested, in classes or not, in order of their paths, in colour where the run saw grey ones."""
    images, kept = load(compose("data=digits").data).test, recorded(run)
    for row in range(130):
        place = Path("photos", *(("b", "deep") if row % 2 else ()), f"{row:03} \u00e9.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        images.read(row).convert("RGB" if row % 3 else "RGBA").save(place)
    Path("photos/notes.txt").touch()
    said = command(f"run={run}", "data.root=photos", "out=mine.csv", "runtime.threads=1")
    assert said.endswith("written: mine.csv, 130 images\nnote: photos: 1 file of kinds that are not read: 1 .txt\n")
    files = [row["file"] for row in rows("mine.csv")]
    assert files == sorted(files[:65]) + sorted(files[65:])
    places = [int(name.rpartition("/")[2][:3]) for name in files]
    assert sorted(places) == list(range(130))
    classes, numbers = table("mine.csv")
    np.testing.assert_allclose(numbers, kept[places], atol=2e-3)
    assert classes == [str(label) for label in numbers.argmax(1)]

    command(f"run={run}")
    classes, numbers = table("predictions.csv")
    np.testing.assert_allclose(numbers, kept, atol=2e-3)
    np.testing.assert_allclose(numbers.sum(1), 1, atol=1e-5)


def test_parquet_holds_the_same(run, command):
    command(f"run={run}")
    command(f"run={run}", "out=table.parquet")
    from pyarrow import parquet

    columns = parquet.read_table("table.parquet").to_pydict()
    classes, numbers = table("predictions.csv")
    assert list(columns) == ["file", "class", *(f"p_{i}" for i in range(10))]
    assert columns["class"] == classes
    np.testing.assert_allclose(np.array([columns[f"p_{i}"] for i in range(10)]).T, numbers, rtol=1e-5)


def test_images_of_32_bits_need_their_range(run, refusal):
    Path("deep").mkdir()
    values = np.linspace(0, 4095, 64, dtype=np.int32).reshape(8, 8)
    Image.fromarray(values).save("deep/a.tif")
    Image.fromarray((values * (255 / 4095)).round().astype(np.uint8)).save("b.png")
    asked = (f"run={run}", "data.root=deep")
    assert "deep/a.tif: int32, whose range nobody can know; set data.range=[low,high]" in refusal(verb, *asked)
    scaled = compose("data=digits", "data.root=deep", "data.range=[0,4095]", "runtime.threads=1")
    plain = compose("data=digits", "data.root=b.png", "runtime.threads=1")
    first, second = (predict(run, config, folder=True) for config in (scaled, plain))
    assert torch.equal(first.probabilities, second.probabilities)
    assert (first.names, second.names) == (["a.tif"], ["b.png"])


def test_the_test_images_of_a_run_on_more_than_eight_bits(tmp_path):
    """They are kept with eight, and are not scaled again."""
    random = np.random.default_rng(0)
    sizes = {"train": 40, "val": 10, "test": 10}
    arrays = {f"{s}_images": random.integers(0, 4096, (n, 8, 8)).astype(np.uint16) for s, n in sizes.items()}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{s}_labels": np.arange(n) % 2 for s, n in sizes.items()})
    words = ("data=npz", f"data.root={tmp_path / 'a.npz'}", "data.range=[0,4095]", "recipe.batch=20")
    deep = go(*words, "recipe.epochs=1")
    predicted = predict(deep.folder, deep.result.config, folder=False)
    assert predicted.probabilities.argmax(1).tolist() == read_answers(deep.folder).predictions.tolist()


@pytest.mark.parametrize("decode", ["once", "always"])
def test_test_images_have_the_names_of_their_files(tmp_path, decode):
    """Though they are in the order of their contents, and may be taken out of those to train on."""
    random = np.random.default_rng(0)
    for label, name in itertools.product(("cat", "dog"), map("{}.png".format, range(20))):
        (file := tmp_path / "data" / "train" / label / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    words = ("data=image_folder", f"data.root={tmp_path / 'data'}", "data.size=8", f"data.decode={decode}")
    done = go(*words, "data.test=10", "data.val=10", "recipe.batch=10", "recipe.epochs=1", "recipe.scale=[0.5,1]")
    tested = predict(done.folder, done.result.config, folder=False)
    assert [name.split("/")[:2] for name in tested.names] == [
        ["train", ("cat", "dog")[label]] for label in read_answers(done.folder).labels
    ]
    below = predict(done.folder, done.result.config, folder=True)
    places = [below.names.index(name) for name in tested.names]
    assert len(set(places)) == 10
    assert torch.allclose(tested.probabilities, below.probabilities[places], atol=1e-5)


def test_what_is_refused_is_named_and_nothing_is_written(run, refusal, monkeypatch):
    Path("photos/a").mkdir(parents=True)
    Image.new("L", (8, 8)).save("photos/a.png")
    Path("photos/b.png").write_text("no image")
    Path("coloured").mkdir()
    Image.new("RGB", (8, 8), "red").save("coloured/c.png")
    Path("empty").mkdir()
    Path("folder.csv").mkdir()
    before = sorted(Path().rglob("*"))
    lines = {
        ("data.root=photos",): "photos/b.png: cannot be read as an image (it is no image)",
        ("data.root=coloured",): "coloured/c.png: has colours; this run was trained on grey images, and sees only such",
        ("data.root=empty",): "data.root=empty: no images in it; expected a folder of images",
        ("data.root=nowhere",): "data.root=nowhere: no such file or folder; expected a folder of images",
        ("data.size=9",): "data.size: the images are seen as the run saw its own; did you mean 'data.range'?",
        ("data=cifar10",): "data: the images are seen as the run saw its own; did you mean 'data.root'?",
        ("dataroot=x",): "dataroot: not of this command; did you mean 'data.root'?; expected run, out, data, runtime",
        ("out=x.txt",): "out=x.txt: expected a file that ends in .csv or .parquet",
        ("out=folder.csv",): "out=folder.csv: expected a file that ends in .csv or .parquet",
        ("out=no/x.csv",): "out=no/x.csv: no is no folder",
        ("mixer=attention",): "mixer: not of this command; expected run, out, data, runtime",
    }
    for words, line in lines.items():
        assert refusal(verb, f"run={run}", *words) == f"error: {line}\n"
    assert "no finished run there (weights.pt)" in refusal(verb, "run=runs/RUN")
    assert "expected run=FOLDER" in refusal(verb, "data.root=photos")
    monkeypatch.setattr(verb, "find_spec", lambda name: None)
    assert f"parquet needs {install('hub')}\n" in refusal(verb, f"run={run}", "out=x.parquet")
    assert sorted(Path().rglob("*")) == before
