"""From the mixer node of a configuration to modules: import, check the options, pass what the constructor names."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import UnionType
from typing import Any, get_args, get_type_hints

from torch import nn

from metaformer.config import import_object
from metaformer.schema import ConfigError, nearest

MixerFactory = Callable[..., nn.Module]


def build(factory: MixerFactory, dim: int, resolution: tuple[int, int]) -> nn.Module:
    """Construct a mixer, passing `dim` and `resolution` where its constructor names them."""
    named = inspect.signature(factory).parameters
    return factory(**{k: v for k, v in {"dim": dim, "resolution": resolution}.items() if k in named})


def from_config(node: Mapping[str, Any], stages: int) -> list[MixerFactory]:
    """One factory per stage from a mixer node: `_target_` and options, or `stage1`, `stage2`, ... with one each."""
    if "_target_" in node:
        return [_factory(node, "mixer")] * stages
    return [_factory(node[f"stage{i}"], f"mixer.stage{i}") for i in range(1, stages + 1)]


def _factory(node: Mapping[str, Any], key: str) -> MixerFactory:
    """The class that `_target_` names, with its options bound; an option that it does not name is an error."""
    target = import_object(node["_target_"], f"{key}._target_")
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise ConfigError(f"{key}._target_={node['_target_']}: expected a torch.nn.Module class")
    options = {name: value for name, value in node.items() if name != "_target_"}
    parameters = inspect.signature(target).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [n for n, p in parameters.items() if p.kind not in variadic and n not in ("dim", "resolution")]
    hints = _hints(target)
    for name, value in options.items():
        if name not in own:
            hint = nearest(name, own) or f"; it has {', '.join(own) or 'none'}"
            raise ConfigError(f"{key}.{name}: {target.__name__} has no such option{hint}")
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(f"{key}.{name}={value}: expected {inspect.formatannotation(hints[name])}")
    missing = [n for n in own if parameters[n].default is inspect.Parameter.empty and n not in options]
    if missing:
        raise ConfigError(f"{key}: {target.__name__} needs {', '.join(missing)}; add +{key}.{missing[0]}=...")
    return partial(target, **options) if options else target


def _hints(target: type) -> dict[str, Any]:
    """The constructor's annotations, or none where they name what cannot be resolved at run time."""
    try:
        return get_type_hints(target.__init__)  # type: ignore[misc]
    except (NameError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a configuration has the annotated type; only plain types and their unions are judged."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
