"""The MetaFormer block and what else a model is made of: norms, channel MLP, patch embedding, stage, head."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from timm.models.metaformer import StarReLU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaformer.config.schema import BlockOptions
from metaformer.mixers.factory import MixerFactory, build
from metaformer.mixers.layout import init_weights
from metaformer.system.seeds import seeded

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "star_relu": StarReLU}


def make_norm(kind: str, dim: int, eps: float = 1e-5, bias: bool = True) -> nn.Module:
    """`group`: over channels and space, the paper's Modified LayerNorm; `layer`: over channels; `batch`; `none`."""
    norm: nn.Module
    match kind:
        case "group":
            norm = nn.GroupNorm(1, dim, eps)
        case "layer":
            norm = LayerNorm2d(dim, eps)
        case "batch":
            norm = nn.BatchNorm2d(dim, eps)
        case "none":
            return nn.Identity()
        case _:
            raise ValueError(f"norm={kind}: expected group, layer, batch or none")
    if not bias:
        norm.register_parameter("bias", None)
    return norm


class ChannelMLP(nn.Module):
    """Two 1x1 convolutions, `C -> ratio*C -> C`: in channels_last they beat nn.Linear on a CPU, 1.1-1.7x."""

    def __init__(self, dim: int, ratio: float = 4.0, act: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, 1, bias=bias)
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=bias)
        init_weights(self.fc1)
        init_weights(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MetaFormerBlock(nn.Module):
    """`x + scale(mixer(norm(x)))`, then `x + scale(mlp(norm(x)))` (arXiv:2111.11418, Eq. 2 and 3).

    [B, C, H, W] -> [B, C, H, W].

    Args:
        dim: C.
        mixer: a class or `functools.partial`, which is given `dim` and `resolution` where it names them.
        resolution: height and width in tokens, for mixers that are bound to them.
        options: norm, activation, scales and so on; the same by name, like `norm="layer"`, override them. Without
            `residual` the skip paths are gone, without `channel_mlp` the second half, as in the ablations of Table 5.
        res_scale: initial scale of the skip paths; None for none.
        drop_path: stochastic depth of both branches.
        seed, path: of the initial weights: a module's are a function of the seed and of its place in the model.

    Raises:
        TypeError: an option that `BlockOptions` does not have.
        ValueError: a norm or activation that there is none of, or what the mixer says of its options.
    """

    def __init__(
        self,
        dim: int,
        resolution: tuple[int, int],
        mixer: MixerFactory,
        options: BlockOptions | None = None,
        *,
        res_scale: float | None = None,
        drop_path: float = 0.0,
        seed: int | None = None,
        path: str = "block",
        **changes: Any,
    ) -> None:
        super().__init__()
        o = replace(options or BlockOptions(), **changes)
        self.residual, self.channel_mlp = o.residual, o.channel_mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm1 = make_norm(o.norm, dim, o.norm_eps, o.bias)
        with seeded(seed, f"{path}.mixer"):
            self.mixer = build(mixer, dim, resolution)
        self.layer_scale1, self.res_scale1 = make_scale(dim, o.layer_scale), make_scale(dim, res_scale)
        if o.channel_mlp:
            self.norm2 = make_norm(o.norm, dim, o.norm_eps, o.bias)
            with seeded(seed, f"{path}.mlp"):
                self.mlp = ChannelMLP(dim, o.mlp_ratio, o.act, o.bias)
            self.layer_scale2, self.res_scale2 = make_scale(dim, o.layer_scale), make_scale(dim, res_scale)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.layer_scale1(self.drop_path(self.mixer(self.norm1(x))))
        x = self.res_scale1(x) + branch if self.residual else branch
        if self.channel_mlp:
            branch = self.layer_scale2(self.drop_path(self.mlp(self.norm2(x))))
            x = self.res_scale2(x) + branch if self.residual else branch
        return x


def make_scale(dim: int, value: float | None) -> nn.Module:
    """A learned factor for each channel; zero is a value, None is no scale."""
    return nn.Identity() if value is None else LayerScale2d(dim, value)


class PositionEmbedding(nn.Module):
    """A learned offset for every channel and place, zero at the start; bound to its resolution."""

    def __init__(self, dim: int, resolution: tuple[int, int]) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1, dim, *resolution))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.offset.shape[2:]:
            built, got = (f"{s[2]}x{s[3]}" for s in (self.offset.shape, x.shape))
            raise ValueError(f"the position embedding was built for {built} tokens and got {got}")
        return x + self.offset


class PatchEmbed(nn.Module):
    """A strided convolution from pixels, or from one stage to the next, with a norm before or after it."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel: int,
        stride: int,
        padding: int,
        *,
        pre_norm: bool = False,
        post_norm: bool = False,
        init: str = "official",
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.pre_norm = make_norm("layer", in_chans, 1e-6, bias=False) if pre_norm else nn.Identity()
        self.conv = nn.Conv2d(in_chans, dim, kernel, stride, padding)
        self.post_norm = make_norm("layer", dim, 1e-6, bias=False) if post_norm else nn.Identity()
        if init == "timm":
            init_weights(self.conv)

    def resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the map that it makes of a map of `size`."""
        height, width = ((side - self.kernel + 2 * self.padding) // self.stride + 1 for side in size)
        if min(height, width) < 1:
            raise ValueError(f"a map of {size[0]}x{size[1]} is too small for a patch of {self.kernel} pixels")
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        return self.post_norm(self.conv(self.pre_norm(x)))


class Stage(nn.Module):
    """Blocks at one resolution, after an optional downsampling convolution and position embedding.

    Args:
        resolution: height and width in tokens that mixers and position embedding are built for.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        downsample: nn.Module | None,
        position: nn.Module | None,
        resolution: tuple[int, int],
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.downsample = downsample or nn.Identity()
        self.position = position or nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(self.downsample(x))
        if not self.grad_checkpointing:
            return self.blocks(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class MLPHead(nn.Module):
    """`C -> 4C`, squared ReLU, layer norm, `4C -> classes` (arXiv:2210.13452, the official code's MlpHead).

    The norm's eps is the official 1e-5; timm has 1e-6, which moves its logits by about 3e-5.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.norm = nn.LayerNorm(4 * dim)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(4 * dim, num_classes)
        init_weights(self.fc1)
        init_weights(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.norm(self.fc1(x).relu().square())))
