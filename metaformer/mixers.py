"""Token mixers, and the contract that they and yours keep.

A mixer is a module `[B, C, H, W] -> [B, C, H, W]` that mixes over H and W. Its constructor may name `dim` (C) and
`resolution` ((H, W)), which the model passes, and any options of its own, which the configuration passes:

    class Shift(nn.Module):
        def __init__(self, dim: int, resolution: tuple[int, int], step: int = 1): ...
        def forward(self, x: Tensor) -> Tensor: ...

Shapes are NCHW and memory is channels_last, so `to_tokens(x)` is a free view. A mixer initialises itself; the model
never touches its weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from metaformer.config import import_object


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C], row by row; a view where memory is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W] with the height and width of `like`."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def init_weights(layer: nn.Linear | nn.Conv2d) -> None:
    """The official initialisation of linear layers and of the 1x1 convolutions of an MLP."""
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def heads_of(dim: int, head_dim: int) -> int:
    """How many heads of `head_dim` channels there are in `dim`; a ValueError where they do not come out even."""
    if dim % head_dim:
        raise ValueError(f"dim={dim} is not divisible by head_dim={head_dim}")
    return dim // head_dim


class StarReLU(nn.Module):
    """`scale * relu(x)^2 + bias` with two learned numbers (arXiv:2210.13452, Eq. 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.relu().square() + self.bias


class Identity(nn.Identity):
    """No token mixing: the lower bound of the ablation (PoolFormer, arXiv:2111.11418, Table 5)."""

    def __init__(self) -> None:  # nn.Identity takes any argument, a misspelt option too
        super().__init__()


class Pooling(nn.Module):
    """Average over a window minus the input, since the block adds it back (arXiv:2111.11418, Eq. 4).

    Padding is not counted, so a constant input gives exactly zero, borders included.
    """

    def __init__(self, pool_size: int = 3) -> None:
        super().__init__()
        if pool_size % 2 == 0:
            raise ValueError(f"pool_size={pool_size} is even: only an odd window keeps the resolution")
        self.pool = nn.AvgPool2d(pool_size, stride=1, padding=pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


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


class Fourier(nn.Module):
    """Real part of the Fourier transform over height, width and channels (FNet, arXiv:2105.03824, Eq. 3).

    FNet transforms one sequence axis; an image has two. `channels=False` keeps the transform spatial, so that tokens
    mix and channels do not. The transform is unitary: unnormalised it would scale the input by sqrt(C*H*W/2). Below
    fp32 it runs in fp32, since there is no FFT in bf16.
    """

    def __init__(self, channels: bool = True) -> None:
        super().__init__()
        self.axes = (1, 2, 3) if channels else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        full = x if x.dtype == torch.float64 else x.float()
        mixed = torch.fft.fftn(full, dim=self.axes, norm="ortho").real.to(x.dtype)
        return mixed.contiguous(memory_format=torch.channels_last)


class SpatialMLP(nn.Module):
    """Linear layers over the tokens, shared by all channels; bound to the resolution it was built for.

    `hidden=None` is one N x N matrix without bias (ResMLP, arXiv:2105.03404, Eq. 2; the official SpatialFc);
    `hidden=D` is Linear(N, D), GELU, Linear(D, N) (MLP-Mixer, arXiv:2105.01601, Eq. 1).
    """

    def __init__(self, resolution: tuple[int, int], hidden: int | None = None) -> None:
        super().__init__()
        self.resolution = tuple(resolution)
        tokens = resolution[0] * resolution[1]
        self.mlp: nn.Module = nn.Linear(tokens, tokens, bias=False)
        if hidden is not None:
            self.mlp = nn.Sequential(nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens))
        for layer in self.mlp.modules():
            if isinstance(layer, nn.Linear):
                init_weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        check_resolution(self, x)
        mixed = self.mlp(x.flatten(2)).unflatten(2, self.resolution)
        return mixed.contiguous(memory_format=torch.channels_last)


class DepthwiseConv(nn.Conv2d):
    """One learned kernel per channel (arXiv:2111.11418, Table 5): pooling whose weights are trained."""

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} is even: only an odd kernel keeps the resolution")
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)


class SepConv(nn.Module):
    """Inverted separable convolution of ConvFormer (arXiv:2210.13452, Eq. 5; MobileNetV2): it mixes channels too."""

    def __init__(self, dim: int, expansion: int = 2, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = expansion * dim
        self.pwconv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False)
        self.pwconv2 = nn.Conv2d(hidden, dim, 1, bias=False)
        for layer in (self.pwconv1, self.dwconv, self.pwconv2):
            init_weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class RandomMixing(nn.Module):
    """A frozen random matrix over the tokens with rows that sum to one (arXiv:2111.11418, Section 4.4, Eq. 5)."""

    def __init__(self, resolution: tuple[int, int]) -> None:
        super().__init__()
        self.resolution = tuple(resolution)
        tokens = resolution[0] * resolution[1]
        self.matrix = nn.Parameter(torch.rand(tokens, tokens).softmax(-1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        check_resolution(self, x)
        return to_map(self.matrix @ to_tokens(x), like=x)


class AsTokens(nn.Module):
    """Adapter for a `[B, N, C] -> [B, N, C]` layer of another library, given as a class or its dotted path.

    `mixer._target_=metaformer.mixers.AsTokens +mixer.layer=timm.layers.Attention +mixer.options.num_heads=2`
    """

    def __init__(self, dim: int, layer: str | type, options: dict | None = None) -> None:
        super().__init__()
        factory = import_object(layer, "mixer.layer") if isinstance(layer, str) else layer
        self.layer = factory(dim, **(options or {}))

    def forward(self, x: Tensor) -> Tensor:
        return to_map(self.layer(to_tokens(x)), like=x)


def check_resolution(mixer: Any, x: Tensor) -> None:
    """Raise where the map of `x` is not the one that `mixer` (with a `.resolution`) was built for."""
    if tuple(x.shape[2:]) != mixer.resolution:
        built, got = ("x".join(map(str, size)) for size in (mixer.resolution, x.shape[2:]))
        raise ValueError(f"{type(mixer).__name__} was built for {built} tokens and got {got}: its weights fit one size")
