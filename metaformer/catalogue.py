"""Mixers of other papers, by the contract of `metaformer.mixers`. What timm has as a layer is wrapped."""

import math

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention as PVTAttention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from metaformer.mixers import check_resolution, heads_of, init_weights, to_map, to_tokens


class Shift(nn.Module):
    """A share of the channels moves by one pixel in each of four directions (ShiftViT, arXiv:2201.10801, Eq. 2).

    What moves in from outside is zero. It has no parameter and no arithmetic.
    """

    def __init__(self, dim: int, share: float = 1 / 12) -> None:
        super().__init__()
        self.part = int(dim * share)
        if not 1 <= self.part <= dim // 4:
            raise ValueError(f"share={share:.3g} of dim={dim} is {self.part} channels; expected from 1 to {dim // 4}")

    def forward(self, x: Tensor) -> Tensor:
        left, right, up, down, rest = x.split([self.part] * 4 + [x.shape[1] - 4 * self.part], 1)
        moved = [
            F.pad(left[..., 1:], (0, 1)),
            F.pad(right[..., :-1], (1, 0)),
            F.pad(up[:, :, 1:], (0, 0, 0, 1)),
            F.pad(down[:, :, :-1], (0, 0, 1, 0)),
        ]
        return torch.cat([*moved, rest], 1)


class MaxPooling(nn.Module):
    """Maximum over a window minus the input: pooling (arXiv:2111.11418, Eq. 4) that is not linear."""

    def __init__(self, pool_size: int = 3) -> None:
        super().__init__()
        if pool_size % 2 == 0:
            raise ValueError(f"pool_size={pool_size} is even: only an odd window keeps the resolution")
        self.pool = nn.MaxPool2d(pool_size, stride=1, padding=pool_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


class GlobalFilter(nn.Module):
    """A learned filter for each channel, as large as the image, on frequencies (GFNet, arXiv:2107.00645, Eq. 5).

    It runs in fp32 at least, since there is no FFT in bf16; bound to its resolution.
    """

    def __init__(self, dim: int, resolution: tuple[int, int]) -> None:
        super().__init__()
        self.resolution = tuple(resolution)
        self.weight = nn.Parameter(0.02 * torch.randn(dim, resolution[0], resolution[1] // 2 + 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        check_resolution(self, x)
        full, weight = (t if t.dtype == torch.float64 else t.float() for t in (x, self.weight))
        weight = weight.contiguous()  # a model in channels_last reorders every weight of four axes
        frequencies = torch.fft.rfft2(full, norm="ortho") * torch.view_as_complex(weight)
        mixed = torch.fft.irfft2(frequencies, s=self.resolution, norm="ortho").to(x.dtype)
        return mixed.contiguous(memory_format=torch.channels_last)


class AFNO(nn.Module):
    """A block-diagonal complex MLP on every frequency, shrunk to zero, plus the input (arXiv:2111.13587, Section 4)."""

    def __init__(self, dim: int, blocks: int = 8, sparsity: float = 0.01) -> None:
        super().__init__()
        if dim % blocks:
            raise ValueError(f"dim={dim} is not divisible by blocks={blocks}")
        self.blocks, self.sparsity = blocks, sparsity
        size = dim // blocks
        self.weight1, self.weight2 = (nn.Parameter(0.02 * torch.randn(blocks, size, size, 2)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(0.02 * torch.randn(blocks, size, 2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        parameters = (self.weight1, self.bias1, self.weight2, self.bias2)
        weight1, bias1, weight2, bias2 = (torch.view_as_complex(p.to(kind).contiguous()) for p in parameters)
        channels = torch.fft.rfft2(x.to(kind), norm="ortho").permute(0, 2, 3, 1).unflatten(-1, (self.blocks, -1))
        hidden = (channels.unsqueeze(-2) @ weight1).squeeze(-2) + bias1
        hidden = torch.complex(hidden.real.relu(), hidden.imag.relu())
        out = torch.view_as_real((hidden.unsqueeze(-2) @ weight2).squeeze(-2) + bias2)
        out = torch.view_as_complex(F.softshrink(out, self.sparsity)).flatten(-2).permute(0, 3, 1, 2)
        mixed = torch.fft.irfft2(out, s=x.shape[2:], norm="ortho").to(x.dtype)
        return x + mixed.contiguous(memory_format=torch.channels_last)


class WindowAttention(nn.Module):
    """Attention within windows, with a relative position bias (Swin, arXiv:2103.14030, Eq. 4); timm's layer.

    Windows do not shift from block to block, so that stages alone carry what is beyond a window. A map that is no
    multiple of the window is padded with zeros, as in timm; one smaller than the window is one window.
    """

    def __init__(self, dim: int, resolution: tuple[int, int], window: int = 7, head_dim: int = 32) -> None:
        super().__init__()
        self.window = (min(window, resolution[0]), min(window, resolution[1]))
        self.attention = SwinAttention(dim, heads_of(dim, head_dim), window_size=self.window)
        init_weights(self.attention.qkv)
        init_weights(self.attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        below, right = -height % self.window[0], -width % self.window[1]
        padded = F.pad(x, (0, right, 0, below)).permute(0, 2, 3, 1)
        windows = window_partition(padded, self.window).flatten(1, 2)
        mixed = self.attention(windows).unflatten(1, self.window)
        whole = window_reverse(mixed, self.window, height + below, width + right)
        return whole[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class LinearAttention(nn.Module):
    """Attention with the kernel elu(x) + 1 for the softmax (arXiv:2006.16236, Eq. 5 and 7): linear in tokens."""

    def __init__(self, dim: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = heads_of(dim, head_dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        init_weights(self.qkv)
        init_weights(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(to_tokens(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, head_dim] each
        q, k = F.elu(q) + 1, F.elu(k) + 1
        total = q @ k.sum(2).unsqueeze(-1) + 1e-6  # as the official code: both kernels can be zero
        mixed = q @ (k.transpose(-2, -1) @ v) / total
        return to_map(self.proj(mixed.transpose(1, 2).flatten(2)), like=x)


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a map that a strided convolution made smaller (PVT, arXiv:2102.12122,
    Eq. 1 to 3); timm's layer.

    Where `reduction` does not divide the map, the tokens beyond its last whole square are no keys, as in PVT.
    """

    def __init__(self, dim: int, reduction: int = 2, head_dim: int = 32) -> None:
        super().__init__()
        self.reduction = reduction
        self.attention = PVTAttention(dim, heads_of(dim, head_dim), sr_ratio=reduction)
        for layer in self.attention.modules():
            if isinstance(layer, nn.Linear):
                init_weights(layer)
            elif isinstance(layer, nn.Conv2d):  # as the official code: by the number of outgoing connections
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (dim * reduction**2)))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.reduction:
            raise ValueError(f"a map of {x.shape[2]}x{x.shape[3]} is smaller than reduction={self.reduction}")
        return to_map(self.attention(to_tokens(x), x.shape[2:]), like=x)


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
