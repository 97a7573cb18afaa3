"""What the value of a key may be, by its annotation in the schema: in words, and whether a value is that."""

from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from metaformer.config.schema import Config

NAMES = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", dict: "keys like {name: value}"}
MANY = {bool: "booleans", int: "integers", float: "floats", str: "strings"}


def is_union(hint: Any) -> bool:
    """Whether it is `int | None` or `Optional[int]`."""
    return isinstance(hint, UnionType) or get_origin(hint) is Union


def has_keys(hint: Any) -> bool:
    """Whether it is a node, or may be one."""
    return hint is Any or get_origin(hint) is dict or hasattr(hint, "__dataclass_fields__")


def in_words(hint: Any) -> str:
    """`int | None` -> `an integer or null`."""
    kinds, inside = get_args(hint), get_origin(hint)
    if is_union(hint):
        return " or ".join("null" if kind is type(None) else in_words(kind) for kind in kinds)
    if inside is list:
        return f"a list of {MANY.get(kinds[0], 'floats, or nulls')} in brackets"
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return f"a node with the keys {', '.join(hint.__dataclass_fields__)}"
    return NAMES.get(inside or hint, "")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says. An integer is a float, a boolean is neither."""
    if hint is Any:
        return True
    if is_union(hint):
        return any(fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(one, get_args(hint)[0]) for one in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, get_origin(hint) or hint) or (hint is float and isinstance(value, int))


@cache
def hint_of(key: str) -> Any:
    """The annotation of a key, or of an item of a list like `model.dims[0]`; None where the schema has no such key."""
    hint: Any = Config
    for part in key.split("."):
        name, bracket, _ = part.partition("[")
        hints = get_type_hints(hint) if hasattr(hint, "__dataclass_fields__") else {}
        hint = hints.get(name)
        if bracket:
            listed = next((kind for kind in (hint, *get_args(hint)) if get_origin(kind) is list), None)
            hint = get_args(listed)[0] if listed else None
    return hint
