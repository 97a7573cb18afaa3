"""The MetaFormer: norm, token mixer, residual, norm, channel MLP, residual (arXiv:2111.11418, Section 3.1).

Whatever the paper varies is an option, and nothing here looks at the type of a mixer. Every module is constructed
under a generator seeded by (seed, its path), so that two models which differ in their mixer start with the same
weights everywhere else, bit for bit.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from torch import Tensor, nn

from metaformer.mixers import MixerFactory, build, init_weights

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda dim: nn.GroupNorm(1, dim),  # over channels and space: the paper's Modified LayerNorm
    "layer": lambda dim: LayerNorm2d(dim, eps=1e-5),  # over channels only, as in the official hybrids
    "batch": nn.BatchNorm2d,
    "none": lambda dim: nn.Identity(),
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class ChannelMLP(nn.Module):
    """Two 1x1 convolutions, `C -> ratio*C -> C`: in channels_last they beat nn.Linear on a CPU, 1.1-1.7x."""

    def __init__(self, dim: int, ratio: float = 4.0, act: str = "gelu") -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        init_weights(self.fc1)
        init_weights(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MetaFormerBlock(nn.Module):
    """`x + scale(mixer(norm(x)))`, then `x + scale(mlp(norm(x)))`; [B, C, H, W] -> [B, C, H, W] (Eq. 2 and 3).

    `layer_scale` is the initial scale of each branch, None for none; `residual=False` drops the skip paths and
    `channel_mlp=False` the second half, as in the ablations of Table 5.
    """

    def __init__(
        self,
        dim: int,
        resolution: tuple[int, int],
        mixer: MixerFactory,
        *,
        mlp_ratio: float = 4.0,
        norm: str = "group",
        act: str = "gelu",
        layer_scale: float | None = 1e-5,
        residual: bool = True,
        channel_mlp: bool = True,
        drop_path: float = 0.0,
        seed: int | None = None,
        path: str = "block",
    ) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = NORMS[norm](dim)
        with seeded(seed, f"{path}.mixer"):
            self.mixer = build(mixer, dim, resolution)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale2d(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.channel_mlp = channel_mlp
        if channel_mlp:
            self.norm2 = NORMS[norm](dim)
            with seeded(seed, f"{path}.mlp"):
                self.mlp = ChannelMLP(dim, mlp_ratio, act)
            self.scale2 = nn.Identity() if layer_scale is None else LayerScale2d(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self._add(x, self.drop_path(self.scale1(self.mixer(self.norm1(x)))))
        if self.channel_mlp:
            x = self._add(x, self.drop_path(self.scale2(self.mlp(self.norm2(x)))))
        return x

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.residual else branch


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


class Stage(nn.Sequential):
    """Blocks at one resolution, after an optional downsampling convolution and position embedding."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None, position: nn.Module | None) -> None:
        super().__init__()
        if downsample is not None:
            self.downsample = downsample
        if position is not None:
            self.position = position
        self.blocks = nn.Sequential(*blocks)


class MetaFormer(nn.Module):
    """Stem, stages and head: [B, in_chans, H, W] -> [B, num_classes].

    Args:
        mixer: the mixer of every block, or a sequence with one for each stage: a class or `functools.partial`.
        img_size: height and width in pixels that resolution-bound mixers and position embeddings are built for.
        stem, downsample: kernel, stride and padding of the patch embeddings; `downsample=None` keeps one resolution.
        position: whether stage i adds a position embedding.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        seed: of every initial weight; None draws one from torch's generator.

    The head is the official one: norm on the map, mean over space, linear. The initialisation too: normal(0.02),
    truncated, for the channel MLPs and the classifier, PyTorch's default for the patch embeddings.
    """

    def __init__(
        self,
        mixer: MixerFactory | Sequence[MixerFactory],
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratio: float = 4.0,
        stem: Sequence[int] = (7, 4, 2),
        downsample: Sequence[int] | None = (3, 2, 1),
        norm: str = "group",
        act: str = "gelu",
        layer_scale: float | None = 1e-5,
        residual: bool = True,
        channel_mlp: bool = True,
        position: Sequence[bool] | None = None,
        drop_path: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else seed
        mixers = list(mixer) if isinstance(mixer, Sequence) else [mixer] * len(depths)
        positions = list(position) if position is not None else [False] * len(depths)
        for name, values in {"dims": dims, "mixer": mixers, "position": positions}.items():
            if len(values) != len(depths):
                raise ValueError(f"{name} has {len(values)} values for {len(depths)} stages")
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())

        with seeded(seed, "stem"):
            self.stem = PatchEmbed(in_chans, dims[0], *stem)
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        resolution = self.stem.resolution(size)
        stages: list[Stage] = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            embed = None
            if i > 0 and downsample is not None:
                with seeded(seed, f"stages.{i}.downsample"):
                    embed = PatchEmbed(dims[i - 1], dim, *downsample)
                resolution = embed.resolution(resolution)
            blocks = [
                MetaFormerBlock(
                    dim,
                    resolution,
                    mixers[i],
                    mlp_ratio=mlp_ratio,
                    norm=norm,
                    act=act,
                    layer_scale=layer_scale,
                    residual=residual,
                    channel_mlp=channel_mlp,
                    drop_path=next(rates),
                    seed=seed,
                    path=f"stages.{i}.blocks.{j}",
                )
                for j in range(depth)
            ]
            stages.append(Stage(blocks, embed, PositionEmbedding(dim, resolution) if positions[i] else None))
        self.stages = nn.Sequential(*stages)
        self.norm = NORMS[norm](dims[-1])
        with seeded(seed, "head"):
            self.head = nn.Linear(dims[-1], num_classes)
            init_weights(self.head)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> the last stage's map [B, C, h, w], before the final norm."""
        return self.stages(self.stem(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B, num_classes]: norm, mean, linear."""
        return self.head(self.norm(features).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class PatchEmbed(nn.Module):
    """A strided convolution from pixels, or from one stage to the next."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.conv = nn.Conv2d(in_chans, dim, kernel, stride, padding)

    def resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the map that it makes of a map of `size`."""
        height, width = ((side - self.kernel + 2 * self.padding) // self.stride + 1 for side in size)
        if min(height, width) < 1:
            raise ValueError(f"a map of {size[0]}x{size[1]} is too small for a patch of {self.kernel} pixels")
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def derive(seed: int, *place: object) -> int:
    """A seed of its own for a place (a module path, a step), from the run's seed; stable across machines."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:6], "big")


@contextmanager
def seeded(seed: int | None, *place: object) -> Iterator[None]:
    """Draw from torch's generator as if it had been seeded for this place, and leave it as it was; None: as it is."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *place))
        yield
