"""What a model costs: parameters and multiply-accumulates (MACs).

Convolutions, matrix products and attention are counted with torch's own formulas; average pooling as one MAC for each
element of its window, a Fourier transform of M points as 5/2 M log2 M. Norms, activations and
element-wise arithmetic are free by convention. An op with no formula and not known to be free is named, never
counted as zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten

FREE = {
    *(
        aten.add,
        aten.add_,
        aten.sub,
        aten.rsub,
        aten.mul,
        aten.mul_,
        aten.div,
        aten.neg,
        aten.addcmul,
        aten.pow,
    ),
    *(aten.gelu, aten.relu, aten.relu_, aten.silu, aten.silu_, aten.sigmoid, aten.tanh, aten.exp, aten.rsqrt),
    *(
        aten._softmax,
        aten._safe_softmax,
        aten.softmax,
        aten.mean,
        aten.sum,
        aten.maximum,
        aten.where,
        aten.scalar_tensor,
    ),
    *(aten.native_group_norm, aten.native_layer_norm, aten.native_batch_norm, aten.cudnn_batch_norm),
    *(
        aten._native_batch_norm_legit_no_training,
        aten._native_batch_norm_legit,
        aten.dropout,
        aten.native_dropout,
    ),
    *(aten.view, aten._unsafe_view, aten._reshape_alias, aten.reshape, aten.permute, aten.transpose, aten.t),
    *(aten.expand, aten.unsqueeze, aten.squeeze, aten.select, aten.slice, aten.split, aten.split_with_sizes),
    *(
        aten.unbind,
        aten.cat,
        aten.stack,
        aten.roll,
        aten.flip,
        aten.clone,
        aten.copy_,
        aten._to_copy,
        aten.detach,
    ),
    *(aten.alias, aten.contiguous, aten.real, aten.view_as_real, aten.view_as_complex, aten.constant_pad_nd),
    *(
        aten.empty,
        aten.empty_like,
        aten.zeros,
        aten.zeros_like,
        aten.ones,
        aten.ones_like,
        aten.new_zeros,
        aten.full,
    ),
    *(aten.new_empty, aten.full_like, aten.arange, aten.as_strided, aten.select_scatter, aten.lift_fresh),
}


@dataclass
class Cost:
    """`macs` is for one image, None where `uncounted` names an op."""

    params: int
    trainable: int
    macs: int | None
    uncounted: list[str] = field(default_factory=list)


def count(net: nn.Module, image: tuple[int, int, int]) -> Cost:
    """Count a model for one image of (channels, height, width), by running it once on the device that it is on."""
    parameters = list(net.parameters())
    first = parameters[0]
    counter = _Counter()
    training = net.training
    net.eval()
    with torch.no_grad(), counter:
        net(torch.zeros(1, *image, dtype=first.dtype, device=first.device))
    net.train(training)
    return Cost(
        params=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        macs=None if counter.uncounted else counter.macs,
        uncounted=sorted(counter.uncounted),
    )


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = func._overloadpacket
        if op in flop_registry:
            out = func(*args, **kwargs)
            self.macs += flop_registry[op](*args, **kwargs, out_val=out) // 2
            return out
        if op in FORMULAS:
            out = func(*args, **kwargs)
            self.macs += FORMULAS[op](*args, out=out)
            return out
        if op not in FREE:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.uncounted.add(str(op))
        return func(*args, **kwargs)


def _pooling(x: Tensor, kernel: list[int], *_: Any, out: Tensor) -> int:
    return out.numel() * kernel[0] * kernel[-1]


def _fft(x: Tensor, dim: list[int], *_: Any, out: Tensor) -> int:
    points = math.prod(x.shape[d] for d in dim)
    return round(2.5 * x.numel() * math.log2(points)) if points > 1 else 0


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape) // 2


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.avg_pool2d: _pooling,
    aten._fft_c2c: _fft,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
