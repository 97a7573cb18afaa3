"""From maps to tokens and back, and what several mixers share."""

from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C], row by row; a view where memory is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W] with the height and width of `like`."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def full(dtype: torch.dtype) -> torch.dtype:
    """In which long sums and transforms of such numbers are computed: fp32 at least."""
    return torch.promote_types(dtype, torch.float32)


def may_fuse() -> bool:
    """Whether a mixer may take a kernel of its own for CUDA.

    Not where torch was asked for plain operations, as for second derivatives, which such kernels do not have. While a
    network is compiled nobody asks: that would cut it to pieces.
    """
    return torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()


def init_weights(layer: nn.Linear | nn.Conv2d) -> None:
    """The official initialisation of weights: normal with a deviation of 0.02, cut at 2; biases are zero."""
    if layer.weight.is_meta:  # a network that is only counted
        return
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def positive(**options: int) -> None:
    """A ValueError for the first option of a mixer that is not at least 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def odd(**options: int) -> None:
    """A ValueError for the first size of a window that would not keep the resolution."""
    positive(**options)
    for name, value in options.items():
        if value % 2 == 0:
            near = f"expected {value - 1} or {value + 1}"
            raise ValueError(f"{name}={value} is even: only an odd window keeps the resolution; {near}")


def heads_of(dim: int, head_dim: int, name: str = "head_dim") -> int:
    """How many heads of `head_dim` channels there are in `dim`; a ValueError where they do not come out even."""
    positive(**{name: head_dim})
    if dim % head_dim:
        raise ValueError(f"dim={dim} is not divisible by {name}={head_dim}")
    return dim // head_dim


def check_resolution(mixer: Any, x: Tensor) -> None:
    """Raise where the map of `x` is not the one that `mixer` (with a `.resolution`) was built for."""
    if tuple(x.shape[2:]) != mixer.resolution:
        built, got = ("x".join(map(str, size)) for size in (mixer.resolution, x.shape[2:]))
        raise ValueError(f"{type(mixer).__name__} was built for {built} tokens and got {got}: its weights fit one size")
