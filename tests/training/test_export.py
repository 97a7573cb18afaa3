"""Exported files say what the network says; what cannot be exported is told in a line."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import compose
from safetensors.torch import load
from trained import go

import metaformer
from metaformer import evaluate
from metaformer import export as verb
from metaformer.config.compose import mixer_named, names_in
from metaformer.config.schema import Config, Model
from metaformer.config.validate import plain
from metaformer.models.build import build
from metaformer.system.errors import ConfigError, install
from metaformer.training import export
from metaformer.training.restored import Trained, trained_from

NODES = {name: mixer_named(name) for name in names_in("mixer")}
MIXERS = {name: node for name, node in NODES.items() if "." in node.get("_target_", "")}  # no hybrids, no placeholders
NOT_IN_ONNX = {"afno": "AFNO: ONNX has no function for aten.unsqueeze of complex numbers"}


def untrained(*names: str) -> Trained:
    """A network with a stage for each mixer."""
    stages = len(names)
    model = Model(depths=[1] * stages, dims=[32] * stages, stem=[1, 1, 0], downsample=None)
    mixer = {f"stage{i}": MIXERS[name] for i, name in enumerate(names, 1)}
    config = Config(mixer=mixer, model=model, data=compose("data=digits").data)
    net = build(model, mixer, 0, shape=(1, 8, 8), classes=3)
    told = {"classes": ["a", "b", "c"], "mean": torch.tensor([100.0]), "std": torch.tensor([50.3]), "shape": [1, 8, 8]}
    return trained_from({"state_dict": net.state_dict(), "config": plain(config), **told}, "a test")


TRACED = [pytest.param(format, marks=pytest.mark.compile) for format in ("onnx", "torch")]


@pytest.mark.parametrize("format", ["safetensors", *TRACED])
def test_every_mixer_is_exported(format):
    names = [name for name in MIXERS if format != "onnx" or name not in NOT_IN_ONNX]
    assert len(names) > 12
    made = export.export(untrained(*names), format)
    assert made.difference is not None
    assert made.difference < 1e-5


@pytest.mark.parametrize("format", ["safetensors", *TRACED])
def test_a_network_that_segments_is_exported(format):
    config = compose("task=segmentation", "data=fashion_mosaics", "model=tiny_pyramid", "task.width=8")
    net = build(config.model, config.mixer, 0, shape=(1, 64, 64), classes=11, task=config.task)
    told = {"classes": [str(i) for i in range(11)], "mean": torch.tensor([100.0]), "std": torch.tensor([50.3])}
    saved = {"state_dict": net.state_dict(), "config": plain(config), "shape": [1, 64, 64], **told}
    made = export.export(trained_from(saved, "a test"), format)
    assert made.difference is not None
    assert made.difference < 1e-4


@pytest.mark.compile
@pytest.mark.parametrize("name", NOT_IN_ONNX)
def test_what_onnx_cannot_say_is_told(name):
    reason = rf"\(stages.1.blocks.0.mixer, {NOT_IN_ONNX[name]}\)"
    line = rf"format=onnx: the network cannot be exported {reason}; expected torch or safetensors$"
    with pytest.raises(ConfigError, match=line):
        export.export(untrained("pooling", name), "onnx")


def test_a_file_that_says_something_else_is_refused(monkeypatch):
    trained = untrained("pooling")
    for wrong in (lambda images: 2 * trained.net(images), lambda images: trained.net(images) * torch.nan):
        monkeypatch.setitem(export.FORMATS, "torch", lambda _, wrong=wrong: (b"", wrong))
        with pytest.raises(ConfigError, match=r"its logits differ from the network's by .*; nothing is written"):
            export.export(trained, "torch")
    found = iter([1e-7, math.nan])
    monkeypatch.setattr(export, "_difference", lambda *_: next(found, 1e-7))
    with pytest.raises(ConfigError, match=r"differ from the network's by nan of the largest"):
        export.export(trained, "torch")


def test_modules_that_are_shared_are_exported(monkeypatch):
    trained = untrained("pooling")
    monkeypatch.setattr(export, "trained_from", lambda *_: trained)  # whose mixers share nothing
    shared = torch.nn.Linear(2, 2)
    trained.net.extra = torch.nn.ModuleList([shared, shared])
    weights = load(export._safetensors(trained)[0])
    assert torch.equal(weights["extra.0.weight"], weights["extra.1.weight"])


def test_a_run_in_each_format(monkeypatch, capsys, refusal):
    folder = go("mixer=pooling").folder
    trained, images = metaformer.load(folder), torch.randn(3, 1, 8, 8)
    logits = trained.net(images).detach()
    for format in verb.SUFFIXES:
        monkeypatch.setattr(sys, "argv", ["export", f"run={folder}", f"format={format}"])
        verb.main()
        assert "its logits are the network's" in capsys.readouterr().out

    again = metaformer.load(f"{folder.name}.safetensors")
    assert (again.config, again.classes, again.shape) == (trained.config, trained.classes, (1, 8, 8))
    assert torch.equal(again.transform.mean, trained.transform.mean)
    assert torch.equal(again.net(images), logits)
    evaluate.command([f"weights={folder.name}.safetensors"])
    of_export = capsys.readouterr().out
    evaluate.command([f"weights={folder}/weights.pt"])
    assert capsys.readouterr().out == of_export

    extra = {"classes": "", "mean": ""}
    program = torch.export.load(f"{folder.name}.pt2", extra_files=extra)
    torch.testing.assert_close(program.module()(images), logits)
    assert json.loads(extra["classes"]) == trained.classes

    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(f"{folder.name}.onnx")
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], logits, atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["std"]) == trained.transform.std.tolist()
    assert json.loads(told["config"]) == plain(trained.config)

    lines = {
        ("format=onxx",): "format=onxx: expected one of onnx, torch, safetensors; did you mean 'onnx'?",
        (): "format: expected run=FOLDER format=onnx|torch|safetensors",
        ("format=torch", "out=x.onnx"): "out=x.onnx: expected a file that ends in .pt2",
        ("format=torch", "out=no/x.pt2"): "out=no/x.pt2: no is no folder",
        ("format=torch", "seed=1"): "seed: not of this command; expected run, format, out",
    }
    for words, line in lines.items():
        assert refusal(verb, f"run={folder}", *words) == f"error: {line}\n"
    assert "no finished run there" in refusal(verb, "run=runs/RUN", "format=torch")
    monkeypatch.setattr(verb, "find_spec", lambda name: None)
    assert f"needs {install('export')}\n" in refusal(verb, f"run={folder}", "format=onnx")


def test_without_a_runtime_an_onnx_file_is_not_called_compared(monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert export.export(untrained("identity"), "onnx").difference is None
