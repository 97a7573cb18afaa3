"""A loss that is not finite ends a run, and is found without asking the device for a value at each step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def every(device: torch.device) -> int:
    """At which n-th step the losses are read: whoever reads a value of a GPU waits until it has computed all before."""
    return 1 if device.type == "cpu" else 50


@dataclass(frozen=True)
class Seen:
    """A step, counted from 1 as epochs are, whose loss is still on the device."""

    loss: Tensor
    step: int
    epoch: int
    lr: float


class Watch:
    """Remembers the losses of some steps and reads them all at once."""

    def __init__(self) -> None:
        self.unread: list[Seen] = []

    def see(self, loss: Tensor, step: int, epoch: int, lr: float) -> None:
        self.unread.append(Seen(loss.detach(), step, epoch, lr))

    def read(self, where: Callable[[], str] | None = None) -> None:
        """Look at what is remembered, and forget it.

        Args:
            where: says where in the network the last step went wrong, if it still has the weights of that step.

        Raises:
            FloatingPointError: a loss is not finite; it names the first, and where it is that of the images the module.
        """
        seen, self.unread = self.unread, []
        if not seen:
            return
        losses = torch.stack([s.loss for s in seen]).tolist()  # one copy to the host
        for which, loss in zip(seen, losses, strict=True):
            if math.isfinite(loss):
                continue
            words = f"diverged: loss is {loss} at step {which.step} (epoch {which.epoch}), lr {which.lr:.3g}"
            if which is seen[-1] and where is not None:
                words += f"; first not finite: {where()}"
            raise FloatingPointError(words)


@torch.no_grad()
def first_not_finite(net: nn.Module, images: Tensor) -> str:
    """The module where values stop being finite in a forward pass: its weights, or else its output."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            if found or not isinstance(output, Tensor) or torch.isfinite(output).all():
                return
            weights = [key for key, p in module.named_parameters(recurse=False) if not torch.isfinite(p).all()]
            found.append(f"{name}.{weights[0]}" if weights else f"the output of {name} ({type(module).__name__})")

        return check

    # The forward as it is written: what torch.compile made of it before calls no hooks.
    # A module's hook is called after those of the modules in it: the first to complain is the innermost.
    hooks = [module.register_forward_hook(watch(name)) for name, module in net.named_modules() if name]
    try:
        net.forward(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss itself"
