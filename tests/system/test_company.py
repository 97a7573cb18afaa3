"""Whether a run was alone on its machine."""

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import TINY

from metaformer.system import company as module
from metaformer.system import locks
from metaformer.system.company import company

OTHER = "from metaformer.system.company import company\nwith company(): print(1, flush=True); input()"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def other() -> subprocess.Popen:
    started = subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started.stdout.readline()
    return started


def test_nobody_else():
    with company() as found:
        pass
    with company() as again:  # an earlier run of this process is none
        pass
    assert (found.runs, again.runs) == (0, 0)


@pytest.mark.parametrize("when", ["before", "within", "after", "killed"])
def test_another_run_is_seen_whenever_it_overlaps(when):
    first = other() if when in ("before", "killed") else None
    with company() as found:
        if when == "killed":
            first.kill()
            first.wait()
        if when in ("within", "after"):
            first = other()
        if when == "within":
            first.communicate(b"\n")
    if first.poll() is None:
        first.communicate(b"\n")
    assert found.runs == 1
    with company() as later:
        pass
    assert later.runs == 0


def test_somebody_who_looks_is_none_of_the_company():
    """Other runs ask whether this one is held, for which they take its lock for a moment."""
    with (locks.own_folder("training") / f"{os.getpid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with company() as found:
            pass
    assert found.runs == 0


def test_a_process_of_another_container_with_our_number_is_not_known():
    with locks.held(locks.own_folder("training") / f"{os.getpid()}.lock"), company() as found:
        pass
    assert found.runs is None


def test_one_that_ended_just_before_is_none_of_the_company():
    gone = locks.own_folder("training") / "1.lock"  # held by nobody
    gone.touch()
    for _ in range(50):  # most of them within one tick of the kernel's clock
        module._touch(gone)
        with company() as found:
            pass
        assert found.runs == 0


def test_what_other_processes_take_is_told_in_cores(monkeypatch):
    busy = iter([100.0, 100.0 + 2 * 0.1])
    monkeypatch.setattr(module, "_busy", lambda: next(busy))
    monkeypatch.setattr(module, "_used", lambda: 0.0)
    clock = iter([0.0, 0.0, 0.1])  # the lock, the begin, the end
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with company() as found:
        pass
    assert found.cores == pytest.approx(2)


def test_what_a_run_has_started_is_its_own_work():
    spin = "import time\nwhile time.process_time() < 1: pass\nprint(flush=True); input()"
    before = module._used()
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        alive = module._used() - before
        child.communicate(b"\n")
    assert 0.9 < alive < module._used() - before + 0.1  # the kernel counts in ticks


def test_where_nobody_can_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "STAT", tmp_path / "none")
    held = locks.take(locks.own_folder("training") / f"{os.getpid()}.lock")
    with company() as found:
        pass
    assert (found.runs, found.cores) == (None, None)
    locks.free(held)
    with company() as found:
        pass
    assert (found.runs, found.cores) == (0, None)


def test_a_run_says_whether_it_was_alone(monkeypatch):
    from dataclasses import replace

    from trained import go

    done = go(*TINY, "recipe.epochs=1").result
    assert done.other_runs == 0
    beside = locks.take(locks.own_folder("training") / "1.lock")
    assert go(*TINY, "recipe.epochs=1", "runtime.runs=beside").result.other_runs == 1
    locks.free(beside)
    assert done.other_cores is None or done.other_cores >= 0
    quiet = replace(done, other_cores=0.05)
    assert quiet.alone
    for change in ({"other_runs": 1}, {"other_runs": None}, {"other_cores": None}, {"other_cores": 1.0}):
        assert not replace(quiet, **change).alone


def test_the_files_of_processes_that_are_long_gone_are_removed():
    folder = locks.own_folder("training")
    for name, days in (("1", 8), ("2", 6)):
        (folder / f"{name}.lock").touch()
        os.utime(folder / f"{name}.lock", (time.time() - 86_400 * days,) * 2)
    with company():
        pass
    assert {path.name for path in folder.iterdir()} == {"2.lock", f"{os.getpid()}.lock"}
