"""What a step frees stays with the process: no page is taken from the system twice."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from metaformer.system.machine import keep_memory

STEPS = """import resource, sys
import numpy as np
from metaformer.system.machine import keep_memory

if sys.argv[1] == "kept":
    keep_memory()


def step():
    parts = [np.ones(3_000_000) for _ in range(4)]  # of 24 MB
    small = [np.ones(8_000) for _ in range(100)]


for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""


def glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not glibc(), reason="another C library")
def test_pages_are_taken_once():
    faults = {}
    for how in ("kept", "given back"):
        whole = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}  # pages of one size
        done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True, env=whole)
        faults[how] = int(done.stdout)
    assert faults["kept"] < 100 < 10_000 < faults["given back"]


def test_who_has_set_it_keeps_it(monkeypatch):
    calls, most = [], 2**30

    def mallopt(parameter: int, size: int) -> int:
        calls.append((parameter, size))
        return int(parameter != -3 or size <= most)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    keep_memory()
    assert calls == [(-3, 2**30), (-1, 2**31 - 1)]
    calls.clear()
    most = 2**25  # as older C libraries have it
    keep_memory()
    assert calls == [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]
    calls.clear()
    most = 0
    keep_memory()
    assert calls == [(-3, 2**30), (-3, 2**25)]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    keep_memory()
    assert len(calls) == 2
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())  # as musl has none
    keep_memory()
