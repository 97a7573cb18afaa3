import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import on_disk, repository, result_of, runs_of, study
from test_report import YAML
from wandb_server import ENVIRONMENT, serving
from wandb_server import Server as WandbServer

from metaformer import dashboard
from metaformer.analysis import wandb_study
from metaformer.analysis.verdict import judge
from metaformer.config.schema import Logger
from metaformer.config.tasks import Task
from metaformer.runs import launch, wandb_sync
from metaformer.runs.launch import Launch, Stage
from metaformer.runs.result import columns_of, read_result
from metaformer.runs.wandb_place import MARK, tell_absent, waiting
from metaformer.runs.wandb_run import wandb_identity
from metaformer.runs.wandb_sync import Sent
from metaformer.studies.points import expand
from metaformer.system.errors import ConfigError

LOGGER = Logger(project="p", entity="e")


class Server:
    """A stand-in for wandb: what was started and logged, and a failure when it is told to."""

    def __init__(self) -> None:
        self.started, self.logged, self.summaries, self.fails_at = [], [], {}, None
        self.artifacts = []

    def init(self, **options):
        if len(self.started) == self.fails_at:
            raise ConnectionError("unreachable")
        self.started.append(options)
        server, name = self, options["id"]

        class Fake:
            summary = self.summaries.setdefault(name, {})

            def log(self, row, step=None):
                server.logged.append((name, step, row))

            def log_artifact(self, artifact):
                server.artifacts.append(artifact)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        return Fake()


@pytest.fixture
def server(monkeypatch):
    import wandb

    server = Server()
    monkeypatch.setattr(wandb, "init", server.init)
    return server


@pytest.fixture
def launched(tmp_path):
    """Finished runs on disk, and a study that lists them."""
    runs = []
    for run in runs_of(pooling=[0.70, 0.74, 0.72], identity=[0.60, 0.66, 0.62]):
        name = f"{run.mixer}-tiny-digits-s{run.seed}-{run.run_id}"
        result = replace(run.result, name=name, choices={"mixer": run.mixer}, cell_id=f"{run.mixer}cell")
        runs.append(replace(run, result=result))
    listed = on_disk(runs, tmp_path / "runs")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(YAML)
    stages = [Stage("2026-01-01T00:00:00+00:00", launch.analysis_of(study()), {"n": len(listed), "ids": "x"})]
    launch.save(Launch("mine", stages, source=launch.source_of("mine"), runs=listed))
    return launch.collect(listed, tmp_path / "runs")


def test_sync_uploads_every_run_once(server, launched, capsys):
    dashboard.command(["--sync", "experiments=mine"])
    assert capsys.readouterr().out == "6 runs uploaded to project metaformer, 0 were there\n"
    first = server.started[0]
    assert (first["id"], first["tags"]) == ("pooling0", ["mixer:pooling", "mine"])
    assert first["group"].startswith("pooling-tiny-digits-")
    assert server.started[1]["group"] == first["group"] != server.started[3]["group"]
    *curve, (_, step, last) = [logged for logged in server.logged if logged[0] == "pooling0"]
    assert [(step, row["epoch"]) for _, step, row in curve] == [(1, 1), (2, 2), (3, 3)]
    assert step is None
    assert last["classes"].data == [["cat", 400, 0.7, 0.6], ["dog", 400, 0.5, 2 / 3]]
    counts = last["confusion"].table.data
    assert counts == [["cat", "cat", 300], ["cat", "dog", 100], ["dog", "cat", 200], ["dog", "dog", 200]]
    assert server.summaries["pooling0"]["recall/cat"] == 0.7
    assert server.summaries["pooling0"]["final/test_accuracy"] == 0.7
    dashboard.command(["--sync", "experiments=mine"])
    assert capsys.readouterr().out == "0 runs uploaded to project metaformer, 6 were there\n"
    assert len(server.started) == 6


def test_a_run_that_is_there_for_another_study_gets_a_tag_and_nothing_else(server, launched):
    folders = [run.folder for run in launched]
    wandb_sync.sync(folders, "first", LOGGER)
    logged = len(server.logged)
    assert wandb_sync.sync(folders, "second", LOGGER) == Sent(6, 0)
    assert len(server.logged) == logged
    assert server.started[-1]["tags"] == ["mixer:identity", "first", "second"]
    assert wandb_sync.sync(folders, None, LOGGER) == Sent(0, 6)
    assert wandb_sync.sync(folders, None, replace(LOGGER, project="other")) == Sent(6, 0)
    (folders[0] / MARK).write_text("{")
    with pytest.raises(ConfigError, match=r"wandb\.json: cannot be read"):
        wandb_sync.sync(folders, None, LOGGER)


def test_a_mixer_of_ones_own_has_a_name_to_group_by():
    shift, tokens = {"_target_": "my_mixer.Shift"}, {"_target_": "m.AsTokens", "layer": "timm.layers.Attention"}
    for choice, node, name in (
        ("pooling", {"_target_": "metaformer.mixers.Pooling", "pool_size": 3}, "pooling"),
        ("my_shift", shift, "my_shift"),
        ("custom", shift | {"step": 2}, "my_mixer.Shift"),
        ("custom", tokens, "m.AsTokens timm.layers.Attention"),
    ):
        result = replace(result_of(0, 0.5, "1a2b"), choices={"mixer": choice, "model": "tiny"})
        identity = wandb_identity(replace(result, config=replace(result.config, mixer=node)), "x-s0-1a2b")
        assert (identity["config"]["mixer"], identity["tags"]) == (name, [f"mixer:{name}"])
        assert identity["config"]["cell"] == identity["group"] == "x-c"


def test_weights_and_pictures_are_added_once(server, launched):
    folders = [run.folder for run in launched][:2]
    for folder in folders:
        (folder / "weights.pt").write_bytes(b"x" * 2_000_000)
    limited = replace(LOGGER, weights=True, weights_limit=1.0)
    with pytest.raises(ConfigError, match=r"logger\.weights=true: .*/weights\.pt: no such file"):
        wandb_sync.sync([launched[2].folder], None, limited)
    with pytest.raises(ConfigError, match=r"has 2 MB of weights, more than logger\.weights_limit=1; raise it"):
        wandb_sync.sync(folders, None, limited)
    assert server.started == []
    drawn = {"probe/mixing": [(np.zeros((2, 2)), "words")]}
    for logger, pictures, sent in (
        (LOGGER, {}, 2),
        (LOGGER, drawn, 2),
        (replace(LOGGER, weights=True), drawn, 2),
        (replace(LOGGER, weights=True), drawn, 0),
    ):
        assert wandb_sync.sync(folders, None, logger, lambda _, now=pictures: now).now == sent
    assert [a.name for a in server.artifacts] == [f"weights-{folder.name}" for folder in folders]
    logged = [row for name, _, row in server.logged if name == "pooling0"]
    assert [set(row) for row in logged[-2:]] == [{"confusion", "classes"}, {"probe/mixing"}]


def test_an_upload_that_breaks_off_goes_on(server, launched):
    folders = [run.folder for run in launched]
    server.fails_at = 2
    with pytest.raises(ConfigError, match="unreachable; 2 runs sent, the same command goes on with pooling-tiny"):
        wandb_sync.sync(folders, None, LOGGER)
    server.fails_at = None
    assert wandb_sync.sync(folders, None, LOGGER) == Sent(4, 2)


def test_offline_and_then_online_sends_every_run_once(launched, capsys, monkeypatch):
    """With wandb itself, and a stand-in for its server; what was written for nobody in particular goes to anybody."""
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    offline = ["--sync", "experiments=mine", "logger.mode=offline"]
    broken = launched[0].folder / "wandb" / "offline-run-20260101_000000-pooling0" / "run-pooling0.wandb"
    broken.parent.mkdir(parents=True)
    broken.touch()  # of a training that ended without a mark: what is written now is the whole run
    waits = "wait in runs/*/wandb: the same command with logger.mode=online uploads them\n"
    dashboard.command(offline)
    assert f"6 runs written for project metaformer, 0 were sent before; 6 {waits}" in capsys.readouterr().out
    files = sorted(Path.cwd().rglob("*.wandb"))
    assert [file.parents[2] for file in files] == sorted(run.folder.resolve() for run in launched)
    dashboard.command(offline)
    assert f"0 runs written for project metaformer, 6 were sent before; 6 {waits}" in capsys.readouterr().out
    assert sorted(Path.cwd().rglob("*.wandb")) == files
    with serving(WandbServer()) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for sent, there in ((6, 0), (0, 6)):
            dashboard.command(["sync=true", "experiments=mine", "logger.entity=e"])
            assert f"{sent} runs uploaded to project metaformer, {there} were there\n" in capsys.readouterr().out
        dashboard.command([*offline, "logger.entity=e"])
        assert "0 runs written for project metaformer, 6 were sent before; 0 wait" in capsys.readouterr().out
    assert set(server.runs) == {run.run_id for run in launched}
    assert [row["val_accuracy"] for row in server.history["pooling0"] if "epoch" in row] == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    assert server.runs["pooling0"]["config"]["cell"] == server.runs["pooling0"]["groupName"]
    assert server.summary["pooling0"]["final/test_accuracy"] == 0.7
    assert sorted(Path.cwd().rglob("*.wandb")) == files


def test_what_is_not_on_wandb_is_named_with_the_command_that_uploads_it(server, launched):
    folders = [Path("runs", run.folder.name) for run in launched]
    wandb_sync.sync(folders[:2], None, LOGGER)
    command = "python -m metaformer.dashboard sync=true experiments=mine logger.project=p logger.entity=e"
    told = tell_absent(folders, LOGGER, "mine")
    assert (
        told == f"not on wandb: 4 of 6 finished runs ({', '.join(f.name for f in folders[2:])}); {command} uploads them"
    )
    wandb_sync.sync(folders, None, LOGGER)
    assert tell_absent(folders, LOGGER, "mine") == ""
    assert tell_absent(folders, Logger(), "mine").endswith(
        "; python -m metaformer.dashboard sync=true experiments=mine uploads them"
    )


def test_the_summary_of_a_study(server, launched, tmp_path):
    wandb_study.publish(study(), launched, replace(LOGGER, mode="offline"), Path("runs/reports/mine"))
    (options,) = server.started
    assert (options["id"], options["job_type"], options["tags"]) == ("study-mine", "study", ["mine"])
    ((_, _, content),) = server.logged
    assert {"tables/accuracy", "tables/verdicts", "figures/differences", "figures/accuracy"} <= set(content)
    summary = server.summaries["study-mine"]
    assert summary["verdict/identity - pooling"] == "different"
    assert 0.5 < summary["share/mixer"] <= 1
    assert "Against pooling" in summary["headline"]
    assert (tmp_path / "runs" / "reports" / "mine" / "wandb" / "report.json").exists()


def test_a_summary_that_waits_is_replaced(launched, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    published = launch.study_folder("mine")
    for words, folder in (([], Path("runs/reports/mine")), (["publish=true"], published)):
        assert list(published.iterdir()) == [published / "launch.json"]  # which git tracks
        for _ in range(2):
            dashboard.command(["experiments=mine", "logger.mode=offline", *words])
            (part,) = waiting(folder)
            assert f"summary: {part}\n" in capsys.readouterr().out


def test_the_workspace_groups_the_runs_of_the_study_by_cell():
    spec = wandb_study.spec_of(wandb_study.workspace(study(), "accuracy", LOGGER))
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("e", "p", "mine")
    section = spec["spec"]["section"]
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    (condition,) = runs["filters"]["filters"]
    assert (condition["key"]["name"], condition["value"]) == ("tags", ["mine"])
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    assert [panel["viewType"] for panel in panels] == ["Run History Line Plot"] * 2 + ["Bar Chart"] + [
        "Scatter Plot"
    ] * 3
    curve = panels[0]["config"]
    assert (curve["metrics"], curve["groupAgg"], curve["aggregate"]) == (["val_accuracy"], "mean", True)
    axes = [(panel["config"]["xAxis"], panel["config"]["yAxis"]) for panel in panels[3:]]
    assert axes == [(f"summary:{x}", "summary:final/test_accuracy") for x in ("params", "macs", "seconds")]


def test_the_panels_of_segmentation_have_its_metric_whatever_the_study_is_judged_by(launched, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    task = Task("segmentation")
    runs = [replace(r, result=replace(r.result, config=replace(r.result.config, task=task))) for r in launched]
    offline = replace(LOGGER, mode="offline")
    monkeypatch.setattr(wandb_study, "summarise", lambda *_: "written")
    wandb_study.publish(study(), runs, offline, tmp_path)
    for view in ("workspace", "report"):
        spec = (tmp_path / "wandb" / f"{view}.json").read_text()
        assert "val_mean_iou" in spec
        assert "final/test_mean_iou" in spec
        assert "val_accuracy" not in spec


def test_the_report_has_the_verdicts_and_a_panel_for_each_mixer(launched):
    verdicts = judge(study(), launched)
    view = wandb_study.wandb_report(study(), "accuracy", ["pooling", "identity"], verdicts, LOGGER, offline=True)
    spec = json.dumps(wandb_study.spec_of(view))
    for words in (
        "Against pooling",
        "identity - pooling",
        '"mixer:pooling"',
        '"mixer:identity"',
        "pooling: validation",
    ):
        assert words in spec, words


def test_what_is_logged_is_what_the_panels_ask_for(server, launched):
    """A panel of a key that nobody logs stays empty, and nobody is told."""
    wandb_sync.sync([launched[0].folder], None, LOGGER)
    spec = json.dumps(wandb_study.spec_of(wandb_study.workspace(study(), "accuracy", LOGGER)))
    for key in ("params", "macs", "seconds", "final/test_accuracy"):
        assert f"summary:{key}" in spec
        assert key in server.summaries["pooling0"]
    for key in ("val_accuracy", "train_loss"):
        assert f'"{key}"' in spec
        assert key in columns_of("classification")  # all of which are logged
    assert "val_accuracy" in server.logged[0][2]


def test_bad_input(launched, cli, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    for arguments, words in (
        (["seed=1"], "seed: not of this command; expected publish, sync, experiments, logger, runtime"),
        ([], "expected experiments=NAME, a study, or sync=true"),
        (["sync=false"], "expected experiments=NAME, a study, or sync=true"),
        (["publish=yes", "experiments=mine"], "publish=yes: expected true or false"),
        (["publish=true", "sync=true"], "publish=true: is for a study without sync=true"),
        (["sync=yes"], "sync=yes: expected true or false"),
        (["experiments=quickstart"], "it was never launched from this folder"),
        (["--sync", "experiments=mine"], "0 runs sent"),
    ):
        done = cli("dashboard", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_sweep_file_describes_the_quickstart():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((repository() / "experiments" / "quickstart" / "sweep.yaml").read_text())
    cells = [(m, s) for m in sweep["parameters"]["mixer"]["values"] for s in sweep["parameters"]["seed"]["values"]]
    points = expand(["experiments=quickstart"])
    assert [(p.entry.mixer, p.config.seed) for p in points] == cells
    arguments = create_sweep_command_args({"args": {"mixer": {"value": "pooling"}, "seed": {"value": 1}}})
    command = create_sweep_command(sweep["command"])
    assert command[-5:-1] == ["${program}", "logger=wandb", "study.name=quickstart", "model.mlp_ratio=1"]
    (point,) = expand([*command[-4:-1], *arguments["args_no_hyphens"]])
    assert point.run.run_id in {p.run.run_id for p in points}


def test_an_agent_trains_a_cell_of_the_sweep_file(tmp_path):
    """The agent of wandb, the command line of our file, a run of ours, and its metric on the server."""
    sweep = (repository() / "experiments" / "quickstart" / "sweep.yaml").read_text()
    dealt = {"mixer": "identity", "seed": 1, "data": "digits", "recipe.epochs": 2, "runtime.threads": 1}
    arguments = {key: {"value": value} for key, value in dealt.items()}
    task = {"type": "run", "run_id": "dealt1", "program": yaml.safe_load(sweep)["program"], "args": arguments}
    with serving(WandbServer(sweep, [task])) as server:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **server.environment, "PATH": path}
        agent = [sys.executable, "-m", "wandb", "agent", "e/metaformer/s"]
        done = subprocess.run(agent, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = (read_result(path.parent) for path in tmp_path.glob("runs/*/result.json"))
    assert result.config.study.name == "quickstart"
    run, metric = server.runs["dealt1"], yaml.safe_load(sweep)["metric"]["name"]
    assert (run["sweep"], run["config"]["mixer"], run["config"]["run_id"]) == ("s", "identity", result.run_id)
    assert server.summary["dealt1"][metric] == pytest.approx(result.metrics[metric])
