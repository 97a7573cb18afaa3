"""What a sweep refuses before anything runs, and what becomes of it where a worker dies."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import TINY, compose, on_disk, result_of, runs_of
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from rich.console import Console

from metaformer.analysis import page
from metaformer.config.compose import loader
from metaformer.config.hydra_internals import load, lost
from metaformer.config.study_nodes import Study
from metaformer.runs.launch import collect
from metaformer.runs.result import failure_of, write_result
from metaformer.studies import sweeper
from metaformer.studies.points import expand
from metaformer.studies.refusal import refuse
from metaformer.studies.worker import Outcome
from metaformer.system.errors import ConfigError
from metaformer.system.files import write


def test_slurm_without_slurm(monkeypatch):
    class SlurmLauncher:
        """As that of submitit, by its name."""

    study = sweeper.StudySweeper(None)
    study.launcher, study.config = SlurmLauncher(), OmegaConf.create({"hydra": {"launcher": {}}})
    planned = expand(["mixer=pooling", "runtime.devices=2"])
    monkeypatch.setattr(sweeper.shutil, "which", lambda _: "/usr/bin/sbatch")
    study._check_launcher(planned)
    monkeypatch.setattr(sweeper.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="hydra/launcher=slurm: there is no sbatch here; expected a login node"):
        study._check_launcher(planned)


def test_compiled_runs_of_a_cell_follow_each_other():
    listed = expand(["seed=0,1", "mixer=pooling,identity"])
    assert [(p.cell, p.config.seed) for p in listed] == [
        ("pooling", 0), ("identity", 0), ("pooling", 1), ("identity", 1),
    ]  # fmt: skip
    assert [(p.cell, p.config.seed) for p in sweeper.by_cell(listed)] == [
        ("pooling", 0), ("pooling", 1), ("identity", 0), ("identity", 1),
    ]  # fmt: skip


class JoblibLauncher:
    """As joblib's: two at once, and where a worker dies all that are at work are lost and the rest never starts."""

    def __init__(self, kills: str, writes: bool) -> None:
        self.kills, self.writes, self.seen = kills, writes, []

    def launch(self, words, initial_job_idx):
        self.seen.append([word[0].partition("=")[2] for word in words])
        returned = []
        for i in range(0, len(words), 2):
            together = [planned for planned in expand(["mixer=identity,pooling,attention,fourier,depthwise", "seed=0"])
                        if planned.overrides in words[i : i + 2]]  # fmt: skip
            for point in together if self.writes else []:
                point.run.folder.mkdir(parents=True, exist_ok=True)
                (point.run.folder / "config.yaml").touch()
            if any(f"mixer={self.kills}" in word for point in together for word in point.overrides):
                raise RuntimeError("A worker process was terminated.\n\nThe exit codes are {SIGKILL(-9)}\n")
            for point in together:
                write_result(point.run.folder, result_of(0, 0.5, point.run.run_id, config=point.config))
                outcome = Outcome(point.run.folder.name, "finished", point.run.folder)
                returned.append(type("Returned", (), {"return_value": outcome}))
        return returned


@pytest.mark.parametrize("writes", [True, False])
def test_a_worker_that_dies_is_named_and_the_others_are_trained(writes, capsys):
    study = sweeper.StudySweeper(None)
    study.launcher = JoblibLauncher("attention", writes)
    pending = expand(["mixer=identity,pooling,attention,fourier,depthwise", "seed=0"])
    outcomes = study._launch(pending)
    (dead,) = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert dead.name.startswith("attention-")
    assert dead.reason == failure_of(dead.folder) == "its worker died (RuntimeError {SIGKILL(-9)})"
    finished = {point.config.mixer["_target_"] for point in pending if (point.run.folder / "result.json").exists()}
    assert len(finished) == 4
    if writes:
        assert study.launcher.seen[1:] == [["attention"], ["fourier"], ["depthwise"]]
    told = capsys.readouterr().err
    size = r"\d+\.\d GiB"
    assert re.search(rf"a worker died \(the largest worker took {size}, and this machine has \d+\.\d\)", told)
    assert "fewer runs at once take less memory: hydra.launcher.n_jobs" in told


def test_runs_that_are_forced_are_lost_with_their_worker_though_they_have_old_results():
    study = sweeper.StudySweeper(None)
    study.launcher = JoblibLauncher("attention", True)
    listed = expand(["mixer=identity,pooling,attention,fourier", "seed=0"])
    forced = [replace(p.config, runtime=replace(p.config.runtime, force=True)) for p in listed]
    pending = [replace(p, run=replace(p.run, config=config)) for p, config in zip(listed, forced, strict=True)]
    for point in pending:
        write_result(point.run.folder, result_of(0, 0.5, point.run.run_id, config=point.config))
        os.utime(point.run.folder / "result.json", (0, 0))
    outcomes = study._launch(pending)
    assert {outcome.name.partition("-")[0]: outcome.status for outcome in outcomes} == {
        "attention": "failed", "fourier": "finished",
    }  # fmt: skip
    again = [point.cell for point in pending if (point.run.folder / "result.json").stat().st_mtime > 0]
    assert again == ["identity", "pooling", "fourier"]


class Launcher:
    """As those of SLURM and Ray, which have an error in place of what a run that died returns."""

    def __init__(self, *returned) -> None:
        self.returned = returned

    def launch(self, words, initial_job_idx):
        if isinstance(self.returned[0], str):
            raise RuntimeError(self.returned[0])
        return [lost(r) if isinstance(r, Exception) else JobReturn(_return_value=r, status=JobStatus.COMPLETED)
                for r in self.returned]  # fmt: skip


def test_each_run_that_died_elsewhere_is_told_as_its_folder_has_it():
    """One died after its result was there, one said why, one did not, and one is finished."""
    study = sweeper.StudySweeper(None)
    pending = expand(["mixer=identity,pooling,attention,fourier", "seed=0"])
    finished, failed, dead, fine = (point.run.folder for point in pending)
    died = RuntimeError("Job 7 has not produced any output (state: OUT_OF_MEMORY)\nNo error stream produced.")
    study.launcher = Launcher(died, died, died, Outcome(fine.name, "finished", fine))
    write_result(finished, result_of(0, 0.5, pending[0].run.run_id, config=pending[0].config))
    write(failed / "failed.json", '{"reason": "ValueError: why"}')
    later = time.time() + 60
    os.utime(failed / "failed.json", (later, later))
    outcomes = study._launch(pending)
    assert [(o.name, o.status, o.reason) for o in outcomes] == [
        (finished.name, "finished", ""),
        (failed.name, "failed", "ValueError: why"),
        (dead.name, "failed", "its worker died (RuntimeError state: OUT_OF_MEMORY)"),
        (fine.name, "finished", ""),
    ]
    assert failure_of(dead) == outcomes[2].reason
    assert not (finished / "failed.json").exists()


def test_a_launcher_that_cannot_launch_is_told_in_its_own_words():
    study = sweeper.StudySweeper(None)
    study.launcher = Launcher("sbatch: error: invalid partition specified: gpu\nsbatch: error: submission failed\n")
    study.config = OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": "slurm"}}}})
    pending = expand(["mixer=identity,pooling", "seed=0"])
    with pytest.raises(ConfigError) as error:
        study._launch(pending)
    told = "hydra/launcher=slurm: sbatch: error: invalid partition specified: gpu; sbatch: error: submission failed"
    assert str(error.value) == told
    assert not any(point.run.folder.exists() for point in pending)


def test_the_memory_of_workers():
    """Those that have ended, as one has that the system killed."""
    code = (  # in a process of its own, whose children are no others
        "import subprocess, sys; from metaformer.system.machine import memory_of_workers\n"
        "subprocess.run([sys.executable, '-c', 'x = bytearray(300 * 2**20)'], check=True); print(memory_of_workers())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.29 < float(re.search(r"took ([\d.]+) GiB", told)[1]) < 0.6


@pytest.mark.processes
def test_a_mixer_that_kills_its_worker_does_not_end_the_sweep(cli, tmp_path):
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "kills.yaml").write_text("_target_: kills.Kills\n")
    (tmp_path / "kills.py").write_text(
        "import os\nfrom torch import nn\n\n\nclass Kills(nn.Module):\n    def forward(self, x):\n"
        "        if self.training and x.shape[0] > 2:\n            os.kill(os.getpid(), 9)\n        return x\n"
    )
    done = cli("train", "-m", "mixer=identity,kills,pooling", "seed=0,1", "hydra.launcher.n_jobs=2", *TINY)
    assert done.returncode == 1
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4, done.stderr
    assert done.stdout.count("failed kills-tiny-digits-s") == 2
    died = "its worker died (TerminatedWorkerError {SIGKILL(-9)"
    assert done.stdout.count(f": {died}") == 2
    assert done.stdout.count(f"kills: 2 of 2 runs failed ({died}") == 1


def test_a_copied_run_folder_is_told_in_a_sweep_without_a_name(tmp_path):
    listed = on_disk(runs_of(pooling=[0.8, 0.7], identity=[0.6, 0.5]), tmp_path / "runs")
    shutil.copytree(tmp_path / "runs" / "run-pooling1", tmp_path / "runs" / "copy-pooling1")
    said = StringIO()
    runs = collect(listed, tmp_path / "runs")
    page.summarise(Study(), runs, Console(file=said, width=200), tmp_path / "report", whole=False)
    assert (
        "left out, two folders hold it, copy-pooling1 and run-pooling1; remove one: pooling (seed 1)" in said.getvalue()
    )


def test_a_study_may_choose_its_launcher_and_the_command_line_another():
    Path("experiments").mkdir()
    Path("experiments/mine.yaml").write_text(
        "# @package _global_\ndefaults: [override /data: digits, override /hydra/launcher: basic]\nseed: 3\n"
    )

    def chosen(*words: str) -> tuple[str, int, str]:
        cfg = load(loader(), words, multirun=True)
        return cfg.hydra.runtime.choices["hydra/launcher"], cfg.seed, cfg.data.name

    assert chosen() == ("local", 0, "fashion_small")
    assert chosen("experiments=mine") == ("basic", 3, "digits")
    assert chosen("experiments=mine", "hydra/launcher=local") == ("local", 3, "digits")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recipe.optimizer=adamm"], "recipe.optimizer=adamm: not one of timm's; did you mean 'adam'? (cell pooling)"),
        (["runtime.accelerator=gpu"], "runtime.accelerator=gpu, runtime.devices=1: "),
        (["data=image_folder"], "data.root: expected a folder with train/<class>/"),
        (["recipe.batch=5000"], "recipe.batch=5000: there are 1197 training images"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run_starts(words, line):
    if torch.cuda.is_available() and "accelerator" in line:
        pytest.skip("there is a GPU here")
    cells = {"pooling": compose("data=digits", "mixer=pooling", *words)}
    with pytest.raises(ConfigError) as error:
        refuse(cells, here=True)
    assert line in str(error.value)
    if "accelerator" in line:
        refuse(cells, here=False)  # as on the login node of a cluster


def test_a_folder_for_a_grid_is_told_where_runs_go(cli, tmp_path):
    done = cli("train", "-m", "mixer=pooling,identity", "hydra.sweep.dir=mine", *TINY)
    assert done.returncode == 2
    told = "error: hydra.sweep.dir: no run is there; runtime.runs=FOLDER says where they go\n"
    assert done.stderr == told
    assert list(tmp_path.iterdir()) == []


def test_a_bad_cell_of_a_sweep_keeps_the_others_from_starting(cli, tmp_path):
    done = cli("train", "-m", "data=digits", "mixer=pooling,attention", "model.dims=[64,64,64,64],[24,24,24,24]")
    assert done.returncode == 2
    assert "dim=24 is not divisible by head_dim=32 (cell attention dims=[24,24,24,24])" in done.stderr
    assert list(tmp_path.iterdir()) == []
