"""How a network computes: on which device, with how many bits, deterministically, and whether it fits there."""

import os
import timeit
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Said in other errors: of a processor, of cuBLAS, and outside of torch's allocator
NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """As Lightning has it for `recipe.precision`."""
    return torch.autocast(device.type, HALVES.get(precision), enabled=precision in HALVES)


def device_of(accelerator: str) -> torch.device:
    """Where Lightning trains with `runtime.accelerator`, as far as that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return torch.device(next((name for name, is_there in there.items() if is_there and accelerator != "cpu"), "cpu"))


def set_tf32(wanted: bool) -> None:
    """Products and convolutions of a GPU alike: cuDNN has a switch of its own, which is on, and mixers would differ."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted


def keep_unwritten() -> None:
    """In deterministic mode torch would fill each new tensor with NaN before an op writes it: a kernel for each."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or this machine, was too small."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


@contextmanager
def deterministic() -> Iterator[None]:
    """Within, torch computes as in a run, whose Trainer is deterministic: some ops of a GPU take longer."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True)
    keep_unwritten()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def bf16_factor() -> float:
    """How many times as long as in fp32 this processor takes in bf16 for a product of matrices, as in a small MLP."""

    def seconds(dtype: torch.dtype) -> float:
        tokens, weights = torch.ones(256, 96, dtype=dtype), torch.ones(96, 384, dtype=dtype)
        return min(timeit.repeat(lambda: tokens @ weights, number=1, repeat=5))

    return seconds(torch.bfloat16) / seconds(torch.float32)
