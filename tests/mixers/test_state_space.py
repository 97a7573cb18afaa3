"""The state space against a plain recurrence, and its parts against the official code."""

import pytest
import torch
import torch.nn.functional as F
from conftest import configured
from torch import Tensor, nn

from metaformer.mixers import StateSpace, state_space
from metaformer.mixers.state_space import directions, linear_scan, merge
from metaformer.models.cost import count

SIZES = [(1, 1), (7, 5), (4, 4), (2, 9)]


def recurrence(u, delta, a, b, c, d, z, bias, softplus) -> Tensor:
    """mamba-ssm's selective_scan_ref, token by token; u and delta are [B, K*C, L], b and c are [B, K, N, L]."""
    assert z is None
    assert softplus
    delta = F.softplus(delta + bias[..., None])
    b, c = (t.repeat_interleave(u.shape[1] // t.shape[1], 1) for t in (b, c))  # [B, K*C, N, L]
    h, out = torch.zeros(*u.shape[:2], a.shape[1], dtype=u.dtype), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * a) * h + (delta[:, :, t] * u[:, :, t])[..., None] * b[..., t]
        out.append((h * c[..., t]).sum(2) + d * u[:, :, t])
    return torch.stack(out, 2)


def official(mixer: nn.Module, x: Tensor) -> Tensor:
    """SS2Dv2.forwardv2 and forward_corev2 of VMamba with forward_type v05_noz."""
    x = F.silu(mixer.conv2d(mixer.in_proj(x)))
    size, columns = x.shape, x.transpose(2, 3)
    xs = torch.stack([x.flatten(2), columns.flatten(2), x.flatten(2).flip(-1), columns.flatten(2).flip(-1)], 1)
    dts, bs, cs = torch.einsum("bkdl,kcd->bkcl", xs, mixer.x_proj_weight).split(mixer.split, 2)
    dts = torch.einsum("bkrl,kdr->bkdl", dts, mixer.dt_projs_weight)
    bias = mixer.dt_projs_bias.flatten()
    a = -mixer.A_logs.exp()
    ys = recurrence(xs.flatten(1, 2), dts.flatten(1, 2), a, bs, cs, mixer.Ds, None, bias, True).view_as(xs)
    y = torch.zeros(size, dtype=x.dtype)
    for k in range(4):
        back = ys[:, k].flip(-1) if k > 1 else ys[:, k]
        y = y + (back.view(size) if k % 2 == 0 else back.reshape(columns.shape).transpose(2, 3))
    return mixer.out_proj(mixer.out_norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def made(size: tuple[int, int], *words: str) -> tuple[nn.Module, Tensor]:
    mixer = configured("state_space", 8, size, *words).double()
    for p in (mixer.in_proj.weight, mixer.out_proj.weight):
        nn.init.normal_(p)
    return mixer, torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("words", [[], ["mixer.state=4", "mixer.expansion=2", "mixer.kernel_size=1"]])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_official_one_with_a_plain_recurrence_and_so_are_its_gradients(size, words):
    mixer, x = made(size, *words)
    with torch.no_grad():
        mixer.A_logs.add_(0.3 * torch.randn_like(mixer.A_logs))
        mixer.Ds.normal_()
    inputs = [x, *mixer.parameters()]
    found = []
    for y in (mixer(x), official(mixer, x)):
        found.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 37])
def test_a_linear_scan_is_the_recurrence_and_can_be_differentiated_twice(length):
    decay, update = torch.rand(2, 3, length, dtype=torch.float64), torch.randn(2, 3, length, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(length):
        h = decay[..., t] * h + update[..., t]
        expected.append(h)
    torch.testing.assert_close(linear_scan(decay, update), torch.stack(expected, -1), rtol=1e-12, atol=1e-12)
    inputs = (decay.requires_grad_(), update.requires_grad_())
    assert torch.autograd.gradcheck(linear_scan, inputs)
    assert length > 3 or torch.autograd.gradgradcheck(linear_scan, inputs)


def test_the_four_directions_by_hand():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert directions(x)[0, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0],
                                               [5, 2, 4, 1, 3, 0]]  # fmt: skip
    assert torch.equal(merge(directions(x), 2, 3), 4 * x)


def test_the_initial_values_are_those_of_the_official_code():
    mixer = configured("state_space", 64, (7, 7), "mixer.state=16", "mixer.expansion=2")
    shapes = {name: tuple(p.shape) for name, p in mixer.named_parameters()}
    assert shapes["x_proj_weight"] == (4, 4 + 2 * 16, 128)
    assert (shapes["dt_projs_weight"], shapes["dt_projs_bias"]) == ((4, 128, 4), (4, 128))
    assert (shapes["A_logs"], shapes["Ds"]) == ((4 * 128, 16), (4 * 128,))
    torch.testing.assert_close(mixer.A_logs.exp(), torch.arange(1.0, 17).expand(512, 16))
    assert torch.equal(mixer.Ds, torch.ones(512))
    steps = F.softplus(mixer.dt_projs_bias).log10()
    assert -3 <= steps.min() < -2.9 < -2.1 < steps.median() < -1.9 < -1.1 < steps.max() <= -1
    assert 0.49 < mixer.dt_projs_weight.abs().max() <= 0.5  # rank ** -0.5
    assert 0.087 < mixer.x_proj_weight.abs().max() <= 128**-0.5
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_kernel_of_mamba_gets_what_it_expects(monkeypatch):
    """Where there is no GPU its own reference stands for it, which has the same arguments."""
    mixer, x = made((4, 5), "mixer.state=3")
    expected = mixer(x)
    monkeypatch.setattr(state_space, "_fits", lambda u: True)
    assert state_space._kernel() is None or torch.cuda.is_available()
    mixer.scan.kernel = recurrence
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("state", "expansion"), [(1, 1), (16, 2)])
def test_macs_of_a_state_space(state, expansion):
    mixer = configured("state_space", 64, (7, 5), f"mixer.state={state}", f"mixer.expansion={expansion}")
    inner, rank, tokens = 64 * expansion, 4, 35
    projections = 2 * 64 * inner + 9 * inner + 4 * inner * (rank + 2 * state) + 4 * inner * rank
    assert count(mixer, (64, 7, 5)).macs == tokens * (projections + 4 * inner * (3 * state + 1))
    assert count(mixer.to("meta"), (64, 7, 5)).macs == tokens * (projections + 4 * inner * (3 * state + 1))


@pytest.mark.parametrize(("option", "message"), [("state", "state=0: expected at least 1"),
                                                 ("expansion", "expansion=0: expected at least 1"),
                                                 ("kernel_size", "kernel_size=0: expected at least 1")])  # fmt: skip
def test_what_a_state_space_refuses(option, message):
    with pytest.raises(ValueError, match=message):
        StateSpace(8, **{option: 0})
    with pytest.raises(ValueError, match="kernel_size=4 is even"):
        StateSpace(8, kernel_size=4)
