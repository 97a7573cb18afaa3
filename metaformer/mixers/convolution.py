"""Mixers by convolution."""

import math

import torch
import torch.nn.functional as F
from timm.models.focalnet import FocalModulation as TimmFocalModulation
from timm.models.mambaout import GatedConvBlock
from timm.models.metaformer import StarReLU
from torch import Tensor, nn

from metaformer.mixers.layout import heads_of, init_weights, odd, positive


class DepthwiseConv(nn.Conv2d):
    """One learned kernel per channel (arXiv:2111.11418, Table 5): pooling whose weights are trained."""

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = True) -> None:
        odd(kernel_size=kernel_size)
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)


class Conv(nn.Conv2d):
    """A convolution that mixes channels too; torch's, as torchvision's ResNet and RegNet have it between their 1x1s.

    `group_dim=None` is dense (ResNet, arXiv:1512.03385); `group_dim=D` convolves groups of D channels apart (ResNeXt,
    arXiv:1611.05431; group width as in RegNet, arXiv:2003.13678).
    """

    def __init__(self, dim: int, kernel_size: int = 3, group_dim: int | None = None, bias: bool = True) -> None:
        odd(kernel_size=kernel_size)
        groups = 1 if group_dim is None else heads_of(dim, group_dim, "group_dim")
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias)


class SepConv(nn.Module):
    """Inverted separable convolution of ConvFormer (arXiv:2210.13452, Eq. 5; MobileNetV2): it mixes channels too."""

    def __init__(self, dim: int, expansion: int = 2, kernel_size: int = 7) -> None:
        super().__init__()
        odd(kernel_size=kernel_size)
        positive(expansion=expansion)
        hidden = expansion * dim
        self.pwconv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False)
        self.pwconv2 = nn.Conv2d(hidden, dim, 1, bias=False)
        for layer in (self.pwconv1, self.dwconv, self.pwconv2):
            init_weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class LargeKernelAttention(nn.Module):
    """A 21 x 21 depthwise convolution in two steps gates the map (VAN, arXiv:2202.09741, Eq. 1 to 2 and Fig. 4).

    With the two 1x1 convolutions and the shortcut round it, as in the official code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(dim, dim, 1)
        self.local = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dilated = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.proj2 = nn.Conv2d(dim, dim, 1)
        for layer in (self.proj1, self.local, self.dilated, self.pointwise, self.proj2):
            nn.init.normal_(layer.weight, std=math.sqrt(2 * layer.groups / (dim * math.prod(layer.kernel_size))))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        values = F.gelu(self.proj1(x))
        return self.proj2(values * self.pointwise(self.dilated(self.local(values)))) + x


class GatedConv(GatedConvBlock):
    """A depthwise convolution gated by a projection: MambaOut, Mamba without its state space (arXiv:2405.07992).

    timm's layer, the official code's GatedCNNBlock, without norm and shortcut, which are those of the block. A share
    `conv_ratio` of the channels is convolved.
    """

    def __init__(self, dim: int, expansion: float = 8 / 3, kernel_size: int = 7, conv_ratio: float = 1.0) -> None:
        odd(kernel_size=kernel_size)
        hidden, convolved = int(expansion * dim), int(conv_ratio * dim)
        if not 1 <= convolved <= hidden:
            given = f"expansion={expansion:.3g}, conv_ratio={conv_ratio:.3g} of dim={dim}"
            raise ValueError(f"{given}: {convolved} of {hidden} channels would be convolved")
        super().__init__(dim, expansion, kernel_size, conv_ratio, norm_layer=nn.Identity)
        for layer in (self.fc1, self.conv, self.fc2):
            init_weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        gate, kept, moved = self.fc1(x.permute(0, 2, 3, 1)).split(self.split_indices, -1)
        moved = self.conv(moved.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(gate) * torch.cat([kept, moved], -1)).permute(0, 3, 1, 2)


class FocalModulation(TimmFocalModulation):
    """A gate from depthwise convolutions of growing kernels and the mean of the map (FocalNet, arXiv:2203.11926);
    timm's layer, which is that of the official code.

    `levels` kernels of `kernel_size`, `kernel_size` + 2, ... pixels, one on top of the other.
    """

    def __init__(self, dim: int, levels: int = 2, kernel_size: int = 3) -> None:
        positive(levels=levels)
        odd(kernel_size=kernel_size)
        super().__init__(dim, focal_window=kernel_size, focal_level=levels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_weights(layer)
