"""torch.compile in a run: the one file that looks into how torch does it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

_cell: list[str | None] = []  # of the networks whose code this process has


@contextmanager
def compiling(net: nn.Module, wanted: bool, cell: str | None = None, *, graph: bool = False) -> Iterator[None]:
    """Within, a network is compiled where that is wanted; afterwards it is as it was.

    What this process has compiled for another cell is forgotten: all runs share the code of one forward, of which torch
    compiles eight variants and runs the ninth uncompiled. The seeds of one cell share one variant.

    Args:
        cell: tells which networks are alike but for their weights; None: this one is like no other.
        graph: forward and backward are CUDA graphs, as torch's inductor makes them.
    """
    if not wanted:
        yield
        return
    if cell is None or _cell != [cell]:
        torch.compiler.reset()
    _cell[:] = [cell]
    net.compile(mode="reduce-overhead" if graph else None)
    try:
        yield
    finally:
        net._compiled_call_impl = None


def why_not_compiled(error: BaseException) -> str | None:
    """The reason in a line where torch could not compile; None where the error is another one."""
    if not isinstance(error, TorchDynamoException):
        return None
    cause = getattr(error, "inner_exception", error)  # what the compiler raised, without who called it
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:200]
