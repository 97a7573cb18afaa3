"""What a mixer does, a function for each question: how it mixes, scales and costs, and what compilers make of it."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from metaformer.checking.contract import Broken, Case, Note, difference, line, tokens
from metaformer.mixers import Attention, Pooling
from metaformer.mixers.factory import MixerFactory
from metaformer.models.cost import best, count, saved_bytes
from metaformer.system.seeds import seeded


def scale(case: Case) -> str:
    x = case.input()
    ratio = float(case.make()(x).var() / x.var())
    if ratio > 10:
        raise Broken(f"variance of output over input at the start: {ratio:.3g}; above 10, blocks would multiply it")
    if ratio < 0.1:
        raise Note(f"variance of output over input at the start: {ratio:.3g}, a weak branch (below 0.1)")
    return f"variance of output over input at the start: {ratio:.2f}"


def token_mixing(case: Case) -> str:
    reached = influence(case)
    count, total = int(reached.sum()), reached.numel()
    if count == 0:
        raise Note("an output depends on no input")
    if count == 1:
        if reached[case.resolution[0] // 2, case.resolution[1] // 2]:
            raise Note("mixes no tokens: an output depends on the token in its place only")
        return "moves tokens: an output depends on one token in another place"
    return f"the token in the middle depends on {count} of {total}, within {tokens(extent(reached.float()))}"


def channel_mixing(case: Case) -> str:
    """Of every output channel, or of 16 at equal distances."""
    x = case.input(batch=16).requires_grad_()
    height, width = case.resolution
    y = case.trained()(x)[:, :, height // 2, width // 2].sum(0)
    others = []
    for channel in torch.linspace(0, case.dim - 1, min(case.dim, 16)).long().tolist():
        (found,) = torch.autograd.grad(y[channel], x, retain_graph=True)
        reach = found.abs().sum((0, 2, 3))
        others.append(int((reach > 1e-6 * reach.max()).sum() - (reach[channel] > 1e-6 * reach.max()).int()))
    least, most = min(others), max(others)
    if most == 0:
        return "channels stay apart"
    return f"an output channel depends on {most if least == most else f'{least} to {most}'} others"


def translation(case: Case) -> str:
    """On all of the map, and on its inside: zeros beyond the border make any convolution differ there."""
    mixer, x = case.trained(), case.input()
    with torch.no_grad():
        moved, still = mixer(x.roll((1, 1), (2, 3))), mixer(x).roll((1, 1), (2, 3))
    if difference(moved, still) < 1e-5:
        return "equivariant"
    reached, inside = influence(case), [slice(None), slice(None)]
    for axis, side in enumerate(case.resolution):
        at = reached.any(1 - axis).nonzero().flatten() - side // 2
        border = int(at.abs().max()) + 1
        inside.append(slice(border, side - border))
    middle = [t[tuple(inside)] for t in (moved, still)]
    if middle[0].numel() and difference(*middle) < 1e-5:
        return "equivariant, but for the border"
    return f"not equivariant to a shift by one token: {difference(moved, still):.1%} of the norm"


def cost(case: Case) -> str:
    found = count(case.make(), (case.dim, *case.resolution))
    if found.macs is None:
        raise Note(f"{found.params:,} parameters; MACs: no formula for {', '.join(found.uncounted)}")
    return f"{found.params:,} parameters, {found.macs:,} MACs"


def speed(case: Case) -> str:
    others: dict[str, MixerFactory] = {"pooling": Pooling, "attention": _attention}
    cases = [case, *(replace(case, factory=factory) for factory in others.values())]
    seconds, *theirs = best([_pass(c) for c in cases], case.input().device, rounds=20)
    memory, *kept = map(_kept, cases)
    words = [
        f"{seconds / their_seconds:.2g}x the time and {memory / their_memory:.2g}x the memory of {name}"
        for name, their_seconds, their_memory in zip(others, theirs, kept, strict=True)
    ]
    return "forward and backward: " + ", ".join(words)


def compiling(case: Case) -> str:
    torch._dynamo.reset()
    found = torch._dynamo.explain(case.make())(case.input())
    if found.graph_break_count > 0:
        told = [str(broken.reason).strip().splitlines()[0] for broken in found.break_reasons] or ["no reason given"]
        raise Note(f"torch.compile breaks the graph {found.graph_break_count} times: {told[0]}")
    return "one graph"


def exporting(case: Case) -> str:
    try:
        torch.export.export(case.make(), (case.input(),))
    except Exception as error:
        raise Note(f"torch.export: {line(error)}") from error
    return "torch.export works"


def influence(case: Case) -> Tensor:
    """Which tokens [H, W] the output in the middle depends on, by the Jacobian at 16 random inputs."""
    x = case.input(batch=16).requires_grad_()
    height, width = case.resolution
    y = case.trained()(x)[:, :, height // 2, width // 2]
    with seeded(3, "projection"):
        (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    reach = x.grad.abs().sum((0, 1))
    return reach > 1e-6 * reach.max()


def extent(reach: Tensor) -> tuple[int, int]:
    """Height and width of the box round all that is not zero, up to rounding."""
    there = reach > 1e-6 * reach.max()
    rows, columns = (there.any(axis).nonzero().flatten() for axis in (1, 0))
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def _pass(case: Case) -> Callable[[], object]:
    """A forward and backward pass on 8 images."""
    mixer, x = case.make().train(), case.input(batch=8).requires_grad_()
    return lambda: mixer(x).sum().backward()


def _kept(case: Case) -> int:
    """Bytes that a forward pass on 8 images keeps for the backward pass."""
    x = case.input(batch=8).requires_grad_()
    return max(saved_bytes(case.make().train(), x), x.numel() * x.element_size())


def _attention(dim: int) -> nn.Module:
    return Attention(dim, head_dim=math.gcd(dim, 32))
