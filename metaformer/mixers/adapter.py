"""Layers of other libraries as mixers."""

from typing import Any

from torch import Tensor, nn

from metaformer.config.named_code import import_object
from metaformer.mixers.layout import to_map, to_tokens


class AsTokens(nn.Module):
    """Adapter for a `[B, N, C] -> [B, N, C]` layer of another library, given as a class or its dotted path.

    `mixer._target_=metaformer.mixers.AsTokens +mixer.layer=timm.layers.Attention +mixer.options.num_heads=2`
    """

    def __init__(self, dim: int, layer: str | type, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        factory = import_object(layer, "mixer.layer") if isinstance(layer, str) else layer
        self.layer = factory(dim, **(options or {}))

    def forward(self, x: Tensor) -> Tensor:
        return to_map(self.layer(to_tokens(x)), like=x)
