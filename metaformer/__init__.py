"""MetaFormer: is it the architecture or the token mixer? Names are imported when they are first used (PEP 562)."""

from importlib import import_module
from typing import Any

_HOME = {
    "MetaFormer": "model",
    "MetaFormerBlock": "block",
    **dict.fromkeys(
        (
            "Identity",
            "Pooling",
            "Attention",
            "Fourier",
            "SpatialMLP",
            "DepthwiseConv",
            "RandomMixing",
            "AsTokens",
        ),
        "mixers",
    ),
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
