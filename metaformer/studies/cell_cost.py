"""What cells cost, counted or measured, and the table of the command `cost`. A door of the studies to torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from metaformer.config.schema import Config
from metaformer.data.registry import shape
from metaformer.models.build import build, checkpoint_blocks, on_meta
from metaformer.models.compiling import compiling, refuse_without_graph, why_not_compiled
from metaformer.models.cost import Cost, count, training_memory
from metaformer.models.cost import throughput as speed_of
from metaformer.models.frozen import freeze
from metaformer.models.precision import device_of, out_of_memory, set_tf32
from metaformer.system import files
from metaformer.system.errors import ConfigError
from metaformer.system.machine import keep_memory


def _on_meta(config: Config) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    """The network of a cell without any memory, and the shape of its images."""
    image, classes = shape(config.data)
    net = on_meta(config.model, config.mixer, shape=image, classes=classes, task=config.task)
    return _as_trained(net, config), image


def _as_trained(net: torch.nn.Module, config: Config) -> torch.nn.Module:
    """A network with what a run freezes, and with what it computes twice."""
    freeze(net, config.recipe.freeze)
    if config.runtime.checkpoint_blocks:
        checkpoint_blocks(net)
    return net


def cost_of(config: Config) -> Cost:
    """The cost of a cell, counted without allocating a weight."""
    return count(*_on_meta(config))


def macs(config: Config) -> int:
    """The multiply-accumulates of a cell; a ConfigError that names the op where one has no formula."""
    return _counted(cost_of(config))


def _counted(cost: Cost) -> int:
    if cost.macs is None:
        raise ConfigError(f"mixer or model uses {', '.join(cost.uncounted)}: no formula for its multiply-accumulates")
    return cost.macs


def params(config: Config) -> int:
    """The parameters of a cell, whatever its ops are."""
    return sum(p.numel() for p in _on_meta(config)[0].parameters())


def step_seconds(config: Config) -> float:
    """Seconds of this machine for an image in a training step as the runs have it; infinity where it does not fit."""
    try:
        return 1 / throughput(config, config.batch_at_once, compiled=config.runtime.compile)[1]
    except RuntimeError as error:
        if out_of_memory(error):
            return math.inf
        refuse_without_graph(error)
        if why_not_compiled(error) is None:
            raise
        return 1 / throughput(config, config.batch_at_once)[1]  # such a network is trained as it is


def throughput(config: Config, batch: int, *, compiled: bool = False) -> tuple[float, float]:
    """Images per second of this machine: forward, and a training step."""
    image, classes = shape(config.data)
    device = _measured_on(config.runtime.accelerator)
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    net = build(config.model, config.mixer, config.seed, shape=image, classes=classes, task=config.task)
    net = _as_trained(net, config)
    images = torch.randn(batch, *image, device=device)
    set_tf32(config.runtime.tf32)
    keep_memory()  # as a run has it
    with compiling(net, compiled, graph=config.runtime.graph):
        return speed_of(net, images, config.recipe.precision)


def _measured_on(accelerator: str) -> torch.device:
    """Where runs would be, as far as times are measured there."""
    device = device_of(accelerator)
    if device.type == "cuda" or (device.type == "cpu" and accelerator in ("cpu", "auto")):
        return device
    raise ConfigError(f"runtime.accelerator={accelerator}: times are measured on a GPU of CUDA or a processor; "
                      "expected runtime.accelerator=cpu, or a machine with such a GPU")  # fmt: skip


Row = Mapping[str, Any]


def rows_of(cell: str, config: Config, match: Row) -> list[Row]:
    """A row for the cell, with the figures of its paper where it has any, and one for each module on request.

    Args:
        match: how it was matched to a budget, as columns.
    """
    net, image = _on_meta(config)
    cost, paper = count(net, image), config.reference
    memory = training_memory(net, image, config.batch_at_once)  # of each device, in fp32
    row: dict[str, Any] = {"cell": cell, "module": "", "params": cost.params}
    row |= {"frozen": cost.params - cost.trainable, "macs": _counted(cost), "activations": cost.activations}
    row |= {"training_images_at_once": config.batch_at_once, "fp32_training_gib": memory / 2**30}
    row |= {**match, "paper_params_m": paper.params, "paper_macs_g": paper.macs, "paper_top1": paper.top1}
    if config.cost.throughput:
        row |= dict(zip(("forward_images_s", "training_images_s"), throughput(config, config.cost.batch), strict=True))
    if not config.cost.modules:
        return [row]
    inside: list[Row] = [
        {"cell": cell, "module": name, "params": own_params, "macs": own_macs, "activations": activations}
        for name, (own_params, own_macs, activations) in cost.modules.items()
        if own_params or own_macs
    ]
    return [row, *inside]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as .json or .csv."""
    files.write(path, json.dumps(rows, indent=2) if path.suffix == ".json" else files.as_csv(rows))


def show(rows: Sequence[Row]) -> None:
    """Print the columns that have something in them."""
    columns = [key for key in files.keys_of(rows) if any(row.get(key) not in (None, "", 0) for row in rows)]
    table = Table(box=SIMPLE_HEAD)
    for i, key in enumerate(columns):
        table.add_column(key.replace("_", " ").replace("gib", "GiB"), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(key)) for key in columns))
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)
