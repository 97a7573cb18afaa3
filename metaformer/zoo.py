"""The published models by name, their weights in and out, and their registration in timm.

zoo.create("caformer_s18")                      an architecture of a paper, untrained
zoo.load("poolformer_s12.pth.tar")              with weights of the authors, of timm, or of this package
timm.create_model("metaformer_s12", mixer=...)  after `import metaformer.zoo`
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from metaformer.config import conf_dir
from metaformer.factory import MixerFactory
from metaformer.factory import from_config as mixers_from_config
from metaformer.mixers import Attention, Identity, Pooling, RandomMixing, SepConv, SpatialMLP
from metaformer.model import MetaFormer
from metaformer.schema import ConfigError, by_closeness
from metaformer.seeds import seeded
from metaformer.weights import Weights, load_strictly, read, resize, to_ours

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
    """A published architecture, untrained; `options` override those of `MetaFormer`."""
    published = find(name)
    return MetaFormer(published.mixers, **{**published.options, **options})


def from_config(config: Mapping[str, Any], channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    """The network of a configuration for such images: a MetaFormer with its mixer, a published model, or timm's.

    Raises:
        ConfigError: model, mixer and images do not fit together.
    """
    model = dict(config["model"])
    source, name, _ = (model.pop(key) for key in ("source", "name", "crop_pct"))
    shape: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
    own = {key: model.pop(key) for key in ("drop_path", "head_dropout")}
    rates = {key: rate for key, rate in own.items() if rate is not None}
    try:
        if source == "timm":
            names = {"drop_path": "drop_path_rate", "head_dropout": "drop_rate"}
            with seeded(config["seed"], "net"):
                return _timm_model(name, size, **shape, **{names[key]: rate for key, rate in rates.items()})
        if source == "zoo":
            return create(name, img_size=size, seed=config["seed"], **shape, **rates)
        mixers = mixers_from_config(config["mixer"], len(model["depths"]))
        return MetaFormer(mixers, img_size=size, seed=config["seed"], **shape, **rates, **model)
    except ConfigError:
        raise
    except Exception as error:  # whatever a mixer's constructor raises
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ConfigError(f"model and mixer do not fit: {kind}{error}") from error


def _timm_model(name: str, size: tuple[int, int], **options: Any) -> nn.Module:
    import timm

    if not timm.is_model(name):
        nearest = ", ".join(by_closeness(name, timm.list_models())[:5])
        raise ConfigError(f"model.name={name}: no such model of timm; nearest: {nearest}")
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise ConfigError(f"model.name={name}: {error}") from error
        return timm.create_model(name, **options)  # a model of any size


def crop_of(model: Mapping[str, Any]) -> float:
    """The evaluation crop of a `model` node: the share of the short side that the square takes."""
    if model["crop_pct"] is not None:
        return model["crop_pct"]
    if model["source"] == "zoo":
        return find(model["name"]).crop_pct
    if model["source"] == "timm":
        from timm.models import get_pretrained_cfg

        return getattr(get_pretrained_cfg(model["name"]), "crop_pct", CROP_PCT)
    return CROP_PCT


# ------------------------------------------------------------------ weights


def load(source: str | Path, name: str | None = None, **options: Any) -> MetaFormer:
    """A published model with weights from a file (.pth, .pth.tar, .pt, .safetensors) or, without one, from timm's hub.

    Keys of the official repositories, of timm and of this package are understood. Without `name` the architecture is
    found by the shapes of the weights; several fit where mixers have no weights, and then it has to be named.

    Raises:
        ConfigError: the file cannot be read, or keys or shapes differ; it names the file, the keys and models that fit.
    """
    if not Path(source).exists():
        if str(source) not in PUBLISHED:
            raise ConfigError(
                f"weights={source}: no such file, nor a published model ({', '.join(nearest_names(str(source)))})"
            )
        import timm

        weights = to_ours(timm.create_model(str(source), pretrained=True).state_dict())
        name = name or str(source)
    else:
        weights = to_ours(read(source))
    if name is None:
        fitting = names_that_fit(weights)
        if len(fitting) != 1:
            which = f"fits {', '.join(fitting)}: name one of them" if fitting else "fits no published model"
            raise ConfigError(f"weights={source}: {which}")
        name = fitting[0]
    options.setdefault("num_classes", classes_of(weights))
    net = create(name, **options)
    load_into(net, weights, str(source))
    return net


def load_into(net: nn.Module, weights: Weights, source: str) -> None:
    """`weights.load_strictly`, whose error also names the published models that would fit."""
    try:
        load_strictly(net, weights, source)
    except ConfigError as error:
        fitting = ", ".join(names_that_fit(weights)) or "no published model"
        raise ConfigError(f"{error}; the weights are those of {fitting}") from error


def initialize(net: nn.Module, source: str) -> None:
    """Load weights for fine-tuning: another number of classes keeps the new head, another image size new positions."""
    own = net.state_dict()
    ours = isinstance(net, MetaFormer)
    weights = to_ours(read(source)) if ours else read(source)
    heads = "head" if ours else net.pretrained_cfg["classifier"]  # type: ignore[index]
    for head in (heads,) if isinstance(heads, str) else heads:
        kept = {key: value for key, value in own.items() if key.startswith(f"{head}.")}
        if any(key in weights and weights[key].shape != value.shape for key, value in kept.items()):
            weights |= kept
    load_into(net, resize(weights, net, source), source)


def classes_of(weights: Weights) -> int:
    return next((len(weights[k]) for k in ("head.weight", "head.fc2.weight") if k in weights), 0)


def names_that_fit(weights: Weights) -> list[str]:
    """The published models whose parameters have these names and shapes."""
    shapes = {key: tuple(value.squeeze().shape) for key, value in weights.items()}
    return [name for name in PUBLISHED if _shapes(name, classes_of(weights)) == shapes]


@cache
def _shapes(name: str, classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = create(name, num_classes=classes)
    return {key: tuple(value.squeeze().shape) for key, value in net.state_dict().items()}


# ------------------------------------------------------------------ timm


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
        if "drop_path_rate" in kwargs:
            kwargs["drop_path"] = kwargs.pop("drop_path_rate")
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
