"""MetaFormer: is it the architecture or the token mixer? Names are imported when they are first used (PEP 562).

Where timm is there already, `metaformer_s12` and the others are models of timm from here on; otherwise they are as soon
as a model is imported: `import metaformer.models`.
"""

import sys
from importlib import import_module
from typing import Any

_MIXERS = ("Identity", "Pooling", "MaxPooling", "Shift", "DepthwiseConv", "SepConv", "LargeKernelAttention", "Conv",
           "FocalModulation", "GatedConv", "Attention", "WindowAttention", "LinearAttention", "NeighbourhoodAttention",
           "SpatialReductionAttention", "CrossCovarianceAttention", "OutlookAttention", "Fourier", "GlobalFilter",
           "AFNO", "SpatialMLP", "SpatialGating", "RandomMixing", "StateSpace", "AsTokens")  # fmt: skip
_HOME = {
    **dict.fromkeys(_MIXERS, "metaformer.mixers"),
    "MetaFormer": "metaformer.models.metaformer",
    "MetaFormerBlock": "metaformer.models.block",
    "Classifier": "metaformer.tasks.classification",
    "ImageData": "metaformer.data.module",
    "load": "metaformer.training.restored",
    "initialize": "metaformer.models.initial",
}
_MODULES = {"zoo": "metaformer.models.zoo", "weights": "metaformer.models.weights"}
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__


if "timm" in sys.modules:  # else it, and torch with it, would have to be imported here
    import_module("metaformer.models")
