"""The commands, as a user types them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE, TINY
from trained import same, start

from metaformer.runs.folder import is_held
from metaformer.system.orphans import holding

BREAKS = """
import torch

class Breaks(torch.nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError("no more")
        return x
"""
DIVIDES = """
import torch

class Divides(torch.nn.Module):
    def __init__(self, dim):
        dim / 0
"""
STUDY = """# @package _global_
defaults:
  - override /data: digits
hydra:
  mode: MULTIRUN
  launcher: {n_jobs: 1}
  sweeper:
    params: {mixer: "identity,pooling", seed: "0,1"}
recipe: {epochs: 2}
runtime: {threads: 1}
study: {name: mine, question: "Which?", reference: identity}
"""


def results(folder: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("runs/*/result.json")}


def test_help_and_errors_answer_at_once(cli, tmp_path):
    cli("train", "--help")  # the first one starts the process that answers the others
    for arguments, code, text in (
        (["--help"], 0, "mixer: afno, attention"),
        (["recipe.lrr=1"], 2, "did you mean 'recipe.lr'"),
        (["--mixer=pooling"], 2, "error: --mixer=pooling: no such flag; expected key=value; did you mean 'mixer=pool"),
    ):
        started = time.perf_counter()
        done = cli("train", *arguments)
        # Loosely here, where tests share the machine; 0.7-1.2 s alone.
        assert time.perf_counter() - started < 5
        assert done.returncode == code
        assert text in done.stdout + done.stderr
    assert cli("train", "recipe.lrr=1").stderr.count("\n") == 1
    assert {"norm_confound,", "paper_table5,", "quickstart,"} <= set(cli("train", "--help").stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_when_it_is_wanted(cli, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in cli("train", "recipe.lrr=1").stderr


def grey(folder: Path) -> Path:
    """Ten classes of grey images of 28x28, called by their numbers as those of digits are."""
    random, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (40, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(40) % 10
    np.savez(folder / "grey.npz", **arrays)
    return folder / "grey.npz"


def test_one_run_then_evaluate(cli, tmp_path):
    done = cli("train", *TINY, "mixer=depthwise")
    assert done.returncode == 0, done.stderr
    folder = done.stdout.splitlines()[-1]
    result = json.loads((tmp_path / folder / "result.json").read_text())
    accuracy = f"{result['metrics']['test_accuracy']:.2%}"
    assert f"test {accuracy}" in done.stdout
    assert done.stderr == ""
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}

    again = cli("evaluate", f"run={folder}")
    assert again.returncode == 0, again.stderr
    assert f"test: accuracy {accuracy}" in again.stdout
    assert f"300 images (recorded: {accuracy})" in again.stdout

    other = cli("evaluate", f"run={folder}", "data=npz", f"data.root={grey(tmp_path)}")
    assert "40 images" in other.stdout, other.stderr
    assert "recorded" not in other.stdout
    wrong = cli("evaluate", f"run={folder}", "data=fashion_small")
    assert "data: its class 0 of 10 is 'T-shirt/top', that of " in wrong.stderr
    assert "is '0' of 10; expected the same names" in wrong.stderr
    for bad, message in {
        "run=runs/nothing": f"no finished run there (weights.pt); finished beside it: {Path(folder).name}",
        "data=digits": "expected run=FOLDER",
        "seed=1": "seed: not of this command; expected run, weights, whole, data, runtime",
    }.items():
        done = cli("evaluate", bad)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    done = cli("evaluate", f"run={folder}", "mixer=pooling")
    assert "mixer: not of this command; expected run, weights, whole, data, runtime" in done.stderr


@pytest.mark.processes
def test_a_sweep_goes_on_past_a_failure_and_tells_it(cli, tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS)
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "breaks.yaml").write_text("_target_: breaks.Breaks\n")
    command = ("train", "-m", "mixer=identity,breaks,attention", "seed=0,1", "mixer.head_dim=24", *TINY)
    assert "mixer.head_dim: no such key" in cli(*command).stderr  # refused for identity before any run

    done = cli("train", "-m", "mixer=identity,breaks,attention", "seed=0,1", "model.dims=[40,40,40,40]", *TINY)
    assert done.returncode == 2
    assert "dim=40 is not divisible by head_dim=32 (cell attention)" in done.stderr

    done = cli("train", "-m", "mixer=identity,breaks", "seed=0,1", "model.dims=[40,40,40,40]", *TINY)
    assert done.returncode == 1
    assert "4 runs, 0 finished, 4 to do" in done.stdout
    assert done.stdout.count(": RuntimeError: no more") == 2
    assert "breaks: 2 of 2 runs failed (RuntimeError: no more)." in done.stdout
    assert "2 of 4 runs did not finish" in done.stdout
    assert {name.split("-")[0] for name in results(tmp_path)} == {"identity"}
    assert len(list(tmp_path.glob("runs/breaks-*/failed.json"))) == 2
    assert "Traceback" not in done.stderr

    (tmp_path / "breaks.py").write_text(BREAKS.replace("if self.training", "if False"))
    done = cli("train", "-m", "mixer=identity,breaks", "seed=0,1", "model.dims=[40,40,40,40]", *TINY, HERE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs, 2 finished, 2 to do" in done.stdout
    assert "[4/4]" not in done.stdout  # runtime.progress=false


def test_a_study_writes_its_files_once_it_is_whole(cli, tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(STUDY)
    narrowed = cli("train", "experiments=mine", "seed=0")
    assert narrowed.returncode == 0, narrowed.stderr
    assert "2 runs, 0 finished, 2 to do" in narrowed.stdout
    assert "[2/2]" in narrowed.stdout
    assert "written: runs/reports/mine_seed=0/report.html" in narrowed.stdout
    assert not (tmp_path / "experiments" / "mine").exists()

    whole = cli("train", "experiments=mine")
    assert "4 runs, 2 finished, 2 to do" in whole.stdout
    assert "minus identity" in whole.stdout
    (tmp_path / "experiments" / "broken.yaml").write_text("study: {name: x, question: why?: no}")
    broken = cli("train", "experiments=broken")
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)
    assert "broken.yaml" in broken.stderr
    assert [p.name for p in (tmp_path / "experiments" / "mine").iterdir()] == ["launch.json"]
    folder = tmp_path / "runs" / "reports" / "mine"
    assert {p.name for p in folder.iterdir()} == {"results.csv", "report.html", "tables", "figures"}
    with (folder / "results.csv").open() as file:
        assert [(row["mixer"], row["seed"]) for row in csv.DictReader(file)] == [
            ("identity", "0"), ("identity", "1"), ("pooling", "0"), ("pooling", "1")
        ]  # fmt: skip

    code = "import sys; from metaformer import train; sys.argv[1:] = ['experiments=mine']; train.main()"
    code += "; assert 'torch' not in sys.modules"  # in a process of its own, since that of `cli` has it
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "4 runs, 4 finished, 0 to do" in again.stdout


def test_a_study_with_failures_reports_them_and_a_narrowed_one_leaves_its_files(cli, tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS)
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "breaks.yaml").write_text("_target_: breaks.Breaks\n")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(STUDY.replace("identity,pooling", "identity,breaks"))
    done = cli("train", "experiments=mine")
    assert done.returncode == 1
    assert "left out, failed: RuntimeError" in done.stdout
    assert "the traceback: runs/breaks-" in done.stdout
    page = (tmp_path / "runs" / "reports" / "mine" / "report.html").read_text()
    assert "left out, failed: RuntimeError" in page
    narrowed = cli("train", "experiments=mine", "hydra.sweeper.params.mixer=identity")
    assert "written: runs/reports/mine_hydra.sweeper.params.mixer=identity/report.html" in narrowed.stdout
    assert (tmp_path / "runs" / "reports" / "mine" / "report.html").read_text() == page

    (tmp_path / "experiments" / "typo.yaml").write_text(STUDY.replace("reference: identity", "reference: idntity"))
    assert (
        "study.reference=idntity: expected a mixer of the study, one of identity"
        in cli("train", "experiments=typo").stderr
    )
    (tmp_path / "experiments" / "flat.yaml").write_text(STUDY.replace("  mode: MULTIRUN\n", ""))
    assert "a grid needs -m, or hydra.mode: MULTIRUN" in cli("train", "experiments=flat").stderr


@pytest.mark.processes
def test_a_worker_that_dies_is_told(cli, tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS.replace("raise RuntimeError", "import os; os._exit(1)  #"))
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "breaks.yaml").write_text("_target_: breaks.Breaks\n")
    done = cli("train", "-m", "mixer=identity,breaks", *TINY)
    assert done.returncode == 1
    assert "failed breaks-tiny-digits-s0-" in done.stdout
    assert "its worker died (TerminatedWorkerError" in done.stdout
    assert "Traceback" not in done.stderr


def test_options_before_the_flag_and_errors_of_one_run_are_one_line(cli, tmp_path):
    (tmp_path / "divides.py").write_text(DIVIDES)
    done = cli("train", *TINY, "-m", "mixer=identity,pooling", "debug=none,fast")
    assert "debug=fast: is for one run, not for a sweep" in done.stderr
    for arguments, message in {
        ("mixer=attention", "mixer.head_dim=24"): "dim=64 is not divisible by head_dim=24",
        ("mixer=attention", "mixer.head_dim=0"): "model or mixer cannot be made: head_dim=0: expected at least 1",
        (
            "mixer=custom",
            "mixer._target_=divides.Divides",
        ): "ZeroDivisionError: division by zero (divides.py, line 6, in __init__); HYDRA",
        ("runtime.runs=/dev/null/x",): "runtime.runs: /dev/null/x/pooling-tiny-digits-s0-",
        ("runtime.accelerator=gpu",): "runtime.accelerator=gpu, runtime.devices=1: ",
        ("hydra.job.chdir=true",): "hydra.job.chdir: paths are relative",
    }.items():
        if torch.cuda.is_available() and "gpu" in arguments[0]:
            continue
        done = cli("train", *TINY, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_evaluation_keeps_the_runs_data_where_one_key_changes(cli, tmp_path):
    assert cli("train", *TINY).returncode == 0
    run = next(tmp_path.glob("runs/*-*"))
    recorded = json.loads((run / "result.json").read_text())["metrics"]["test_accuracy"]
    done = cli("evaluate", f"run={run}", "data.val=200")
    assert f"test: accuracy {recorded:.2%}" in done.stdout  # of digits, normalised as in training
    assert "300 images" in done.stdout


def test_a_run_of_an_older_version_is_evaluated(cli, tmp_path):
    """Its configuration lacks the keys that came later."""
    assert cli("train", *TINY).returncode == 0
    run = next(tmp_path.glob("runs/*-*"))
    result = json.loads((run / "result.json").read_text())
    for node, key in (("recipe", "scale"), ("recipe", "mixup"), ("data", "decode"), ("model", "crop_pct")):
        del result["config"][node][key]
    (run / "result.json").write_text(json.dumps(result))
    done = cli("evaluate", f"run={run}")
    assert done.returncode == 0, done.stderr
    assert f"(recorded: {result['metrics']['test_accuracy']:.2%})" in done.stdout


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def rows(root: Path) -> list[dict]:
    with next(root.glob("*/metrics.csv")).open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.processes
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(cli, tmp_path):
    command = ("mixer=attention", "data.train=1500", "recipe.epochs=4", "runtime.threads=1", "model.drop_path=0.1")
    process = start(*command)
    wait_for(lambda: any(p.read_text().count("\n") >= 3 for p in tmp_path.glob("runs/*/metrics.csv")), process)
    time.sleep(0.3)  # somewhere in the third epoch
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert results(tmp_path) == {}
    before = next(tmp_path.glob("runs/*/metrics.csv")).read_text().splitlines()[1:3]

    resumed = cli("train", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert next(tmp_path.glob("runs/*/metrics.csv")).read_text().splitlines()[1:3] == before  # not trained again
    whole = cli("train", *command, "runtime.runs=whole")
    assert whole.returncode == 0, whole.stderr
    assert rows(tmp_path / "runs") == rows(tmp_path / "whole")
    a, b = (torch.load(next(tmp_path.glob(f"{r}/*/weights.pt")), weights_only=True) for r in ("runs", "whole"))
    assert same(a["state_dict"], b["state_dict"])


@pytest.mark.processes
@pytest.mark.parametrize("who", ["a run", "a sweep", "the launcher of a sweep"])
def test_ctrl_c_keeps_what_is_finished(cli, tmp_path, who):
    command, several = ["recipe.epochs=20", "data=digits", "runtime.threads=1"], who != "a run"
    if several:
        command = ["-m", "mixer=identity,pooling", "seed=0,1,2", "hydra.launcher.n_jobs=2", *command]
    process = start(*command)
    wait_for(lambda: list(tmp_path.glob("runs/*/metrics.csv")), process)
    if several:
        wait_for(lambda: list(tmp_path.glob("runs/*/result.json")), process)
        wait_for(lambda: len(at_work(tmp_path)) == 2, process)
    trained = at_work(tmp_path)
    (os.kill if who.startswith("the launcher") else os.killpg)(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        err.strip().splitlines()[-1] == "interrupted; what is finished is kept, and the same command goes on from here"
    )
    assert "Traceback" not in err
    for path in trained if several else []:  # joblib kills its workers, but not before that
        assert (path / "result.json").exists() or "saved and stopped at step" in (path / "run.log").read_text()
    finished = set(results(tmp_path))
    if several:
        assert finished
        again = cli("train", *command)
        assert f"6 runs, {len(finished)} finished" in again.stdout
        assert finished < set(results(tmp_path))


def at_work(tmp_path) -> list[Path]:
    """The folders of the runs that are trained now and have an epoch behind them."""
    begun = [path.parent for path in tmp_path.glob("runs/*-*/metrics.csv")]
    return [path for path in begun if is_held(path) and not (path / "result.json").exists()]


@pytest.mark.processes
def test_ctrl_c_does_not_wait_for_runs_that_others_train(tmp_path):
    command = ("-m", "mixer=identity,pooling", "recipe.epochs=200", "runtime.threads=1", "data=digits")
    other = start("mixer=identity", *command[2:])
    wait_for(lambda: at_work(tmp_path), other)
    (foreign,) = at_work(tmp_path)
    process = start(*command, "hydra.launcher.n_jobs=2")
    wait_for(lambda: len(at_work(tmp_path)) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)  # half of what it would wait
    assert process.returncode == 130
    assert is_held(foreign)
    other.kill()
    other.communicate()


@pytest.mark.processes
def test_a_worker_that_is_asked_to_stop_leaves_the_others_alone(cli, tmp_path):
    command = ("-m", "mixer=identity,pooling", "seed=0,1", "recipe.epochs=12", "runtime.threads=1", "data=digits")
    process = start(*command, "hydra.launcher.n_jobs=2")
    wait_for(lambda: at_work(tmp_path), process)
    (stopped, *_) = at_work(tmp_path)
    (worker,) = holding([stopped / ".lock"], process.pid)
    worker.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert f"stopped {stopped.name}: by a signal (status 143); it goes on from there" in out
    assert "1 of 4 runs did not finish; the same command tries them again" in out
    assert len(results(tmp_path)) == 3
    assert (stopped / "last.ckpt").exists()
    assert "4 runs, 3 finished, 1 to do" in cli("train", *command).stdout
    assert len(results(tmp_path)) == 4


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_launcher_after_a_checkpoint(cli, tmp_path, number):
    """No orphan trains on or holds a run, and the same command ends with the bits of one that was left alone."""
    command = ("-m", "mixer=identity,pooling", "seed=0,1", "recipe.epochs=12", "runtime.threads=1", "data=digits")
    process = start(*command, "hydra.launcher.n_jobs=2")
    wait_for(lambda: len(list(tmp_path.glob("runs/*/metrics.csv"))) >= 2, process)
    os.kill(process.pid, number)  # the launcher alone
    process.wait(timeout=30)
    trained = [path for path in tmp_path.glob("runs/*-*") if not (path / "result.json").exists()]
    end = time.time() + 30
    while any(is_held(path) for path in trained):
        assert time.time() < end, "a worker lives on"
        time.sleep(0.2)
    assert any((path / "last.ckpt").exists() for path in trained)
    time.sleep(1.5)
    assert {path for path in tmp_path.glob("runs/*-*") if is_held(path)} == set()  # nothing else was begun
    assert process.returncode == -number
    told = "SIGTERM: what is finished is kept, the workers save and stop, and the same command goes on from here"
    assert (told in process.communicate(timeout=30)[1]) == (number == signal.SIGTERM)
    done = cli("train", *command)
    assert done.returncode == 0, done.stderr
    assert cli("train", *command, "runtime.runs=whole").returncode == 0
    for path in tmp_path.glob("runs/*-*"):
        both = (path, tmp_path / "whole" / path.name)
        a, b = (torch.load(folder / "weights.pt", weights_only=True) for folder in both)
        assert same(a["state_dict"], b["state_dict"])


@pytest.mark.processes
@pytest.mark.parametrize("moment", [0.0, 1.0, 3.0])
def test_workers_that_have_no_run_yet_end_with_their_launcher(tmp_path, moment):
    """They import for seconds, and then wait for a run that nobody will give them."""
    process = start("-m", "mixer=identity,pooling", "data=digits", "hydra.launcher.n_jobs=2", "runtime.threads=1")
    wait_for(lambda: len(workers(process.pid)) == 2, process)
    time.sleep(moment)
    there = workers(process.pid)
    process.kill()
    process.wait(timeout=30)
    end = time.time() + 20
    while any(lives(pid) for pid in there):
        assert time.time() < end, "a worker lives on"
        time.sleep(0.2)


def lives(pid: int) -> bool:
    """Whether there is such a process that has not ended, where nobody may have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def workers(launcher: int) -> list[int]:
    """The processes of loky that have such a parent."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and b"popen_loky" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.mark.processes
def test_two_launches_of_one_run_train_it_once(tmp_path):
    command = ["data=digits", "recipe.epochs=15", "runtime.threads=1"]
    both = [start(*command) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(out.split()[0] for out, _ in outputs) == ["finished", "found"]
    assert len(rows(tmp_path / "runs")) == 15


def test_weights_bound_to_a_resolution_are_not_evaluated_at_another(cli, tmp_path):
    assert cli("train", *TINY, "mixer=spatial_mlp").returncode == 0
    run = next(tmp_path.glob("runs/*-*"))
    done = cli("evaluate", f"run={run}", "data=npz", f"data.root={grey(tmp_path)}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "do not fit the model for these images: size mismatch for stages.0.blocks.0.mixer.mlp.weight" in done.stderr


def test_the_basic_launcher_works_too(cli, tmp_path):
    done = cli("train", "-m", "hydra/launcher=basic", "mixer=identity,pooling", "data=digits", "recipe.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "[2/2] pooling seed 0: val" in done.stdout
    assert len(results(tmp_path)) == 2
