"""Mixers in the frequency domain."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.mixers.layout import check_resolution, full, positive


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
        mixed = torch.fft.fftn(x.to(full(x.dtype)), dim=self.axes, norm="ortho").real.to(x.dtype)
        return mixed.contiguous(memory_format=torch.channels_last)


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
        whole, weight = (t.to(full(t.dtype)) for t in (x, self.weight))
        weight = weight.contiguous()  # a model in channels_last reorders every weight of four axes
        frequencies = torch.fft.rfft2(whole, norm="ortho") * torch.view_as_complex(weight)
        mixed = torch.fft.irfft2(frequencies, s=self.resolution, norm="ortho").to(x.dtype)
        return mixed.contiguous(memory_format=torch.channels_last)


class AFNO(nn.Module):
    """A block-diagonal complex MLP on every frequency, shrunk to zero, plus the input (arXiv:2111.13587, Section 4).

    `blocks` equal ones share the channels. What is smaller than `sparsity` after the MLP is zero, the rest that much
    smaller.
    """

    def __init__(self, dim: int, blocks: int = 8, sparsity: float = 0.01) -> None:
        super().__init__()
        positive(blocks=blocks)
        if dim % blocks:
            raise ValueError(f"dim={dim} is not divisible by blocks={blocks}")
        if sparsity < 0:
            raise ValueError(f"sparsity={sparsity}: expected 0 or more")
        self.blocks, self.sparsity = blocks, sparsity
        size = dim // blocks
        self.weight1, self.weight2 = (nn.Parameter(0.02 * torch.randn(blocks, size, size, 2)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(0.02 * torch.randn(blocks, size, 2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        kind = full(x.dtype)
        parameters = (self.weight1, self.bias1, self.weight2, self.bias2)
        weight1, bias1, weight2, bias2 = (torch.view_as_complex(p.to(kind).contiguous()) for p in parameters)
        channels = torch.fft.rfft2(x.to(kind), norm="ortho").permute(0, 2, 3, 1).unflatten(-1, (self.blocks, -1))
        hidden = (channels.unsqueeze(-2) @ weight1).squeeze(-2) + bias1
        hidden = torch.complex(hidden.real.relu(), hidden.imag.relu())
        out = torch.view_as_real((hidden.unsqueeze(-2) @ weight2).squeeze(-2) + bias2)
        out = torch.view_as_complex(F.softshrink(out, self.sparsity)).flatten(-2).permute(0, 3, 1, 2)
        mixed = torch.fft.irfft2(out, s=x.shape[2:], norm="ortho").to(x.dtype)
        return x + mixed.contiguous(memory_format=torch.channels_last)
