"""A selective state space over the map, in four directions."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.mixers.layout import full, init_weights, may_fuse, odd, positive


class StateSpace(nn.Module):
    """The selective scan of Mamba (arXiv:2312.00752, Alg. 2) over a map, by rows, by columns, and both backwards.

    That is SS2D of VMamba (arXiv:2401.10166), as `v05_noz` of the official code, that of its published models.
    `state` and `expansion` are those of VMamba-T (Mamba has 16 and 2). Weights have the names and the initial values of
    the official code. On CUDA mamba-ssm's kernel runs where it is installed and nothing is trained that has to be the
    same twice, else a scan in chunks.
    """

    def __init__(self, dim: int, state: int = 1, expansion: int = 1, kernel_size: int = 3) -> None:
        super().__init__()
        positive(state=state, expansion=expansion)
        odd(kernel_size=kernel_size)
        inner, rank = expansion * dim, math.ceil(dim / 16)
        self.split = (rank, state, state)
        self.in_proj = nn.Conv2d(dim, inner, 1, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner, bias=False)
        self.x_proj_weight = nn.Parameter(torch.empty(4, sum(self.split), inner).uniform_(-1, 1) * inner**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, rank).uniform_(-1, 1) * rank**-0.5)
        self.dt_projs_bias = nn.Parameter(_steps(4, inner))
        self.A_logs = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.scan = SelectiveScan()
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Conv2d(inner, dim, 1, bias=False)
        init_weights(self.in_proj)
        init_weights(self.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        u = directions(F.silu(self.conv2d(self.in_proj(x))))  # [B, 4, C, L]
        dt, b, c = (self.x_proj_weight @ u).split(self.split, 2)
        y = self.scan(u, self.dt_projs_weight @ dt, self.dt_projs_bias, self.A_logs, b, c, self.Ds)
        merged = merge(y, x.shape[2], x.shape[3])
        return self.out_proj(self.out_norm(merged.permute(0, 2, 3, 1)).to(x.dtype).permute(0, 3, 1, 2))


def _steps(*size: int, least: float = 1e-3, most: float = 0.1) -> Tensor:
    """Biases whose softplus is spread evenly in the logarithm between two step sizes, as in the official code."""
    dt = torch.exp(torch.rand(size) * math.log(most / least) + math.log(least))
    return dt + torch.log(-torch.expm1(-dt))


def directions(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 4, C, H*W]: by rows, by columns, and both backwards."""
    both = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)
    return torch.cat([both, both.flip(-1)], 1)


def merge(y: Tensor, height: int, width: int) -> Tensor:
    """[B, 4, C, H*W] -> [B, C, H, W]: every direction back in its place, and their sum."""
    rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
    return rows.unflatten(2, (height, width)) + columns.unflatten(2, (width, height)).transpose(2, 3)


class SelectiveScan(nn.Module):
    """`h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t` and `y_t = C_t h_t + D u_t` (arXiv:2312.00752, Eq. 2).

    In fp32 at least, with `dt = softplus(delta + bias)` and `A = -exp(log)`. K directions, C channels, N states.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = _kernel()  # not in `forward`: an import would cut a network to pieces while it is compiled

    def macs(self, u: Tensor, delta: Tensor, bias: Tensor, log: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> int:
        """Three of each state, for the step, what comes in and what goes out, and one for the skip."""
        return u.numel() * (3 * log.shape[1] + 1)

    def forward(
        self, u: Tensor, delta: Tensor, bias: Tensor, log: Tensor, b: Tensor, c: Tensor, skip: Tensor
    ) -> Tensor:
        """u, delta [B, K, C, L], bias [K, C], log [K*C, N], b, c [B, K, N, L], skip [K*C] -> [B, K, C, L]."""
        kind = full(u.dtype)
        u, delta, bias, log, b, c, skip = (t.to(kind) for t in (u, delta, bias, log, b, c, skip))
        a = -log.exp()
        if self.kernel is not None and _fits(u):
            flat = (t.flatten(1, 2).contiguous() for t in (u, delta))
            y = self.kernel(*flat, a, b.contiguous(), c.contiguous(), skip, None, bias.flatten(), True)
            return y.view_as(u)
        dt = F.softplus(delta + bias[..., None])
        decay = torch.exp(dt.unsqueeze(3) * a.view(*bias.shape, -1, 1))  # [B, K, C, N, L]
        h = linear_scan(decay, (dt * u).unsqueeze(3) * b.unsqueeze(2))
        return (h * c.unsqueeze(2)).sum(3) + u * skip.view(*bias.shape, 1)


def linear_scan(decay: Tensor, update: Tensor) -> Tensor:
    """`h_t = decay_t h_(t-1) + update_t` along the last axis, from zero; decays between 0 and 1 [..., L]."""
    return _LinearScan.apply(decay, update)


class _LinearScan(torch.autograd.Function):
    """The gradient of a linear recurrence is one too, that runs backwards; nothing is kept but decays and states."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, update: Tensor) -> Tensor:
        h = _in_chunks(decay, update)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        decay, h = ctx.saved_tensors
        later = F.pad(decay[..., 1:], (0, 1))  # the decay that carries h_t to h_(t+1)
        g = linear_scan(later.flip(-1), gradient.flip(-1)).flip(-1)
        return g * F.pad(h[..., :-1], (1, 0)), g


def _in_chunks(decay: Tensor, update: Tensor) -> Tensor:
    """All chunks at once, each as if it began at zero; then the last state of each goes on into the next."""
    length = decay.shape[-1]
    size = math.ceil(math.sqrt(length))
    a, h = (F.pad(t, (0, -length % size)).unflatten(-1, (-1, size)).movedim((-2, -1), (0, 1)).clone(
        memory_format=torch.contiguous_format) for t in (decay, update))  # [chunks, size, ...]  # fmt: skip
    for t in range(1, size):
        h[:, t] += a[:, t] * h[:, t - 1]
        a[:, t] *= a[:, t - 1]  # what is left of the state before the chunk
    for chunk in range(1, len(h)):
        h[chunk] += a[chunk] * h[chunk - 1, -1]
    return h.flatten(0, 1)[:length].movedim(0, -1).contiguous()


def _fits(u: Tensor) -> bool:
    """Whether mamba-ssm's kernel is for these: on CUDA, in fp32.

    Not to train where torch is to be deterministic, as in each run: the kernel adds up gradients in any order.
    """
    if not (u.is_cuda and u.dtype == torch.float32):
        return False
    return not (torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()) and may_fuse()


def _kernel() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn
