"""A device that is too small for a batch: how much a run took, and what to do."""

import gc
import sys

import torch

from metaformer.config.schema import Config


def forget_peak() -> None:
    """Give memory back that a run before in this process had, so that others on the GPU find it, and count anew."""
    if torch.cuda.is_initialized():
        gc.collect()  # a Trainer and its parts hold each other, and the images on the GPU
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def more_parts(config: Config, parts: int, kept: int | None = None) -> int:
    """Twice as many parts of a batch that did not fit; a MemoryError where that cannot be, or nobody asked for it.

    Args:
        kept: with how many a checkpoint goes on, since others would end with other bits.
    """
    if kept is not None:
        again = "runtime.force=true begins anew"
        raise MemoryError(f"out of memory{taken(config)}; a checkpoint goes on with {kept} parts of a batch; {again}")
    batch, smallest = config.recipe.batch // config.runtime.processes, 1 + config.recipe.mixes  # Mixup pairs images
    words = f"out of memory with {batch // parts} images on a device at once ({parts} parts of a batch){taken(config)}"
    more = 2 * parts
    if batch % more or batch // more % smallest:
        raise MemoryError(f"{words}; it has no more parts of equal size")
    if config.runtime.accumulate != "auto":
        finds = ", runtime.accumulate=auto finds the least" if config.runtime.processes == 1 else ""
        raise MemoryError(f"{words}; runtime.accumulate={more} halves them{finds}")
    print(f"{words}; trying {more} parts", file=sys.stderr)
    return more


def taken(config: Config) -> str:
    """How much of a GPU this run took and how much is of others, for an error; nothing without a GPU."""
    if not torch.cuda.is_initialized():
        return ""
    free, total = torch.cuda.mem_get_info()
    sizes = torch.cuda.max_memory_reserved(), total, total - free - torch.cuda.memory_reserved()
    own, whole, others = (f"{size / 2**30:.1f}" for size in sizes)
    words = f"; it took {own} of the {whole} GiB of the GPU, of which others have {others}"
    at_once = config.runtime.per_gpu
    return words + (f": a runtime.per_gpu below {at_once} leaves it more" if at_once > 1 else "")
