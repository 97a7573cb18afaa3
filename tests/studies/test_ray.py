"""A real Ray of two nodes on this machine: a killed worker, a node that goes away, a run that always dies, a stop.

Results equal those without Ray.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from omegaconf import OmegaConf
from trained import equal, first_epoch, start

from metaformer.runs.result import read_result
from metaformer.studies.ray_launcher import RayLauncher
from metaformer.system.errors import ConfigError, install
from metaformer.system.locks import is_held

RAY = ("hydra/launcher=ray", "-m")
LONG = (
    *TINY[:1],
    "mixer=pooling",
    "mixer._target_=mine.Mine",
    "recipe.epochs=6",
    "recipe.ema=0.9",
    "recipe.mixup=0.4",
    "model.drop_path=0.1",
)
LONG += ("runtime.threads=1", "runtime.checkpoint_minutes=60")
# A mixer beside the command that notes on which node it is, and is slow or deadly there where it is told to.
MINE = """
import os, signal, sys, time
from pathlib import Path
from metaformer.mixers import Pooling

node = [word for word in sys.argv if word.startswith("--node-id=")]

class Mine(Pooling):
    def forward(self, x):
        if node:
            Path("on" + node[0]).touch()
            if Path("deadly").exists() and self.training:
                os.kill(os.getpid(), signal.SIGKILL)
            if Path("slow").exists() and self.training:
                time.sleep(0.02)
        return super().forward(x)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes with one processor each; the second was started by the second process of a job of SLURM."""
    utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra ray")
    job = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("ray"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("PYTHONPATH", raising=False)
        # what a shell started in the background ignores it, and so would the nodes and all that they start
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for name, value in job.items():
            patch.setenv(name, value)
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()
    signal.signal(signal.SIGINT, ignored)


@pytest.fixture
def launch(cluster, monkeypatch):
    """Start `train` on the cluster."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    package = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{package}:{os.environ.get('PYTHONPATH', '')}")

    started: list[subprocess.Popen] = []

    def begin(*words: str) -> subprocess.Popen:
        started.append(start(*RAY, *words))
        return started[-1]

    yield begin
    for process in started:  # that a test has given up
        process.kill()
        process.communicate()


def write_mine(folder: Path, *told: str) -> None:
    (folder / "mine.py").write_text(MINE)
    for name in told:
        (folder / name).touch()


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.time() + 300
    while not condition():
        assert time.time() < end, workers()
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def epochs(least: int) -> bool:
    return any(path.read_text().count("\n") > least for path in Path("runs").glob("*/metrics.csv"))


def workers() -> list[int]:
    """Processes of Ray's that are at work in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::_run") and (place / "cwd").readlink() == Path.cwd():
                found.append(int(place.name))
        except OSError:
            continue  # it has ended
    return found


def folders(root: str = "runs") -> list[Path]:
    return sorted(path.parent for path in Path(root).glob("*/result.json"))


def equals_the_control(cli, *words: str) -> None:
    done = cli("train", *words, "runtime.runs=whole")
    assert done.returncode == 0, done.stderr
    trained, whole = folders(), folders("whole")
    assert [folder.name for folder in trained] == [folder.name for folder in whole] != []
    for one, other in zip(trained, whole, strict=True):
        assert equal(one, other)
        assert read_result(one).metrics == read_result(other).metrics


@pytest.mark.ray
def test_a_sweep_on_two_nodes_has_the_bits_of_the_local_launcher(launch, cli, tmp_path, monkeypatch):
    write_mine(tmp_path)
    words = (*TINY, "mixer=identity,pooling", "mixer._target_=mine.Mine", "seed=0,1")
    code, out, err = finish(launch(*words))
    assert (code, err) == (0, "")
    assert "4 runs, 0 finished, 4 to do" in out
    assert "(raylet)" not in out
    assert len(list(tmp_path.glob("on--node-id=*"))) == 2
    equals_the_control(cli, *words, "-m", "hydra.launcher.n_jobs=1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where nothing answers
    code, out, err = finish(launch(*words))
    assert (code, err) == (0, "")
    assert "4 runs, 4 finished, 0 to do" in out


@pytest.mark.ray
def test_a_killed_workers_run_goes_on_at_its_step(launch, cli, tmp_path):
    write_mine(tmp_path, "slow")
    process = launch(*LONG, "runtime.force=true")
    wait_for(lambda: epochs(2), process)
    (folder,), before = Path("runs").glob("*-*"), first_epoch()
    (folder / "kept").touch()  # by a run that goes on, forced or not; one that begins again empties its folder
    (worker,) = workers()
    os.kill(worker, signal.SIGKILL)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "(raylet)" not in out
    assert (folder / "kept").exists()
    assert first_epoch() == before  # it was not trained again
    equals_the_control(cli, *LONG)


@pytest.mark.ray
def test_a_node_that_goes_away(launch, cli, tmp_path, cluster):
    write_mine(tmp_path, "slow")
    process = launch(*LONG, "seed=0,1")
    wait_for(lambda: len(workers()) == 2 and epochs(1), process)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    try:
        wait_for(lambda: len(workers()) == 1, process)
        code, _, err = finish(process)
        assert code == 0, err
        equals_the_control(cli, *LONG, "seed=0,1", "-m", "hydra.launcher.n_jobs=1")
    finally:
        cluster.add_node(num_cpus=1)


@pytest.mark.ray
def test_a_run_that_always_dies_is_told_and_the_others_go_on(launch, tmp_path):
    write_mine(tmp_path, "deadly")
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "mine.yaml").write_text("_target_: mine.Mine\n")
    code, out, _ = finish(launch(*TINY, "mixer=mine,identity,pooling", "hydra.launcher.max_retries=1"))
    assert code == 1
    assert [folder.name.partition("-")[0] for folder in folders()] == ["identity", "pooling"]
    assert "failed mine-tiny-digits-s0-" in out
    assert "its worker died (WorkerCrashedError)" in out
    assert "1 of 3 runs did not finish; the same command tries them again" in out


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_saves_and_goes_on(launch, cli, number, code, tmp_path, monkeypatch):
    """On a Ray of its own, whose processes are in the terminal of the sweep."""
    write_mine(tmp_path, "slow")
    monkeypatch.delenv("RAY_ADDRESS")
    process = launch(*LONG)
    wait_for(lambda: epochs(2), process)
    before = first_epoch()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    left, _, err = finish(process)
    assert left == code, err
    (folder,) = Path("runs").glob("*-*")
    assert "saved and stopped at step" in (folder / "run.log").read_text()
    assert not is_held(folder / ".lock")
    assert workers() == []
    left, _, err = finish(launch(*LONG))
    assert left == 0, err
    assert first_epoch() == before
    equals_the_control(cli, *LONG)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("hydra.launcher.num_cpus=2", "a run asks for 2 CPU, and the nodes have 1 CPU at most"),
        ("runtime.accelerator=gpu", "a run asks for 1 CPU, 1 GPU, and the nodes have 1 CPU, 0 GPU at most"),
        ("hydra.launcher.resources={a100: 1}", "a run asks for 1 CPU, 1 a100, and the nodes have 1 CPU, 0 a100 at"),
    ],
)
def test_a_run_for_which_ray_would_wait_for_ever_is_refused(launch, word, line):
    code, _, err = finish(launch(*TINY, "mixer=pooling", word))
    assert (code, err.count("\n")) == (2, 1), err
    assert f"error: hydra/launcher=ray: {line}" in err
    assert not Path("runs").exists()


@pytest.mark.ray
@pytest.mark.skipif(os.geteuid() != 0, reason="hides a folder from a process, which takes root")
def test_a_node_that_does_not_share_the_folder_is_refused(launch, cluster, tmp_path):
    start = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --num-cpus=1 --block"
    hidden = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {tmp_path} && cd / && exec {start}"]
    node = subprocess.Popen(hidden, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any("Ray runtime started" in line for line in node.stdout)
        code, _, err = finish(launch(*TINY, "mixer=pooling"))
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{tmp_path} is another folder there, or none; expected runs and data on a disk that all nodes" in err
        assert list(tmp_path.iterdir()) == []
    finally:
        node.terminate()
        node.wait()


def launcher(**keys) -> RayLauncher:
    made = RayLauncher(**{"address": None, "max_retries": 3, "num_cpus": 1, "num_gpus": None, **keys})
    made.config = OmegaConf.create({"runtime": {"accelerator": "auto", "per_gpu": 4, "runs": "runs"}})
    return made


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as error:
        launcher().connect()
    assert str(error.value) == f"hydra/launcher=ray: not installed; it comes with {install('ray')}"


def test_the_share_of_a_gpu_and_the_nodes_that_have_it():
    auto = launcher()
    auto._check_resources([{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}])
    assert auto.asked["num_gpus"] == 0.25
    none = launcher()
    none._check_resources([{"CPU": 4.0}])
    assert none.asked["num_gpus"] == 0
    with pytest.raises(ConfigError, match=r"a run asks for 2 CPU, 0\.25 GPU, and the nodes have 4 CPU, 1 GPU at most"):
        launcher(num_cpus=2)._check_resources([{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}])  # no node has both


@pytest.mark.parametrize(
    ("address", "variable", "taken"),
    [
        (None, None, "local"),
        ("auto", None, "auto"),
        ("auto", "a:1", "a:1"),
        (None, "a:1", "a:1"),
        ("b:2", "a:1", "b:2"),
    ],
)
def test_which_ray_is_meant(address, variable, taken, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert launcher(address=address).address == taken


def test_an_address_where_nothing_answers(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(ConfigError, match=r"address=127\.0\.0\.1:1: no Ray answers \(ConnectionRefusedError"):
        launcher(address="127.0.0.1:1").connect()


def test_a_process_of_a_run_on_a_gpu_ends_with_it():
    """Once CUDA has started, a process stays on its GPU, and Ray may give the next run another one."""
    pytest.importorskip("ray", reason="needs the extra ray")
    assert [launcher(num_gpus=gpus)._task()._default_options.get("max_calls") for gpus in (0.25, 0)] == [1, None]


def test_a_run_of_a_sweep_is_on_one_gpu():
    with pytest.raises(ConfigError, match=r"hydra.launcher.num_gpus=2: expected at most 1, as each run of a sweep"):
        launcher(num_gpus=2)._check_resources([{"CPU": 4.0, "GPU": 4.0}])
