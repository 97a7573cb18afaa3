import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import compose, on_disk, runs_of, study

from metaformer.runs import launch, ledger, packed
from metaformer.runs.answers import Answers
from metaformer.runs.finished import finished
from metaformer.runs.folder import planned
from metaformer.runs.launch import Entry
from metaformer.runs.result import reported
from metaformer.runs.study_check import check_study
from metaformer.studies.points import Point
from metaformer.system.errors import ConfigError

NAN = float("nan")
COMMAND = ["experiments=mine", "data.root=/here", "runtime.threads=1"]


def entries(*seeds: int) -> list[Entry]:
    choices = {"mixer": "pooling", "model": "tiny"}
    runs = [planned(compose("data=digits", f"seed={seed}"), choices) for seed in seeds]
    return [Point("pooling", {"mixer": "pooling"}, [], run).entry for run in runs]


def test_the_first_analysis_is_kept_and_a_changed_one_beside_it():
    launch.record(study(), entries(0), COMMAND, Path("runs"))
    first = launch.read_launch("mine")
    launch.record(study(), entries(0), COMMAND, Path("runs"))
    assert launch.read_launch("mine") == first
    assert first.command == "python -m metaformer.train experiments=mine data.root=FOLDER"
    launch.record(study(margin=3.0), entries(0), COMMAND, Path("runs"))
    launch.record(study(margin=3.0), entries(0, 1), COMMAND, Path("runs"))
    analyses = launch.read_launch("mine").analyses
    assert [(stage.analysis["margin"], stage.runs["n"]) for stage in analyses] == [(1.0, 1), (3.0, 1), (3.0, 2)]
    assert analyses[0] == first.analyses[0]


def test_a_broken_launch_file_is_named():
    launch.record(study(), entries(0), COMMAND, Path("runs"))
    (launch.study_folder("mine") / "launch.json").write_text("{")
    with pytest.raises(ConfigError, match=r"launch\.json: cannot be read"):
        launch.read_launch("mine")


def test_a_factor_or_reference_that_is_none_is_refused():
    mixers = ("pooling", "identity")
    listed = [Entry(f"{m} group", {"mixer": m, "norm": "group"}, m, 0, f"{m}0") for m in mixers]
    check_study(study(), listed)
    with pytest.raises(
        ConfigError, match=r"study\.analysis\.factor=mixr: expected a factor of the study, one of mixer"
    ):
        check_study(study(factor="mixr"), listed)
    with pytest.raises(ConfigError, match=r"study\.reference=poling: expected a mixer of the study, one of pooling"):
        check_study(replace(study(), reference="poling"), listed)


@pytest.fixture
def listed(tmp_path):
    return on_disk(runs_of(pooling=[0.8, 0.7], x=[0.6, 0.5]), tmp_path / "runs")


def problems(listed, folder) -> dict[str, str]:
    return {run.run_id: run.problem for run in launch.collect(listed, folder) if run.problem}


def test_every_run_is_collected(listed, tmp_path):
    runs = launch.collect(listed, tmp_path / "runs")
    assert [run.result.metrics["test_accuracy"] for run in runs] == [0.8, 0.7, 0.6, 0.5]
    assert launch.row(runs[0])["cell"] == "pooling"


def test_missing_failed_duplicate_and_corrupt_runs_have_a_reason(listed, tmp_path):
    runs = tmp_path / "runs"
    (runs / "run-pooling0" / "result.json").unlink()
    (runs / "run-pooling1").rename(runs / "gone")
    (runs / "run-x0" / "result.json").write_text('{"name": "x", "seed')
    (runs / "copy-x1").mkdir()
    (runs / "copy-x1" / "result.json").write_text((runs / "run-x1" / "result.json").read_text())
    found = problems(listed, runs)
    assert found["pooling0"] == "not finished"
    assert found["pooling1"] == "not started"
    assert "run-x0/result.json: cannot be read" in found["x0"]
    assert found["x1"] == "two folders hold it, copy-x1 and run-x1; remove one"
    (runs / "run-pooling0" / "failed.json").write_text('{"reason": "diverged"}')
    assert problems(listed, runs)["pooling0"] == "failed: diverged"


METRICS = dict.fromkeys(reported("classification"), 0.5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": None}, "no usable 'device'"),
        ({"macs": "many"}, "no usable 'macs'"),
        ({"config": {}}, "no usable 'config'"),
        ({"git": {"commit": None}}, "no usable 'git'"),
        ({"seconds": NAN}, "seconds is nan"),
        ({"seed": 7}, "its result.json is that of another run"),
        ({"run_id": "other"}, "its result.json is that of another run"),
        ({"metrics": METRICS | {"test_accuracy": NAN}}, "test_accuracy is nan"),
        ({"metrics": METRICS | {"val_accuracy": 80}}, "val_accuracy is 80"),
        ({"metrics": METRICS | {"test_loss": -1}}, "test_loss is -1"),
        ({"metrics": METRICS | {"test_loss": 80, "val_sensitivity": 2}}, "val_sensitivity is 2"),
    ],
)
def test_a_result_that_cannot_be_counted_has_a_reason(listed, tmp_path, change, reason):
    file = tmp_path / "runs" / "run-x0" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert reason in problems(listed, tmp_path / "runs")["x0"]


def test_the_ledger_tells_what_was_known_before(tmp_path, monkeypatch):
    """Also from what another user wrote, who lets nobody else write there."""
    runs = tmp_path / "runs"
    runs.mkdir()
    listed = entries(0, 1, 2)
    launch.record(study(), listed, COMMAND, runs)
    assert launch.read_launch("mine").analyses[0].known == 0
    ledger.note(runs, listed[0].run_id, "other", "2026-01-01T00:00:00+00:00")
    ledger.note(runs, listed[0].run_id, "again", "2026-01-02T00:00:00+00:00")
    assert ledger.known(runs, [entry.run_id for entry in listed]) == [listed[0].run_id]
    launch.record(replace(study(), name="second"), listed, COMMAND, runs)
    (stage,) = launch.read_launch("second").analyses
    assert (stage.known, stage.runs["seeds"]) == (1, [0, 1, 2])
    with (runs / "ledger.jsonl").open("a") as file:
        file.write('{"run": "half a l')  # a crash
    assert ledger.known(runs, [entry.run_id for entry in listed]) == [listed[0].run_id]
    ledger.note(runs, listed[1].run_id, None, "2026-01-03T00:00:00+00:00")  # after which others are noted
    assert ledger.known(runs, [entry.run_id for entry in listed]) == [entry.run_id for entry in listed[:2]]
    opened = os.open

    def foreign(path, *rest):
        if Path(path).name == "ledger.jsonl":
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", foreign)
        ledger.note(runs, listed[2].run_id, None, "2026-01-03T00:00:00+00:00")
    assert ledger.known(runs, [entry.run_id for entry in listed]) == [entry.run_id for entry in listed]
    (runs / "ledger.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match=r"ledger\.jsonl: cannot be read"):
        ledger.known(runs, [])


def test_the_seeds_of_the_first_launch_are_the_planned_ones(tmp_path):
    launch.record(study(), entries(0, 1), COMMAND, tmp_path)
    assert launch.read_launch("mine").planned_seeds == [0, 1]
    launch.record(study(), entries(0, 1, 2), COMMAND, tmp_path)
    launch.record(study(looks=[3, 5]), entries(0, 1, 2), COMMAND, tmp_path)
    assert launch.read_launch("mine").planned_seeds == [0, 1]
    launch.record(replace(study(looks=[3, 5]), name="looked"), entries(0, 1, 2), COMMAND, tmp_path)
    launch.record(replace(study(looks=[3, 5]), name="looked"), entries(0, 1, 2, 3, 4), COMMAND, tmp_path)
    assert launch.read_launch("looked").planned_seeds == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("analysis", "words"),
    [
        (
            {"contrasts": {"a": {"poolin": 1, "identity": -1}}},
            "contrasts.a: poolin: is no cell to compare; nearest: pooling",
        ),
        (
            {"contrasts": {"a": {"identity": 1, "pooling": -1}}, "baselines": ["identity"]},
            "contrasts.a: identity: is no cell to compare; nearest: pooling",
        ),
        ({"baselines": ["atention"]}, "study.analysis.baselines: atention: expected a mixer of the study, of "),
        ({"baselines": ["pooling"]}, "study.analysis.baselines: pooling: expected a mixer of the study, of "),
        ({"claim_without": ["identty"]}, "claim_without: identty: expected a mixer of the study, of identity"),
    ],
)
def test_an_analysis_of_what_is_not_there_is_refused(analysis, words):
    listed = [Entry(m, {"mixer": m}, m, 0, m) for m in ("pooling", "identity")]
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_study(study(**analysis), listed)
    key = f"study.analysis.{next(iter(analysis))}"
    with pytest.raises(ConfigError, match=re.escape(words)):  # of a sweep without a name, whose words say it
        check_study(study(**analysis), listed, [key])
    check_study(study(**analysis), listed, ["seed"])  # a part of a study, of which it is true
    check_study(study(contrasts={"a": {"pooling": 1, "identity": -1}}), listed)


def test_a_contrast_that_a_part_of_a_study_cannot_show_is_left_out_before_its_runs(tmp_path, capfd):
    listed = on_disk(runs_of(pooling=[0.7], identity=[0.6]), tmp_path / "runs")
    both = study(contrasts={"a": {"pooling": 1, "attention": -1}, "b": {"pooling": 1, "identity": -1}})
    assert list(check_study(both, listed, ["recipe.epochs"]).analysis.contrasts) == ["b"]
    told = "note: study.analysis.contrasts.a: left out, for there is no cell 'attention' here; nearest: "
    assert capfd.readouterr().err.startswith(told)
    with pytest.raises(ConfigError, match=r"contrasts.a: attention: is no cell to compare"):
        check_study(both, listed)


# ------------------------------------------------------------------ a study's folder is enough


def test_a_packed_study_gives_back_its_runs(tmp_path):
    listed = on_disk(runs_of(pooling=[0.7, 0.75], identity=[0.6, 0.65]), tmp_path / "runs")
    whole = launch.collect(listed, tmp_path / "runs")
    path = launch.study_folder("mine") / "runs.npz"
    size = packed.pack(whole, path, logits=False)
    assert size < 20_000
    first = path.read_bytes()
    back = packed.gather("mine", listed, tmp_path / "nowhere")
    assert [(r.cell, r.seed, r.result) for r in back] == [(r.cell, r.seed, r.result) for r in whole]
    for mine, other in zip(back, whole, strict=True):
        assert (mine.answers().predictions == other.answers().predictions).all()
        assert list(mine.epochs()) == list(other.epochs())
    packed.pack(back, path, logits=False)
    assert path.read_bytes() == first  # the same runs, the same bytes
    assert packed.gather("other", listed, tmp_path / "nowhere")[0].problem == "not started"
    (tmp_path / "again" / f"x-{listed[0].run_id}").mkdir(parents=True)
    (tmp_path / "again" / f"x-{listed[0].run_id}" / "failed.json").write_text('{"reason": "why"}')
    assert packed.gather("mine", listed, tmp_path / "again")[0].problem.startswith("failed")  # it was trained again
    counted = packed.gather("mine", listed, tmp_path / "again", counts=True)
    assert [r.result for r in counted] == [r.result for r in whole]


def test_a_packed_study_that_was_changed_is_refused(tmp_path):
    listed = on_disk(runs_of(pooling=[0.7]), tmp_path / "runs")
    path = launch.study_folder("mine") / "runs.npz"
    packed.pack(launch.collect(listed, tmp_path / "runs"), path, logits=False)
    with np.load(path) as kept:
        arrays = dict(kept)
    arrays["predictions_0"] = 1 - arrays["predictions_0"]
    np.savez_compressed(path, **arrays)
    with pytest.raises(ConfigError, match=r"predictions of run-pooling0 are right in 30\.0000%, not in 70\.0000%"):
        packed.unpack(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"runs\.npz: cannot be read"):
        packed.unpack(path)


def test_a_launch_file_without_runs_is_none():
    Path("experiments/mine").mkdir(parents=True)
    Path("experiments/mine/launch.json").write_text('{"study": "mine", "analyses": [], "runs": []}')
    with pytest.raises(ConfigError, match=r"launch\.json: cannot be read \(it lists no analysis or no run\)"):
        launch.read_launch("mine")


def test_a_result_that_no_ledger_has_is_known_too(tmp_path):
    listed = on_disk(runs_of(pooling=[0.7, 0.8]), tmp_path / "runs")
    (tmp_path / "runs" / "run-pooling1" / "result.json").unlink()
    assert ledger.known(tmp_path / "runs", [entry.run_id for entry in listed]) == ["pooling0"]


def test_more_classes_than_a_byte_tells_apart_are_packed(tmp_path):
    (run,) = runs_of(pooling=[1.0])
    answers = Answers(np.array([0, 256]), np.array([0, 256]))
    packed.pack([replace(run, packed=answers)], tmp_path / "runs.npz", logits=False)
    (back,) = packed.unpack(tmp_path / "runs.npz").values()
    assert (back.answers.predictions.tolist(), back.answers.labels.tolist()) == ([0, 256], [0, 256])


def test_weights_without_a_result_are_no_finished_run():
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/weights.pt").touch()
    with pytest.raises(ConfigError, match=r"run=runs/x: it has no result.json, so it is not finished"):
        finished(Path("runs/x"))


def test_the_source_of_a_study_is_its_file_and_those_of_its_folder():
    Path("experiments/mine/mixer").mkdir(parents=True)
    found = [launch.source_of("mine")]
    for file in ("mine.yaml", "mine/mixer/other.yaml", "another.yaml"):
        Path("experiments", file).write_text("{}")
        found.append(launch.source_of("mine"))
    assert len({*found[:3]}) == 3
    assert found[3] == found[2]


def test_a_launch_of_the_same_runs_in_another_order_is_the_same():
    launch.record(study(), entries(0, 1), COMMAND, Path("runs"))
    launch.record(study(), entries(1, 0), COMMAND, Path("runs"))
    assert len(launch.read_launch("mine").analyses) == 1
