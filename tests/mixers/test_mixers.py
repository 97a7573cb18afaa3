"""Every mixer against its definition."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import MIXERS, configured
from torch import nn

from metaformer.mixers import (
    AFNO,
    AsTokens,
    Attention,
    DepthwiseConv,
    Fourier,
    MaxPooling,
    Pooling,
    RandomMixing,
    Shift,
    SpatialMLP,
)
from metaformer.mixers.factory import build, from_config
from metaformer.mixers.layout import to_map, to_tokens
from metaformer.models.cost import count
from metaformer.system.errors import ConfigError


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


def test_as_tokens_tells_a_layer_how_many_tokens_there_are():
    mixer = AsTokens(32, "timm.models.mlp_mixer.MixerBlock", tokens="seq_len", resolution=(3, 4))
    x = torch.randn(2, 32, 3, 4)
    assert torch.equal(mixer(x), to_map(mixer.layer(to_tokens(x)), like=x))
    assert mixer(x.transpose(2, 3)).shape == (2, 32, 4, 3)
    with pytest.raises(ValueError, match=r"built for \(3, 4\) tokens and is given \(3, 5\)"):
        mixer(torch.randn(2, 32, 3, 5))


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
    small = {"shift": "share=0.25", "afno": "blocks=2", "grouped_conv": "group_dim=2"} | {
        name: "head_dim=2" for name in MIXERS if "attention" in name or name in ("spatial_reduction", "xca")
    }
    mixer = configured(name, 4, (3, 2), *([f"mixer.{small[name]}"] if name in small else [])).double()
    assert torch.autograd.gradcheck(mixer, torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True))


def test_shift_by_hand():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(1, 5, 1, 1)
    left, right, up, down, rest = Shift(5, share=0.2)(x)[0]
    assert left.tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert right.tolist() == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    assert up.tolist() == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert down.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert torch.equal(rest, x[0, 0])
    assert Shift(64).part == 5  # a twelfth, as ShiftViT
    with pytest.raises(ValueError, match="is 0 channels; expected from 1 to 2"):
        Shift(8)


def test_a_negative_sparsity_is_refused_before_the_first_image():
    with pytest.raises(ValueError, match=r"sparsity=-0\.1: expected 0 or more"):
        AFNO(16, sparsity=-0.1)


def test_max_pooling_by_hand():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert MaxPooling()(x).flatten().tolist() == [4, 4, 3, 4, 4, 3, 1, 1, 0]


def test_a_global_filter_is_a_circular_convolution():
    mixer, x = configured("global_filter", 3, (4, 6)).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    kernel = torch.fft.irfft2(torch.view_as_complex(mixer.weight), s=(4, 6))  # [C, H, W]
    expected = torch.zeros_like(x)
    for i in range(4):
        for j in range(6):
            expected += kernel[:, i, j, None, None] * x.roll((i, j), (2, 3))
    torch.testing.assert_close(mixer(x), expected)
    assert mixer.weight.numel() == 2 * 4 * (6 // 2 + 1) * 3


def test_a_product_of_complex_numbers_is_four_of_real_ones():
    """14x14 places have 14x8 frequencies, whose two products of 8 blocks of 8x8 are complex; two real transforms."""
    transforms = 2 * (2.5 * 64 * 196 * math.log2(196)) / 2
    products = 4 * 2 * 64 * 8 * 14 * 8
    assert count(AFNO(64), (64, 14, 14)).macs == pytest.approx(transforms + products, abs=2)


def test_afno_is_a_complex_mlp_of_each_frequency_in_blocks():
    mixer, x = configured("afno", 16, (4, 5)).double(), torch.randn(2, 16, 4, 5, dtype=torch.float64)
    for p in mixer.parameters():
        nn.init.normal_(p)
    (w1, b1), (w2, b2) = (
        (w.detach(), b.detach()) for w, b in ((mixer.weight1, mixer.bias1), (mixer.weight2, mixer.bias2))
    )
    z = torch.fft.rfft2(x, norm="ortho").view(2, 8, 2, 4, 3)

    def layer(real, imaginary, w, b):  # the official code keeps the two parts apart
        product = [torch.einsum("bkihw,kio->bkohw", part, w[..., k]) for part in (real, imaginary) for k in (0, 1)]
        offset = b.permute(2, 0, 1)[..., None, None]
        return product[0] - product[3] + offset[0], product[1] + product[2] + offset[1]

    hidden = [part.relu() for part in layer(z.real, z.imag, w1, b1)]
    out = torch.complex(*(F.softshrink(part, 0.01) for part in layer(*hidden, w2, b2)))
    expected = torch.fft.irfft2(out.flatten(1, 2), s=(4, 5), norm="ortho") + x
    torch.testing.assert_close(mixer(x), expected)


def test_window_attention_is_that_of_a_block_of_swin():
    from timm.models.swin_transformer import SwinTransformerBlock

    for size in ((14, 14), (10, 9), (5, 4)):
        block = SwinTransformerBlock(64, size, num_heads=2, window_size=7).eval()
        mixer = configured("window_attention", 64, size)
        nn.init.normal_(mixer.attention.relative_position_bias_table)
        block.attn.load_state_dict(mixer.attention.state_dict())
        x = torch.randn(2, 64, *size)
        torch.testing.assert_close(mixer(x).permute(0, 2, 3, 1), block._attn(x.permute(0, 2, 3, 1)))


def test_linear_attention_is_attention_with_another_kernel():
    mixer = configured("linear_attention", 8, (3, 4), "mixer.head_dim=4").double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    q, k, v = mixer.qkv(to_tokens(x)).chunk(3, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (F.elu(q[..., part]) + 1) @ (F.elu(k[..., part]) + 1).transpose(1, 2)
        heads.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    torch.testing.assert_close(mixer(x), to_map(mixer.proj(torch.cat(heads, -1)), like=x))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_linear_attention_of_many_tokens_in_half_precision(precision):
    """Its sums over all tokens are beyond fp16, whose infinite divisor would give nothing at all."""
    mixer, x = configured("linear_attention", 32, (56, 56)), torch.randn(1, 32, 56, 56)
    nn.init.normal_(mixer.qkv.weight)
    with torch.autocast("cpu", precision):
        half = mixer(x)
    assert half.dtype == precision
    assert (half.float() - mixer(x)).norm() < 0.02 * mixer(x).norm()


def test_spatial_reduction_without_reduction_is_attention():
    mixer = configured("spatial_reduction", 64, (4, 6), "mixer.reduction=1").double()
    plain = configured("attention", 64, (4, 6)).double()
    pvt = mixer.attention
    nn.init.zeros_(pvt.q.bias), nn.init.zeros_(pvt.kv.bias)
    plain.qkv.weight = nn.Parameter(torch.cat([pvt.q.weight, pvt.kv.weight]))
    plain.proj.load_state_dict(pvt.proj.state_dict())
    x = torch.randn(2, 64, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), plain(x))
    reduced = configured("spatial_reduction", 64, (4, 6))
    assert sum(p.numel() for p in reduced.parameters()) == 4 * 64**2 + 4 * 64 + (4 * 64**2 + 64) + 2 * 64
    with pytest.raises(ValueError, match="a map of 1x6 is smaller than reduction=2"):
        reduced(torch.randn(1, 64, 1, 6))


def test_large_kernel_attention_sees_23_pixels_and_has_the_papers_parameters():
    mixer = configured("large_kernel", 16, (31, 31)).double()
    # Of the paper's Table 2 (K=21, d=3): (5*5 + 7*7) C + C*C for the kernel, plus biases and two projections.
    assert sum(p.numel() for p in mixer.parameters()) == 74 * 16 + 16**2 + 3 * 16 + 2 * (16**2 + 16)
    x = torch.randn(1, 16, 31, 31, dtype=torch.float64, requires_grad=True)
    mixer(x)[0, :, 15, 15].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert (seen.any(0).sum(), seen.any(1).sum()) == (23, 23)


@pytest.mark.parametrize("name", ["spatial_mlp", "random", "global_filter", "spatial_gating"])
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
        ({"_target_": "no_such_module.Shift"}, "'no_such_module'); it has to be in this folder or on PYTHONPATH"),
        (
            {"_target_": "metaformer.mixers.Pooling", "pool_sise": 5},
            "mixer.pool_sise: Pooling has no such option; did you",
        ),
        ({"_target_": "metaformer.mixers.Pooling", "pool_size": "big"}, "mixer.pool_size=big: expected int"),
        ({"_target_": "metaformer.mixers.Fourier", "channels": 1}, "mixer.channels=1: expected bool"),
        ({"_target_": "metaformer.mixers.Identity", "step": 5}, "mixer.step: Identity has no such option; it has none"),
        ({"_target_": "metaformer.mixers.AsTokens"}, "AsTokens needs layer; add +mixer.layer="),
        ({"_target_": "metaformer.mixers.to_map"}, "expected a torch.nn.Module class"),
        ({}, "mixer: expected a config with _target_, or with stage1, stage2, ..."),
        ("pooling", "mixer: expected a config with _target_"),
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


def test_blocks_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="dim=12 is not divisible by blocks=8"):
        AFNO(12)
