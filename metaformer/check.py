"""Does a mixer keep the contract, and what does it do? A table of pass, fail and note, with a reason for each.

    python -m metaformer.check my_mixer.Shift [--dim 64] [--resolution 14x14] [option=value ...]

It leaves with 1 where a check failed, so that it can stand in a CI. In tests of your own:

    from metaformer.check import assert_mixer
    def test_shift(): assert_mixer(Shift, step=2)
"""

import argparse
import inspect
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from metaformer.config import answer
from metaformer.factory import MixerFactory, build, from_config
from metaformer.mixers import Attention, Pooling
from metaformer.schema import ConfigError
from metaformer.seeds import seeded

Size = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """What one check found; status is pass, fail, or note: to be known, and no offence."""

    check: str
    status: str
    reason: str


class Broken(Exception):
    """The contract is not kept."""


class Note(Exception):
    """Something that its author should know."""


@dataclass(frozen=True)
class Case:
    """A mixer to be checked, at one width and resolution."""

    factory: MixerFactory
    dim: int
    resolution: Size

    def make(self, resolution: Size | None = None, seed: int = 0) -> nn.Module:
        """The mixer as the model builds it, in evaluation mode."""
        with seeded(seed, "mixer"):
            return build(self.factory, self.dim, resolution or self.resolution).eval()

    def trained(self) -> nn.Module:
        """The same with its weights moved a little: what is zero at the start says nothing of what it can do."""
        mixer = self.make()
        with seeded(1, "weights"), torch.no_grad():
            for p in mixer.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p), alpha=0.1)
        return mixer

    def input(self, resolution: Size | None = None, batch: int = 3, seed: int = 0) -> Tensor:
        with seeded(seed, "input"):
            x = torch.randn(batch, self.dim, *(resolution or self.resolution))
        return x.to(memory_format=torch.channels_last)


# ------------------------------------------------------------------ what every mixer has to do


def output(case: Case) -> str:
    x = case.input()
    y = case.make()(x)
    if not isinstance(y, Tensor):
        raise Broken(f"returns {type(y).__name__}; the contract wants one tensor")
    if y.shape != x.shape:
        raise Broken(f"returns {_shape(y)} for {_shape(x)}; the contract wants the same shape")
    if y.dtype != x.dtype or y.device != x.device:
        raise Broken(f"returns {y.dtype} on {y.device} for {x.dtype} on {x.device}; the contract wants the same")
    if not y.isfinite().all():
        raise Broken("returns NaN or infinity for normal numbers; the contract wants finite values")
    return f"{_shape(x)}, {y.dtype}".replace("torch.", "")


def options(case: Case) -> str:
    target = getattr(case.factory, "func", case.factory)
    parameters = inspect.signature(target).parameters.values()
    variadic = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if variadic:
        raise Broken(f"the constructor takes {variadic[0]}, and with it a misspelt option; name every option")
    own = [p.name for p in parameters if p.name not in ("dim", "resolution")]
    return ", ".join(own) or "it has none"


def input_untouched(case: Case) -> str:
    x = case.input()
    before = x.clone()
    with torch.no_grad():
        case.make()(x)
    if not torch.equal(x, before):
        raise Broken("writes to its input, which the skip path still needs; work on a new tensor")
    return "not written to"


def no_state(case: Case) -> str:
    mixer, x = case.make(), case.input()
    with torch.no_grad():
        first = mixer(x)
        mixer(case.input(seed=1))
        if not torch.equal(mixer(x), first):
            raise Broken(
                "the same input gives another output at a later call; the contract wants no state and no noise"
            )
        mixer.train()
        differs = not torch.equal(mixer(x), mixer(x))
        mixer.eval()
        if not torch.equal(mixer(x), first):
            raise Note("training changes what evaluation gives, weights left alone: it keeps running statistics")
    if differs:
        raise Note("random in training only, as dropout is")
    return "same input, same output"


def batch_independence(case: Case) -> str:
    mixer, x = case.trained(), case.input()
    for training in (False, True):
        mixer.train(training)
        torch.manual_seed(0)
        together, alone = mixer(x), []
        for i in range(len(x)):
            torch.manual_seed(0)
            alone.append(mixer(x[i : i + 1]))
        if _error(torch.cat(alone), together) > 1e-4:
            where = "in training, an" if training else "an"
            found = f"{where} image's output depends on the rest of its batch"
            raise (Note if training else Broken)(found)
    return "an image's output is its own"


def gradient(case: Case) -> str:
    mixer, x = case.trained().train(), case.input().requires_grad_()
    y = mixer(x)
    if not y.requires_grad:
        raise Broken("the output has no gradient: something is detached")
    y.backward(case.input(seed=2))
    for name, p in mixer.named_parameters():
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0):
            raise Broken(f"no gradient reaches {name}; use it, or set requires_grad=False")
    if x.grad is None or not x.grad.abs().sum() > 0:
        raise Broken("no gradient reaches the input")
    trained = sum(p.requires_grad for p in mixer.parameters())
    return f"reaches the input and {trained} parameters"


def state_dict(case: Case) -> str:
    one, other, x = case.trained(), case.make(seed=1), case.input()
    other.load_state_dict(one.state_dict())
    if not torch.equal(other(x), one(x)):
        raise Broken("a copy with the same state_dict gives another output: a weight is not registered with the module")
    return "a copy gives the same output"


def moving(case: Case) -> str:
    for name, module in case.make().named_modules():
        for key, value in vars(module).items():
            inside = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(tensor, Tensor) for tensor in inside):
                place = ".".join(filter(None, (name, key)))
                raise Broken(f"{place} is a plain tensor, which .to() leaves behind; make it a parameter or a buffer")
    try:
        case.make().to("meta")(case.input().to("meta"))
    except Exception as error:
        if "device" in str(error):
            raise Broken(f"on another device: {_line(error)}; make tensors on that of the input") from error
        raise Note(f"does not run without data: {_line(error)}") from error
    return "follows .to()"


def precision(case: Case) -> str:
    x = case.input()
    single, double = case.make()(x), case.make().double()(x.double())
    if double.dtype != torch.float64:
        raise Broken(f"returns {double.dtype} for float64".replace("torch.", ""))
    if _error(single.double(), double) > 1e-3:
        raise Broken(f"float32 and float64 differ by {_error(single.double(), double):.1%}")
    with torch.autocast("cpu", torch.bfloat16):
        half = case.make()(x.bfloat16())
    error = _error(half.double(), double)
    if not error < 0.1:  # NaN is not either
        raise Broken(f"bf16 autocast is off by {error:.1%}; compute what is delicate in fp32")
    return f"float64; bf16 autocast within {error:.1%}"


def memory_format(case: Case) -> str:
    mixer, x = case.make(), case.input()
    expected = mixer(x.contiguous())
    y = mixer.to(memory_format=torch.channels_last)(x)  # as a model does with all that is in it
    if _error(expected, y) > 1e-4:
        raise Broken("NCHW memory gives another output than channels_last: a view goes by the memory, not the shape")
    if not y.is_contiguous(memory_format=torch.channels_last):
        raise Note("channels_last goes in and not out: every block then pays for a hidden copy")
    return "channels_last in and out"


def sizes(case: Case) -> str:
    height, width = case.resolution
    bound = []
    for size in ((7, 5), (height, width + 3), (1, 1)):
        for batch in (1, 2):
            try:
                y = case.make(size)(case.input(size, batch))
            except ValueError as error:
                bound.append(f"{size[0]}x{size[1]}: {_line(error)}")
                break
            except Exception as error:
                raise Broken(f"{_tokens(size)}, batch {batch}: {_line(error)}; refuse it by a ValueError") from error
            if y.shape != (batch, case.dim, *size) or not y.isfinite().all():
                raise Broken(f"{_tokens(size)}, batch {batch}: {_shape(y)}, finite: {bool(y.isfinite().all())}")
    other = (height + 2, width + 1)
    try:
        case.make()(case.input(other))
    except ValueError as error:
        bound.append(_line(error))
    except Exception as error:
        raise Broken(f"built for {_tokens(case.resolution)} and given {_tokens(other)}: {_line(error)}; refuse it by a "
                     "ValueError that says both sizes") from error  # fmt: skip
    if bound:
        raise Note("; ".join(bound))
    return "1x1, odd, not square, batch 1, other than built for"


# ------------------------------------------------------------------ what it does


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
    rows, columns = reached.any(1).nonzero(), reached.any(0).nonzero()
    count, total = int(reached.sum()), reached.numel()
    if count <= 1:
        raise Note("mixes no tokens: an output depends on the token in its place only")
    extent = f"{int(rows.max() - rows.min()) + 1}x{int(columns.max() - columns.min()) + 1}"
    return f"the token in the middle depends on {count} of {total}, within {extent}"


def channel_mixing(case: Case) -> str:
    x = case.input(batch=16).requires_grad_()
    height, width = case.resolution
    case.trained()(x)[:, 0, height // 2, width // 2].sum().backward()
    assert x.grad is not None
    reach = x.grad.abs().sum((0, 2, 3))
    others = int((reach[1:] > 1e-6 * reach.max()).sum())
    return f"an output channel depends on {others} others" if others else "channels stay apart"


def translation(case: Case) -> str:
    mixer, x = case.trained(), case.input()
    with torch.no_grad():
        error = _error(mixer(x.roll((1, 1), (2, 3))), mixer(x).roll((1, 1), (2, 3)))
    return "equivariant" if error < 1e-5 else f"not equivariant to a cyclic shift by one token: {error:.1%} of the norm"


def cost(case: Case) -> str:
    from metaformer.cost import count

    found = count(case.make(), (case.dim, *case.resolution))
    if found.macs is None:
        raise Note(f"{found.params:,} parameters; MACs: no formula for {', '.join(found.uncounted)}")
    return f"{found.params:,} parameters, {found.macs:,} MACs"


def speed(case: Case) -> str:
    others: dict[str, MixerFactory] = {"pooling": Pooling, "attention": _attention}
    mine, words = _spent(case), []
    for name, factory in others.items():
        seconds, kept = (a / b for a, b in zip(mine, _spent(Case(factory, case.dim, case.resolution)), strict=True))
        words.append(f"{seconds:.2g}x the time and {kept:.2g}x the memory of {name}")
    return "forward and backward: " + ", ".join(words)


def compiling(case: Case) -> str:
    torch._dynamo.reset()
    found = torch._dynamo.explain(case.make())(case.input())
    if found.graph_break_count > 0:
        reason = str(found.break_reasons[0].reason).strip().splitlines()[0]
        raise Note(f"torch.compile breaks the graph {found.graph_break_count} times: {reason}")
    return "one graph"


def exporting(case: Case) -> str:
    try:
        torch.export.export(case.make(), (case.input(),))
    except Exception as error:
        raise Note(f"torch.export: {_line(error)}") from error
    return "torch.export works"


FIRST: tuple[Callable[[Case], str], ...] = (output,)  # without these the others mean nothing
CHECKS: tuple[Callable[[Case], str], ...] = (
    *(options, input_untouched, no_state, batch_independence, gradient, state_dict, moving, precision),
    *(memory_format, sizes, scale, token_mixing, channel_mixing, translation, cost, speed, compiling, exporting),
)


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


def check_mixer(factory: MixerFactory, dim: int = 64, resolution: Size = (14, 14)) -> list[Finding]:
    """Every check of a mixer: a class, or a `functools.partial` of one with its options."""
    case, findings = Case(factory, dim, resolution), []
    for check in (*FIRST, *CHECKS):
        name, status = check.__name__.replace("_", " "), "pass"
        try:
            with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                warnings.simplefilter("ignore")
                reason = check(case)
        except (Broken, Note) as found:
            status, reason = "note" if isinstance(found, Note) else "fail", str(found)
        except Exception as error:
            status, reason = "fail", _line(error)
        findings.append(Finding(name, status, reason))
        if status == "fail" and check in FIRST:
            break
    return findings


def assert_mixer(mixer: type[nn.Module], *, dim: int = 64, resolution: Size = (14, 14), **options: Any) -> None:
    """For a test: an AssertionError with every check that `mixer` fails, one a line."""
    from functools import partial

    failed = [f for f in check_mixer(partial(mixer, **options), dim, resolution) if f.status == "fail"]
    assert not failed, "\n".join(f"{f.check}: {f.reason}" for f in failed)


def _spent(case: Case, rounds: int = 5) -> tuple[float, float]:
    """Seconds of the best forward and backward pass on 8 images, and bytes kept between the two."""
    from metaformer.cost import kept

    mixer, x = case.make().train(), case.input(batch=8).requires_grad_()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        mixer(x).sum().backward()
        times.append(time.perf_counter() - started)
    return min(times), kept(mixer, x) + x.numel() * x.element_size()


def _attention(dim: int) -> nn.Module:
    return Attention(dim, head_dim=math.gcd(dim, 32))


def _error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _tokens(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"


# ------------------------------------------------------------------ the command


def command(arguments: Sequence[str]) -> None:
    """Check the mixer that the command line names, show the table, leave with 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m metaformer.check", add_help=False)
    parser.add_argument("mixer")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--resolution", default="14x14")
    parser.add_argument("options", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    factory = from_config({"_target_": given.mixer, **_options(given.options)}, 1)[0]
    if given.dim < 1:
        raise ConfigError(f"--dim {given.dim}: expected a number of channels")
    findings = check_mixer(factory, given.dim, _resolution(given.resolution))
    _show(findings)
    failed = [f.check for f in findings if f.status == "fail"]
    print(f"{given.mixer}: " + (f"fails {', '.join(failed)}" if failed else "keeps the contract"))
    if failed:
        raise SystemExit(1)


def _options(words: Sequence[str]) -> Mapping[str, Any]:
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word}: expected option=value")
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


def _resolution(text: str) -> Size:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"--resolution {text}: expected height x width in tokens, like 14x14")
    return int(height), int(width)


def _show(findings: Sequence[Finding]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "", "reason", box=SIMPLE_HEAD)
    colours = {"pass": "green", "fail": "bold red", "note": "yellow"}
    for f in findings:
        table.add_row(f.check, f"[{colours[f.status]}]{f.status}[/]", f.reason.replace("[", "\\["))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
