"""Every mixer against its definition."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import MIXERS, compose
from torch import nn

from metaformer.factory import build, from_config
from metaformer.mixers import (
    AsTokens,
    Attention,
    DepthwiseConv,
    Fourier,
    Pooling,
    RandomMixing,
    SpatialMLP,
    to_map,
    to_tokens,
)
from metaformer.schema import ConfigError


def configured(name: str, dim: int = 32, resolution: tuple[int, int] = (7, 5), *overrides: str) -> nn.Module:
    torch.manual_seed(0)
    return build(from_config(compose(f"mixer={name}", *overrides)["mixer"], 4)[0], dim, resolution)


def test_pooling_of_a_constant_is_zero_up_to_the_border():
    for size in (3, 5, 7, 9):
        assert torch.equal(Pooling(size)(torch.full((2, 3, 6, 5), 3.0)), torch.zeros(2, 3, 6, 5))


def test_pooling_by_hand():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert Pooling()(x).flatten().tolist() == [2, 1.5, 1, 0.5, 0, -0.5, -1, -1.5, -2]


def test_attention_is_the_textbook_formula():
    mixer = configured("attention", 64, (4, 3), "mixer.head_dim=16").double()
    x = torch.randn(2, 64, 4, 3, dtype=torch.float64)
    q, k, v = (mixer.qkv.weight @ to_tokens(x).transpose(1, 2)).chunk(3, 1)  # [B, C, N] each
    heads = []
    for h in range(4):
        rows = slice(16 * h, 16 * h + 16)
        weights = (q[:, rows].transpose(1, 2) @ k[:, rows] / 16**0.5).softmax(-1)
        heads.append(weights @ v[:, rows].transpose(1, 2))
    expected = to_map(torch.cat(heads, -1) @ mixer.proj.weight.T + mixer.proj.bias, like=x)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_both_attention_paths_agree_with_float64(dtype, tolerance):
    mixer = configured("attention", 64)
    for p in mixer.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 64, 7, 5)
    exact = mixer.double()(x.double())
    got = mixer.to(dtype)(x.to(dtype)).double()
    assert (got - exact).norm() / exact.norm() < tolerance


def test_attention_parameters_are_those_of_the_official_code():
    assert sum(p.numel() for p in Attention(512).parameters()) == 1_049_088
    assert sum(p.numel() for p in Attention(320).parameters()) == 409_920


def test_fourier_is_the_dft_and_keeps_the_scale():
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)

    def dft(n: int) -> torch.Tensor:
        k = torch.arange(n, dtype=torch.float64)
        return torch.exp(-2j * torch.pi * k[:, None] * k / n) / n**0.5

    expected = torch.einsum("bchw,ci,hj,wk->bijk", x.cdouble(), dft(6), dft(4), dft(5)).real
    torch.testing.assert_close(Fourier()(x), expected)
    spatial = torch.einsum("bchw,hj,wk->bcjk", x.cdouble(), dft(4), dft(5)).real
    torch.testing.assert_close(Fourier(channels=False)(x), spatial)
    assert abs(Fourier()(torch.randn(4, 64, 28, 28)).std() - 0.5**0.5) < 0.01


def test_fourier_runs_in_fp32_under_bf16():
    x = torch.randn(1, 8, 7, 7).bfloat16()
    y = Fourier()(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, Fourier()(x.float()).bfloat16())


def test_spatial_mlp_is_one_matrix_over_tokens():
    mixer = SpatialMLP((3, 4))
    assert [p.shape for p in mixer.parameters()] == [(12, 12)]
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(mixer(x), (x.flatten(2) @ mixer.mlp.weight.T).view(2, 5, 3, 4))


def test_spatial_mlp_with_a_hidden_layer_is_that_of_mlp_mixer():
    mixer = SpatialMLP((14, 14), hidden=384)
    assert sum(p.numel() for p in mixer.parameters()) == 2 * 196 * 384 + 384 + 196
    x = torch.randn(2, 5, 14, 14)
    first, _, second = mixer.mlp
    expected = F.linear(F.gelu(F.linear(x.flatten(2), first.weight, first.bias)), second.weight, second.bias)
    torch.testing.assert_close(mixer(x), expected.view_as(x))


def test_random_mixing_is_frozen_and_its_rows_sum_to_one():
    mixer = RandomMixing((7, 7))
    assert not mixer.matrix.requires_grad
    assert "matrix" in mixer.state_dict()
    torch.testing.assert_close(mixer.matrix.sum(1), torch.ones(49))
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(mixer(x).flatten(2), x.flatten(2) @ mixer.matrix.T)


def test_depthwise_convolution_with_averaging_weights_is_pooling():
    mixer = DepthwiseConv(4, bias=False)
    nn.init.constant_(mixer.weight, 1 / 9)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close((mixer(x) - x)[:, :, 1:-1, 1:-1], Pooling()(x)[:, :, 1:-1, 1:-1])


def test_as_tokens_adapts_a_layer_of_another_library():
    from timm.layers import Attention as TimmAttention

    options = {"num_heads": 2}
    for layer in ("timm.layers.Attention", TimmAttention):
        mixer = AsTokens(32, layer, options)
        x = torch.randn(2, 32, 3, 4)
        assert torch.equal(mixer(x), to_map(mixer.layer(to_tokens(x)), like=x))


@pytest.mark.parametrize("name", MIXERS)
def test_contract(name):
    """Shape, memory format, batch independence, and a gradient for every trained weight."""
    mixer = configured(name)
    x = torch.randn(3, 32, 7, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mixer(x[:1]), y[:1])
    torch.testing.assert_close(mixer(x.detach().contiguous()), y)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters() if p.requires_grad)
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_in_float64(name):
    mixer = configured(name, 4, (3, 2), *(["mixer.head_dim=2"] if name == "attention" else [])).double()
    assert torch.autograd.gradcheck(mixer, torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", ["spatial_mlp", "random"])
def test_a_mixer_bound_to_a_resolution_says_which(name):
    with pytest.raises(ValueError, match="was built for 7x5 tokens and got 8x8"):
        configured(name)(torch.randn(1, 32, 8, 8))


def test_what_the_constructor_names_is_passed():
    class Both(nn.Module):
        def __init__(self, dim, resolution, step=1):
            super().__init__()
            self.got = dim, resolution, step

    class Greedy(nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.got = kwargs

    assert build(partial(Both, step=3), 8, (2, 2)).got == (8, (2, 2), 3)
    assert build(Greedy, 8, (2, 2)).got == {}  # **kwargs names nothing


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "metaformer.mixers.Poling"}, "has no 'Poling'; did you mean 'Pooling'"),
        ({"_target_": "no_such_module.Shift"}, "cannot import 'no_such_module' (ModuleNotFoundError"),
        (
            {"_target_": "metaformer.mixers.Pooling", "pool_sise": 5},
            "mixer.pool_sise: Pooling has no such option; did you",
        ),
        ({"_target_": "metaformer.mixers.Pooling", "pool_size": "big"}, "mixer.pool_size=big: expected int"),
        ({"_target_": "metaformer.mixers.Fourier", "channels": 1}, "mixer.channels=1: expected bool"),
        ({"_target_": "metaformer.mixers.Identity", "step": 5}, "mixer.step: Identity has no such option; it has none"),
        ({"_target_": "metaformer.mixers.AsTokens"}, "AsTokens needs layer; add +mixer.layer="),
        ({"_target_": "metaformer.mixers.to_map"}, "expected a torch.nn.Module class"),
    ],
)
def test_a_bad_mixer_node_gets_one_line(node, message):
    with pytest.raises(ConfigError) as error:
        from_config(node, 4)
    assert message in str(error.value)


@pytest.mark.parametrize("mixer", [Pooling, partial(DepthwiseConv, 8)])
def test_an_even_window_is_refused(mixer):
    with pytest.raises(ValueError, match="is even"):
        mixer(4)
