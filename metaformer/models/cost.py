"""What a model costs: parameters, multiply-accumulates (MACs), activations, and the memory of training it.

Convolutions, matrix products and attention are counted with torch's own formulas; pooling as one MAC for each
element of its window, a bilinear value as four, a Fourier transform of M points as 5/2 M log2 M, or half of that where
its points are real numbers, a product of complex numbers as four. Norms, activations
and element-wise arithmetic are free by convention. An op with no formula and not known to be free is named, never
counted as zero. A module with a method `macs`, which takes what its `forward` takes, is counted by that and not by its
ops.

This is the one file that uses torch's dispatch and its fake tensors; tests/models/test_cost.py tells when they
change.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from metaformer.models.precision import autocast, deterministic

aten = torch.ops.aten
Image = tuple[int, int, int]  # channels, height, width

FREE_NAMES = """
repeat triu tril cumsum
add add_ sub rsub mul mul_ div neg addcmul pow gelu relu relu_ silu silu_ sigmoid tanh exp rsqrt _softmax
_safe_softmax softmax mean sum maximum where scalar_tensor native_group_norm native_layer_norm native_batch_norm
cudnn_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit dropout native_dropout view
_unsafe_view _reshape_alias reshape permute transpose t expand unsqueeze squeeze select slice split
split_with_sizes unbind cat stack roll flip clone copy_ _to_copy detach alias contiguous real view_as_real
view_as_complex constant_pad_nd empty empty_like zeros zeros_like ones ones_like new_zeros full new_empty
full_like arange as_strided as_strided_ select_scatter complex cos sin erf log sqrt abs reciprocal softplus mish
leaky_relu softshrink elu lift_fresh index hardsigmoid hardswish hardswish_ hardtanh clamp clamp_min
linalg_vector_norm im2col col2im upsample_nearest2d
"""
FREE = {getattr(aten, name) for name in FREE_NAMES.split()}


@dataclass
class Cost:
    """`macs` is for one image, None where `uncounted` names an op.

    `activations` is the number of values that the counted ops put out, as in arXiv:2003.13678, Section 3.1.
    `modules` has (parameters, MACs, activations) of each module, what is inside of it included.
    """

    params: int
    trainable: int
    macs: int | None
    activations: int
    uncounted: list[str] = field(default_factory=list)
    modules: dict[str, tuple[int, int, int]] = field(default_factory=dict)


def count(net: nn.Module, image: Image) -> Cost:
    """Count a model for one image, by running it once on the device that it is on."""
    parameters = list(net.parameters())
    first = next((p for p in parameters if p.is_floating_point()), torch.zeros(()))
    counter = _Counter()
    training = net.training
    hooks = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _, name=name: counter.enter(name, module)))
        hooks.append(module.register_forward_hook(counter.leave, with_kwargs=True))
    net.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # in evaluation torch fuses a whole attention into one op
    try:
        with torch.no_grad(), counter:
            net(torch.zeros(1, *image, dtype=first.dtype, device=first.device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        net.train(training)
        for hook in hooks:
            hook.remove()
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in net.named_modules()}
    return Cost(
        params=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        macs=None if counter.uncounted else counter.macs[""],
        activations=counter.activations[""],
        uncounted=sorted(counter.uncounted),
        modules={name: (sizes[name], counter.macs[name], counter.activations[name]) for name in sizes if name},
    )


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: Counter[str] = Counter()  # by module, "" for the whole model
        self.activations: Counter[str] = Counter()
        self.uncounted: set[str] = set()
        self.inside: list[str] = []
        self.stated = 0  # how many of the modules that we are in say themselves what they cost

    def enter(self, name: str, module: nn.Module) -> None:
        self.inside.append(name)
        self.stated += _says(module)

    def leave(self, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        if _says(module):
            self.stated -= 1
            if not self.stated:
                self.add(module.macs(*inputs, **named), output)  # type: ignore[operator]
        self.inside.pop()

    def add(self, macs: int, out: Any) -> None:
        for module in set(self.inside):
            self.macs[module] += macs
            self.activations[module] += (out[0] if isinstance(out, tuple) else out).numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.stated:
            return func(*args, **kwargs)
        op = func._overloadpacket
        if op not in flop_registry and op not in FORMULAS and op not in FREE:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.uncounted.add(str(op))
        out = func(*args, **kwargs)
        if op in FORMULAS:
            self.add(FORMULAS[op](*args, out=out), out)
        elif op in flop_registry:
            products = 4 if isinstance(args[0], Tensor) and args[0].is_complex() else 1
            self.add(products * flop_registry[op](*args, **kwargs, out_val=out) // 2, out)
        return out


def _says(module: nn.Module) -> bool:
    """Whether it has the method `macs`; a number of that name is somebody's own business."""
    return callable(getattr(module, "macs", None))


def _pooling(x: Tensor, kernel: list[int], *_: Any, out: Any) -> int:
    return (out[0] if isinstance(out, tuple) else out).numel() * kernel[0] * kernel[-1]


def _fft(x: Tensor, dim: list[int], *_: Any, out: Tensor) -> int:
    points = math.prod(x.shape[d] for d in dim)
    return round(2.5 * x.numel() * math.log2(points)) if points > 1 else 0


def _real_fft(x: Tensor, dim: list[int], *_: Any, out: Tensor) -> int:
    real = out if x.is_complex() else x  # half the work of a complex transform of the same points
    return _fft(real, dim, out=out) // 2


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape) // 2


def _bilinear(*_: Any, out: Tensor) -> int:
    return 4 * out.numel()


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.avg_pool2d: _pooling,
    aten.max_pool2d_with_indices: _pooling,
    aten.upsample_bilinear2d: _bilinear,
    aten._fft_c2c: _fft,
    aten._fft_r2c: _real_fft,
    aten._fft_c2r: _real_fft,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


# ------------------------------------------------------------------ memory


def training_memory(net: nn.Module, image: Image, batch: int) -> int:
    """Bytes that training takes in fp32, but for passing ones: weights, gradients, AdamW's two moments, and what the
    forward pass of a batch keeps for the backward pass.

    Args:
        net: on the meta device.
        image: channels, height and width.
    """
    net = net.to(memory_format=torch.channels_last)
    # Not on meta itself, where attention is never fused and would keep its N x N weights.
    with FakeTensorMode():
        net = net._apply(lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="cpu"))
        # What does not grow with the batch is kept once, and a single image would hide what broadcasting copies.
        two, three = (saved_bytes(net, torch.zeros(n, *image).to(memory_format=torch.channels_last)) for n in (2, 3))
    weights = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in net.parameters())
    return weights + two + (batch - 2) * (three - two)


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted; what is kept twice counts once."""
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = net.train()(x)
    del y  # not before: what it holds has addresses of its own
    return sum(storages.values())


def throughput(net: nn.Module, images: torch.Tensor, precision: str = "fp32") -> tuple[float, float]:
    """Images per second: forward, and a training step with AdamW, as runs have them; the best of 5 after a warm-up.

    Args:
        images: [B, C, H, W], on the device where it is measured.
        precision: of the recipe.
    """
    device = images.device
    net = net.to(device).to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.AdamW((p for p in net.parameters() if p.requires_grad), fused=fused)

    def forward() -> None:
        with torch.no_grad():
            net.eval()(images)

    def step() -> None:
        loss = net.train()(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with deterministic(), autocast(device, precision):
        each, whole = best([forward, step], device)
    return len(images) / each, len(images) / whole


def best(actions: Sequence[Callable[[], object]], device: torch.device, rounds: int = 5) -> list[float]:
    """Seconds of each action, the fastest of some rounds in which they take turns, after one that does not count."""

    def seconds(action: Callable[[], object]) -> float:
        synchronise(device)
        started = time.perf_counter()
        action()
        synchronise(device)
        return time.perf_counter() - started

    _, *times = [[seconds(action) for action in actions] for _ in range(1 + rounds)]
    return [min(of_one) for of_one in zip(*times, strict=True)]


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
