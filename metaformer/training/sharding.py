"""FSDP: each device keeps its part of the weights, gradients and sums of the optimizer (runtime.strategy=fsdp).

It is torch's `fully_shard`, by Lightning's ModelParallelStrategy. A parameter keeps its shape there, and a norm is
that of the whole: weight decay by shape, clipping, and optimizers such as LAMB do what they do on one device.
Lightning's FSDPStrategy cuts parameters into flat pieces, all of which timm would take for biases and never decay.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from metaformer.config.schema import Runtime
from metaformer.models.block import MetaFormerBlock
from metaformer.tasks.classification import Classifier


def strategy_of(runtime: Runtime) -> str | Strategy:
    """What trains a run on its devices."""
    if runtime.strategy == "fsdp":  # one file holds the whole checkpoint: it goes on with any number of devices
        return ModelParallelStrategy(runtime.processes, 1, save_distributed_checkpoint=False)
    return "ddp" if runtime.processes > 1 else runtime.strategy


class Sharded(Classifier):
    """A Classifier with its network in parts: a block is whole where it computes, the rest for a whole pass."""

    def configure_model(self) -> None:
        if isinstance(self.net, FSDPModule):  # Lightning asks once to fit and once to test
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        self.net.to(memory_format=torch.contiguous_format)  # the only one that fully_shard takes
        for block in [module for module in self.net.modules() if isinstance(module, MetaFormerBlock)]:
            fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def first_not_finite(self, images: Tensor) -> str:
        return "not looked for, since no device has the whole network (runtime.strategy=fsdp)"


def whole(value: Tensor) -> Tensor:
    """A tensor of which each device has a part, on each of them: all have to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a network, in parts or not, whole and on the CPU: all devices have to ask."""
    weights: dict[str, Tensor] = net.state_dict()
    for name, value in weights.items():
        weights[name] = whole(value).cpu()  # one by one: a device need not have room for all
    return weights


def load_weights(net: nn.Module, weights: Mapping[str, Any]) -> None:
    """Give a network, in parts or not, whole weights."""
    set_model_state_dict(net, dict(weights), options=StateDictOptions(full_state_dict=True))
