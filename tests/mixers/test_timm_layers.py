"""Mixers that wrap layers of timm, against blocks of timm's models with the same weights."""

from collections.abc import Callable

import pytest
import torch
from conftest import configured
from timm.models.focalnet import FocalNet
from timm.models.mambaout import GatedConvBlock
from timm.models.mlp_mixer import SpatialGatingBlock
from timm.models.volo import Outlooker
from timm.models.xcit import XCABlock
from torch import Tensor, nn

from metaformer.mixers import FocalModulation, GatedConv, OutlookAttention, SpatialGating
from metaformer.mixers.layout import to_map, to_tokens
from metaformer.models.cost import count

DIM, SIZE = 64, (7, 6)


def _xca(mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    theirs = XCABlock(DIM, num_heads=2).to(torch.float64).attn
    theirs.load_state_dict(mixer.attention.state_dict())
    return lambda x: to_map(theirs(to_tokens(x)), like=x)


def _outlook(mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    theirs = Outlooker(DIM, 3, 1, stride=2, num_heads=2).double().attn
    theirs.load_state_dict(mixer.attention.state_dict())
    return lambda x: theirs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _focal(mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    net = FocalNet(depths=(1,), embed_dim=DIM, focal_levels=(2,), focal_windows=(3,), num_classes=0)
    theirs = net.layers[0].blocks[0].modulation.double()
    theirs.load_state_dict(mixer.state_dict())
    return theirs


def _gated_conv(mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    theirs = GatedConvBlock(DIM, norm_layer=nn.Identity).double()  # with its shortcut
    theirs.load_state_dict(mixer.state_dict())
    return lambda x: theirs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) - x


def _spatial_gating(mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    theirs = SpatialGatingBlock(DIM, SIZE[0] * SIZE[1], mlp_ratio=2).double().mlp_channels
    theirs.load_state_dict(mixer.state_dict())
    return lambda x: to_map(theirs(to_tokens(x)), like=x)


THEIRS = {"xca": _xca, "outlook_attention": _outlook, "focal_modulation": _focal, "gated_conv": _gated_conv,
          "spatial_gating": _spatial_gating}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_it_is_that_of_timm(name):
    mixer = configured(name, DIM, SIZE).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))  # nothing zero, and no mean even
    theirs, x = THEIRS[name](mixer), torch.randn(2, DIM, *SIZE, dtype=torch.float64)
    expected = theirs(x)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)
    single = mixer.float()(x.float()).double()
    assert (single - expected).norm() / expected.norm() < 1e-5


N, WINDOWS = 42, 12  # tokens, and every second of them in each direction
MACS = {
    "xca": N * (4 * DIM**2 + 2 * 32 * DIM),
    "outlook_attention": N * 2 * DIM**2 + WINDOWS * (4 * DIM + DIM * 81 * 2 + 81 * DIM),
    "focal_modulation": N * (DIM * (2 * DIM + 3) + (9 + 25) * DIM + 2 * DIM**2),
    "gated_conv": N * (DIM * 2 * 170 + 49 * DIM + 170 * DIM),
    "spatial_gating": N * (DIM * 2 * DIM + N * DIM + DIM**2),
}


@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand(name):
    mixer = configured(name, DIM, SIZE)
    assert count(mixer, (DIM, *SIZE)).macs == MACS[name]
    assert count(mixer.to("meta"), (DIM, *SIZE)).macs == MACS[name]


def test_the_gate_of_gmlp_is_open_at_the_start():
    mixer = configured("spatial_gating", 16, (3, 4))
    half = torch.randn(2, 12, 32)
    torch.testing.assert_close(mixer.gate(half), half[..., :16], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("mixer", "options", "message"),
    [
        (OutlookAttention, {"kernel_size": 2}, "kernel_size=2 is even"),
        (OutlookAttention, {"stride": 4}, "stride=4: expected at most kernel_size=3"),
        (OutlookAttention, {"stride": 0}, "stride=0: expected at least 1"),
        (FocalModulation, {"kernel_size": 4}, "kernel_size=4 is even"),
        (FocalModulation, {"levels": 0}, "levels=0: expected at least 1"),
        (GatedConv, {"kernel_size": 4}, "kernel_size=4 is even"),
        (GatedConv, {"conv_ratio": 3.0}, "conv_ratio=3 of dim=64: 192 of 170 channels would be convolved"),
        (SpatialGating, {"resolution": (2, 2), "expansion": 0}, "expansion=0: expected at least 1"),
    ],
)
def test_what_they_refuse(mixer, options, message):
    with pytest.raises(ValueError, match=message):
        mixer(DIM, **options)
