"""Decoders: from the maps of an encoder's stages, the finest first, to one map [B, width, H, W] of the finest size.

Norms are over groups of channels, so that a small batch, or a part of one, gives the same as a large one; the official
all-MLP decoder has batch norm there. A U-Net's own encoder is any model with maps down from half the image's size.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of a norm, where so many divide its channels


def convolution(dim: int, out: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, group norm and ReLU."""
    conv = nn.Conv2d(dim, out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(GROUPS, out), out), nn.ReLU())


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class SemanticFPN(nn.Module):
    """Feature pyramid and the sum of its levels, each brought to the finest size (arXiv:1901.02446, Section 3.1).

    A level that is coarser by 2^n takes n steps of a 3x3 convolution and twice the size. The pyramid is twice as wide
    as what it is brought to, as in the official PoolFormer (width 128).
    """

    def __init__(self, dims: Sequence[int], reductions: Sequence[int], width: int) -> None:
        super().__init__()
        pyramid = 2 * width
        self.lateral = nn.ModuleList(nn.Conv2d(dim, pyramid, 1) for dim in dims)
        self.smooth = nn.ModuleList(nn.Conv2d(pyramid, pyramid, 3, padding=1) for _ in dims)
        steps = [max(1, round(math.log2(r / reductions[0]))) for r in reductions]
        self.up = nn.ModuleList(
            nn.Sequential(*(convolution(width if i else pyramid, width, 3) for i in range(n))) for n in steps
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):  # from the coarsest down
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[2:], mode="nearest")
        sizes, parts = [level.shape[2:] for level in levels], []
        for i, (smooth, up) in enumerate(zip(self.smooth, self.up, strict=True)):
            x = smooth(levels[i])
            for n, step in enumerate(up.children(), 1):
                x = resized(step(x), sizes[max(i - n, 0)])
            parts.append(x)
        return torch.stack(parts).sum(0)


class AllMLP(nn.Module):
    """Each stage to one width and the finest size, then all of them together (SegFormer, arXiv:2105.15203, Eq. 4)."""

    def __init__(self, dims: Sequence[int], reductions: Sequence[int], width: int) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in dims)
        self.fuse = convolution(len(dims) * width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        parts = [resized(linear(x), size) for linear, x in zip(self.linear, maps, strict=True)]
        return self.fuse(torch.cat(parts[::-1], 1))


class UNet(nn.Module):
    """From the coarsest map up: twice the size, beside the map of that size, two 3x3 convolutions (arXiv:1505.04597).

    The width doubles with each level, as it does in the encoder.
    """

    def __init__(self, dims: Sequence[int], reductions: Sequence[int], width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(len(dims) - 1)]
        below = [*widths[1:], dims[-1]]  # channels of what comes from the coarser level
        self.levels = nn.ModuleList(
            nn.Sequential(convolution(dim + coarse, out, 3), convolution(out, out, 3))
            for dim, coarse, out in zip(dims[:-1], below, widths, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        for level, beside in zip(reversed(self.levels), reversed(maps[:-1]), strict=True):
            x = level(torch.cat([beside, F.interpolate(x, beside.shape[2:], mode="nearest")], 1))
        return x


DECODERS: dict[str, type[nn.Module]] = {"fpn": SemanticFPN, "mlp": AllMLP, "unet": UNet}
