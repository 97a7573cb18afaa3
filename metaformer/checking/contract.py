"""What every mixer has to do, a function for each demand: it returns what it found, or raises Broken or Note."""

import inspect
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaformer.mixers.factory import MixerFactory, build
from metaformer.mixers.layout import to_tokens
from metaformer.system.seeds import seeded

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
        """The same with its weights moved a little: what is zero at the start says nothing of what it can do.

        By a tenth, in the direction that they have, so that what has to be positive stays so. What is next to nothing
        as a whole, like a LayerScale of 1e-6, becomes a tenth, or nobody would see the branch that it scales.
        """
        mixer = self.make()
        with torch.no_grad():
            mixer(self.input(batch=1))  # whatever is made at the first call is there
            with seeded(1, "weights"):
                for p in mixer.parameters():
                    if p.requires_grad:
                        if 0 < (largest := float(p.abs().max())) < 1e-3:
                            p.mul_(0.1 / largest)
                        p.copy_(torch.where(p == 0, 0.1 * torch.randn_like(p), p * (1 + 0.1 * torch.rand_like(p))))
        return mixer

    def input(self, resolution: Size | None = None, batch: int = 3, seed: int = 0) -> Tensor:
        with seeded(seed, "input"):
            x = torch.randn(batch, self.dim, *(resolution or self.resolution))
        return x.to(memory_format=torch.channels_last)


def output(case: Case) -> str:
    mixer, x = case.make(), case.input()
    try:
        y = mixer(x)
    except Exception as error:
        raise Broken(line(error) + _of_tokens(case)) from error
    if not isinstance(y, Tensor):
        raise Broken(f"returns {type(y).__name__}; the contract wants one tensor")
    if y.shape != x.shape:
        raise Broken(f"returns {shape(y)} for {shape(x)}; the contract wants the same shape")
    if y.dtype != x.dtype or y.device != x.device:
        raise Broken(f"returns {y.dtype} on {y.device} for {x.dtype} on {x.device}; the contract wants the same")
    if not y.isfinite().all():
        raise Broken("returns NaN or infinity for normal numbers; the contract wants finite values")
    return f"{shape(x)}, {y.dtype}".replace("torch.", "")


def _of_tokens(case: Case) -> str:
    """How a layer that takes tokens becomes a mixer, where it does take them."""
    target, x = getattr(case.factory, "func", case.factory), to_tokens(case.input())
    try:
        kept = case.make()(x).shape == x.shape
    except Exception:
        return ""
    layer = f"{target.__module__}.{target.__qualname__}"
    return f"; it takes [B, N, C]: metaformer.mixers.AsTokens layer={layer} is a mixer" if kept else ""


def options(case: Case) -> str:
    target = getattr(case.factory, "func", case.factory)
    if getattr(target, "__init__", None) is nn.Module.__init__:
        return "it has none"
    parameters = inspect.signature(target).parameters.values()
    variadic = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if variadic:
        raise Broken(f"the constructor takes {variadic[0]}, whose words nobody can check; name every option")
    own = [p.name for p in parameters if p.name not in ("dim", "resolution")]
    return ", ".join(own) or "it has none"


def input_untouched(case: Case) -> str:
    x = case.input()
    before = x.clone()
    with torch.no_grad():
        case.make()(x)
    if not torch.equal(x, before):
        raise Broken("writes to its input, which the skip path needs where there is no norm; work on a new tensor")
    return "not written to"


def no_state(case: Case) -> str:
    mixer, x, other = case.make(), case.input(), case.input(seed=1)
    with torch.no_grad():
        first = mixer(x)
        mixer(other)
        if not torch.equal(mixer(x), first):
            raise Broken(
                "the same input gives another output at a later call; the contract wants no state and no noise"
            )
        mixer.train()
        before, _, after = (_drawn(mixer, given) for given in (x, other, x))
        random = not torch.equal(_drawn(mixer, x, seed=1), after)
        mixer.eval()
        if not torch.equal(mixer(x), first):
            raise Note("training changes what evaluation gives, weights left alone: it keeps running statistics")
    if not torch.equal(before, after):
        raise Broken("in training, an output depends on the calls before it; the contract wants no state")
    if random:
        raise Note("random in training only, as dropout is")
    return "same input, same output"


def batch_independence(case: Case) -> str:
    """By other images beside the first: a batch of another size would draw other random numbers."""
    mixer, x = case.trained(), case.input()
    beside = torch.cat([x[:1], case.input(seed=1)[1:]])
    for training in (False, True):
        mixer.train(training)
        with torch.no_grad():
            one, other = (_drawn(mixer, batch)[:1] for batch in (x, beside))
        if difference(one, other) > 1e-4:
            where = "in training, an" if training else "an"
            raise (Note if training else Broken)(f"{where} image's output depends on the rest of its batch")
    return "an image's output is its own"


def _drawn(mixer: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    """The output, with the random numbers of `seed` and nothing left behind in the input."""
    with seeded(seed, "draw"):
        return mixer(x.clone())


def gradient(case: Case) -> str:
    mixer, x = case.trained().train(), case.input().requires_grad_()
    for draw in range(8):  # stochastic depth may drop a branch
        with seeded(draw, "draw"):
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
    """By what it does on another device after a call on this one, which may have left tensors behind."""
    mixer = case.make()
    with torch.no_grad():
        mixer(case.input())
        try:
            mixer.to("meta")(case.input().to("meta"))
        except Exception as error:
            plain = ", ".join(_plain(mixer))
            if "device" in str(error) or plain:
                left = f"; {plain} is no parameter and no buffer" if plain else ""
                raise Broken(f"on another device: {line(error)}{left}; .to() has to bring all that it uses") from error
            raise Note(f"does not run without data: {line(error)}") from error
    return "follows .to()"


def _plain(mixer: nn.Module) -> list[str]:
    """The attributes that hold tensors which `.to()` left behind."""
    found = []
    for name, module in mixer.named_modules():
        for key, value in vars(module).items():
            inside = list(value.values()) if isinstance(value, dict) else value
            inside = inside if isinstance(inside, list | tuple) else [inside]
            if key[0] != "_" and any(isinstance(t, Tensor) and t.device.type != "meta" for t in inside):
                found.append(".".join(filter(None, (name, key))))
    return found


def precision(case: Case) -> str:
    x, mixer = case.input(), case.trained()  # not made under autocast, which keeps copies of weights as they were
    single, double = case.trained()(x), case.trained().double()(x.double())
    if double.dtype != torch.float64:
        raise Broken(f"returns {double.dtype} for float64".replace("torch.", ""))
    if difference(single.double(), double) > 1e-3:
        raise Broken(f"float32 and float64 differ by {difference(single.double(), double):.1%}")
    with torch.autocast("cpu", torch.bfloat16):
        half = mixer(x.bfloat16())
    error = difference(half.double(), double)
    if not error < 0.1:  # NaN is not either
        raise Broken(f"bf16 autocast is off by {error:.1%}; compute what is delicate in fp32")
    return f"float64; bf16 autocast within {error:.1%}"


def memory_format(case: Case) -> str:
    mixer, x = case.trained(), case.input()
    expected = mixer(x.contiguous())
    y = mixer.to(memory_format=torch.channels_last)(x)  # as a model does with all that is in it
    if difference(expected, y) > 1e-4:
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
                bound.append(_refusal(error, size))
                break
            except Exception as error:
                raise Broken(f"{tokens(size)}, batch {batch}: {line(error)}; refuse it by a ValueError") from error
            if y.shape != (batch, case.dim, *size) or not y.isfinite().all():
                raise Broken(f"{tokens(size)}, batch {batch}: {shape(y)}, finite: {bool(y.isfinite().all())}")
    other = (height + 2, width + 1)
    try:
        case.make()(case.input(other))
    except ValueError as error:
        bound.append(_refusal(error, other))
    except Exception as error:
        raise Broken(f"built for {tokens(case.resolution)} and given {tokens(other)}: {line(error)}; refuse it by a "
                     "ValueError that says both sizes") from error  # fmt: skip
    if bound:
        raise Note("; ".join(bound))
    return "1x1, odd, not square, batch 1, other than built for"


def _refusal(error: ValueError, size: Size) -> str:
    """The words with which a size is refused; those of Python about a tuple are an accident."""
    if "unpack" in str(error) or not re.search(r"\d", str(error)):
        raise Broken(f"{tokens(size)}: {line(error)}; refuse it in words that say the size") from error
    return f"{tokens(size)}: {line(error)}"


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def shape(x: Tensor) -> str:
    return str(list(x.shape))


def tokens(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
