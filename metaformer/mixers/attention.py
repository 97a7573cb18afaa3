"""Mixers by attention."""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention as PVTAttention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer import window_partition, window_reverse
from timm.models.volo import OutlookAttention as TimmOutlookAttention
from timm.models.xcit import XCA
from torch import Tensor, nn

from metaformer.mixers.layout import full, heads_of, init_weights, odd, positive, to_map, to_tokens


class Attention(nn.Module):
    """Multi-head self-attention (arXiv:1706.03762), without a bias on q, k and v as in the official code.

    `proj_bias` is that of the official PoolFormer hybrids; CAFormer has none.
    """

    def __init__(self, dim: int, head_dim: int = 32, proj_bias: bool = True) -> None:
        super().__init__()
        heads_of(dim, head_dim)
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        init_weights(self.qkv)
        init_weights(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(to_tokens(x)).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, head_dim] each
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":
            # The fused CPU kernel is 1.1-7x slower than the plain product in bf16, and faster in fp32.
            mixed = (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return to_map(self.proj(mixed.transpose(1, 2).flatten(2)), like=x)


class WindowAttention(nn.Module):
    """Attention within windows, with a relative position bias (Swin, arXiv:2103.14030, Eq. 4); timm's layer.

    Windows do not shift from block to block, so that stages alone carry what is beyond a window. A map that is no
    multiple of the window is padded with zeros, as in timm; one smaller than the window is one window.
    """

    def __init__(self, dim: int, resolution: tuple[int, int], window: int = 7, head_dim: int = 32) -> None:
        super().__init__()
        positive(window=window)
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
    """Attention with the kernel elu(x) + 1 for the softmax (arXiv:2006.16236, Eq. 5 and 7): linear in tokens.

    Its sums run in fp32 at least.
    """

    def __init__(self, dim: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = heads_of(dim, head_dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        init_weights(self.qkv)
        init_weights(self.proj)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(to_tokens(x)).unflatten(-1, (3, self.heads, -1))
        kind = full(qkv.dtype)  # sums over 56x56 tokens are beyond fp16
        with nullcontext() if qkv.dtype == kind else torch.autocast(x.device.type, enabled=False):
            q, k, v = qkv.to(kind).permute(2, 0, 3, 1, 4)  # [B, heads, N, head_dim] each
            q, k = F.elu(q) + 1, F.elu(k) + 1
            total = q @ k.sum(2).unsqueeze(-1) + 1e-6  # as the official code: both kernels can be zero
            mixed = q @ (k.transpose(-2, -1) @ v) / total
        return to_map(self.proj(mixed.to(qkv.dtype).transpose(1, 2).flatten(2)), like=x)


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a map that a strided convolution made smaller (PVT, arXiv:2102.12122,
    Eq. 1 to 3); timm's layer.

    Where `reduction` does not divide the map, the tokens beyond its last whole square are no keys, as in PVT.
    """

    def __init__(self, dim: int, reduction: int = 2, head_dim: int = 32) -> None:
        super().__init__()
        positive(reduction=reduction)
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


class CrossCovarianceAttention(nn.Module):
    """Attention between channels, by their covariance over the tokens (XCA of XCiT, arXiv:2106.09681); timm's layer.

    Tokens meet in the covariance alone; the local patch interaction that follows it in XCiT is not part of it.
    """

    def __init__(self, dim: int, head_dim: int = 32) -> None:
        super().__init__()
        self.attention = XCA(dim, heads_of(dim, head_dim))
        init_weights(self.attention.qkv)
        init_weights(self.attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        return to_map(self.attention(to_tokens(x)), like=x)


class OutlookAttention(nn.Module):
    """Weights for the tokens around each, from a linear layer of the token itself (VOLO, arXiv:2106.13112).

    timm's layer. With `stride` 2, as in VOLO, every second token in each direction gives weights, by which each of the
    k x k tokens around it becomes a mean of all of them; what overlaps is added.
    """

    def __init__(self, dim: int, kernel_size: int = 3, stride: int = 2, head_dim: int = 32) -> None:
        super().__init__()
        odd(kernel_size=kernel_size)
        positive(stride=stride)
        if stride > kernel_size:
            raise ValueError(f"stride={stride}: expected at most kernel_size={kernel_size}, to reach every token")
        self.attention = TimmOutlookAttention(dim, heads_of(dim, head_dim), kernel_size, kernel_size // 2, stride)
        for layer in (self.attention.v, self.attention.attn, self.attention.proj):
            init_weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
