"""torch.compile in a run: the one file that looks into how torch does it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from metaformer.system.errors import ConfigError

_cell: list[str | None] = []  # of the networks whose code this process has
# torch's mode "reduce-overhead", which goes on without graphs where it cannot have them; with the second it is an error
GRAPHS = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
SKIPPED = "skipping cudagraphs due to "


@contextmanager
def compiling(net: nn.Module, wanted: bool, cell: str | None = None, *, graph: bool = False) -> Iterator[None]:
    """Within, a network is compiled where that is wanted; afterwards it is as it was.

    What this process has compiled for another cell is forgotten: all runs share the code of one forward, of which torch
    compiles eight variants and runs the ninth uncompiled. The seeds of one cell share one variant.

    Args:
        cell: tells which networks are alike but for their weights; None: this one is like no other.
        graph: forward and backward are CUDA graphs of torch's inductor, or an error: see `refuse_without_graph`.
    """
    if not wanted:
        yield
        return
    if cell is None or _cell != [cell]:
        torch.compiler.reset()
    _cell[:] = [cell]
    net.compile(options=GRAPHS if graph else None)
    try:
        yield
    finally:
        net._compiled_call_impl = None


def why_not_compiled(error: BaseException) -> str | None:
    """The reason in a line where torch could not compile; None where the error is another one."""
    if not isinstance(error, TorchDynamoException):
        return None
    cause = getattr(error, "inner_exception", error)  # what the compiler raised, without who called it
    return f"{type(cause).__name__}: {(_lines(cause) or [''])[0]}"[:200]


def refuse_without_graph(error: BaseException) -> None:
    """A ConfigError where torch could not make the CUDA graphs that it was asked for, with the line that it names."""
    cause = getattr(error, "inner_exception", error)
    if SKIPPED not in str(cause):
        return
    first, *rest = _lines(cause)
    reason = first.split(SKIPPED)[-1].split(". Found from")[0]
    raise ConfigError(
        f"runtime.graph=true: torch makes no CUDA graph of this network ({': '.join([reason, *rest[-1:]])[:200]}); "
        "without it the network is compiled"
    ) from error


def _lines(cause: BaseException) -> list[str]:
    return [line.strip() for line in str(cause).splitlines() if line.strip()]
