"""Objects that a configuration describes by nodes of `_target_` and options: callbacks and loggers."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from hydra.utils import instantiate

from metaformer.config.named_code import import_object
from metaformer.config.options import check_options
from metaformer.system.errors import ConfigError

T = TypeVar("T")


def made(kind: type[T], node: Mapping[str, Any], key: str, **given: Any) -> T:
    """The object of a node; nodes in its options are objects too.

    Args:
        kind: what it has to be.
        key: where the node stands in the configuration, for messages.
        given: arguments for a constructor that names them, where the node does not.

    Raises:
        ConfigError: it cannot be imported or built, or it is something else.
    """
    path = node["_target_"]
    target = import_object(path, f"{key}._target_")
    if not callable(target):
        raise ConfigError(f"{key}._target_={path}: expected a class")
    options = {name: value for name, value in node.items() if not name.startswith("_")}
    named = inspect.signature(target).parameters
    given = {name: value for name, value in given.items() if name in named and name not in options}
    check_options(target, options, key, given=given, variadic=True)
    try:
        built = instantiate({**node, "_convert_": "all"}, **given)
    except Exception as error:  # whatever a foreign constructor raises
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:200]
        raise ConfigError(f"{key}: {path} cannot be built ({type(cause).__name__}: {reason})") from error
    if not isinstance(built, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise ConfigError(f"{key}._target_={path}: expected a {wanted}; it makes a {type(built).__module__} object")
    return built
