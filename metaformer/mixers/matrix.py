"""Mixers by a matrix over the tokens."""

import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import SpatialGatingUnit
from torch import Tensor, nn

from metaformer.mixers.layout import check_resolution, init_weights, positive, to_map, to_tokens


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
            positive(hidden=hidden)
            self.mlp = nn.Sequential(nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens))
        for layer in self.mlp.modules():
            if isinstance(layer, nn.Linear):
                init_weights(layer)

    def forward(self, x: Tensor) -> Tensor:
        check_resolution(self, x)
        mixed = self.mlp(x.flatten(2)).unflatten(2, self.resolution)
        return mixed.contiguous(memory_format=torch.channels_last)


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


class SpatialGating(nn.Module):
    """Half of the hidden channels, mixed by an N x N matrix, gates the other half (gMLP, arXiv:2105.08050).

    timm's gating unit between gMLP's projections; norm and shortcut are those of the block. The gate is one at the
    start. gMLP-S has `expansion` 6, and no channel MLP. Bound to the resolution it was built for.
    """

    def __init__(self, dim: int, resolution: tuple[int, int], expansion: int = 2) -> None:
        super().__init__()
        positive(expansion=expansion)
        if expansion * dim % 2:
            raise ValueError(f"expansion={expansion}, dim={dim}: expected an even number of hidden channels")
        self.resolution = tuple(resolution)
        hidden, tokens = expansion * dim, resolution[0] * resolution[1]
        self.fc1 = nn.Linear(dim, hidden)
        self.gate = SpatialGatingUnit(hidden, tokens)
        self.fc2 = nn.Linear(hidden // 2, dim)
        init_weights(self.fc1)
        init_weights(self.fc2)
        self.gate.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        check_resolution(self, x)
        return to_map(self.fc2(self.gate(F.gelu(self.fc1(to_tokens(x))))), like=x)
