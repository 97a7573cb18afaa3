"""A real SLURM: arrays, a preemption, time limits, a failing job, a killed one, a killed launcher, two processes a run.

After each the same command finishes what is left, nothing trains twice, and results equal those without SLURM.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_site
from conftest import write_readme_files
from trained import equal, first_epoch

pytestmark = pytest.mark.slurm
LAUNCH = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5", "-m")
SHORT = ("data=digits", "recipe.epochs=1", "runtime.threads=1")
LONG = (
    "recipe.ema=0.9",
    "recipe.mixup=0.4",
    "model.drop_path=0.1",
    "runtime.threads=1",
    "runtime.checkpoint_minutes=60",
)
SLOW = """
import os
import time

from metaformer.mixers import Pooling


class Slow(Pooling):
    def forward(self, x):
        if self.training and "SLURM_JOB_ID" in os.environ:
            time.sleep(0.055)  # 71 s in all, more than two jobs have
        return super().forward(x)
"""


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory):
    if problem := slurm_site.reason():
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_site.running(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=True)
    return done.stdout


def jobs() -> list[str]:
    """Every job so far, as `id state`."""
    return slurm("sacct", "-n", "-X", "-P", "--format=JobID,State").split("\n")[:-1]


def launch(*arguments: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, "-m", "metaformer.train", *LAUNCH, *arguments], **pipes)


def finish(process: subprocess.Popen, seconds: float = 400) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def results(root: str = "runs") -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in Path(root).glob("*/result.json")}


def wait_for(condition, seconds: float = 120) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, jobs()
        time.sleep(0.2)


def epochs(least: int) -> bool:
    return any(path.read_text().count("\n") > least for path in Path("runs").glob("*/metrics.csv"))


def log() -> str:
    return next(Path("runs").glob("*/run.log")).read_text()


def equals_the_control(cli, *arguments: str) -> None:
    """The one run of `runs` has the bits of one that was trained here, without SLURM or a break."""
    done = cli("train", *arguments, "runtime.runs=whole")
    assert done.returncode == 0, done.stderr
    (one,), (whole,) = Path("runs").glob("*-*"), Path("whole").glob("*-*")
    assert one.name == whole.name
    assert equal(one, whole)  # the weights bit for bit, and the curve
    assert results()[one.name]["metrics"] == results("whole")[one.name]["metrics"]


def test_the_site_runs_a_job_and_keeps_account_of_it():
    partitions = slurm("sinfo", "-h", "-o", "%P %c").split("\n")[:-1]
    assert partitions == [f"low* {slurm_site.CPUS}", f"high {slurm_site.CPUS}"]
    number = slurm("sbatch", "--parsable", "--wait", "-o", "/dev/null", "--wrap", "true").strip()
    wait_for(lambda: f"{number}|COMPLETED" in jobs(), seconds=30)


def test_an_array_trains_what_is_not_finished(cli, tmp_path):
    """With the README's own mixer among those of the package; after an edit, its runs are not finished."""
    write_readme_files(tmp_path)
    mixers = "mixer=identity,pooling,my_shift"
    assert cli("train", *SHORT, "mixer=pooling").returncode == 0
    before = len(jobs())
    code, out, err = finish(launch(*SHORT, mixers, "seed=0,1"))
    assert code == 0, err
    assert "6 runs, 1 finished, 5 to do" in out
    assert len(jobs()) == before + 5
    assert len({job.partition("_")[0] for job in jobs()[before:]}) == 1  # one array
    assert len(results()) == 6
    code, out, err = finish(launch(*SHORT, mixers, "seed=0,1"))
    assert code == 0, err
    assert "6 runs, 6 finished, 0 to do" in out
    assert len(jobs()) == before + 5  # nothing was submitted
    with (tmp_path / "my_mixer.py").open("a") as file:
        file.write("# edited\n")
    code, out, err = finish(launch(*SHORT, mixers, "seed=0"))
    assert code == 0, err
    assert "3 runs, 2 finished, 1 to do" in out
    assert len(results()) == 7


def test_a_run_that_is_preempted_goes_on_at_its_step(cli):
    command = (*LONG, "mixer=pooling", "recipe.epochs=6")
    process = launch(*command)
    wait_for(lambda: epochs(2))
    before = first_epoch()
    slurm("sbatch", "-p", "high", "-c", str(slurm_site.CPUS), "--wrap", "sleep 2", "-o", "/dev/null")
    code, _, err = finish(process)
    assert code == 0, err
    assert "SIGTERM: saved and stopped at step" in log()
    assert first_epoch() == before  # it was not trained again
    equals_the_control(cli, *command)


def test_a_run_longer_than_its_time_limit_goes_on_twice(cli, tmp_path):
    """Its mixer is slow in jobs of SLURM, so that no machine is fast enough to finish the run before."""
    (tmp_path / "slow.py").write_text(SLOW)
    command = (*LONG, "data=digits", "mixer._target_=slow.Slow", "recipe.epochs=18")
    code, _, err = finish(launch(*command, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=35"))
    assert code == 0, err
    assert log().count("SIGUSR2: saved and stopped at step") >= 2
    equals_the_control(cli, *command)


def test_a_failing_job_among_good_ones(cli):
    command = (*SHORT, "mixer=identity,pooling", "recipe.lr=1e-2,1e18")
    code, out, _ = finish(launch(*command))
    assert code == 1
    assert out.count(": FloatingPointError: diverged: loss is nan") == 2
    assert "2 of 4 runs did not finish; the same command tries them again" in out
    assert len(results()) == 2
    before = len(jobs())
    assert finish(launch(*command))[0] == 1
    assert len(jobs()) == before + 2


def test_a_killed_job_is_finished_by_the_same_command(cli):
    command = (*LONG, "mixer=pooling", "recipe.epochs=5")
    process = launch(*command)
    wait_for(lambda: epochs(2))
    before = first_epoch()
    newest = jobs()[-1].partition("|")[0]
    slurm("scancel", "--signal=KILL", newest)
    code, out, _ = finish(process)
    assert code == 1
    assert "its worker died" in out
    assert results() == {}
    code, _, err = finish(launch(*command))
    assert code == 0, err
    assert first_epoch() == before
    equals_the_control(cli, *command)


def test_a_killed_job_does_not_hide_one_that_trains(cli):
    command = (*LONG, "mixer=pooling", "recipe.epochs=5", "seed=0,1")
    process = launch(*command)
    wait_for(lambda: len(list(Path("runs").glob("*/metrics.csv"))) == 2 and epochs(1))
    slurm("scancel", "--signal=KILL", jobs()[-1].partition("|")[0])
    code, out, _ = finish(process)
    assert code == 1
    assert out.count("its worker died") == 2  # below the table of the other run, and as the reason why one is absent
    assert len(results()) == len(list(Path("runs").glob("*/failed.json"))) == 1
    assert not {path.parent.name for path in Path("runs").glob("*/failed.json")} & results().keys()
    code, out, err = finish(launch(*command))
    assert code == 0, err
    assert "2 runs, 1 finished, 1 to do" in out
    assert not list(Path("runs").glob("*/failed.json"))


def test_a_job_that_is_not_accepted_is_told_in_the_words_of_slurm(tmp_path):
    code, _, err = finish(launch(*SHORT, "mixer=pooling", "hydra.launcher.partition=nowhere"))
    assert code == 2
    *own, line = err.strip().splitlines()
    assert all(words.startswith("sbatch: error: ") for words in own)
    assert line.startswith("error: hydra/launcher=slurm: sbatch: error: invalid partition specified: nowhere; ")
    assert results() == {}


def test_jobs_go_on_without_their_launcher_and_nothing_trains_twice(cli):
    command = (*LONG, "mixer=pooling", "recipe.epochs=3")
    process = launch(*command)
    wait_for(lambda: epochs(1))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, _, err = finish(launch(*command))
    assert code == 0, err
    assert len(results()) == 1
    assert "saved and stopped" not in log()  # the first job went on
    equals_the_control(cli, *command)


def test_two_processes_a_run(cli):
    two = ("runtime.devices=2", "runtime.accelerator=cpu", "runtime.threads=1", "data=digits", "recipe.epochs=2")
    code, out, err = finish(launch(*two, "mixer=identity,pooling"))
    assert code == 0, err + out
    trained = results()
    assert [result["devices"] for result in trained.values()] == [2, 2]
    assert cli("train", *two[2:], "mixer=pooling", "runtime.runs=whole").returncode == 0
    (name, alone), = results("whole").items()  # fmt: skip
    assert trained[name]["metrics"]["val_loss"] == pytest.approx(alone["metrics"]["val_loss"], abs=2e-3)
