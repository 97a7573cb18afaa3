"""Layers of other libraries as mixers."""

import math
from typing import Any

from torch import Tensor, nn

from metaformer.config.named_code import import_object
from metaformer.mixers.layout import to_map, to_tokens
from metaformer.system.errors import ConfigError


def module_class(named: str | type, key: str) -> type[nn.Module]:
    """A class of modules, or the one at a dotted path. Nothing else is called, as a stranger's file may name it.

    Raises:
        ConfigError: it is something else, or cannot be imported.
    """
    found = import_object(named, key) if isinstance(named, str) else named
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"{key}={named}: expected a torch.nn.Module class")
    return found


class AsTokens(nn.Module):
    """Adapter for a `[B, N, C] -> [B, N, C]` layer of another library, given as a class or its dotted path.

    `mixer._target_=metaformer.mixers.AsTokens +mixer.layer=timm.layers.Attention +mixer.options.num_heads=2`

    Args:
        tokens: the argument of the layer that is the number of tokens, `tokens=seq_len` for the MixerBlock of timm.

    Raises:
        ConfigError: the layer is no class of a module.
        ValueError: the layer was built for another number of tokens than it is given.
    """

    def __init__(
        self,
        dim: int,
        layer: str | type,
        options: dict[str, Any] | None = None,
        tokens: str | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        kind = module_class(layer, "mixer.layer")
        self.resolution = resolution if tokens else None
        number = {tokens: math.prod(resolution or ())} if tokens else {}
        self.layer = kind(dim, **(options or {}), **number)

    def forward(self, x: Tensor) -> Tensor:
        if self.resolution and math.prod(x.shape[2:]) != math.prod(self.resolution):
            raise ValueError(f"the layer was built for {self.resolution} tokens and is given {tuple(x.shape[2:])}")
        return to_map(self.layer(to_tokens(x)), like=x)
