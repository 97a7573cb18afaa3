"""Which of the processes that train one run this is, and what a cluster says of it."""

import pytest

from metaformer.system.machine import CORES, RESTARTS, cores, rank, restarted


def test_whose_turn_it_is(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank() == 1
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert rank() == 1  # of `srun --pty bash`, in which Lightning has started the process
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert rank() == 3
    monkeypatch.setenv("RANK", "5")
    assert rank() == 5


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", CORES])
def test_a_job_has_the_cores_that_it_was_given(monkeypatch, name):
    for other in ("SLURM_CPUS_PER_TASK", CORES):
        monkeypatch.delenv(other, raising=False)
    there = cores()
    monkeypatch.setenv(name, "1")
    assert cores() == 1
    monkeypatch.setenv(name, str(there + 7))  # that many are not there
    assert cores() == there


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", RESTARTS])
def test_a_run_that_was_preempted_does_not_begin_again(monkeypatch, name):
    for other in ("SLURM_RESTART_COUNT", RESTARTS):
        monkeypatch.delenv(other, raising=False)
    assert not restarted()
    monkeypatch.setenv(name, "0")
    assert not restarted()
    monkeypatch.setenv(name, "2")
    assert restarted()
