"""Files of strangers: whatever is in them, none of their code runs, and nothing is written outside."""

import io
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from conftest import compose, runs_of, study
from PIL import Image
from PIL.EpsImagePlugin import EpsImageFile  # noqa: F401  registered, as it is where anybody opened an unusual image
from rich.console import Console
from trained import go

import metaformer
from metaformer import evaluate
from metaformer.analysis import page
from metaformer.config.explain import USER_ERRORS, explain
from metaformer.config.schema import Data
from metaformer.config.validate import plain
from metaformer.data import photographs
from metaformer.data.decoding import decode
from metaformer.data.images import load
from metaformer.data.readers import arrays, tars
from metaformer.models import weights
from metaformer.probing import kept
from metaformer.runs import answers, packed
from metaformer.studies.points import expand
from metaformer.system.errors import ConfigError
from metaformer.training import evaluation, stop_and_resume


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.system, (f"touch {Path.cwd()}/canary",)


@pytest.fixture(autouse=True)
def canary(tmp_path):
    yield
    assert not (tmp_path / "canary").exists(), "a file of a stranger ran its code"


def test_the_canary_sings():
    pickle.loads(pickle.dumps(Evil()))
    assert Path("canary").exists()
    Path("canary").unlink()


def zipped(path: Path) -> None:
    torch.save({"state_dict": {"head.weight": torch.ones(2)}, "epoch": Evil()}, path)


def old(path: Path) -> None:
    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=False)


def bare(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


READERS = {
    "weights": lambda file: weights.read(file),
    "load": lambda file: metaformer.load(file, "poolformer_s12"),
    "load a run": lambda file: metaformer.load(file),
    "evaluate": lambda file: evaluation.evaluate_weights(
        str(file), compose("model=s12", "data=image_folder", "data.root=pets", "data.size=32")
    ),
    "evaluate a run": lambda file: evaluation.restore(compose("data=digits"), file),
    "fine-tune": lambda file: go("model=s12", f"recipe.initialize_from={file}", "data=fashion_small"),
    "teacher": lambda file: go("recipe.distill.teacher=test_resnet", f"recipe.distill.weights={file}"),
    "resume": lambda file: stop_and_resume.read(file.parent),
}


@pytest.mark.parametrize("make", [zipped, old, bare])
@pytest.mark.parametrize("reader", READERS)
def test_weights_and_checkpoints_run_nothing(make, reader, tmp_path):
    (tmp_path / "theirs").mkdir()
    file = tmp_path / "theirs" / ("last.ckpt" if reader == "resume" else "theirs.pth")
    make(file)
    for name in ("train/a/1", "train/b/2", "val/a/3", "val/b/4", "test/a/5", "test/b/6"):
        Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
        Path("pets", f"{name}.png").write_bytes(picture(int(name[-1])))
    assert evaluation.kept_config(file) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        READERS[reader](file)


CALLS = {"_target_": "numpy.testing.measure", "code_str": "open('canary', 'w')"}  # a function that runs a string


def theirs(path: Path, **nodes: dict) -> Path:
    """A file as a run writes it, whose configuration names what would make the canary."""
    config = plain(compose("data=digits", "mixer=pooling"))
    for name, node in nodes.items():
        config[name] = config[name] | node if name == "data" else node
    content = {
        "state_dict": {},
        "config": config,
        "classes": [*"0123456789"],
        "mean": torch.ones(1),
        "std": torch.ones(1),
    }
    torch.save(content | {"shape": [1, 8, 8]}, path)
    return path


def test_the_configuration_beside_weights_calls_no_function(tmp_path):
    target = CALLS["_target_"]
    images = theirs(tmp_path / "a.pt", data={"name": "custom", "_target_": target, "options": {"code_str": "1"}})
    with pytest.raises(ConfigError, match=rf"^weights=.*a.pt: its images are what data._target_={target} returns; exp"):
        evaluate.command([f"weights={images}"])
    layer = {"_target_": "metaformer.mixers.AsTokens", "layer": "metaformer.training.brought.made"}
    options = {"node": CALLS, "key": "x"}
    for node in (layer | {"options": options}, CALLS, {"_target_": target}):
        file = theirs(tmp_path / "b.pt", mixer=node)
        for read in (metaformer.load, lambda file: evaluate.command([f"weights={file}"])):
            with pytest.raises(ConfigError, match=r"(layer|_target_)=.*: expected a torch.nn.Module class"):
                read(file)


def test_a_checkpoint_of_lightning_calls_no_function(tmp_path):
    module = metaformer.Classifier(metaformer.MetaFormer("pooling", depths=[1], dims=[8], num_classes=4), classes=4)
    told = dict(module.hparams)
    for node in (CALLS, {"_target_": "metaformer.mixers.AsTokens", "layer": CALLS["_target_"]}):
        told["net"] = told["net"] | {"mixer": node}
        content = {"state_dict": module.state_dict(), "hyper_parameters": told}
        torch.save(content | {"pytorch-lightning_version": L.__version__}, tmp_path / "theirs.ckpt")
        with pytest.raises(ConfigError, match=r"(layer|_target_)=numpy.*: expected a torch.nn.Module class"):
            metaformer.Classifier.load_from_checkpoint(tmp_path / "theirs.ckpt")


def test_a_resumed_run_runs_nothing(tmp_path):
    """Not in what Lightning reads of a checkpoint, either."""
    folder = go("recipe.epochs=1").folder
    (folder / "result.json").unlink()
    zipped(folder / "last.ckpt")
    with pytest.raises(ConfigError, match="cannot be read"):
        go("recipe.epochs=1")


def test_arrays_run_nothing(tmp_path):
    evil = np.array([Evil()] * 2, dtype=object)
    for name in ("predictions", "runs", "probes", "theirs"):
        content = {"predictions": evil, "labels": evil, "logits": evil, "runs": evil, "told": evil}
        np.savez(tmp_path / f"{name}.npz", **content, train_images=evil, train_labels=evil, test_images=evil)
    np.save(tmp_path / "pixels.npy", evil)
    for read in (
        lambda: arrays.read(Data(name="npz", root=str(tmp_path / "theirs.npz"))),
        lambda: answers.read_answers(tmp_path, logits=True),
        lambda: packed.unpack(tmp_path / "runs.npz"),
    ):
        with pytest.raises(ConfigError, match="cannot be read"):
            read()
    assert kept.read(tmp_path, "key") is None
    assert photographs._kept(tmp_path / "pixels.npy", (2,)) is None


# ------------------------------------------------------------------ tar files


def picture(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(content, "png")
    return content.getvalue()


def tar(path: Path, mode: str = "w", *odd: tarfile.TarInfo) -> Path:
    names = ("a/1.png", "b/2.png", "../../canary", "../canary.png", "x/../../canary.png", "/etc/canary/3.png")
    with tarfile.open(path, mode) as file:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(picture(i))
            file.addfile(info, io.BytesIO(picture(i)))
        for info in odd:
            file.addfile(info)
    return path


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o6777
    return info


def test_a_tar_is_read_and_never_unpacked(tmp_path):
    (tmp_path / "deep" / "data").mkdir(parents=True)
    devices = [
        odd("a/null.png", tarfile.CHRTYPE),
        odd("a/disk.png", tarfile.BLKTYPE),
        odd("a/pipe.png", tarfile.FIFOTYPE),
    ]
    path = tar(tmp_path / "deep" / "data" / "train.tar", "w", *devices)
    before = sorted(tmp_path.rglob("*"))
    found = tars.in_tars([path], Counter())
    assert found.labels == ["a", "b", "etc"]
    assert [found.items.read(i) for i in range(3)] == [picture(i) for i in (0, 1, 5)]
    assert sorted(tmp_path.rglob("*")) == before
    for kind, target in ((tarfile.SYMTYPE, "../../../../../etc/passwd"), (tarfile.LNKTYPE, "/etc/passwd")):
        tar(path, "w", odd("a/link.png", kind, target))
        with pytest.raises(ConfigError, match=r"is a link to .*etc/passwd, which is not before it in the file"):
            tars.in_tars([path], Counter())
    tar(path, "w:gz")
    with pytest.raises(ConfigError, match="it is compressed"):
        tars.in_tars([path], Counter())
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------ text and pictures


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"])
@pytest.mark.parametrize("group", ["experiments", "mixer", "data"])
def test_a_yaml_makes_no_objects(group, tag):
    Path(group).mkdir()
    Path(group, "theirs.yaml").write_text(f"# @package _global_\nx: !!python/{tag} ['touch canary']\n")
    with pytest.raises(USER_ERRORS) as refused:
        expand([f"{group}=theirs"])
    line = explain(refused.value)
    assert "could not determine a constructor for the tag" in line
    assert "theirs.yaml" in line


def test_an_image_runs_no_program(tmp_path, monkeypatch):
    """Pillow gives PostScript, whatever its file is called, to Ghostscript."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n"
    with pytest.raises(ConfigError, match=r"x\.png: cannot be read as an image \(it is no image\)"):
        decode(content, "x.png", Data())
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.new("L", (10, 10)).save(tmp_path / split / kind / "1.png")
    (tmp_path / "train" / "masks" / "1.png").write_bytes(content)
    own = Data("image_folder", root=str(tmp_path), size=10, classes=2, val=1, overlap="allow")
    with pytest.raises(ConfigError, match=r"masks/1\.png: cannot be read as an image \(it is no image\)"):
        load(own)
    assert not (tmp_path / "canary").exists()


def test_a_picture_that_is_found_runs_no_script_in_a_report(tmp_path):
    probes = tmp_path / "experiments" / "mine" / "probes"
    probes.mkdir(parents=True)
    (probes / "probes.html").touch()
    script = '<script>fetch("https://example.org")</script>'
    (probes / "mixing.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">{script}</svg>')
    runs = runs_of(pooling=[0.7, 0.72, 0.71], identity=[0.6, 0.61, 0.6])
    page.summarise(study(), runs, Console(quiet=True), tmp_path / "report", whole=True)
    html = (tmp_path / "report" / "report.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in html
    assert "<script" not in html
    assert "onload" not in html
