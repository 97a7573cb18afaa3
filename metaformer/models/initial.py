"""The weights that training starts from: all those of a file, or those of its stem and first stages."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from metaformer.models.block import Stage
from metaformer.models.encoder_decoder import EncoderDecoder, in_features
from metaformer.models.ends import adapt_stem, classifiers
from metaformer.models.metaformer import MetaFormer
from metaformer.models.weights import Weights, interpolated, load_into, load_strictly, read, resize, to_ours
from metaformer.system.errors import ConfigError

Initialized = dict[str, list[str]]  # names by what became of them: taken, adapted, new; left: without a place here


def initialize(net: nn.Module, source: str, stages: int | None = None) -> Initialized:
    """Load weights for fine-tuning, and say what was taken, what was adapted and what is new.

    Args:
        net: a model of this package or of timm; its weights are changed in place.
        source: a file of weights, of this package, timm or an official repository.
        stages: None takes all. The classifier stays new where the file has none, or one for other classes; position
            embeddings are interpolated for another image size. A number takes what fits of the stem and of so many
            stages, position embeddings and downsampling included: a mixer whole or not at all, any other tensor by
            itself. Of a classifier's weights an encoder for segmentation takes its part.

    Raises:
        ConfigError: all are asked for and some do not fit, or nothing fits the stem or one of the stages.
    """
    if stages is not None and not isinstance(getattr(net, "body", net), MetaFormer):
        key = f"recipe.initialize_stages={stages}"
        raise ConfigError(f"{key}: is for a model of this package; one of timm takes recipe.initialize_from whole")
    weights = _read(source)
    if not isinstance(net, EncoderDecoder):
        return _taken(net, weights, source, stages)
    if not any(key.startswith("decoder.") for key in weights):
        return _taken_by_encoder(net, weights, source, stages)
    if stages is not None:
        raise ConfigError(f"recipe.initialize_stages={stages}: {source} is of segmentation and is taken whole")
    return _taken(net, weights, source, None)


def _taken(net: nn.Module, weights: Weights, source: str, stages: int | None, none: str = "") -> Initialized:
    """With `none` it is what is said where nothing fits; otherwise that names the stages."""
    own = {key: value.clone() for key, value in net.state_dict().items()}
    weights = to_ours(weights) if isinstance(net, MetaFormer) else weights
    if stages is None:
        kept = _kept_classifier(net, own, weights)
        origin = f"recipe.initialize_from={source}"
        try:
            load_into(net, resize(weights | kept, net, origin), origin)
        except ConfigError as error:
            if not isinstance(net, MetaFormer):
                raise
            raise ConfigError(f"{error}; recipe.initialize_stages=N takes what fits of the first N stages") from error
        return _told(own, weights, set(own) - set(kept), weights)
    found = _fitting(net, weights, stages, none or f"recipe.initialize_stages={stages}: nothing in {source} fits")
    net.load_state_dict(own | found)
    parts = _parts(net, stages)
    return _told(own, weights, set(found), [key for key in weights if key.startswith(parts)])


def _taken_by_encoder(net: EncoderDecoder, weights: Weights, source: str, stages: int | None) -> Initialized:
    """The weights of a classifier for the stem and the stages of an encoder; what is behind them is new."""
    if isinstance(net.body, MetaFormer):
        count = len(net.body.stages) if stages is None else stages
        none = f"recipe.initialize_from={source}: nothing in it fits" if stages is None else ""
        found, behind = _taken(net.body, weights, source, count, none), ["encoder.norms"]
    else:
        own, behind = net.encoder.state_dict(), []
        theirs = in_features(weights, net.encoder)
        fitted = adapt_stem({f"encoder.{key}": value for key, value in theirs.items()}, net)
        taken = {key: fitted[f"encoder.{key}"] for key in theirs if key in own}
        load_strictly(net.encoder, taken, f"recipe.initialize_from={source}")
        found = _told(own, theirs, set(own), theirs)
    return {**found, "new": [*found["new"], *behind, "decoder", "classifier"]}


def _read(source: str) -> Weights:
    weights = read(source, "recipe.initialize_from")
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f"recipe.initialize_from={source}: {key} has values that are not finite")
    return weights


def in_words(source: str, initialized: Initialized) -> str:
    """One line of what `initialize` did."""
    told = [f"{what} {', '.join(names)}" for what, names in initialized.items() if names]
    return f"recipe.initialize_from={source}: {'; '.join(told)}"


def _kept_classifier(net: nn.Module, own: Weights, weights: Weights) -> Weights:
    """The new weights of classifiers that the file does not have, or has for another number of classes.

    Of a head of two layers that is its last one.
    """
    kept: Weights = {}
    for head in classifiers(net):
        new = {key: value for key, value in own.items() if key.startswith(f"{head}.")}
        if any(key not in weights or weights[key].shape != value.shape for key, value in new.items()):
            kept |= new
    return kept


def _parts(net: nn.Module, stages: int) -> tuple[str, ...]:
    assert isinstance(net, MetaFormer)
    if stages > len(net.stages):
        raise ConfigError(f"recipe.initialize_stages={stages}: the model has {len(net.stages)} stages")
    return ("stem.", *(f"stages.{i}." for i in range(stages)))


def _fitting(net: nn.Module, weights: Weights, stages: int, none: str) -> Weights:
    """The weights of the file that find a place in the stem and the first stages, in the shape that they have there.

    Args:
        none: what is said where nothing does.
    """
    parts, own, weights = _parts(net, stages), net.state_dict(), adapt_stem(weights, net)
    found: Weights = {}
    for part in parts:
        units: dict[str, list[str]] = {}
        for key in own:
            if key.startswith(part):
                units.setdefault(_unit(key), []).append(key)
        resolution = _resolution(net, part)
        for unit, keys in units.items():
            theirs = [key for key in weights if key.startswith(unit)] if unit.endswith(".mixer.") else keys
            fitted = {key: _fitted(key, weights.get(key), own[key], resolution) for key in keys}
            usable = {key: value for key, value in fitted.items() if value is not None}
            if usable.keys() == set(theirs) == set(keys):
                found |= usable
        _refuse_none(part, found, own, weights, none)
    return found


def _resolution(net: nn.Module, part: str) -> tuple[int, int]:
    module = net.get_submodule(part.removesuffix("."))
    return module.resolution if isinstance(module, Stage) else (0, 0)


def _unit(key: str) -> str:
    """What is taken as a whole: a mixer, the convolution of the stem with its bias, or else one tensor."""
    whole = re.match(r"stages\.\d+\.blocks\.\d+\.mixer\.|stem\.conv\.", key)
    return whole[0] if whole else key


def _refuse_none(part: str, found: Weights, own: Weights, weights: Weights, words: str) -> None:
    beside = [key for key, value in own.items() if key.startswith(part) and ".mixer." not in key and value.numel() > 1]
    if beside and not any(key in found for key in beside):
        shapes = f"is {list(weights[beside[0]].shape)}" if beside[0] in weights else "is missing"
        raise ConfigError(f"{words} {part[:-1]}: {beside[0]} {shapes}, expected {list(own[beside[0]].shape)}")


def _fitted(key: str, value: Tensor | None, own: Tensor, resolution: tuple[int, int]) -> Tensor | None:
    """A tensor in the shape that it has here, or None; positions and matrices over places are interpolated."""
    if value is None:
        return None
    if value.squeeze().shape == own.squeeze().shape:
        return value.reshape(own.shape)
    if value.ndim != own.ndim:
        return None
    if key.endswith(".position.offset") and value.shape[:2] == own.shape[:2]:
        return interpolated(value, own.shape[2:])
    if ".mixer." in key:
        return _over_other_places(value, own, resolution)
    return None


def _over_other_places(value: Tensor, own: Tensor, resolution: tuple[int, int]) -> Tensor | None:
    """A tensor [out, in] or [out] of a mixer, with each axis that runs over places interpolated to other ones.

    The map keeps its proportions. What is summed over n places instead of m has weights of m/n, so that sums stay.
    """
    rows, columns = resolution
    for axis, (old, new) in enumerate(zip(value.shape, own.shape, strict=True)):
        if old == new:
            continue
        if new != rows * columns:
            return None
        height = round((old * rows / columns) ** 0.5)
        width = old // max(height, 1)
        if height * width != old or height * columns != width * rows:
            return None
        maps = value.movedim(axis, -1)
        resized = interpolated(maps.reshape(1, -1, height, width), resolution).reshape(*maps.shape[:-1], new)
        value = resized.movedim(-1, axis) * (old / new if axis else 1)
    return value.contiguous()


def _told(own: Weights, weights: Weights, found: set[str], offered: Iterable[str]) -> Initialized:
    """What became of the tensors here, and which of those that the file offered have no place here."""

    def became(key: str) -> str:
        if key not in found:
            return "new"
        return "taken" if weights[key].squeeze().shape == own[key].squeeze().shape else "adapted"

    told: Initialized = {"taken": [], "adapted": [], "new": [], "left": []}
    here, there = {key: became(key) for key in own}, {key: "used" if key in found else "left" for key in offered}
    for name, what in [*_folded(here).items(), *_folded(there).items()]:
        told.get(what, []).append(name)
    return told


def _folded(became: Mapping[str, str]) -> dict[str, str]:
    """The same with one entry for a module whose tensors all became the same."""
    modules = {key: [key[: dot.start()] for dot in re.finditer(r"\.|$", key)] for key in became}  # from the outside in
    within: dict[str, set[str]] = {}
    for key, names in modules.items():
        for name in names:
            within.setdefault(name, set()).add(became[key])
    return {next(n for n in names if len(within[n]) == 1): became[key] for key, names in modules.items()}
