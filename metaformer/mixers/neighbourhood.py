"""Attention of each token to the tokens around it."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from metaformer.mixers.attention import Attention
from metaformer.mixers.layout import may_fuse, odd, to_map, to_tokens

FEW = 256  # tokens: up to here one product of all pairs under a mask is faster than one for each row
KERNELS = 64  # of flex_attention, one for each shape of a map and batch; after eight torch would keep all N x N scores


class NeighbourhoodAttention(Attention):
    """Attention of each token to the `kernel_size` x `kernel_size` tokens around it (NAT, arXiv:2204.07143).

    That is the operation of the official NATTEN, without the relative position bias, which NATTEN has no more.
    At the border the window shifts inwards, as in NATTEN, and is not clipped: every token has the same number of keys,
    and a window as large as the map is global attention. A map smaller than the window is one window. The weights are
    those of `Attention`, so that one can go on from the other.
    """

    def __init__(self, dim: int, kernel_size: int = 7, head_dim: int = 32, proj_bias: bool = True) -> None:
        odd(kernel_size=kernel_size)
        super().__init__(dim, head_dim, proj_bias)
        self.attention = Neighbourhood(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(to_tokens(x)).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = (part.unflatten(2, x.shape[2:]) for part in qkv.permute(2, 0, 3, 1, 4))  # [B, heads, H, W, head_dim]
        return to_map(self.proj(self.attention(q, k, v).transpose(1, 2).flatten(2)), like=x)


class Neighbourhood(nn.Module):
    """[B, heads, H, W, head_dim] queries, keys and values -> [B, heads, H*W, head_dim], without any weight."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def macs(self, q: Tensor, k: Tensor, v: Tensor) -> int:
        """Those of the window alone: a product under a mask does more than it needs."""
        height, width = (min(self.kernel_size, side) for side in q.shape[2:4])
        return 2 * q.numel() * height * width

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        height, width = q.shape[2:4]
        if self.kernel_size >= max(height, width):
            return F.scaled_dot_product_attention(*_tokens(q, k, v))
        if _flexible(q):
            return _flex(q, k, v, self.kernel_size)
        return (_pairs if height * width <= FEW else _rows)(q, k, v, self.kernel_size)


def near(query: Tensor, key: Tensor, side: int, window: int) -> Tensor:
    """Whether `key` is in the window of `query`, both places on an axis of `side` tokens."""
    start = (query - window // 2).clamp(0, max(side - window, 0))
    return (key >= start) & (key < start + window)


def _tokens(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)


def _axis(side: int, window: int, device: torch.device) -> Tensor:
    place = torch.arange(side, device=device)
    return near(place[:, None], place, side, window)


def _pairs(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Of all pairs, under a mask: O(N^2), but fused."""
    rows, columns = (_axis(side, window, q.device) for side in q.shape[2:4])
    mask = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
    return F.scaled_dot_product_attention(*_tokens(q, k, v), attn_mask=mask)


def _rows(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """For each row of queries, the rows of keys around it, under a mask of columns: O(N window) memory."""
    height, width = q.shape[2:4]
    start = (torch.arange(height, device=q.device) - window // 2).clamp(0, max(height - window, 0))
    around = start[:, None] + torch.arange(min(window, height), device=q.device)  # [H, window] rows of keys
    keys, values = (t[:, :, around].flatten(3, 4) for t in (k, v))  # [B, heads, H, window * W, head_dim]
    mask = _axis(width, window, q.device).repeat(1, around.shape[1])
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).flatten(2, 3)


def _flexible(q: Tensor) -> bool:
    """Whether flex_attention's kernel is there for these: on CUDA, in 32 bits or less, from 16 channels."""
    return q.is_cuda and q.dtype != torch.float64 and q.shape[-1] >= 16 and may_fuse()


def _flex(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    attend, mask = (_compiled() if q.is_cuda else flex_attention), _block_mask(*q.shape[2:4], window, q.device)
    if torch.compiler.is_compiling():  # it is a part of what is compiled
        return attend(*_tokens(q, k, v), block_mask=mask)
    with torch._dynamo.config.patch(recompile_limit=KERNELS):
        return attend(*_tokens(q, k, v), block_mask=mask)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _block_mask(height: int, width: int, window: int, device: torch.device) -> Any:
    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows = near(query // width, key // width, height, window)
        return rows & near(query % width, key % width, width, window)

    with torch.inference_mode(False):  # made while validating, it has to serve training too
        return create_block_mask(inside, None, None, height * width, height * width, device)
