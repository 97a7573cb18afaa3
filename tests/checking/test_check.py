"""The conformance check: every mixer of the package passes, and every broken one fails in the right place."""

import re

import pytest
import torch
from conftest import MIXERS, compose
from timm.layers import DropPath
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from metaformer import check
from metaformer.check import assert_mixer
from metaformer.checking import behaviour
from metaformer.checking.checklist import CHECKS, FIRST, check_mixer
from metaformer.checking.contract import Case
from metaformer.mixers import AsTokens, Attention, DepthwiseConv, Pooling, SpatialMLP
from metaformer.mixers.factory import from_config
from metaformer.mixers.layout import to_map, to_tokens

QUICK = {"dim": 32, "resolution": (6, 8)}


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_of_the_package_passes(name):
    findings = check_mixer(from_config(compose(f"mixer={name}").mixer, 1)[0], **QUICK)
    assert len(findings) == len(FIRST) + len(CHECKS)
    assert [f for f in findings if f.status == "fail"] == []


class Shape(nn.Module):
    def forward(self, x):
        return x[..., 1:]


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


class Half(nn.Module):
    def forward(self, x):
        return x.half()


class Nan(nn.Module):
    def forward(self, x):
        return (x - x.abs()).log()


class Greedy(nn.Module):
    def __init__(self, dim, **kwargs):
        super().__init__()

    def forward(self, x):
        return x.roll(1, 3)


class Writes(nn.Module):
    def forward(self, x):
        x.mul_(0.5)
        return x.roll(1, 3)


class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.roll(1, 3) * self.calls


class Noisy(nn.Module):
    def forward(self, x):
        return x.roll(1, 3) + torch.randn_like(x)


class AcrossTheBatch(nn.Module):
    def forward(self, x):
        return x.roll(1, 3) - x.mean(0, keepdim=True)


class Detached(nn.Module):
    def forward(self, x):
        return x.roll(1, 3).detach()


class Unused(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x.roll(1, 3) * self.used


class NoInputGradient(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x):
        return x.detach().roll(1, 3) * self.weight


class Hidden(nn.Module):
    """A random weight in a closure: neither in the state_dict nor moved."""

    def __init__(self, dim):
        super().__init__()
        weight = torch.randn(dim, 1, 1)
        self.mix = lambda x: x.roll(1, 3) * weight.to(x)

    def forward(self, x):
        return self.mix(x)


class Plain(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weights = [torch.ones(dim, 1, 1)]

    def forward(self, x):
        return x.roll(1, 3) * self.weights[0]


class OnTheCpu(nn.Module):
    def forward(self, x):
        return x.roll(1, 3) + torch.ones(x.shape[-1], device="cpu")


class SingleOnly(nn.Module):
    def forward(self, x):
        return x.float().roll(1, 3) if x.dtype == torch.float64 else x.roll(1, 3)


class Delicate(nn.Module):
    """Loses what is small beside what is large, in bf16."""

    def forward(self, x):
        return (x.roll(1, 3) + 1000) - 1000


class ByMemory(nn.Module):
    def forward(self, x):
        rows = x.as_strided(x.shape, torch.empty(x.shape).stride())
        return rows.roll(1, 3) if x.is_contiguous() else rows.roll(1, 2)


class WeightByMemory(nn.Module):
    """What breaks a model alone, which puts every weight of four axes into channels_last."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, 3, 3, 2))

    def forward(self, x):
        return x.roll(1, 3) * torch.view_as_complex(self.weight).real.sum()


class OneSize(nn.Module):
    def forward(self, x):
        return torch.zeros(3, 2)[:, :1].sum() + x.roll(1, 3) if x.shape[3] != 5 else x @ x


class SilentlyBound(nn.Module):
    def __init__(self, resolution):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(resolution))

    def forward(self, x):
        return x.roll(1, 3) + self.bias


class Loud(nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x.double()).real.to(x.dtype)


class StateInTraining(nn.Module):
    last = 0.0

    def forward(self, x):
        y = x.roll(1, 3) + (self.last if self.training else 0.0)
        self.last = x.mean().detach()
        return y


class Cache(nn.Module):
    """Made at the first call, and left behind by .to()."""

    def __init__(self):
        super().__init__()
        self.tables = {}

    def forward(self, x):
        table = self.tables.setdefault(x.shape[-1], torch.linspace(0, 1, x.shape[-1]))
        return x.roll(1, 3) * table


class ZeroByMemory(nn.Module):
    """As ByMemory, behind a projection that is zero at the start."""

    def __init__(self, dim):
        super().__init__()
        self.inner, self.proj = ByMemory(), nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x):
        return self.proj(self.inner(x))


class ZeroDelicate(ZeroByMemory):
    def __init__(self, dim):
        super().__init__(dim)
        self.inner = Delicate()


class Unpacks(nn.Module):
    def forward(self, x):
        if x.shape[3] == 5:
            _, _ = x.shape
        return x.roll(1, 3)


BROKEN = {
    **{"output": [Shape, Tuple, Half, Nan], "options": [Greedy], "input untouched": [Writes]},
    **{"no state": [Counts, Noisy, StateInTraining], "batch independence": [AcrossTheBatch], "state dict": [Hidden]},
    **{"gradient": [Detached, Unused, NoInputGradient], "moving": [Plain, OnTheCpu, Cache], "scale": [Loud]},
    **{
        "precision": [SingleOnly, Delicate, ZeroDelicate],
        "memory format": [ByMemory, WeightByMemory, ZeroByMemory],
        "sizes": [OneSize, SilentlyBound, Unpacks],
    },
}


@pytest.mark.parametrize(("name", "mixer"), [(name, mixer) for name, of in BROKEN.items() for mixer in of])
def test_a_broken_mixer_fails_in_the_right_place(name, mixer):
    with pytest.raises(AssertionError, match=f"(?m)^{name}: "):
        assert_mixer(mixer, **QUICK)


class Cell(nn.Module):
    """Nothing that is wrong, and much that its author should know."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.drop, self.conv = nn.BatchNorm2d(dim), nn.Dropout(0.1), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        print("training" if x.sum().item() > 0 else "", end="")
        return self.drop(self.conv(self.norm(x))).contiguous().cumsum(1)


def test_what_is_no_offence_is_a_note():
    found = {f.check: f for f in check_mixer(Cell, **QUICK)}
    assert {name for name, f in found.items() if f.status == "note"} >= {
        *("no state", "batch independence", "moving", "memory format", "token mixing"),
        *("cost", "compiling", "exporting"),
    }
    assert "aten._local_scalar_dense" in found["cost"].reason
    assert found["channel mixing"].reason == "an output channel depends on 31 others"


class Recurrent(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.rnn = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, x):
        return to_map(self.rnn(to_tokens(x))[0], like=x)


class Normed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(dim, dim, 3, padding=1))

    def forward(self, x):
        return self.conv(x)


class Drops(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.drop, self.conv = DropPath(0.5), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x):
        return self.drop(self.conv(x))


class Excites(nn.Module):
    """BatchNorm of what is pooled, which one image alone cannot have in training."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x):
        return x.roll(1, 3) * self.norm(x.mean((2, 3))).sigmoid()[..., None, None]


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(0.01))

    def forward(self, x):
        return x.roll(1, 3) * self.tau.sqrt()


class Halves(nn.Module):
    """A share of the channels is convolved together, the others apart."""

    def __init__(self, dim):
        super().__init__()
        self.apart, self.together = (nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=g) for g in (dim // 2, 1))

    def forward(self, x):
        apart, together = x.chunk(2, 1)
        return torch.cat([self.apart(apart), self.together(together)], 1)


class Rolls(nn.Module):
    def forward(self, x):
        return x.roll(1, 3)


@pytest.mark.parametrize("mixer", [Recurrent, Normed, Drops, Excites, Temperature, Halves, Rolls])
def test_what_researchers_write_keeps_the_contract(mixer):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert_mixer(mixer, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)  # the numbers of whoever calls it are left alone


def found(mixer) -> dict[str, str]:
    return {f.check: f.reason for f in check_mixer(mixer, **QUICK)}


def test_what_is_said_of_what_a_mixer_does():
    assert found(Rolls)["token mixing"] == "moves tokens: an output depends on one token in another place"
    assert found(Rolls)["options"] == "it has none"
    assert found(Halves)["channel mixing"] == "an output channel depends on 0 to 15 others"
    assert found(DepthwiseConv)["translation"] == "equivariant, but for the border"
    assert found(lambda resolution: SpatialMLP(resolution))["translation"].startswith("not equivariant")
    assert found(Drops)["no state"] == "random in training only, as dropout is"
    assert found(Drops)["batch independence"] == "an image's output is its own"
    assert "a weak branch (below 0.1)" in found(Attention)["scale"]
    said = re.findall(r"([\d.e+]+)x the (?:time|memory)|([\d.e+]+)x the memory of", found(Pooling)["speed"])
    assert len(said) == 4


def test_the_memory_of_a_mixer_is_that_of_what_it_keeps():
    assert behaviour._kept(Case(Pooling, *QUICK.values())) == 4 * 8 * 32 * 48  # its input


def test_how_far_a_mixer_reaches():
    found = {f.check: f.reason for f in check_mixer(lambda: Pooling(5), **QUICK)}
    assert found["token mixing"] == "the token in the middle depends on 25 of 48, within 5x5"
    assert found["channel mixing"] == "channels stay apart"
    assert found["cost"] == f"0 parameters, {32 * 48 * 25:,} MACs"
    found = {f.check: f.reason for f in check_mixer(Attention, **QUICK)}
    assert found["token mixing"] == "the token in the middle depends on 48 of 48, within 6x8"
    assert found["translation"] == "equivariant"


class OfTokens(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x):
        assert x.ndim == 3
        return x.roll(1, 1)


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("of anything")


def test_a_layer_of_tokens_is_told_how_to_become_a_mixer():
    (only,) = check_mixer(OfTokens, **QUICK)
    assert only.status == "fail"
    layer = f"{OfTokens.__module__}.OfTokens"
    assert only.reason.endswith(f"; it takes [B, N, C]: metaformer.mixers.AsTokens layer={layer} is a mixer")
    assert_mixer(AsTokens, layer=OfTokens, **QUICK)
    (other,) = check_mixer(Fails, **QUICK)
    assert other.reason == "RuntimeError: of anything"


class Weak(nn.Module):
    """A skip path, and a branch with a LayerScale that starts at next to nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.scale = nn.Parameter(1e-6 * torch.ones(dim, 1, 1))

    def forward(self, x):
        return x + self.scale * self.conv(x)


def test_a_branch_that_starts_at_next_to_nothing_is_seen():
    assert "depends on 9 of" in found(Weak)["token mixing"]


def test_the_command(cli, tmp_path):
    (tmp_path / "my_mixer.py").write_text(
        "import torch\n"
        "class Good(torch.nn.Module):\n"
        "    def __init__(self, step: int = 1):\n        super().__init__()\n        self.step = step\n"
        "    def forward(self, x): return x.roll(self.step, 3)\n"
        "class Bad(torch.nn.Module):\n    def forward(self, x): return x[:1]\n"
    )
    done = cli("check", "my_mixer.Good", "dim=32", "resolution=5x6", "step=2")
    assert done.returncode == 0, done.stderr
    assert "my_mixer.Good: keeps the contract" in done.stdout
    assert re.search(r"output +pass +\[3, 32, 5, 6\]", done.stdout)
    done = cli("check", "pooling", "--dim", "32", "--resolution", "5x6", "pool_size=5")
    assert done.returncode == 0, done.stderr
    assert "pooling: keeps the contract" in done.stdout
    assert f"0 parameters, {32 * 5 * 6 * 25:,} MACs" in done.stdout
    done = cli("check", "my_mixer.Bad")
    assert done.returncode == 1
    assert "the contract wants the same shape" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("Mine stepp=2", "mixer.stepp: Mine has no such option; did you mean 'step'?"),
        ("Needs", "mixer: Needs needs heads"),
        ("NoModule", "expected a torch.nn.Module class"),
        ("Mine --resolution 7", "resolution=7: expected height x width"),
        ("Mine dim=0", "dim=0: expected a number of channels"),
        ("Mine resolution=0x4", "resolution=0x4: expected height x width"),
        ("Mine dim=8 --dim 4", "dim: expected one value"),
        ("Mine step", "step: expected option=value"),
        ("Mine step=1 step=2", "step: given 2 times"),
        ("Mine --dim wide", "dim=wide: expected a number of channels"),
        ("Mine --dimm 4", "--dimm: expected key=value or a mixer; did you mean 'dim='?"),
    ],
)
def test_a_bad_request_gets_one_line(words, message, refusal, monkeypatch):
    mine = type("Mine", (nn.Module,), {"__init__": lambda self, step=1: None})
    needs = type("Needs", (nn.Module,), {"__init__": lambda self, dim, heads: None})
    for name, kind in {"Mine": mine, "Needs": needs, "NoModule": object}.items():
        monkeypatch.setattr(torch, name, kind, raising=False)
    assert message in refusal(check, *f"torch.{words}".split())


def test_a_mixer_has_to_be_named(refusal):
    assert "no mixer: expected mixer=my_mixer.Shift [dim=64]" in refusal(check)
    assert "Shift: expected option=value" in refusal(check, "mixer=pooling", "Shift")
    assert "mixer=poling: no such choice; expected one of pooling" in refusal(check, "poling")
