import pytest
from conftest import on_disk, runs_of, study
from rich.console import Console
from test_report import YAML

from metaformer import launch, plan
from metaformer.schema import ConfigError
from metaformer.stats import equivalence_power


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
