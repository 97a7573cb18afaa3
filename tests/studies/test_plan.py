import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from conftest import on_disk, result_of, runs_of, study
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from rich.console import Console

from metaformer import plan
from metaformer.analysis.interim_looks import looks_at
from metaformer.analysis.stats import Scatter
from metaformer.config.compose import choices_of, config_of, given_words, loader, without_hydra
from metaformer.config.hydra_internals import load, points_of
from metaformer.runs.folder import lock
from metaformer.runs.launch import Launch, Run, Stage, analysis_of, save
from metaformer.runs.result import write_result
from metaformer.studies import estimate
from metaformer.studies.cell_cost import cost_of
from metaformer.studies.points import Cells, expand, resolve, unread
from metaformer.studies.power_of_seeds import power_table, scatter_of, size, tell_power
from metaformer.system.errors import ConfigError
from metaformer.system.machine import cores

YAML = """\
# @package _global_
hydra: { mode: MULTIRUN, sweeper: { params: { mixer: "pooling,identity", seed: "0,1,2" } } }
data: { name: digits, val: 300 }
recipe: { epochs: 1 }
study: { name: mine, question: "Which <one>?", reference: pooling, analysis: { margin: 3.0 } }
"""


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
    text = said("experiments=mine", "sd=1.5", "images=1000000000")  # so many that their choice is nothing
    assert "mine: 6 runs: 6 not started" in text
    assert "3 seeds, 1 comparison with pooling in a setting, margin 3 points" in text
    assert "scatters by 1.50 from seed to seed (as stated)" in text
    assert "3 (planned)                    56%" in text
    assert "5                              95%" in text
    assert "4 seeds show with 80%" in text


def test_an_assumption_is_called_one(said):
    assert "1.00 from seed to seed (an assumption" in said("experiments=mine")


def test_the_choice_of_the_test_images_is_counted(said):
    text = said("experiments=mine", "sd=0.5")
    assert "the choice of the test images adds a standard error of 1.44" in text  # 25 / sqrt(300)
    assert "no number of seeds shows with 80% that two equal cells are equivalent: a larger test set" in text
    assert "adds a standard error of 0.25" in said("experiments=mine", "sd=0.5", "images=10000")
    for metric, none in {"val_accuracy": "0.00", "test_loss": "0.0000"}.items():  # of other images, or not in points
        text = said("experiments=mine", "sd=0.5", "images=10000", f"study.analysis.metric={metric}")
        assert f"adds a standard error of {none}\n" in text


def test_the_correction_counts():
    first = power_table(5, 2.0, lambda seeds: 0.05 / 5, Scatter(1.0)).lines
    assert [line[1] for line in first[:3]] == ["14%", "57%", "97%"]


def test_the_scatter_of_another_study(said, tmp_path):
    on = on_disk(runs_of(pooling=[0.7, 0.7, 0.7], identity=[0.6, 0.62, 0.64]), tmp_path / "runs")
    save(Launch("other", [Stage("2026-01-01T00:00:00+00:00", analysis_of(study()), {})], runs=on))
    said_of = said("experiments=mine", "from=other")
    assert "scatters by 2.00 from seed to seed (from the finished runs of other, 1 comparison)" in said_of


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sd=wide"], "sd=wide: expected points"),
        (["sd=0"], "sd=0: expected points"),
        (["images=none"], "images=none: expected test images"),
        (["from=nobody"], "from=nobody: no study of that name"),
        (["sd=1", "from=other"], "expected one of them"),
        (["images=300", "from=other"], "images, from: expected one of them"),
        (["images=2.5"], "images=2.5: expected a whole number of test images"),
    ],
)
def test_bad_input(said, arguments, words):
    with pytest.raises(ConfigError, match=words):
        said("experiments=mine", *arguments)


def test_what_cannot_be_of_use_is_refused(said, tmp_path):
    entries = [point.entry for point in expand(["experiments=mine"])]
    values = {"pooling": [0.7, 0.7, 0.7], "identity": [0.6, 0.62, 0.64]}
    runs = [run for run in runs_of(**values) for entry in entries if (run.cell, run.seed) == (entry.cell, entry.seed)]
    listed = [replace(run, run_id=entry.run_id) for run, entry in zip(runs, entries, strict=True)]
    on_disk(
        [replace(r, result=replace(r.result, run_id=r.run_id, name=f"x-{r.run_id}")) for r in listed], tmp_path / "runs"
    )
    assert "scatters by 2.00 from seed to seed (from the finished runs of this study" in said("experiments=mine")
    with pytest.raises(ConfigError, match="images: its finished runs have test images"):
        said("experiments=mine", "images=300")
    save(Launch("mine", [Stage("2026-01-01T00:00:00+00:00", analysis_of(study()), {})], runs=entries))
    with pytest.raises(ConfigError, match="from=mine: its metric is test_accuracy; expected one in nats"):
        said("experiments=mine", "from=mine", "study.analysis.metric=test_loss")


def test_what_is_corrected_together_is_counted():
    runs = [*runs_of(a_pooling=[0.7] * 3, a_x=[0.7] * 3, a_resnet=[0.8] * 3, b_pooling=[0.7] * 3, b_x=[0.7] * 3)]
    assert size(study(baselines=["resnet"]), runs) == (3, 1)
    gap = {"gap": {"a x": 1, "a pooling": -1, "b x": -1, "b pooling": 1}}
    assert size(study(baselines=["resnet"], correction="holm_study", contrasts=gap), runs) == (3, 3)
    console = Console(record=True, width=200)
    tell_power(study(looks=[3, 8]), 3, 1, Scatter(1.0), "as stated", console)
    said = console.export_text()
    assert "The chances are those of the last look that so many seeds allow, alone" in said
    planned = next(line for line in said.splitlines() if "3 (planned)" in line).split()[2:]
    alpha = looks_at(range(3), study(looks=[3, 8]).analysis)[0].alpha
    assert planned == power_table(3, study().analysis.margin, lambda seeds: alpha, Scatter(1.0)).lines[0][1:]
    assert alpha < 0.05  # its own, and not that of eight seeds


def test_nothing_to_compare(said):
    assert "nothing is compared" in said("experiments=mine", "mixer=identity")


def test_the_command_answers_without_torch(said):
    words = ["-m", "mixer=pooling,identity", "seed=0,1"]
    code = f"import sys; from metaformer import plan; sys.argv[1:] = {words}; plan.main()"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sweep: 4 runs: 4 not started" in done.stdout


def test_what_is_done_running_and_left(said, tmp_path):
    runs = [Run(**asdict(point.entry), folder=None, result=None) for point in expand(["experiments=mine"])]
    done = []
    for run in runs[:3]:
        told = {"name": f"x-{run.run_id}", "seconds": 1200.0, "macs": None}  # nothing of the speed of this machine
        done.append(replace(run, result=result_of(run.seed, 0.5 + 0.01 * run.seed, run.run_id, **told)))
    on_disk(done, tmp_path / "runs")
    (tmp_path / "runs" / f"x-{runs[3].run_id}").mkdir()
    (tmp_path / "runs" / f"x-{runs[3].run_id}" / "failed.json").write_text('{"reason": "diverged: loss is nan"}')
    with lock(tmp_path / "runs" / f"x-{runs[4].run_id}"):
        child = (
            "import sys; from metaformer import plan; sys.argv[1:] = ['experiments=mine', 'runtime=cpu']; plan.main()"
        )
        text = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, cwd=tmp_path).stdout
    assert "mine: 6 runs: 3 finished, 1 failed, 1 running, 1 not started" in text
    assert "1.00 hours of training done" in text
    left = "about 1.00 core-hours to do (by the finished runs of this study), "
    assert f"{left}{60 / cores():.0f} minutes here with {cores()} at a time" in text


def test_what_it_will_cost_before_anything_is_launched(said, tmp_path):
    assert "6 to do: throughput=IMAGES_PER_S tells what they cost" in said("experiments=mine")
    text = said("experiments=mine", "throughput=2", "logger.wandb=true", "logger.mode=offline")
    images = 6 * 1197 * expand(["experiments=mine"])[0].config.recipe.epochs
    assert f"about {images / 2 / 3600:.2f} core-hours to do (at 2 images a second)" in text
    assert "6 runs on wandb" in text
    with pytest.raises(ConfigError, match="throughput=fast: expected training images a second, above 0"):
        said("experiments=mine", "throughput=fast")


def test_what_it_will_cost_by_the_speed_of_other_studies(said, tmp_path):
    """A finished run of half the work took 100 seconds: each of the six takes 200."""
    points = expand(["experiments=mine"])
    macs = {point.entry.mixer: cost_of(point.config).macs for point in points}
    half = macs["pooling"] * 1197 * points[0].config.recipe.epochs // 2
    other = expand(["mixer=pooling", "seed=77", "recipe.lr=0.5"])[0]
    told = {"name": "x-deadbeef", "seconds": 100.0, "macs": half, "images": 1, "epochs": 1, "config": other.config}
    path = tmp_path / "runs" / "x-deadbeef"
    path.mkdir(parents=True)
    write_result(path, result_of(77, 0.5, "deadbeef", **told))
    seconds = sum(200 * macs[point.entry.mixer] / macs["pooling"] for point in points)
    expected = f"about {seconds / 3600:.2f} core-hours to do (from MACs, at the speed of 1 finished run on cpu)"
    assert expected in said("experiments=mine")
    write_result(path, result_of(77, 0.5, "deadbeef", **told | {"seconds": 3.0}))  # what begins and ends a run
    assert "6 to do: throughput=IMAGES_PER_S tells what they cost" in said("experiments=mine")


def test_the_speed_is_that_of_the_commonest_device():
    point = expand(["data=digits", "mixer=pooling"])[0]
    slow = result_of(0, 0.5, config=point.config, macs=10**6, images=100, epochs=4, seconds=10.0, device="cpu")
    fast = replace(slow, seconds=0.1, device="H100")
    seconds, source = estimate._by_macs([point], [slow, fast, fast])
    assert (seconds, source) == estimate._by_macs([point], [fast, fast])
    assert source.endswith("2 finished runs on H100")


def test_a_thousand_runs_are_composed_once_for_each_choice_of_files(monkeypatch):
    calls = []
    load = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda s, *a: (calls.append(1), load(s, *a))[1])
    grid = ["mixer=pooling,identity", "recipe.lr=1e-3,2e-3,4e-3,8e-3,1.6e-2", "seed=range(100)"]
    assert len({point.run.folder for point in expand(grid)}) == 1000
    assert len(calls) == 1  # for both mixers


@pytest.mark.parametrize(
    "grid",
    [
        ["mixer=pooling,attention", "recipe.lr=1e-3,2e-3", "seed=0,1"],
        ["recipe.lr=1e-3,2e-3", "data=digits", "data.val=100,200", "seed=5", "runtime=cpu,auto"],
        ["mixer.pool_size=3,5", "mixer=pooling,max_pooling", "model.dims=[32,32,32,32],[64,64,64,64]"],
        ["mixer=ppaa", "mixer.stage1.pool_size=5,7", "seed=0,1"],
        ["mixer=custom", "mixer._target_=torch.nn.Identity,torch.nn.ReLU", "+mixer.inplace=true", "seed=1,2"],
        ["recipe.optimizer_options.eps=1e-6,1e-7", "trainer.limit_train_batches=1,2"],
        ["recipe.lr=1e-3,2e-3", "recipe={lr: 1e-2}"],
        ["recipe={lr: 1e-2}", "recipe.lr=1e-3,2e-3"],
        ["recipe.lr=1e-3", "recipe.warmup_lr=${recipe.lr}", "seed=0,1"],
        ["seed=0,1", "model.layer_scale=null", "runtime=cpu", "recipe.epochs=1,2", "~mixer.pool_size"],
        ["experiments=quickstart", "model.mlp_ratio=1,2", "study.analysis.margin=1", "seed=0,1"],
    ],
)
def test_points_are_what_hydra_composes_of_each(grid):
    """All of its nodes but its own, though it composes few of them."""
    cfg = load(loader(), grid, multirun=True)
    cells = Cells(loader(), cfg, unread)
    for point in points_of(loader(), given_words(cfg)):
        whole = loader().load_sweep_config(cfg, point)
        with cells.compose(point) as composed:
            assert composed == (without_hydra(whole), choices_of(whole.hydra))
        run, _ = cells.run_of(point)
        alone, _ = resolve(config_of(whole), choices_of(whole.hydra), {}, unread)
        assert run == alone


def test_a_key_that_is_not_there_is_refused_as_hydra_does():
    with pytest.raises(HydraException, match=r"Could not override 'recipe.lrr'"):
        expand(["recipe.lrr=1e-3,2e-3"])


def test_a_study_of_one_seed_tells_no_scatter(tmp_path):
    listed = on_disk(runs_of(pooling=[0.7], identity=[0.6]), tmp_path / "runs")
    save(Launch("other", [Stage("2026-01-01T00:00:00+00:00", analysis_of(study()), {})], runs=listed))
    with pytest.raises(ConfigError, match=r"^from=other: it has no two finished seeds of any comparison$"):
        scatter_of("other", tmp_path / "runs", "points")


def test_the_columns_of_power_are_the_chances_of_each_verdict():
    scatter = Scatter(1.0)
    equal, apart, far = (scatter.powers(3, 2.0, 0.05, difference) for difference in (0.0, 2.0, 4.0))
    expected = ["3", *(f"{chance:.0%}" for chance in (equal[0], apart[1], far[1]))]
    assert power_table(5, 2.0, lambda seeds: 0.05, scatter).lines[0] == expected
