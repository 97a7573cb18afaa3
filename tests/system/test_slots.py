import subprocess
import sys
import time

import pytest
from conftest import TINY

from metaformer.system.machine import _all_gpus, cores, gpus, how_to_share, places, processor, take, trains_on

TAKE = """
import sys, time
from metaformer.system.machine import take
print(take("auto", int(sys.argv[1])), flush=True)
time.sleep(60)
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with two GPUs, as far as anybody can tell, and places of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    gpus.cache_clear()
    yield
    gpus.cache_clear()


def test_places(machine, monkeypatch):
    assert places("auto", 1) == 2
    assert places("gpu", 3) == 6
    assert places("cpu", 3) == cores()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus.cache_clear()
    assert places("auto", 3) == cores()
    assert take("auto", 1) is None


def test_runs_on_one_gpu_are_told_how_they_compute_at_the_same_time(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    told = how_to_share("auto", 4)
    assert "runtime.per_gpu=4: without NVIDIA's MPS" in told
    assert "`nvidia-cuda-mps-control -d`" in told
    assert how_to_share("auto", 1) is how_to_share("cpu", 4) is None
    (tmp_path / "control").touch()  # as the daemon has it
    assert how_to_share("auto", 4) is None


def test_a_worker_has_a_gpu_for_itself_and_the_next_one_waits(machine):
    def worker() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", TAKE, "1"], stdout=-1, stderr=-1, text=True)

    first, second = worker(), worker()
    assert {first.stdout.readline().strip(), second.stdout.readline().strip()} == {"0", "1"}
    third = worker()
    assert "all places on GPUs 0, 1 are taken" in third.stderr.readline()
    time.sleep(0.6)
    assert third.poll() is None
    first.kill()  # not even a place of a process that was killed is lost
    assert third.stdout.readline().strip() in ("0", "1")
    for process in (second, third):
        process.kill()


def test_several_runs_on_a_gpu(machine):
    workers = [subprocess.Popen([sys.executable, "-c", TAKE, "2"], stdout=-1, text=True) for _ in range(4)]
    assert sorted(worker.stdout.readline().strip() for worker in workers) == ["0", "0", "1", "1"]
    for worker in workers:
        worker.kill()


@pytest.mark.processes
def test_the_runs_of_a_sweep_are_spread_over_the_gpus(machine, cli, tmp_path):
    done = cli("train", "-m", "mixer=identity", "seed=0,1,2,3", *TINY)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    assert {path.name for path in tmp_path.glob("metaformer-gpus-*/*.lock")} == {"0.0.lock", "1.0.lock"}


def test_a_single_run_takes_a_place_as_the_runs_of_a_sweep_do(machine, cli, tmp_path):
    done = cli("train", "mixer=identity", *TINY)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("metaformer-gpus-*/*.lock")} == {"0.0.lock"}


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """A machine whose driver lists two GPUs, one of them split."""
    listed = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa11-0)\n  MIG 1g.10gb Device 0: (UUID: MIG-cc33)\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb22-1)\n"
    )
    done = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr("metaformer.system.machine.subprocess.run", lambda *_, **__: done)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("metaformer.system.machine._held", [])
    yield
    for cached in (gpus, _all_gpus):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("visible", "seen", "name"),
    [(None, "GPU-aa11-0", "GPU-aa11-0"), ("1", "1", "GPU-bb22-1"), ("GPU-bb", "GPU-bb", "GPU-bb22-1"), ("7", "7", "7")],
)
def test_a_place_has_the_name_that_all_processes_share(nvidia_smi, monkeypatch, tmp_path, visible, seen, name):
    """Index 0 of one job is another GPU than index 0 of the next, where a cluster gives each its own."""
    for cached in (gpus, _all_gpus):
        cached.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert take("cpu", 1) is take("mps", 1) is None
    assert take("auto", 1) == seen
    assert trains_on("auto") == ("NVIDIA H100 80GB HBM3" if name.startswith("GPU") else "7")
    assert trains_on("cpu") == processor()
    assert [path.name for path in tmp_path.glob("metaformer-gpus-*/*.lock")] == [f"{name}.0.lock"]
