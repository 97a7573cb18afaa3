"""Convolutions against torch's own function and torchvision's and timm's layers."""

import pytest
import torch
import torch.nn.functional as F
from conftest import configured
from torchvision.models.resnet import Bottleneck

from metaformer.mixers import Conv
from metaformer.models.cost import count


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_convolution_is_torchs_in_groups_too(size):
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    for group_dim, groups in ((None, 1), (4, 2), (8, 1), (1, 8)):
        mixer = Conv(8, size, group_dim).double()
        expected = F.conv2d(x, mixer.weight, mixer.bias, padding=(size - 1) // 2, groups=groups)
        torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)


def test_a_grouped_convolution_is_that_of_resnext():
    theirs = Bottleneck(256, 64, groups=32, base_width=4).conv2
    mixer = configured("grouped_conv", 128, (7, 5), "mixer.group_dim=4", "mixer.bias=false")
    mixer.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 128, 7, 5)
    torch.testing.assert_close(mixer(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "words", "taps"), [("conv", [], 9 * 64), ("conv", ["mixer.kernel_size=5"], 25 * 64),
                                                     ("grouped_conv", [], 9 * 16)])  # fmt: skip
def test_macs_of_a_convolution(name, words, taps):
    assert count(configured(name, 64, (7, 5), *words), (64, 7, 5)).macs == 35 * 64 * taps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size=4 is even"),
        ({"group_dim": 3}, "dim=8 is not divisible by group_dim=3"),
        ({"group_dim": 0}, "group_dim=0: expected at least 1"),
    ],
)
def test_what_a_convolution_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Conv(8, **options)
