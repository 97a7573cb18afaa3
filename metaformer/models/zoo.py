"""The published models by name, as their papers and the official code define them.

zoo.create("caformer_s18")                      an architecture, untrained
metaformer.load("poolformer_s12.pth.tar")       with weights of the authors, of timm, or of this package
timm.create_model("metaformer_s12", mixer=...)  after any import from metaformer
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import yaml

from metaformer.config.compose import conf_dir
from metaformer.mixers import Attention, Identity, Pooling, RandomMixing, SepConv, SpatialMLP
from metaformer.mixers.factory import MixerFactory
from metaformer.models.metaformer import MetaFormer
from metaformer.system.errors import ConfigError, by_closeness

CROP_PCT = 0.9  # of the official v1, and of timm where a model says nothing else


@dataclass(frozen=True)
class Published:
    """An architecture as a paper defines it: mixers of the stages, options of `MetaFormer`, evaluation crop."""

    mixers: tuple[MixerFactory, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    crop_pct: float = CROP_PCT


@cache
def size(name: str) -> tuple[dict[str, Any], float]:
    """The options of `conf/model/NAME.yaml`, and its evaluation crop."""
    options = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text())
    options["layer_scale"] = float(options["layer_scale"])  # YAML reads 1e-5 as a string
    return options, options.pop("crop_pct", CROP_PCT)


# arXiv:2111.11418, and the official code for what the paper leaves open
V1_SIZES = ("s12", "s24", "s36", "m36", "m48")


HYBRIDS: dict[
    str, tuple[tuple[MixerFactory, ...], dict[str, Any], float]
] = {  # mixers, what changes along with them in the official code, crop
    "id": ((Identity,) * 4, {}, 0.9),
    "pppa": ((Pooling,) * 3 + (Attention,), {"norm": "layer", "position": [False, False, False, True]}, 0.95),
    "ppaa": ((Pooling,) * 2 + (Attention,) * 2, {"norm": "layer", "position": [False, False, True, False]}, 0.95),
    "pppf": ((Pooling,) * 3 + (SpatialMLP,), {}, 0.9),
    "ppff": ((Pooling,) * 2 + (SpatialMLP,) * 2, {}, 0.95),
}


# arXiv:2210.13452 and its official code
V2 = {
    "patch_norm": True,
    "norm_eps": 1e-6,
    "act": "star_relu",
    "bias": False,
    "layer_scale": None,
    "res_scale": [None, None, 1.0, 1.0],
    "head": "pool_norm",
    "init": "timm",
}


V2_MIXERS: dict[str, tuple[MixerFactory, ...]] = {
    "identityformer": (Identity,) * 4,
    "randformer": (Identity,) * 2 + (RandomMixing,) * 2,
    "poolformerv2": (Pooling,) * 4,
}


CONV_SIZES = {  # depths, dims, drop path of ConvFormer and CAFormer, head dropout of CAFormer
    "s18": ([3, 3, 9, 3], [64, 128, 320, 512], 0.2, 0.15, 0.0),
    "s36": ([3, 12, 18, 3], [64, 128, 320, 512], 0.3, 0.3, 0.4),
    "m36": ([3, 12, 18, 3], [96, 192, 384, 576], 0.4, 0.4, 0.4),
    "b36": ([3, 12, 18, 3], [128, 256, 512, 768], 0.6, 0.6, 0.5),
}


attention_without_bias = partial(Attention, proj_bias=False)


def _published() -> dict[str, Published]:
    zoo: dict[str, Published] = {}
    for name in V1_SIZES:
        zoo[f"poolformer_{name}"] = Published((Pooling,) * 4, *size(name))
    for word, (mixers, changes, crop) in HYBRIDS.items():
        zoo[f"metaformer_{word}_s12"] = Published(mixers, size("s12")[0] | changes, crop)
    for family, mixers in V2_MIXERS.items():
        for name in V1_SIZES:
            options = size(name)[0] | V2
            if (family, name) == ("randformer", "m48"):
                options["drop_path"] = 0.3
            zoo[f"{family}_{name}"] = Published(mixers, options, 1.0)
    for name, (depths, dims, conv_path, ca_path, ca_dropout) in CONV_SIZES.items():
        options = V2 | {"depths": depths, "dims": dims, "norm": "layer", "head": "mlp"}
        convs = options | {"drop_path": conv_path}
        zoo[f"convformer_{name}"] = Published((SepConv,) * 4, convs, 1.0)
        hybrid = (SepConv,) * 2 + (attention_without_bias,) * 2
        zoo[f"caformer_{name}"] = Published(hybrid, options | {"drop_path": ca_path, "head_dropout": ca_dropout}, 1.0)
    return zoo


PUBLISHED = _published()


def find(name: str) -> Published:
    if name not in PUBLISHED:
        raise ConfigError(f"model.name={name}: no such published model; nearest: {', '.join(nearest_names(name))}")
    return PUBLISHED[name]


def nearest_names(name: str) -> list[str]:
    return by_closeness(name, PUBLISHED)[:5]


def create(name: str, **options: Any) -> MetaFormer:
    """A published architecture, untrained; `options` override those of `MetaFormer`.

    Raises:
        ConfigError: there is none of that name; it says the nearest.
    """
    published = find(name)
    return MetaFormer(published.mixers, **{**published.options, **options})
