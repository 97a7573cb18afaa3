"""Which files are the data: splits, classes and what is left out, the same for every way of keeping images."""

import io
import os
import sqlite3
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import compose
from kept import WAYS, Item, encoded, folder, hub, table, tars, webdataset, words
from PIL import Image

from metaformer.data import digests
from metaformer.data.images import load
from metaformer.data.registry import fingerprint, listing_of
from metaformer.system.errors import ConfigError


def png(seed: int) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)))


def items_of(train: int = 8, test: int = 4, classes: tuple[str, ...] = ("cat", "dog"), **other: int) -> list[Item]:
    """So many images of each split, the classes in turns."""
    counts = {"train": train, "test": test, **other}
    return [
        Item(split, classes[i % len(classes)], f"{i}.png", png(1000 * s + i))
        for s, (split, count) in enumerate(counts.items())
        for i in range(count)
    ]


def read(root: Path, *overrides: str, name: str = "image_folder", key: str = "root"):
    return load(compose(f"data={name}", f"data.{key}='{root}'", "data.size=8", *overrides).data)


def refused(root: Path, *overrides: str, **options: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(root, *overrides, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def counts(images) -> list[int]:
    return [len(part) for part in images.splits().values()]


# ------------------------------------------------------------------ splits


def test_a_split_that_is_taken_out_has_no_image_that_is_left_in(tmp_path):
    """Where images of train are there twice."""
    items = items_of(train=20)
    twice = [item._replace(name=f"again{item.name}") for item in items if item.split == "train"]
    root = folder([*items, *twice], tmp_path / "a")
    line = refused(root, "data.val=12")
    assert "of the 12 images of val are in train too, like " in line
    assert line.endswith("; remove them, or set data.overlap=allow")
    assert counts(read(root, "data.val=12", "data.overlap=allow")) == [28, 12, 4]
    assert counts(read(folder(items, tmp_path / "b"), "data.val=12")) == [8, 12, 4]


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Validation"])
def test_every_word_for_a_split_is_known(tmp_path, word):
    items = [*items_of(), *(i._replace(split=word, content=png(5000 + n)) for n, i in enumerate(items_of(6, 0)))]
    for way in ("folder", "tar", "webdataset", "csv"):
        write, name, _ = WAYS[way]
        assert counts(read(write(items, tmp_path / way), name=name)) == [8, 6, 4]


def test_a_val_split_alone_is_the_test_set_and_a_validation_set_is_carved(tmp_path):
    root = folder([i._replace(split="val" if i.split == "test" else i.split) for i in items_of()], tmp_path / "a")
    assert counts(read(root, "data.val=2")) == [6, 2, 4]
    assert counts(read(root)) == [7, 1, 4]  # a tenth


def test_splits_that_are_there_are_not_carved_too(tmp_path):
    root = folder(items_of(val=4), tmp_path / "a")
    assert refused(root, "data.val=2") == "data.val=2: there is a val split of 4 images; leave it out"
    assert "data.test=2: there is a test split of 4 images" in refused(root, "data.test=2")


def test_a_folder_of_classes_alone_needs_to_be_told_how_many_are_tested(tmp_path):
    root = folder(items_of(test=0), tmp_path / "a") / "train"
    assert refused(root).startswith("data.test: there is no test split; set how many images")
    assert counts(read(root, "data.test=2", "data.val=2")) == [4, 2, 2]


def test_two_words_for_one_split_are_one_too_many(tmp_path):
    root = folder(items_of(val=4), tmp_path / "a")
    folder([i._replace(split="valid") for i in items_of(4, 0)], root)
    assert "'val' and 'valid' are both the val split; expected one of them" in refused(root)
    tars(items_of(), tmp_path / "b")
    folder(items_of(), tmp_path / "b")
    assert "has test.tar and a folder of the test split" in refused(tmp_path / "b")


def test_other_tar_files_are_not_data(tmp_path, capfd):
    root = tars(items_of(), tmp_path / "a")
    (root / "train_backup.tar").write_bytes((root / "train.tar").read_bytes())
    (root / "train-000001.tar").write_bytes(b"")
    assert "train-000001.tar: cannot be read as a tar file" in refused(root)
    (root / "train-000001.tar").unlink()
    assert counts(read(root, "data.val=2")) == [6, 2, 4]
    assert "1 file of kinds that are not read: 1 train_backup.tar" in str(listing_of(data_of(root)).notes)


def data_of(root: Path, *overrides: str):
    return compose("data=image_folder", f"data.root={root}", "data.size=8", *overrides).data


@pytest.mark.parametrize("way", WAYS)
def test_an_image_in_two_splits_is_named(tmp_path, way):
    if way in ("hub", "parquet"):
        pytest.importorskip("datasets")
    items = items_of()
    items.append(items[0]._replace(split="test", name="copy.png"))
    with pytest.raises(ConfigError, match=r"1 of the 5 images of test are in train too, like .*; remove them, or set"):
        load(compose(*words(way, items, tmp_path), "data.size=8").data)
    assert counts(load(compose(*words(way, items, tmp_path / "b"), "data.size=8", "data.overlap=allow").data))[2] == 5


def test_classes_are_compared_by_name(tmp_path):
    wrong = [i._replace(label="fox") if i.split == "test" and i.label == "dog" else i for i in items_of()]
    assert refused(folder(wrong, tmp_path / "a")) == (
        "test: its class 'fox' is none of the training images; they have cat, dog"
    )
    fewer = [i for i in items_of() if i.split == "train" or i.label == "cat"]
    root = folder(fewer, tmp_path / "b")
    assert listing_of(data_of(root)).notes == [f"{root}: test has no image of dog"]
    assert read(root).test.labels.tolist() == [0, 0]


def test_classes_are_in_natural_order_and_names_are_what_they_look_like(tmp_path):
    items = [i for n in (1, 10, 2) for i in items_of(4, 2, (f"grade {n}", f"Grade {n}b"))]
    items = [i._replace(content=png(9000 + n)) for n, i in enumerate(items)]
    order = ["grade 1", "Grade 1b", "grade 2", "Grade 2b", "grade 10", "Grade 10b"]
    for way in ("folder", "tar", "webdataset", "csv"):
        assert load(compose(*words(way, items, tmp_path), "data.size=8", "data.val=6").data).classes == order
    composed, apart = "caf\u00e9", "cafe\u0301"
    mixed = [i._replace(label=i.label.replace("cat", composed if i.split == "train" else apart)) for i in items_of()]
    assert read(folder(mixed, tmp_path / "cafe")).classes == [composed, "dog"]


def test_a_carved_split_leaves_an_image_of_each_class(tmp_path):
    rare = [*items_of(20, 6, ("cat",)), *items_of(5, 3, ("dog",)), Item("train", "emu", "e.png", png(8000))]
    rare = [i._replace(content=png(9000 + n)) for n, i in enumerate(rare)]
    root = folder([i._replace(name=f"{n}.png") for n, i in enumerate(rare)], tmp_path / "a")
    images = read(root, "data.val=6")
    assert [part.labels.bincount(minlength=3).tolist() for part in images.splits().values()] == [
        [15, 4, 1],
        [5, 1, 0],
        [6, 3, 0],
    ]
    assert read(root, "data.val=23").train.labels.bincount().tolist() == [1, 1, 1]
    assert refused(root, "data.val=24") == (
        "data.val=24: would leave no training image of some class, like 'emu' with 1; at most 23 of the 26 images can "
        "be taken out"
    )


# ------------------------------------------------------------------ files


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    root = folder(items_of(), tmp_path / "real")
    (tmp_path / "linked" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "linked" / "test").symlink_to(root / "test")
    (tmp_path / "linked" / "train" / "dog").symlink_to(root / "train" / "dog")
    (tmp_path / "linked" / "train" / "cat" / "more").symlink_to(root / "train" / "cat")
    (tmp_path / "linked" / "train" / "cat" / "loop").symlink_to(tmp_path / "linked" / "train" / "cat")
    (tmp_path / "linked" / "train" / "cat" / "folder.png").mkdir()
    assert fingerprint(data_of(tmp_path / "linked")) == fingerprint(data_of(root))
    (tmp_path / "linked" / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "linked").endswith("train/cat/gone.png: is a link that leads nowhere")


def test_hidden_files_are_left_out_and_other_kinds_are_counted(tmp_path):
    root = folder(items_of(), tmp_path / "a")
    clean = fingerprint(data_of(root))
    for junk in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        (root / "train" / junk).mkdir()
        (root / "train" / junk / "1.png").write_bytes(png(1))
    for name in (".DS_Store", "Thumbs.db"):
        (root / "train" / "cat" / name).write_bytes(b"")
    for name in ("notes.txt", "more.txt", "film.mp4", "README"):
        (root / "train" / "cat" / name).write_bytes(b"x")
    assert fingerprint(data_of(root)) == clean
    assert listing_of(data_of(root)).notes == [
        f"{root}: 4 files of kinds that are not read: 2 .txt, 1 .mp4, 1 without a suffix"
    ]
    (root / "train" / "deep" / "er").mkdir(parents=True)
    (root / "train" / "deep" / "er" / "1.png").write_bytes(png(77))
    assert "deep" in listing_of(data_of(root)).classes  # the class is the first folder, as in a tar


@pytest.mark.parametrize("suffix", [".pgm", ".ppm", ".gif", ".tga", ".jfif", ".JPG", ".bmp", ".webp", ".tif"])
def test_kinds_that_pillow_reads_are_read(tmp_path, suffix):
    kinds = {".pgm": "PPM", ".ppm": "PPM", ".tga": "TGA", ".jfif": "JPEG", ".JPG": "JPEG", ".tif": "TIFF"}
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    content = encoded(picture.convert("L") if suffix == ".pgm" else picture, kinds.get(suffix, suffix[1:].upper()))
    items = [*items_of(), Item("train", "cat", f"new{suffix}", content)]
    for way in ("folder", "tar", "webdataset"):
        assert counts(load(compose(*words(way, items, tmp_path), "data.size=8", "data.val=2").data)) == [7, 2, 4]


def test_tar_files_follow_their_links_and_folders(tmp_path):
    (tmp_path / "a").mkdir()
    for split in ("train", "test"):
        with tarfile.open(tmp_path / "a" / f"{split}.tar", "w") as tar:
            for n, item in enumerate(i for i in items_of() if i.split == split):
                info = tarfile.TarInfo(f"./{split}/{item.label}/deep/{n}.png")  # packed with its split
                info.size = len(item.content)
                tar.addfile(info, io.BytesIO(item.content))
            if split == "train":
                link = tarfile.TarInfo("train/cat/link.png")
                link.type, link.linkname = tarfile.SYMTYPE, "deep/0.png"
                tar.addfile(link)
    assert counts(read(tmp_path / "a", "data.val=2", "data.overlap=allow")) == [7, 2, 4]  # the link is an image twice


def test_what_makes_a_tar_unreadable_is_said(tmp_path):
    root = webdataset(items_of(), tmp_path / "a")
    shard = root / "train-000000.tar"
    whole = shard.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar}
    for problem, message in {
        "no .cls": "has no .cls beside it, as others have",
        "binary": "cannot be read as a tar",
    }.items():
        with tarfile.open(shard, "w") as tar:
            for i, (name, inside) in enumerate(content.items()):
                inside = b"\xff\xfe" if problem == "binary" and name.endswith(".cls") else inside
                if problem != "no .cls" or i != 1:
                    info = tarfile.TarInfo(name)
                    info.size = len(inside)
                    tar.addfile(info, io.BytesIO(inside))
        assert message in refused(root)
    with tarfile.open(shard, "w:gz"):
        pass
    assert "it is compressed; unpack it" in refused(root)
    shard.write_bytes(whole)
    images = read(root, "data.decode=always", "data.val=2")
    for file in root.glob("*.tar"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"\.tar: cannot be read \(No such file"):
        images.train.read(0)


def test_a_tar_that_ends_too_early_does_not_lose_images_without_a_word(tmp_path):
    root = tars(items_of(), tmp_path / "a")
    shard = root / "train.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1].offset
    damaged = bytearray(whole)
    damaged[last : last + 100] = b"\xff" * 100
    for content in (whole[:last], whole[: last + 200], bytes(damaged)):
        shard.write_bytes(content)
        assert "train.tar: is cut or damaged after " in refused(root)
    shard.write_bytes(whole)
    assert counts(read(root, "data.val=2")) == [6, 2, 4]


def test_what_is_in_no_split_is_told(tmp_path):
    root = folder([*items_of(), *(item._replace(split="vaild") for item in items_of(2, 0))], tmp_path / "a")
    (root / "loose.png").write_bytes(png(77))
    notes = listing_of(data_of(root)).notes
    assert f"{root}: vaild is no split; did you mean 'valid'?, and not read" in notes
    assert f"{root}: in no split, and not read: loose.png" in notes


def test_an_empty_folder_of_a_class_is_told(tmp_path):
    root = folder(items_of(), tmp_path / "a")
    (root / "train" / "zebra").mkdir()
    assert listing_of(data_of(root)).notes == [f"{root}: no image in train/zebra"]


def test_names_that_begin_like_those_of_tools_are_read(tmp_path):
    root = folder(items_of(classes=("cat", "__background__", "@home")), tmp_path / "a")
    (root / "train" / "cat" / "__MG.png").write_bytes(png(77))
    listing = listing_of(data_of(root))
    assert listing.classes == ["@home", "__background__", "cat"]
    assert len(listing.parts["train"].labels) == 9


def test_two_images_of_one_sample_of_a_webdataset_are_refused(tmp_path):
    root = webdataset(items_of(), tmp_path / "a")
    tar = next(root.glob("train*.tar"))
    with tarfile.open(tar) as file:
        name = next(info.name for info in file if info.name.endswith(".cls"))
    with tarfile.open(tar, "a") as file:
        info = tarfile.TarInfo(name.replace(".cls", ".mask.png"))
        info.size = len(content := png(99))
        file.addfile(info, io.BytesIO(content))
    line = refused(root)
    assert "are of one sample; expected one image beside each .cls" in line
    assert ".mask.png" in line


def test_an_image_of_two_classes_is_told(tmp_path):
    items = items_of()
    root = folder([*items, items[0]._replace(label="dog", name="again.png")], tmp_path / "a")
    (note,) = listing_of(data_of(root)).notes
    assert "train has an image twice, as two classes: " in note


def test_every_bad_file_is_one_line_with_its_path(tmp_path):
    for way in ("folder", "tar", "webdataset", "csv", "parquet", "hub"):
        if way in ("parquet", "hub"):
            pytest.importorskip("datasets")
        items = items_of()
        items[3] = items[3]._replace(content=b"no image")
        found = words(way, items, tmp_path)
        for decode in ("once", "always"):
            data = compose(*found, "data.size=8", f"data.decode={decode}", "data.val=2").data
            with pytest.raises(ConfigError, match=r"cannot be read as an image \(it is no image\)") as error:
                _read_all(data)
            assert str(tmp_path) in str(error.value)
            assert "\n" not in str(error.value)
    deep = folder([*items_of(), Item("train", "cat", "deep.tif", _float_tiff())], tmp_path / "deep")
    assert refused(deep).endswith("deep.tif: float32, whose range nobody can know; set data.range=[low,high]")


def _read_all(data) -> None:
    images = load(data)
    for part in images.splits().values():
        for i in range(len(part)):
            part.read(i)


def _float_tiff() -> bytes:
    return encoded(Image.fromarray(np.zeros((8, 8), dtype=np.float32)), "TIFF")


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    root = folder(items_of(), tmp_path / "a")
    (root / "train" / "cat").chmod(0)
    as_others = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*as_others, sys.executable, "-m", "metaformer.train", "data=image_folder", f"data.root={root}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "train/cat: cannot be read (Permission denied)" in done.stderr


def test_what_is_not_there_is_said(tmp_path):
    assert refused(tmp_path / "no").endswith("no such file or folder; expected a folder with train/<class>/ and "
                                             "test/<class>/, or train*.tar and test*.tar")  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.root: expected a folder with train/<class>/"):
        load(compose("data=image_folder").data)
    root = folder(items_of(), tmp_path / "a")
    assert f"data.classes=1000: {root} has 2 classes" in refused(root, "data.classes=1000")
    assert "no training images; expected a split 'train'" in refused(folder(items_of(0, 4, val=2), tmp_path / "b"))
    assert "have the class cat only, expected two" in refused(folder(items_of(classes=("cat",)), tmp_path / "c"))
    (tmp_path / "d").mkdir()
    assert "no images in it" in refused(tmp_path / "d")


def test_home_is_expanded_and_odd_paths_work(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(items_of(), tmp_path / "my = [odd] päth")
    assert counts(read(Path("~/my = [odd] päth"), "data.val=2")) == [6, 2, 4]


# ------------------------------------------------------------------ contents


def test_contents_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    root, reads = folder(items_of(), tmp_path / "a"), []
    plain = digests.digest
    monkeypatch.setattr(digests, "digest", lambda content: reads.append(len(content)) or plain(content))
    first = fingerprint(data_of(root))
    assert len(reads) == 12
    assert fingerprint(data_of(root)) == first
    assert len(reads) == 12  # by name, size and time
    file = root / "train" / "cat" / "0.png"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    changed = fingerprint(data_of(root))
    assert (len(reads), changed == first) == (13, False)
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    file.write_bytes(bytes(content[:-1] + b"!"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a change that its time of modification hides
    before = len(reads)
    assert (again := fingerprint(data_of(root))) not in (first, changed)
    assert len(reads) == before + 1
    monkeypatch.setenv("METAFORMER_REHASH", "1")
    assert fingerprint(data_of(root)) == again
    assert len(reads) == before + 13


def test_files_that_swap_their_names_are_read_again(tmp_path):
    """Of one size and time, as out of an archive: so labels are corrected by hand."""
    root = folder(items_of(), tmp_path / "a")
    one, other = root / "train/cat/0.png", root / "train/dog/1.png"
    whole = one.read_bytes()
    other.write_bytes(whole[:-1] + b"!")
    for path in (one, other):
        os.utime(path, ns=(10**18, 10**18))
    first = fingerprint(data_of(root))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert fingerprint(data_of(root)) != first


@pytest.mark.parametrize("spoil", ["cut", "no index", "other columns"])
def test_an_index_that_is_damaged_is_told_and_written_again(tmp_path, monkeypatch, capfd, spoil):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, reads = folder(items_of(train=400), tmp_path / "a"), []
    whole = fingerprint(data_of(root))
    index = max((tmp_path / "cache" / "metaformer").glob("*.sqlite"), key=lambda path: path.stat().st_size)
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2] if spoil == "cut" else b"no database, but long enough for one" * 99)
    if spoil == "other columns":
        index.unlink()
        with sqlite3.connect(index) as connection:
            connection.execute("CREATE TABLE digests (key TEXT PRIMARY KEY, size INT, mtime INT, digest BLOB)")
    capfd.readouterr()
    assert fingerprint(data_of(root)) == whole
    told = capfd.readouterr().err
    assert ("is damaged" in told) == (spoil != "other columns")
    plain = digests.digest
    monkeypatch.setattr(digests, "digest", lambda content: reads.append(len(content)) or plain(content))
    assert fingerprint(data_of(root)) == whole
    assert reads == []


def test_the_index_may_be_missing(tmp_path, monkeypatch):
    root = folder(items_of(), tmp_path / "a")
    whole = fingerprint(data_of(root))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert fingerprint(data_of(root)) == whole


def test_a_changed_class_in_a_tar_is_another_set(tmp_path):
    root = webdataset(items_of(), tmp_path / "a")
    before = fingerprint(data_of(root))
    shard = root / "train-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"cat", b"dog", 1))
    assert fingerprint(data_of(root)) != before


# ------------------------------------------------------------------ tables and the hub


def test_columns_of_a_table(tmp_path):
    file = table(items_of(), tmp_path / "a")
    other = file.read_text().replace("path,label,split", "where,species,part")
    file.write_text(other)
    assert refused(file, name="table") == (
        f"data.image_column: {file} has where, species, part; set the one that holds the image"
    )
    chosen = ("data.image_column=where", "data.label_column=species")
    wrong = refused(file, *chosen, "data.split_column=prt", name="table")
    assert wrong.startswith(f"data.split_column=prt: {file} has where, species, part")
    assert "part" in wrong
    assert counts(read(file, *chosen, "data.split_column=part", "data.val=2", name="table")) == [6, 2, 4]
    assert counts(read(file, *chosen, "data.test=3", "data.val=2", name="table")) == [7, 2, 3]


def test_paths_in_a_parquet_are_relative_to_its_folder(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    root = tmp_path / "a"
    root.mkdir()
    items = items_of()
    for i, item in enumerate(items):
        (root / f"{i}.png").write_bytes(item.content)
    cells = [{"bytes": None, "path": f"{i}.png"} for i in range(len(items))]
    columns = {"image": cells, "label": [i.label for i in items], "split": [i.split for i in items]}
    parquet.write_table(pa.table(columns), root / "t.parquet")
    assert counts(read(root / "t.parquet", "data.val=2", name="table")) == [6, 2, 4]
    (root / "0.png").unlink()
    assert "0.png: cannot be read (No such file" in refused(root / "t.parquet", name="table")


def test_bad_rows_are_named(tmp_path):
    file = table(items_of(), tmp_path / "a", "\t")
    whole = file.read_text()
    assert counts(read(file, "data.val=2", name="table")) == [6, 2, 4]
    for old, new, message in (
        ("images/train/dog/1.png", "images/train/dog/one.png", "row 2: images/train/dog/one.png: no such file beside"),
        ("\tcat\ttrain", "\t\ttrain", "row 1: has no label"),
        ("\tcat\ttrain", "\tnan\ttrain", "row 1: has no label"),
        (whole.splitlines()[0], whole.splitlines()[0].replace("split", "label"), "has label twice in its first line"),
        ("\tcat\ttrain", "\tcat\tsecret", "row 1: split='secret' is no split; expected train, val or test"),
        ("\tcat\ttrain", "\tcat", "line 2 has 2 cells, the first 3"),
    ):
        file.write_text(whole.replace(old, new, 1))
        assert message in refused(file, name="table")
    file.write_text("path\tlabel\n")
    assert "has no rows" in refused(file, name="table")
    assert "expected a table that ends in .csv, .tsv or .parquet" in refused(tmp_path / "a", name="table")


def test_sets_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it asks the network, five times
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    root = hub(items_of(), tmp_path / "a")
    assert refused(root, "data.label_column=fine_label", name="hub", key="dataset").startswith(
        f"data.label_column=fine_label: {root} has image, label"
    )
    assert "data.dataset=nowhere:" in refused("nowhere", name="hub", key="dataset")
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [[0, 1]] * 4}
    many = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": many, "test": many}).save_to_disk(str(tmp_path / "many"))
    assert "has 2 labels; expected one class for each image" in refused(tmp_path / "many", name="hub", key="dataset")
    parts = datasets.load_from_disk(str(root))
    some = parts["test"].map(lambda row, i: {"label": -1 if i == 1 else row["label"]}, with_indices=True)
    datasets.DatasetDict({**parts, "test": some}).save_to_disk(str(tmp_path / "c"))
    assert "test row 2: has no label, and others have" in refused(tmp_path / "c", name="hub", key="dataset")
    none = some.map(lambda row: {"label": -1})
    datasets.DatasetDict({**parts, "vaild": parts["test"], "test": none}).save_to_disk(str(tmp_path / "d"))
    notes = listing_of(compose("data=hub", f"data.dataset={tmp_path / 'd'}", "data.size=8", "data.test=2").data).notes
    assert [note.partition(": ")[2] for note in notes] == [
        "its split vaild is not read; did you mean 'valid'?",
        "its split test has no labels and is not read",
    ]
    datasets.DatasetDict({**parts, "validation": parts["test"], "dev": parts["test"]}).save_to_disk(str(tmp_path / "b"))
    assert "are both the val split; expected one of them" in refused(tmp_path / "b", name="hub", key="dataset")


def test_reading_in_threads_leaves_the_warnings_as_they_were(tmp_path):
    before = list(warnings.filters)
    read(folder(items_of(train=40), tmp_path / "a"))
    assert warnings.filters == before


def test_what_is_tested_does_not_hang_on_how_much_is_validated(tmp_path):
    root = folder(items_of(train=20, test=0), tmp_path / "a") / "train"
    few, many = (read(root, "data.test=6", f"data.val={count}").test for count in (2, 4))
    assert few.images.equal(many.images)


def test_images_are_decoded_anew_for_another_range(tmp_path):
    draw = np.random.default_rng(0).integers
    items = [Item(split, label, f"{i}.tif", encoded(Image.fromarray(draw(0, 4096, (8, 8)).astype(np.int32)), "TIFF"))
             for split in ("train", "test") for i, label in enumerate(("cat", "dog") * 3)]  # fmt: skip
    root = folder(items, tmp_path / "a")
    wide, narrow = (read(root, "data.val=2", f"data.range=[0,{most}]").test for most in (8191, 4095))
    assert wide.images.max() < 128 < narrow.images.max()
