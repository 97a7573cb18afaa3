"""Weights in and out: files, the names that timm and the authors give, strict loading, other image sizes."""

import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from metaformer.models.beside_weights import NO_CODE, why_unsafe, without_others
from metaformer.models.ends import adapt_stem, classes_of
from metaformer.models.metaformer import MetaFormer
from metaformer.models.zoo import PUBLISHED, create, nearest_names
from metaformer.system.errors import ConfigError, few
from metaformer.system.files import replacing

Weights = dict[str, Tensor]


def read(source: str | Path, key: str = "weights") -> Weights:
    """The state dict in a file; never runs code from it.

    Args:
        key: what names the file, for messages.

    Raises:
        ConfigError: there is no such file, it would run code, or it holds no tensors by name.
    """
    path = Path(source)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals(NO_CODE):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{key}={path}: cannot be read safely: {why_unsafe(str(error))}") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "PytorchStreamReader" in reason or "enforce fail" in reason:  # torch's, of an archive of another kind
            reason = "it is no file of torch.save"
        raise ConfigError(f"{key}={path}: cannot be read ({reason})") from error
    for wrapper in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(f"{key}={path}: holds no state dict (names to tensors)")
    return without_others(dict(content), path)


def save(weights: Weights, path: str | Path) -> None:
    """Write a state dict to .safetensors, or with torch.save; `to_timm` and `to_official` give it other names."""
    with replacing(Path(path)) as part:
        if part.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({key: value.contiguous() for key, value in weights.items()}, part)
        else:
            torch.save(dict(weights), part)


def load_strictly(net: nn.Module, weights: Weights, origin: str) -> None:
    """Load weights into a model, all or nothing. A shape may differ by trailing ones: Linear is a 1x1 convolution.

    Args:
        origin: the key and the file, like `weights=FILE`, for messages.

    Raises:
        ConfigError: a name is missing or too many, or a shape differs; it says which.
    """
    own = net.state_dict()
    fitted = {}
    for key, value in weights.items():
        if key in own and own[key].shape != value.shape and own[key].squeeze().shape == value.squeeze().shape:
            fitted[key] = value.reshape(own[key].shape)
        else:
            fitted[key] = value
    missing, extra = sorted(own.keys() - fitted.keys()), sorted(fitted.keys() - own.keys())
    shapes = [
        f"{key} is {list(fitted[key].shape)}, not {list(own[key].shape)}"
        for key in sorted(own.keys() & fitted.keys())
        if own[key].shape != fitted[key].shape
    ]
    problems = [
        f"{len(found)} {what}: {few(found, 3)}"
        for what, found in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise ConfigError(f"{origin}: does not fit the model ({'; '.join(problems)})")
    net.load_state_dict(fitted)


OURS_TO_TIMM = [
    (r"^stem\.post_norm\.", "stem.norm."),
    (r"\.downsample\.pre_norm\.", ".downsample.norm."),
    (r"\.mixer\.", ".token_mixer."),
    (r"\.((?:layer|res)_scale\d)\.gamma$", r".\1.scale"),
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
]


TIMM_TO_OURS = [
    (r"^stem\.norm\.", "stem.post_norm."),
    (r"\.downsample\.norm\.", ".downsample.pre_norm."),
    (r"\.token_mixer\.", ".mixer."),
    (r"\.((?:layer|res)_scale\d)\.scale$", r".\1.gamma"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
]


OFFICIAL_TO_OURS = [  # v1 after its `network.K` have become stages, and v2
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.token_mixer\.fc\.", ".mixer.mlp."),
    (r"\.token_mixer\.random_matrix$", ".mixer.matrix"),
    (r"\.token_mixer\.", ".mixer."),
    (r"\.layer_scale_(\d)$", r".layer_scale\1.gamma"),
    (r"\.((?:layer|res)_scale\d)\.scale$", r".\1.gamma"),
]


OURS_TO_OFFICIAL = [
    (r"^stem\.conv\.", "patch_embed.proj."),
    (r"\.mixer\.mlp\.", ".token_mixer.fc."),
    (r"\.mixer\.", ".token_mixer."),
    (r"\.layer_scale(\d)\.gamma$", r".layer_scale_\1"),
    (r"\.offset$", ".pos_embed"),
]


def rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def to_timm(weights: Weights) -> Weights:
    """State dict of this package -> timm's `MetaFormer` (v1 with its head order, see `head=pool_norm`).

    In stages of attention timm's channel MLPs are linear layers, not 1x1 convolutions.
    """
    linear = tuple({f"{key.split('.blocks.')[0]}." for key in weights if key.endswith(".mixer.qkv.weight")})

    def theirs(key: str, value: Tensor) -> Tensor:
        matrix = ".mlp.fc" in key and key.endswith(".weight") and key.startswith(linear)
        return value.flatten(1) if matrix else value

    return {rename(key, OURS_TO_TIMM): theirs(key, value) for key, value in weights.items()}


def to_ours(weights: Weights) -> Weights:
    """State dict of the official repositories, of timm or of this package -> this package."""
    if any(key.startswith(("patch_embed.", "network.", "downsample_layers.")) for key in weights):
        stages = _network_to_stages(weights)
        return {rename(stages(key), OFFICIAL_TO_OURS): value for key, value in weights.items()}
    if "head.fc1.weight" not in weights and any(  # a head of two layers of this package has a `head.norm` too
        key.startswith(("head.fc.", "head.norm.")) or ".token_mixer." in key or key == "stem.norm.weight"
        for key in weights
    ):
        return {rename(key, TIMM_TO_OURS): value for key, value in weights.items()}
    return dict(weights)


def to_official(weights: Weights) -> Weights:
    """State dict of this package -> the official PoolFormer v1 and its hybrids."""
    places: dict[str, str] = {}  # prefix here -> prefix there, in the order of their list
    for stage in range(4):
        for kind, inner in {"downsample.conv.": "proj.", "position.": "", "blocks.": ""}.items():
            if any(key.startswith(f"stages.{stage}.{kind}") for key in weights):
                places[f"stages.{stage}.{kind}"] = f"network.{len(places)}.{inner}"
    official = {}
    for key, value in weights.items():
        ours = next((prefix for prefix in places if key.startswith(prefix)), None)
        official[rename(places[ours] + key.removeprefix(ours) if ours else key, OURS_TO_OFFICIAL)] = value
    return official


def _network_to_stages(weights: Weights) -> Callable[[str], str]:
    """v1 has one list `network.K` of downsamplings, position embeddings and stages; the keys tell which is which."""
    kinds: dict[int, str] = {}
    for key in weights:
        if match := re.match(r"network\.(\d+)\.(\w+)", key):
            kinds[int(match[1])] = "blocks" if match[2].isdigit() else match[2]
    stage, places = 0, {}
    for number in sorted(kinds):
        if kinds[number] == "proj":
            stage += 1
        places[number] = {
            "proj": f"stages.{stage}.downsample.conv.",
            "pos_embed": f"stages.{stage}.position.",
            "blocks": f"stages.{stage}.",
        }[kinds[number]]

    def name(key: str) -> str:
        match = re.match(r"network\.(\d+)\.(?:proj\.)?(.*)", key)
        if match is None:
            return key
        return places[int(match[1])] + match[2].replace("pos_embed", "offset")

    return name


def interpolated(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, H, W] at another height and width, as timm resizes position embeddings."""
    return resample_abs_pos_embed_nhwc(maps.permute(0, 2, 3, 1), list(size)).permute(0, 3, 1, 2).contiguous()


def resize(weights: Weights, net: nn.Module, origin: str) -> Weights:
    """Weights for another image size: position embeddings are interpolated, N x N matrices refused.

    For models of timm their own loaders do it.
    """
    own, resized = net.state_dict(), dict(weights)
    if not isinstance(net, MetaFormer):
        fitted = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        other = any(key in own and own[key].shape != value.shape for key, value in weights.items())
        return dict(fitted(resized, net)) if fitted is not None and other else resized
    for key, value in weights.items():
        if key in own and own[key].shape != value.shape:
            if key.endswith(".position.offset"):
                resized[key] = interpolated(value, own[key].shape[2:])
            elif ".mixer." in key and value.ndim == 2 and value.shape[0] == value.shape[1]:
                raise ConfigError(
                    f"{origin}: {key} mixes {len(value)} tokens and the model has {len(own[key])}: "
                    "it is interpolated with recipe.initialize_stages only"
                )
    return resized


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
        if len(fitting) > 1:
            raise ConfigError(f"weights={source}: fits {', '.join(fitting)}: name one of them")
        if not fitting:
            hint = "metaformer.load reads the weights.pt of a run, Classifier.load_from_checkpoint those of Lightning"
            raise ConfigError(f"weights={source}: fits no published model; {hint}")
        name = fitting[0]
    options.setdefault("num_classes", classes_of(weights))
    net = create(name, **options)
    load_into(net, weights, f"weights={source}")
    return net


def load_into(net: nn.Module, weights: Weights, origin: str) -> None:
    """`load_strictly`, with the stem for other channels; its error also names the published models that would fit."""
    try:
        load_strictly(net, adapt_stem(weights, net), origin)
    except ConfigError as error:
        if fitting := names_that_fit(weights):
            raise ConfigError(f"{error}; the weights are those of {', '.join(fitting)}") from error
        raise


def names_that_fit(weights: Weights) -> list[str]:
    """The published models whose parameters have these names and shapes."""
    shapes = {key: tuple(value.squeeze().shape) for key, value in weights.items()}
    return [name for name in PUBLISHED if _shapes(name, classes_of(weights)) == shapes]


@cache
def _shapes(name: str, classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = create(name, num_classes=classes)
    return {key: tuple(value.squeeze().shape) for key, value in net.state_dict().items()}
