import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import on_disk, result_of, runs_of, study
from rich.console import Console
from test_report import YAML

from metaformer import launch, plan
from metaformer.config import cores
from metaformer.run import lock
from metaformer.schema import ConfigError
from metaformer.stats import equivalence_power
from metaformer.study import expand


@pytest.fixture
def said(tmp_path):
    (tmp_path / "experiments").mkdir(exist_ok=True)
    (tmp_path / "experiments" / "mine.yaml").write_text(YAML)

    def call(*arguments: str) -> str:
        console = Console(record=True, width=200)
        plan.plan(arguments, console)
        return console.export_text()

    return call


def test_power_of_a_stated_scatter(said):
    text = said("experiments=mine", "sd=1.5")
    assert "mine: 6 runs: 6 not started" in text
    assert "3 seeds, 1 comparison with pooling in a setting, margin 3 points = 2.00 SD" in text
    assert "1.50 points, as stated" in text
    assert "3 (planned)                    56%" in text
    assert "5                              95%" in text
    assert "4 seeds show with 80%" in text


def test_an_assumption_is_called_one(said):
    assert "1.00 points, an assumption" in said("experiments=mine")


def test_the_correction_counts():
    first = plan.power_table(5, 2.0, 0.05 / 5).lines
    assert [line[1] for line in first[:3]] == ["14%", "57%", "97%"]
    assert f"{equivalence_power(5, 2.0, 0.05):.0%}" == "95%"


def test_the_scatter_of_another_study(said, tmp_path):
    on = on_disk(runs_of(pooling=[0.7, 0.7, 0.7], identity=[0.6, 0.62, 0.64]), tmp_path / "runs")
    path = launch.path_of("other")
    path.parent.mkdir(parents=True)
    analyses = [{"time": "2026-01-01T00:00:00+00:00", "analysis": launch.analysis_of(study())}]
    launch.save({"study": "other", "analyses": analyses, "runs": on})
    assert "(2.00 points, from the finished runs of other, 1 comparison)" in said("experiments=mine", "from=other")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sd=wide"], "sd=wide: expected points"),
        (["sd=0"], "sd=0: expected points"),
        (["from=nobody"], "from=nobody: no study of that name"),
        (["sd=1", "from=other"], "expected one of them"),
    ],
)
def test_bad_input(said, arguments, words):
    with pytest.raises(ConfigError, match=words):
        said("experiments=mine", *arguments)


def test_nothing_to_compare(said):
    assert "nothing is compared" in said("experiments=mine", "mixer=identity")


def test_the_command_answers_without_torch(cli, said):
    done = cli("plan", "-m", "mixer=pooling,identity", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert "sweep: 4 runs: 4 not started" in done.stdout


def test_what_is_done_running_and_left(said, tmp_path):
    planned = expand(["experiments=mine"])
    runs = [launch.Run(**entry, folder=None, result=None) for entry in launch.entries(planned)]
    done = []
    for run in runs[:3]:
        result = result_of(run.seed, 0.5 + 0.01 * run.seed, run.run_id, name=f"x-{run.run_id}", seconds=1200.0)
        done.append(replace(run, result=result))
    on_disk(done, tmp_path / "runs")
    (tmp_path / "runs" / f"x-{runs[3].run_id}").mkdir()
    (tmp_path / "runs" / f"x-{runs[3].run_id}" / "failed.json").write_text('{"reason": "diverged: loss is nan"}')
    with lock(tmp_path / "runs" / f"x-{runs[4].run_id}"):
        child = (
            "import sys; from metaformer import plan; sys.argv[1:] = ['experiments=mine', 'runtime=cpu']; plan.main()"
        )
        text = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, cwd=tmp_path).stdout
    assert "mine: 6 runs: 3 finished, 1 failed, 1 running, 1 not started" in text
    assert f"1.00 hours of training done, about 1.00 to do, {60 / cores():.0f} minutes with {cores()} at a time" in text
