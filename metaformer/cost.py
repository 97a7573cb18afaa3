"""What a model costs: parameters, multiply-accumulates (MACs), activations, and on request its speed here.

    python -m metaformer.cost -m model=s12 mixer=identity,pooling,attention [cost.throughput=true] [cost.out=cost.csv]

Convolutions, matrix products and attention are counted with torch's own formulas; pooling as one MAC for each
element of its window, a Fourier transform of M points as 5/2 M log2 M. Norms, activations and
element-wise arithmetic are free by convention. An op with no formula and not known to be free is named, never
counted as zero.
"""

import csv
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from metaformer.budget import Match
from metaformer.config import answer
from metaformer.identity import cell_id
from metaformer.schema import ConfigError, processes

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
    *(aten.new_empty, aten.full_like, aten.arange, aten.as_strided, aten.as_strided_, aten.select_scatter),
    *(
        aten.complex,
        aten.cos,
        aten.sin,
        aten.erf,
        aten.log,
        aten.sqrt,
        aten.abs,
        aten.reciprocal,
        aten.softplus,
        aten.mish,
        aten.leaky_relu,
        aten.softshrink,
        aten.elu,
        aten.lift_fresh,
        aten.index,
        aten.hardsigmoid,
        aten.hardswish,
        aten.hardswish_,
        aten.hardtanh,
        aten.clamp,
    ),
}


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


def count(net: nn.Module, image: tuple[int, int, int]) -> Cost:
    """Count a model for one image of (channels, height, width), by running it once on the device that it is on."""
    parameters = list(net.parameters())
    first = next((p for p in parameters if p.is_floating_point()), torch.zeros(()))
    counter = _Counter()
    training = net.training
    hooks = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: counter.enter(name)))
        hooks.append(module.register_forward_hook(lambda *_: counter.leave()))
    net.eval()
    with torch.no_grad(), counter:
        net(torch.zeros(1, *image, dtype=first.dtype, device=first.device))
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
        super().__init__()
        self.macs: Counter[str] = Counter()  # by module, "" for the whole model
        self.activations: Counter[str] = Counter()
        self.uncounted: set[str] = set()
        self.inside: list[str] = []

    def enter(self, module: str) -> None:
        self.inside.append(module)

    def leave(self) -> None:
        self.inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = func._overloadpacket
        if op not in flop_registry and op not in FORMULAS and op not in FREE:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.uncounted.add(str(op))
        out = func(*args, **kwargs)
        if op in FORMULAS or op in flop_registry:
            macs = (
                FORMULAS[op](*args, out=out) if op in FORMULAS else flop_registry[op](*args, **kwargs, out_val=out) // 2
            )
            for module in set(self.inside):
                self.macs[module] += macs
                self.activations[module] += (out[0] if isinstance(out, tuple) else out).numel()
        return out


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


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.avg_pool2d: _pooling,
    aten.max_pool2d_with_indices: _pooling,
    aten._fft_c2c: _fft,
    aten._fft_r2c: _real_fft,
    aten._fft_c2r: _real_fft,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


# ------------------------------------------------------------------ the command


def _on_meta(config: Mapping[str, Any]) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of a cell without any memory, and the channels, height and width of its images."""
    from metaformer import data, zoo

    channels, side, classes = data.shape(config["data"])
    with torch.device("meta"):
        return zoo.from_config(config, channels, classes, (side, side)), (channels, side, side)


def cost_of(config: Mapping[str, Any]) -> Cost:
    """The cost of a cell, counted without allocating a weight.

    Raises:
        ConfigError: an op has no formula; it is named.
    """
    net, image = _on_meta(config)
    cost = count(net, image)
    if cost.macs is None:
        raise ConfigError(f"mixer or model uses {', '.join(cost.uncounted)}: no formula for its multiply-accumulates")
    return cost


def params_of(config: Mapping[str, Any]) -> int:
    """The parameters of a cell, whatever its ops are."""
    return sum(p.numel() for p in _on_meta(config)[0].parameters())


def training_memory(config: Mapping[str, Any]) -> int:
    """Bytes that training takes in fp32, but for passing ones: weights, gradients, AdamW's two moments, and what the
    forward pass of a batch keeps for the backward pass, on each device."""
    net, image = _on_meta(config)
    net = net.to(memory_format=torch.channels_last)
    # Not on meta itself, where attention is never fused and would keep its N x N weights.
    with FakeTensorMode():
        net = net._apply(lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="cpu"))
        # What does not grow with the batch is kept once, and a single image would hide what broadcasting copies.
        two, three = (kept(net, torch.zeros(n, *image).to(memory_format=torch.channels_last)) for n in (2, 3))
    parts = config["runtime"]["accumulate"]
    images = -(-config["recipe"]["batch"] // processes(config["runtime"])) // (parts if isinstance(parts, int) else 1)
    weights = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in net.parameters())
    return weights + two + (images - 2) * (three - two)


def kept(net: nn.Module, x: Tensor) -> int:
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


def throughput(config: Mapping[str, Any]) -> tuple[float, float]:
    """Images per second of this machine: forward, and a training step with AdamW; the best of 5 after a warm-up."""
    from metaformer import data, zoo

    channels, side, classes = data.shape(config["data"])
    gpu = torch.cuda.is_available() and config["runtime"]["accelerator"] != "cpu"
    device = torch.device("cuda" if gpu else "cpu")
    if config["runtime"]["threads"]:
        torch.set_num_threads(config["runtime"]["threads"])
    net = zoo.from_config(config, channels, classes, (side, side)).to(device)
    net = net.to(memory_format=torch.channels_last)
    batch = config["cost"]["batch"]
    images = torch.randn(batch, channels, side, side, device=device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(p for p in net.parameters() if p.requires_grad)

    def forward() -> None:
        with torch.no_grad():
            net.eval()(images)

    def step() -> None:
        loss = net.train()(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def best(action: Callable[[], None]) -> float:
        times = []
        for _ in range(6):
            if gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            action()
            if gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return batch / min(times[1:])

    with torch.autocast(device.type, torch.bfloat16, enabled=config["recipe"]["precision"] == "bf16"):
        return best(forward), best(step)


def rows_of(cell: str, config: Mapping[str, Any], match: Match | None = None) -> list[dict[str, Any]]:
    """A row for the cell, with the figures of its paper where it has any, and one for each module on request."""
    cost = cost_of(config)
    paper = config["reference"]
    row: dict[str, Any] = {"cell": cell, "module": "", "params": cost.params, "frozen": cost.params - cost.trainable}
    row |= {"macs": cost.macs, "activations": cost.activations, "fp32_training_gib": training_memory(config) / 2**30}
    if match:
        row |= {match.key: str(match.value), "off_budget": f"{match.error:+.1%}"}
    row |= {"paper_params_m": paper["params"], "paper_macs_g": paper["macs"], "paper_top1": paper["top1"]}
    if config["cost"]["throughput"]:
        row |= dict(zip(("forward_images_s", "training_images_s"), throughput(config), strict=True))
    if not config["cost"]["modules"]:
        return [row]
    inside = [
        {"cell": cell, "module": name, "params": params, "macs": macs, "activations": activations}
        for name, (params, macs, activations) in cost.modules.items()
        if params or macs
    ]
    return [row, *inside]


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns = [key for key in rows[0] if any(row.get(key) not in (None, "", 0) for row in rows)]
    table = Table(box=SIMPLE_HEAD)
    for i, key in enumerate(columns):
        table.add_column(key.replace("_", " "), justify="right" if i else "left", overflow="fold")
    for row in rows:
        values = [row.get(key) for key in columns]
        table.add_row(
            *(
                "" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:,.4g}" if isinstance(v, float) else v
                for v in values
            )
        )
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def main() -> None:
    answer(__doc__, command)


def command(arguments: Sequence[str]) -> None:
    """Show what the cells cost that the command line describes."""
    from metaformer import study

    planned = study.expand([argument for argument in arguments if argument not in ("-m", "--multirun")])
    cells = {cell_id(p.config): p for p in planned}
    out = planned[0].config["cost"]["out"]
    if out is not None and Path(out).suffix not in (".csv", ".json"):
        raise ConfigError(f"cost.out={out}: expected a file that ends in .csv or .json")
    rows = [row for p in cells.values() for row in rows_of(p.cell, p.config, p.match)]
    show(rows)
    if out is not None:
        write(rows, Path(out))
        print(f"written: {out}")


if __name__ == "__main__":
    main()
