"""What is refused of a configuration before anything runs, as far as it can be known without torch and without data.

Hydra accepts `+typo=1` even under a typed schema, and its choices are open strings. `structure` has compared every key
with the schema; here are the values. Nothing is changed.
"""

import dataclasses
import re
from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_type_hints

from metaformer.config.extensions import check_extensions
from metaformer.config.kinds import fits, in_words
from metaformer.config.metrics import METRICS, metric_of
from metaformer.config.schema import BUILTIN, TUNABLE, Architecture, Config, Logger, Model
from metaformer.config.study_nodes import BUDGET_KEYS, Analysis, Budget, Study
from metaformer.config.training_rules import check_recipe, check_runtime, check_task, is_number
from metaformer.system.errors import ConfigError, by_closeness, nearest

T = TypeVar("T")


def structure(kind: type[T], node: Mapping[str, Any], path: str = "") -> T:
    """The dataclass of a plain node; what the node does not have gets its default.

    Args:
        path: where the node stands, like `recipe.`, for messages.

    Raises:
        ConfigError: a key that the dataclass does not have, or no node where there should be one.
    """
    hints, values = _hints(cast(Hashable, kind)), {}
    for key, value in node.items():
        if key not in hints:
            hint = nearest(key, hints, path) or f"; there are {', '.join(hints)}"
            raise ConfigError(f"{path}{key}: no such key{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                there = ", ".join(_hints(hints[key]))
                raise ConfigError(f"{path}{key}={value}: expected a node with the keys {there}")
            value = structure(hints[key], value, f"{path}{key}.")
        values[key] = value
    return kind(**values)


def plain(node: Any) -> dict[str, Any]:
    """A dataclass as nested dicts."""
    return dataclasses.asdict(node)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


SET_ON_PUBLISHED = ("drop_path", "head_dropout", "crop_pct")


def validate(config: Config) -> None:
    """Raise a ConfigError for the first value that cannot be run, or that nothing would read."""
    check_fields(config)
    if config.model.source == "metaformer":
        _check_mixer(config.mixer, len(config.model.depths))
    else:
        _check_published(config.model, config.mixer)
    check_architecture(config.model, "model.")
    check_task(config)
    check_recipe(config.recipe)
    check_runtime(config.runtime, config.recipe)
    _check_study(config)
    _check_budget(config.budget, config.model, config.study)
    check_extensions(config)
    if not config.logger.wandb:
        for key, value in _changed(dataclasses.replace(config.logger, lightning={}), Logger()):
            raise ConfigError(f"logger.{key}={value}: belongs to logger=wandb")


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every key of a dataclass, nested ones included, as `recipe.lr`, with its field and its value."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", field, value


def check_fields(node: Any, *keys: str, path: str = "") -> None:
    """The choices and bounds that stand with the fields, with all or with some.

    Args:
        path: where the node stands, as of `structure`.
    """
    for key, field, value in leaves(node, path):
        if keys and key not in keys:
            continue
        if not fits(value, field.type):
            raise ConfigError(f"{key}={value}: expected {in_words(field.type)}")
        allowed, bounds = field.metadata.get("choices"), field.metadata.get("bounds")
        if allowed and value not in allowed:
            raise ConfigError(f"{key}={value}: expected one of {', '.join(by_closeness(str(value), allowed))}")
        if bounds and value is not None:
            each = "each " if isinstance(value, list) else ""
            if not all(bounds.allow(number) for number in (value if each else [value])):
                raise ConfigError(f"{key}={value}: expected {each}{bounds}")
        _check_numbers(key, value)
        _check_strings(key, field, value)


def _check_numbers(key: str, value: Any, listed: Any = None) -> None:
    """No number is infinite or none, also far down in the options of somebody's class."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_numbers(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(key, inner, listed or value)
    elif isinstance(value, int | float) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key}={listed or value}: expected a number between -2^63 and 2^63")


def _check_strings(key: str, field: dataclasses.Field[Any], value: Any) -> None:
    """Strings without a letter are never meant."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and (min(one, default=" ") < " " or not (one.strip() or field.default == "")):
            raise ConfigError(f"{key}={one!r}: expected {in_words(field.type)}, with something to read in one line")


# ------------------------------------------------------------------ mixer and model


def mixer_nodes(mixer: Any, stages: int) -> dict[str, Any]:
    """The nodes of a mixer by their keys: one for all stages, or one for each.

    Raises:
        ConfigError: neither, or both.
    """
    if not isinstance(mixer, dict) or not mixer:
        raise ConfigError("mixer: expected a config with _target_, or with stage1, stage2, ...")
    per_stage = [f"stage{i}" for i in range(1, stages + 1)]
    if "_target_" in mixer:
        if both := [key for key in mixer if re.fullmatch(r"stage\d+", key)]:
            raise ConfigError(f"mixer.{both[0]}: the mixer is the same in every stage; options go to mixer.<option>")
        return {"mixer": mixer}
    if stray := [key for key in mixer if not re.fullmatch(r"stage\d+", key)]:
        keys = ", ".join(f"mixer.{stage}.{stray[0]}" for stage in per_stage)
        raise ConfigError(f"mixer.{stray[0]}: the mixer differs by stage; expected one of {keys}")
    if sorted(mixer) != sorted(per_stage):
        raise ConfigError(f"mixer: names {', '.join(sorted(mixer))}, but the model has {stages} stages")
    return {f"mixer.{stage}": mixer[stage] for stage in per_stage}


def _check_mixer(mixer: Any, stages: int) -> None:
    for key, node in mixer_nodes(mixer, stages).items():
        target = node.get("_target_") if isinstance(node, Mapping) else None
        if node == BUILTIN:
            raise ConfigError("mixer=builtin: belongs to a published model (model=zoo or model=timm); choose a mixer")
        if not isinstance(target, str) or "." not in target:
            raise ConfigError(f"{key}._target_={target}: expected the dotted path of a class, like my_mixer.Shift")


def _check_published(model: Model, mixer: Any) -> None:
    """A model that brings its mixers: nothing that would not be used may be set."""
    if mixer != BUILTIN:
        raise ConfigError(f"mixer: model.source={model.source} brings its own mixers; expected mixer=builtin")
    if model.name is None:
        raise ConfigError(f"model.name: expected the name of a model, since model.source={model.source}")
    for key, value in _changed(model, Model()):
        if key not in ("source", "name", *SET_ON_PUBLISHED):
            raise ConfigError(
                f"model.{key}={value}: '{model.name}' has its own; what can be set is {', '.join(SET_ON_PUBLISHED)}"
            )


def _changed(node: Any, default: Any) -> list[tuple[str, Any]]:
    """The keys of a dataclass whose values differ from the defaults."""
    return [(key, value) for key, value in plain(node).items() if value != plain(default)[key]]


def check_architecture(a: Architecture, path: str = "") -> None:
    """What concerns several options of an architecture.

    Args:
        path: where they stand, as of `structure`.
    """
    stages = len(a.depths)
    if not stages:
        raise ConfigError(f"{path}depths={a.depths}: expected at least one stage")
    for key, values in {"dims": a.dims, "position": a.position, "res_scale": a.res_scale}.items():
        if values is not None and len(values) != stages:
            raise ConfigError(f"{path}{key}={values}: expected {stages} values, one for each of {path}depths")
    for key, patch in {"stem": a.stem, "downsample": a.downsample}.items():
        if patch is not None and (len(patch) != 3 or min(patch[:2]) < 1):
            raise ConfigError(f"{path}{key}={patch}: expected kernel, stride, padding")
    if a.downsample is None and len(set(a.dims)) > 1:
        raise ConfigError(f"{path}dims={a.dims}: expected one width, since {path}downsample is null")
    if not a.mlp_ratio * min(a.dims) >= 1:
        raise ConfigError(f"{path}mlp_ratio={a.mlp_ratio}: expected at least one hidden channel in each stage")


# ------------------------------------------------------------------ study


def _check_study(config: Config) -> None:
    """Names that can be those of a folder, and keys that there are."""
    name = config.study.name
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"study.name={name}: expected letters, digits, '_', '-' and '.', the first no sign")
    if config.runtime.packed and name is None:
        raise ConfigError("runtime.packed=true: belongs to a study, whose runs.npz it is (experiments=NAME)")
    _check_analysis(config.study.analysis)


def _check_analysis(analysis: Analysis) -> None:
    path = "study.analysis"
    for key in analysis.tuned:
        if key not in TUNABLE:
            expected = ", ".join(by_closeness(key, TUNABLE))
            raise ConfigError(f"{path}.tuned: {key}: is no key of the optimisation; expected one of {expected}")
    looks = analysis.looks
    if looks is not None and (not looks or looks[0] < 3 or looks != sorted(set(looks))):
        raise ConfigError(f"{path}.looks={looks}: expected growing numbers of seeds, the first at least 3")
    if looks is None and analysis.spending != "obrien_fleming":
        raise ConfigError(f"{path}.spending={analysis.spending}: is read with {path}.looks only, like [5, 8, 12]")
    if analysis.failed == "chance" and metric_of(analysis.metric).path != METRICS["accuracy"].path:
        raise ConfigError(f"{path}.failed=chance: a guess has an accuracy only; {path}.metric is {analysis.metric}")
    for name, weights in analysis.contrasts.items():
        where = f"{path}.contrasts.{name}"
        if not isinstance(weights, Mapping) or not all(is_number(weight) for weight in weights.values()):
            raise ConfigError(f"{where}: expected the weights of cells, like {{pooling: 1, identity: -1}}")
        if len(weights) < 2 or abs(sum(weights.values())) > 1e-9:
            raise ConfigError(f"{where}: expected two cells or more whose weights add up to 0")


def _check_budget(budget: Budget, model: Model, study: Study) -> None:
    if budget.match == "none":
        for key, value in _changed(budget, Budget()):
            raise ConfigError(f"budget.{key}={value}: belongs to budget=params, budget=macs or budget=time")
        return
    if model.source != "metaformer":
        raise ConfigError(f"budget={budget.match}: a published model is as it is; expected a model of this package")
    if budget.by == "mlp_ratio" and not model.channel_mlp:
        raise ConfigError("budget.by=mlp_ratio: model.channel_mlp is false; expected width or depth")
    target = study.reference if budget.target is None else budget.target
    if not (isinstance(target, str) or (isinstance(target, int | float) and 0 < target < float("inf"))):
        raise ConfigError(f"budget.target={target}: expected a mixer, or a number above 0")


def judged(config: Config) -> Study:
    """The study of a configuration as it is judged: the key that a budget changes may differ between its cells."""
    study, key = config.study, f"model.{BUDGET_KEYS[config.budget.by]}"
    if config.budget.match == "none" or key in study.analysis.tuned:
        return study
    return dataclasses.replace(study, analysis=dataclasses.replace(study.analysis, tuned=[*study.analysis.tuned, key]))
