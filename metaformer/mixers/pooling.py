"""Mixers without weights in space: identity, average and maximum over a window, shift."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.mixers.layout import odd


class Identity(nn.Identity):
    """No token mixing: the lower bound of the ablation (PoolFormer, arXiv:2111.11418, Table 5)."""

    def __init__(self) -> None:  # nn.Identity takes any argument, a misspelt option too
        super().__init__()


class Pooling(nn.Module):
    """Average over a window minus the input, since the block adds it back (arXiv:2111.11418, Eq. 4).

    Padding is not counted, so a constant input gives zero up to rounding, borders included.
    """

    def __init__(self, pool_size: int = 3) -> None:
        super().__init__()
        odd(pool_size=pool_size)
        self.pool = nn.AvgPool2d(pool_size, stride=1, padding=pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


class Shift(nn.Module):
    """A `share` of the channels moves by one token in each of four directions (ShiftViT, arXiv:2201.10801, Eq. 2).

    What moves in from outside is zero. It has no parameter and no arithmetic.
    """

    def __init__(self, dim: int, share: float = 1 / 12) -> None:
        super().__init__()
        self.part = int(dim * share + 1e-6)  # 0.0833 of 96 channels are 8
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
        odd(pool_size=pool_size)
        self.pool = nn.MaxPool2d(pool_size, stride=1, padding=pool_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x
