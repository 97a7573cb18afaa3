"""The options that a configuration gives to a constructor, against its signature."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args, get_type_hints

from metaformer.config.kinds import fits, is_union
from metaformer.system.errors import ConfigError, nearest


def check_options(
    target: Callable[..., Any],
    options: Mapping[str, Any],
    key: str,
    *,
    given: Collection[str] = (),
    variadic: bool = False,
) -> None:
    """Raise a ConfigError for an option that is unknown, that has another type, or that is missing.

    Args:
        key: where the options stand in the configuration, for messages.
        given: arguments that somebody else passes.
        variadic: whether a constructor with `**kwargs` takes any option.
    """
    parameters, hints = inspect.signature(target).parameters, _hints(target)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [n for n, p in parameters.items() if p.kind not in kinds and n not in given]
    takes_any = variadic and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in options.items():
        if name not in own and not takes_any:
            hint = nearest(name, own) or f"; it has {', '.join(own) or 'none'}"
            raise ConfigError(f"{key}.{name}: {target.__name__} has no such option{hint}")
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(f"{key}.{name}={value}: expected {inspect.formatannotation(hints[name])}")
    missing = [n for n in own if parameters[n].default is inspect.Parameter.empty and n not in options]
    if missing:
        raise ConfigError(f"{key}: {target.__name__} needs {', '.join(missing)}; add +{key}.{missing[0]}=...")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the arguments, or none where they name what cannot be resolved at run time."""
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, AttributeError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a configuration has the annotated type; only plain types and their unions are judged."""
    kinds = get_args(hint) if is_union(hint) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds) or (isinstance(value, Mapping) and "_target_" in value):
        return True
    return fits(value, hint)
