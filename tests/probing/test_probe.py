"""The command that shows what trained mixers do, on runs that were trained for it."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from rich.console import Console

from metaformer import probe as command
from metaformer.analysis import page
from metaformer.analysis.inference import mean_interval
from metaformer.config.validate import plain
from metaformer.models.build import build
from metaformer.probing import kept, one_run, selection, tables
from metaformer.probing.kept import Probed
from metaformer.probing.measures import gram
from metaformer.runs.finished import finished
from metaformer.runs.launch import read_launch
from metaformer.system.errors import ConfigError

STUDY = """# @package _global_
defaults: [{override /data: digits}]
hydra:
  mode: MULTIRUN
  launcher: {n_jobs: 1}
  sweeper: {params: {model.norm: "group,layer", mixer: "identity,pooling", seed: "0,1"}}
model: {stem: [2, 2, 0], depths: [1, 1], dims: [16, 16], position: [true, false], layer_scale: 1.0}
recipe: {epochs: 1}
study: {name: mine, reference: pooling, analysis: {margin: 2.0}}
"""
RUNTIME = ("runtime.threads=1", "runtime.progress=false")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, preloaded):
    """A study of two norms, two mixers and two seeds."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "mine.yaml").write_text(STUDY)
    said = tmp_path_factory.mktemp("said")
    done = preloaded.run("metaformer.train", ["experiments=mine", *RUNTIME], folder, dict(os.environ), said)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def run_of(folder: Path, mixer: str, seed: int = 0, norm: str = "group") -> Path:
    runs = [path.parent for path in folder.glob(f"runs/{mixer}-tiny-digits-s{seed}-*/result.json")]
    norms = {json.loads((run / "result.json").read_text())["config"]["model"]["norm"]: run for run in runs}
    return norms[norm].relative_to(folder)


def probe(folder: Path, *words: str) -> Probed:
    return selection.probe(finished(folder, ["runtime.threads=1", *words]), 1)


def test_what_is_measured_of_a_run(here, monkeypatch):
    folder = run_of(here, "pooling")
    found = probe(folder)
    result = json.loads((folder / "result.json").read_text())
    assert found.accuracy == pytest.approx(result["metrics"]["val_accuracy"], abs=1e-6)
    assert [set(stage) for stage in found.surgery] == [{"identity", "pooling", "nothing"}] * 2
    assert {stage["pooling"] for stage in found.surgery} == {found.accuracy}
    assert all(stage["nothing"] < found.accuracy for stage in found.surgery)
    assert found.matrices[0][0, 0] == pytest.approx(3 / 4, abs=1e-6)  # a corner: minus itself, plus a fourth of it
    assert [m.shape for m in found.matrices] == [(16, 16)] * 2
    assert [f.shape for f in found.fields] == [(8, 8)] * 3
    assert all(math.isfinite(value) for stage in found.numbers for value in stage.values())
    monkeypatch.setattr(one_run, "measure", None)
    again = probe(folder)  # read from the folder
    assert (again.numbers, again.surgery, again.accuracy) == (found.numbers, found.surgery, found.accuracy)
    for name in ("matrices", "fields", "grams"):
        assert all(map(np.array_equal, getattr(again, name), getattr(found, name)))


def test_what_cannot_be_read_or_is_of_other_images_is_measured_again(here):
    folder = run_of(here, "identity")
    first = probe(folder)
    half = (folder / kept.FILE).read_bytes()[:5000]
    for spoil in (lambda path: path.write_bytes(half), lambda path: np.savez(path, told="{}")):
        spoil(folder / kept.FILE)
        assert probe(folder).accuracy == first.accuracy
    assert not np.array_equal(probe(folder, "data.val=50").fields[0], first.fields[0])


def test_what_was_measured_on_other_images_is_not_taken(here, monkeypatch):
    run = finished(run_of(here, "pooling"), ["runtime.threads=1"])
    key = kept.key_of(run)
    with monkeypatch.context() as patch:
        patch.setattr(kept, "fingerprint", lambda _: "others")
        assert kept.key_of(run) != key

    def absent(data):
        raise ConfigError("data.root: no such folder")

    monkeypatch.setattr(kept, "fingerprint", absent)
    assert kept.key_of(run) == key  # those that it was trained for


def test_runs_beside_each_other(here, cli):
    runs = [run_of(here, mixer, seed=seed) for mixer in ("identity", "pooling") for seed in (0, 1)]
    done = cli("probe", *map(str, runs))
    assert done.returncode == 0, done.stderr
    [probes] = Path("runs/reports").glob("*/probes")
    written = (probes / "probes.html").read_text()
    assert "2 cells, 2 seeds each" in written
    assert "identity mixes no tokens, and yet" in written
    assert written.count("<svg") == 4
    assert "http" not in written.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert "| pooling | 2 | 2 |" in (probes / "surgery.md").read_text()
    assert (probes / "cka.csv").read_text().count("\n") == 1 + 2 * 3
    for name in page.PROBES:
        assert (probes / f"{name}.png").stat().st_size > 5000


@pytest.mark.processes
def test_a_study_has_a_page_for_each_setting_and_its_report_shows_them(here, cli):
    done = cli("probe", "experiments=mine")
    assert done.returncode == 0, done.stderr
    for setting in ("group", "layer"):
        assert (
            f"<h1>What the trained mixers do: {setting}</h1>"
            in Path(f"runs/reports/mine/probes/{setting}-probes.html").read_text()
        )
    done = cli("report", "experiments=mine")
    assert done.returncode == 0, done.stderr
    shown = page._probes(Path("runs/reports/mine"))
    assert [probe["setting"] for probe in shown] == ["group", "layer"]
    report = Path("runs/reports/mine/report.html").read_text()
    assert [picture in report for probe in shown for picture, _ in probe["figures"]] == [True] * 8
    assert not Path("experiments/mine/probes").exists()  # which git would track
    assert cli("probe", "experiments=mine", "publish=true").returncode == 0
    assert Path("experiments/mine/probes/layer-probes.html").exists()
    for probe in shown:
        assert Path(probe["page"]).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected run=FOLDER, the folders of finished runs, or experiments=NAME"),
        ("runs/nothing", "run=runs/nothing: no finished run there"),
        ("experiments=min", "no study of that name was launched from this folder; did you mean 'mine'?"),
        ("run=runs/nothing,runs/none", "run=runs/nothing: no finished run there"),
        ("run=RUN experiments=mine", "expected run=FOLDER, the folders of finished runs"),
        ("RUN model=s12", "model: not of this command; expected experiments, out, publish, run, data, runtime"),
        ("RUN ot=there", "ot: not of this command; did you mean 'out'?"),
        ("RUN out=", "out: expected one value"),
        ("RUN data=fashion_small", "data: its class 0 of 10 is 'T-shirt/top', that of "),
        ("RUN data.val=3", "its 3 validation images are too few; expected 4 at least"),
        ("RUN runtime.acelerator=cpu", "runtime.acelerator: no such key; did you mean 'runtime.accelerator'?"),
    ],
)
def test_a_bad_request_gets_one_line(words, message, here, refusal):
    assert message in refusal(command, *words.replace("RUN", str(run_of(here, "pooling"))).split())


def test_cells_are_called_by_what_tells_them_apart(here):
    """Of one mixer by the values in which they differ."""
    folders = [str(run_of(here, *which)) for which in (("pooling", 0), ("pooling", 1), ("pooling", 0, "layer"))]
    asked = selection.of_folders([*folders, str(run_of(here, "identity"))], ["runtime.threads=1"])
    assert [a.cell for a in asked] == ["pooling norm=group", "pooling norm=group", "pooling norm=layer", "identity"]
    results = {
        name: replace(asked[0].run.result, config=compose(*words), choices={"mixer": words[0][6:], "model": "tiny"})
        for name, words in {
            "a": ("mixer=pooling",),
            "b": ("mixer=pooling", "mixer.pool_size=5", "recipe.lr=0.1"),
            "c": ("mixer=pooling", "recipe.lr=0.1"),
            "d": ("mixer=identity",),
        }.items()
    }
    assert selection._names(results) == {
        "a": "pooling pool_size=3 lr=0.008",
        "b": "pooling pool_size=5 lr=0.1",
        "c": "pooling pool_size=3 lr=0.1",
        "d": "identity",
    }
    alike = {
        "a": results["a"],
        "b": results["a"],
        "c": replace(results["a"], choices={"mixer": "pooling", "model": "s"}),
    }
    assert selection._names(alike) == {"a": "tiny pooling a", "b": "tiny pooling b", "c": "s pooling"}


def test_baselines_have_no_mixers(here, monkeypatch):
    launched = read_launch("mine")
    stage = replace(launched.analyses[-1], analysis={**launched.analyses[-1].analysis, "baselines": ["identity"]})
    monkeypatch.setattr(selection, "read_launch", lambda _: replace(launched, analyses=[stage]))
    console = Console(record=True, width=200)
    asked = selection.of_study("mine", [], console)
    assert {a.cell for a in asked} == {"pooling"}
    assert "left out, for they have no mixers: identity" in console.export_text()


def test_other_data_and_other_models_are_refused(here, refusal, tmp_path):
    """Of a run with another data set, and of one with a model of timm."""
    run, other = here / run_of(here, "pooling"), tmp_path / "runs" / "other"
    shutil.copytree(run, other)
    result = json.loads((other / "result.json").read_text())
    result["config"]["data"]["val"] = 10
    (other / "result.json").write_text(json.dumps(result))
    assert "of different data; expected runs on the same images" in refusal(command, str(run), str(other))
    config = compose("model=timm", "model.name=test_resnet", "mixer=builtin", "data=digits")
    result["config"] = plain(config)
    (other / "result.json").write_text(json.dumps(result))
    saved = torch.load(other / "weights.pt", weights_only=True)
    net = build(config.model, config.mixer, config.seed, shape=(1, 8, 8), classes=10)
    saved["state_dict"] = net.state_dict()
    torch.save(saved, other / "weights.pt")
    assert "its model is test_resnet of timm; expected a MetaFormer" in refusal(command, str(other))


# ------------------------------------------------------------------ tables, with what is known


def probed(seed: int, features: torch.Tensor, accuracy: float, lost: float) -> Probed:
    keys = dict.fromkeys(tables.STAGE_COLUMNS, 0.25 + seed)
    arrays = [np.eye(4)], [np.ones((4, 4))] * 2, [gram(features).numpy()]
    return Probed([keys], [{"identity": accuracy - lost}], accuracy, *arrays)


def test_sentences():
    """Nothing is lost where a mixer takes its own place; what is lost most has the most negative change."""
    other = {s: probed(s, features(s), 0.5, 0.2 + 0.1 * s) for s in (0, 1)}
    cells = {"a": {s: probed(s, features(s), 0.5, 0.0) for s in (0, 1)}, "b": other}
    *_, said = tables.sentences(cells, tables.similarities(cells))
    assert said.startswith("Identity in the place of a stage's mixers costs b most (stage 1: -25.0 [")
    assert "and b least" in said
    assert not any("mixes no tokens" in line for line in tables.sentences(cells, tables.similarities(cells)))


def features(seed: int) -> torch.Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))


def test_similarity_is_paired_by_seed_and_within_a_cell_across_seeds():
    shared = {seed: features(seed) for seed in range(4)}
    one = {seed: probed(seed, x, 0.5, 0.1) for seed, x in shared.items()}
    same = {seed: probed(seed, 2 * x, 0.5, 0.1) for seed, x in shared.items()}
    other = tables.similarity(one, same, 0)
    assert (other.mean, other.n) == (pytest.approx(1), 4)
    own = tables.similarity(one, one, 0)
    pairs = [tables._cka(one[a], one[b], 0) for a in range(4) for b in range(a)]
    assert own.mean == pytest.approx(np.mean(pairs))
    assert own.low < own.mean < own.high
    assert math.isnan(tables.similarity({0: one[0]}, {1: same[1]}, 0).mean)  # no seed in common


def test_the_jackknife_of_a_mean_is_that_of_students_interval(monkeypatch):
    """Pairs whose value is the mean of one number of each seed: the interval is that of the numbers."""
    numbers = {0: 0.2, 1: 0.5, 2: 0.6, 3: 0.3}
    monkeypatch.setattr(tables, "_cka", lambda one, other, stage: (one + other) / 2)
    found = tables.similarity(numbers, numbers, 0)
    expected = mean_interval(list(numbers.values()))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_changes_are_paired_by_seed():
    cells = {"a": {s: probed(s, features(s), 0.5 + 0.1 * s, 0.1) for s in (0, 1, 2)}}
    e = tables.losses(cells["a"], 0, "identity")
    assert (e.mean, e.low, e.high) == (pytest.approx(-10), pytest.approx(-10), pytest.approx(-10))
    assert tables.surgery_table(cells).lines == [["a", "1", "3", "60.00 ± 24.84", "-10.00 ± 0.00"]]
    assert tables.stage_table(cells).lines[0][:4] == ["a", "1", "3", "1.25 ± 2.48"]
    assert tables.stage_table(cells).lines[0][8] == "125.00 ± 248.41"  # in percent
