"""The conformance check: every mixer of the package passes, and every broken one fails in the right place."""

import re

import pytest
import torch
from conftest import MIXERS, compose
from torch import nn

from metaformer import check
from metaformer.check import CHECKS, FIRST, assert_mixer, check_mixer
from metaformer.factory import from_config
from metaformer.mixers import Attention, Pooling

QUICK = {"dim": 32, "resolution": (6, 8)}


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_of_the_package_passes(name):
    findings = check_mixer(from_config(compose(f"mixer={name}")["mixer"], 1)[0], **QUICK)
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


BROKEN = {
    **{"output": [Shape, Tuple, Half, Nan], "options": [Greedy], "input untouched": [Writes]},
    **{"no state": [Counts, Noisy], "batch independence": [AcrossTheBatch], "state dict": [Hidden]},
    **{"gradient": [Detached, Unused, NoInputGradient], "moving": [Plain, OnTheCpu], "scale": [Loud]},
    **{
        "precision": [SingleOnly, Delicate],
        "memory format": [ByMemory, WeightByMemory],
        "sizes": [OneSize, SilentlyBound],
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
    assert "aten.cumsum" in found["cost"].reason
    assert found["channel mixing"].reason == "an output channel depends on 31 others"


def test_how_far_a_mixer_reaches():
    found = {f.check: f.reason for f in check_mixer(lambda: Pooling(5), **QUICK)}
    assert found["token mixing"] == "the token in the middle depends on 25 of 48, within 5x5"
    assert found["channel mixing"] == "channels stay apart"
    assert found["cost"] == f"0 parameters, {32 * 48 * 25:,} MACs"
    found = {f.check: f.reason for f in check_mixer(Attention, **QUICK)}
    assert found["token mixing"] == "the token in the middle depends on 48 of 48, within 6x8"
    assert found["translation"] == "equivariant"


def test_the_command(cli, tmp_path):
    (tmp_path / "my_mixer.py").write_text(
        "import torch\n"
        "class Good(torch.nn.Module):\n"
        "    def __init__(self, step: int = 1):\n        super().__init__()\n        self.step = step\n"
        "    def forward(self, x): return x.roll(self.step, 3)\n"
        "class Bad(torch.nn.Module):\n    def forward(self, x): return x[:1]\n"
    )
    done = cli("check", "my_mixer.Good", "--dim", "32", "--resolution", "5x6", "step=2")
    assert done.returncode == 0, done.stderr
    assert "my_mixer.Good: keeps the contract" in done.stdout
    assert re.search(r"output +pass +\[3, 32, 5, 6\]", done.stdout)
    done = cli("check", "my_mixer.Bad")
    assert done.returncode == 1
    assert "the contract wants the same shape" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("Mine stepp=2", "mixer.stepp: Mine has no such option; did you mean 'step'?"),
        ("Needs", "mixer: Needs needs heads"),
        ("NoModule", "expected a torch.nn.Module class"),
        ("Mine --resolution 7", "--resolution 7: expected height x width"),
        ("Mine --dim 0", "--dim 0: expected a number of channels"),
        ("Mine step", "step: expected option=value"),
    ],
)
def test_a_bad_request_gets_one_line(words, message, refusal, monkeypatch):
    mine = type("Mine", (nn.Module,), {"__init__": lambda self, step=1: None})
    needs = type("Needs", (nn.Module,), {"__init__": lambda self, dim, heads: None})
    for name, kind in {"Mine": mine, "Needs": needs, "NoModule": object}.items():
        monkeypatch.setattr(torch, name, kind, raising=False)
    assert message in refusal(check, *f"torch.{words}".split())
