"""Token mixers, and the contract that they and yours keep.

A mixer is a module `[B, C, H, W] -> [B, C, H, W]` that mixes over H and W. Its constructor may name `dim` (C) and
`resolution` ((H, W)), which the model passes, and any options of its own, which the configuration passes:

    class Shift(nn.Module):
        def __init__(self, dim: int, resolution: tuple[int, int], step: int = 1): ...
        def forward(self, x: Tensor) -> Tensor: ...

Shapes are NCHW and memory is channels_last, so `to_tokens(x)` is a free view. A mixer initialises itself; the model
never touches its weights. A method `no_weight_decay()` may name parameters that are not to decay, as in timm; vectors
and what is called `bias` never do. `python -m metaformer.check` tells whether a mixer keeps the contract.

Options that several of them have: `kernel_size`, `pool_size`, `window` in tokens, `head_dim` in channels, `expansion`
as hidden channels by `dim`. A size that is even where only an odd one keeps the resolution, one below 1, and a `dim`
that `head_dim`, `blocks` or `group_dim` does not divide raise a ValueError, which names the option.
"""

from metaformer.mixers.adapter import AsTokens
from metaformer.mixers.attention import (
    Attention,
    CrossCovarianceAttention,
    LinearAttention,
    OutlookAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from metaformer.mixers.convolution import Conv, DepthwiseConv, FocalModulation, GatedConv, LargeKernelAttention, SepConv
from metaformer.mixers.fourier import AFNO, Fourier, GlobalFilter
from metaformer.mixers.layout import to_map, to_tokens
from metaformer.mixers.matrix import RandomMixing, SpatialGating, SpatialMLP
from metaformer.mixers.neighbourhood import NeighbourhoodAttention
from metaformer.mixers.pooling import Identity, MaxPooling, Pooling, Shift
from metaformer.mixers.state_space import StateSpace

__all__ = [
    "AFNO",
    "AsTokens",
    "Attention",
    "Conv",
    "CrossCovarianceAttention",
    "DepthwiseConv",
    "FocalModulation",
    "Fourier",
    "GatedConv",
    "GlobalFilter",
    "Identity",
    "LargeKernelAttention",
    "LinearAttention",
    "MaxPooling",
    "NeighbourhoodAttention",
    "OutlookAttention",
    "Pooling",
    "RandomMixing",
    "SepConv",
    "Shift",
    "SpatialGating",
    "SpatialMLP",
    "SpatialReductionAttention",
    "StateSpace",
    "WindowAttention",
    "to_map",
    "to_tokens",
]
