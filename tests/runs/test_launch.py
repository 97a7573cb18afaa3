import json
from dataclasses import replace

import pytest
from conftest import compose, on_disk, runs_of, study

from metaformer.runs import launch
from metaformer.runs.folder import planned
from metaformer.runs.launch import Entry
from metaformer.runs.result import REPORTED
from metaformer.studies.points import Point
from metaformer.system.errors import ConfigError

NAN = float("nan")
COMMAND = ["experiments=mine", "data.root=/here", "runtime.threads=1"]


def entries(*seeds: int) -> list[Entry]:
    choices = {"mixer": "pooling", "model": "tiny"}
    runs = [planned(compose("data=digits", f"seed={seed}"), choices) for seed in seeds]
    return [Point("pooling", {"mixer": "pooling"}, [], run).entry for run in runs]


def test_the_first_analysis_is_kept_and_a_changed_one_beside_it():
    launch.record(study(), entries(0), COMMAND)
    first = launch.read_launch("mine")
    launch.record(study(), entries(0), COMMAND)
    assert launch.read_launch("mine") == first
    assert first.command == "python -m metaformer.train experiments=mine data.root=FOLDER"
    launch.record(study(margin=3.0), entries(0), COMMAND)
    launch.record(study(margin=3.0), entries(0, 1), COMMAND)
    analyses = launch.read_launch("mine").analyses
    assert [(stage.analysis["margin"], stage.runs["n"]) for stage in analyses] == [(1.0, 1), (3.0, 1), (3.0, 2)]
    assert analyses[0] == first.analyses[0]


def test_a_broken_launch_file_is_named():
    launch.record(study(), entries(0), COMMAND)
    (launch.study_folder("mine") / "launch.json").write_text("{")
    with pytest.raises(ConfigError, match=r"launch\.json: cannot be read"):
        launch.read_launch("mine")


def test_a_factor_or_reference_that_is_none_is_refused():
    mixers = ("pooling", "identity")
    listed = [Entry(f"{m} group", {"mixer": m, "norm": "group"}, m, 0, f"{m}0") for m in mixers]
    launch.check_study(study(), listed)
    with pytest.raises(
        ConfigError, match=r"study\.analysis\.factor=mixr: expected a factor of the study, one of mixer"
    ):
        launch.check_study(study(factor="mixr"), listed)
    with pytest.raises(ConfigError, match=r"study\.reference=poling: expected a mixer of the study, one of pooling"):
        launch.check_study(replace(study(), reference="poling"), listed)


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


METRICS = dict.fromkeys(REPORTED, 0.5)


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
