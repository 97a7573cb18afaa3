"""This machine: its cores, its GPUs, how many runs go on at once, and which process of a run this is.

Each place on a GPU is a lock file. A run takes its place before torch is imported, by setting CUDA_VISIBLE_DEVICES,
and keeps it as long as it lives: once CUDA has started, a process cannot move. Two studies on one machine share the
places.
"""

import ctypes
import os
import platform
import re
import resource
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from metaformer.system import locks

# What SLURM tells a job in variables of its own, other launchers tell it in these.
CORES, RESTARTS = "METAFORMER_CORES", "METAFORMER_RESTARTS"


def cores() -> int:
    """The processor cores that this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # not every site binds a job to its cores, and Ray never does
    return min(there, *(int(os.environ.get(name) or there) for name in ("SLURM_CPUS_PER_TASK", CORES)))


def restarted() -> bool:
    """Whether a cluster has started this run again, after a time limit, a preemption or the loss of its process."""
    return any(int(os.environ.get(name, 0)) > 0 for name in ("SLURM_RESTART_COUNT", RESTARTS))


_held: list[int] = []  # the lock on the place of this process


@cache
def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or those that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    return tuple(_all_gpus())


@cache
def _all_gpus() -> dict[str, str]:
    """The names of all GPUs of this machine by UUID, in the order of nvidia-smi; empty where it is not there."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = re.findall(r"^GPU \d+: (.*) \(UUID: ([\w-]+)\)", listed, re.MULTILINE)
    return {uuid: name for name, uuid in found}


def _uuid(gpu: str) -> str:
    """A name of a GPU that all processes share; "0" or a part of its UUID may be another one's in another container."""
    known = tuple(_all_gpus())
    if gpu.isdigit():
        return known[int(gpu)] if int(gpu) < len(known) else gpu
    return next((uuid for uuid in known if uuid.startswith(gpu)), gpu)


CPUINFO = Path("/proc/cpuinfo")


@cache
def emulates_bf16() -> bool:
    """Whether this processor has no instructions for products in bf16; False where nobody can tell, as beside x86."""
    try:
        flags = set(re.findall(r"\w+", CPUINFO.read_text()))
    except OSError:
        return False
    return "sse2" in flags and not flags & {"avx512_bf16", "amx_bf16"}


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
MMAP_SIZES = (2**30, 2**25)  # bytes; older C libraries refuse more than the second one


def keep_memory() -> None:
    """Have the C library keep what a training step frees for the next one, of the same size.

    glibc gives it back to the system, which hands it out again page by page, each filled with zeros: up to a fifth of a
    step of a small model, by where in the memory its tensors happen to lie. Nothing is done with another C library, or
    where the user has set MALLOC_TRIM_THRESHOLD_.
    """
    if sys.platform != "linux" or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The second call would fix a threshold that was refused where it stands, which is worse than nothing
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_SIZES):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_of_workers() -> str:
    """How much memory the largest process took that this one has started and that has ended, and how much there is."""
    unit = 1 if sys.platform == "darwin" else 1024
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"the largest worker took {largest / 2**30:.1f} GiB, and this machine has {there / 2**30:.1f}"


def uses_gpu(accelerator: str) -> bool:
    """Whether a run would be on a GPU of CUDA, told without torch."""
    return accelerator not in ("cpu", "mps") and bool(gpus())


def trains_on(accelerator: str) -> str:
    """The name of the device that a run would be on, told without torch."""
    if not uses_gpu(accelerator):
        return processor()
    return _all_gpus().get(_uuid(gpus()[0]), gpus()[0])


def places(accelerator: str, per_gpu: int) -> int:
    """How many runs go on at once: one for each core, or where there are GPUs `per_gpu` for each of them.

    A Mac has one GPU (mps).
    """
    if accelerator == "mps":
        return per_gpu
    return len(gpus()) * per_gpu if uses_gpu(accelerator) else cores()


def how_to_share(accelerator: str, per_gpu: int) -> str | None:
    """What lets several runs compute on a GPU at the same time, for who is to run them; None where nothing is to do."""
    if per_gpu == 1 or not uses_gpu(accelerator):
        return None
    if (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists():
        return None
    control = "nvidia-cuda-mps-control"
    return (
        f"runtime.per_gpu={per_gpu}: without NVIDIA's MPS the runs on a GPU take turns on it; before: `{control} -d`, "
        f"and to end it: `echo quit | {control}`"
    )


def lacks_place(accelerator: str) -> bool:
    """Whether this process would compute on a GPU on which it has no place."""
    return uses_gpu(accelerator) and not _held


def take(accelerator: str, per_gpu: int) -> str | None:
    """Wait for a place on a GPU, make it the only one that this process sees, and return it; None where none is used.

    It has an effect before CUDA starts.
    """
    if not uses_gpu(accelerator):
        return None
    if _held:
        return os.environ["CUDA_VISIBLE_DEVICES"]
    folder = locks.own_folder("gpus")
    told = False
    while True:
        for place in range(per_gpu):
            for gpu in gpus():
                lock = locks.take(folder / f"{_uuid(gpu)}.{place}.lock")
                if lock is None:
                    continue
                _held.append(lock)
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return gpu
        if not told:
            print(f"all places on GPUs {', '.join(gpus())} are taken; waiting for one", file=sys.stderr)
            told = True
        time.sleep(0.5)


def started_together() -> tuple[str, int]:
    """How many processes somebody has started as one run, and the variable that says so."""
    names = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # of torchrun, and of srun, within whose task torchrun may be
    return next(((name, int(os.environ[name])) for name in names if name in os.environ), ("", 1))


def tasks_of_srun() -> int:
    """How many processes srun has started as one step; a shell within a job is one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def rank() -> int:
    """The place of this process among those that train one run together, whoever started them; 0 is the first."""
    by_srun = tasks_of_srun() > 1  # a shell within a job has a SLURM_PROCID too
    variables = ("RANK", "SLURM_PROCID", "LOCAL_RANK") if by_srun else ("RANK", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in variables if name in os.environ), 0)
