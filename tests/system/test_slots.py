import subprocess
import sys
import time

import pytest
from conftest import TINY

from metaformer.system.machine import cores, gpus, places, take

TAKE = """
import sys, time
from metaformer.system.machine import take
print(take(int(sys.argv[1])), flush=True)
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
    assert take(1) is None


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


def test_the_runs_of_a_sweep_are_spread_over_the_gpus(machine, cli, tmp_path):
    done = cli("train", "-m", "mixer=identity", "seed=0,1,2,3", *TINY)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    assert {path.name for path in tmp_path.glob("metaformer-gpus-*/*.lock")} == {"0.0.lock", "1.0.lock"}
