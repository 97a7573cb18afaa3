"""The MetaFormers as models of timm."""

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from metaformer.mixers import Pooling
from metaformer.mixers.factory import MixerFactory
from metaformer.models.metaformer import MetaFormer, check_pool
from metaformer.models.weights import to_ours
from metaformer.models.zoo import PUBLISHED, V1_SIZES, size


def _register(name: str, mixers: tuple[MixerFactory, ...] | None, options: Mapping[str, Any], crop_pct: float) -> None:
    config = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv",
        "classifier": "head",
    }

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        for theirs, ours in (("drop_path_rate", "drop_path"), ("drop_rate", "head_dropout")):
            if theirs in kwargs:
                kwargs[ours] = kwargs.pop(theirs)
        check_pool(kwargs.pop("global_pool", None))
        if mixers is not None:
            kwargs["mixer"] = mixers
        return build_model_with_cfg(
            MetaFormer,
            entry.__name__,
            pretrained,
            pretrained_filter_fn=lambda weights, model: to_ours(weights),
            feature_cfg={"flatten_sequential": True, "out_indices": tuple(range(4))},
            **{"mixer": Pooling, **options, **kwargs},
        )

    entry.__name__, entry.__module__, entry.__doc__ = name, __name__, f"{name} as a timm model"
    globals()[name] = entry
    default_cfgs = generate_default_cfgs({f"{name}.untrained": config})
    globals().setdefault("default_cfgs", {}).update(default_cfgs)
    register_model(entry)


def register() -> None:
    """Register the architectures in timm: `metaformer_s12` ... with any mixer, and every published model whose name
    timm does not have."""
    import timm

    for name in V1_SIZES:
        _register(f"metaformer_{name}", None, *size(name))
    for name, published in PUBLISHED.items():
        if not timm.is_model(name):
            _register(name, published.mixers, published.options, published.crop_pct)


register()
