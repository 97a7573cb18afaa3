"""Write docs/reference.md: the names of `metaformer` from their docstrings, every key from the schema, every choice.

python docs/reference.py
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

import metaformer
from metaformer.config import schema
from metaformer.config.compose import compose, group_dir, names_in
from metaformer.config.help import COMMENTS
from metaformer.data.registry import DATASETS
from metaformer.models.zoo import PUBLISHED

FILE = Path(__file__).resolve().parent / "reference.md"
GROUPS = ("mixer", "model", "data", "recipe")  # whose files are listed


def reference() -> str:
    parts = [
        "# Reference",
        "Made by `python docs/reference.py` from docstrings, `metaformer/config/schema.py` and `conf`.",
    ]
    return "\n\n".join([*parts, *_api(), *_keys(), *_choices()]) + "\n"


# ------------------------------------------------------------------ the names in Python


def _api() -> Iterator[str]:
    yield "## In Python"
    yield "What `import metaformer` has. A public method is listed where the package adds or changes it."
    for name in metaformer.__all__:
        found = getattr(metaformer, name)
        if inspect.ismodule(found):
            yield from _entry(f"metaformer.{name}", "", found)
            for inner, function in inspect.getmembers(found, inspect.isfunction):
                if function.__module__ == found.__name__ and not inner.startswith("_"):
                    yield from _entry(f"metaformer.{name}.{inner}", _signature(function), function)
            continue
        yield from _entry(f"metaformer.{name}", _signature(found), found)
        for inner, method in vars(found).items() if inspect.isclass(found) else ():
            function = getattr(method, "__func__", method)
            if inspect.isfunction(function) and not inner.startswith("_") and function.__doc__:
                yield from _entry(f"metaformer.{name}.{inner}", _signature(getattr(found, inner)), function)


def _entry(name: str, signature: str, found: Any) -> Iterator[str]:
    called = f"{name.rpartition('.')[2]}{signature}\n\n" if signature else ""
    yield f"### `{name}`"
    yield f"```text\n{called}{inspect.getdoc(found) or ''}".rstrip() + "\n```"


def _signature(found: Any) -> str:
    """The arguments, with types by their own names: the modules that they are in differ between versions."""
    return re.sub(r"\b(?:\w+\.)+([A-Z]\w*)", r"\1", str(inspect.signature(found)))


# ------------------------------------------------------------------ the keys of the configuration


def _keys() -> Iterator[str]:
    yield "## Keys of the configuration"
    yield (
        "Defaults are those of the schema, which `Recipe()` in Python has too. A run without words has some others, by "
        "its files of `conf` (`model=tiny`, `recipe=short`, ...): these stand behind them."
    )
    yield from _node(schema.Config, "", compose([]))


def _node(kind: Any, path: str, composed: Any) -> Iterator[str]:
    """A table for a dataclass, and then those of the nodes in it.

    Args:
        composed: the node as a run without words has it.
    """
    hints = get_type_hints(kind)
    rows, inner = [], []
    for field in fields(kind):
        own = getattr(composed, field.name)
        if hasattr(hints[field.name], "__dataclass_fields__"):
            inner.append((hints[field.name], f"{path}{field.name}.", own))
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        choices, bounds = field.metadata.get("choices"), field.metadata.get("bounds")
        allowed = ", ".join(f"`{c}`" for c in choices) if choices else str(bounds or "")
        owner = next(base for base in kind.__mro__ if (base.__name__, field.name) in COMMENTS)
        shown = _value(default) + (f"; {_value(own)}" if own != default else "")
        cells = (f"`{path}{field.name}`", f"`{_type(hints[field.name])}`", shown, allowed,
                 COMMENTS[owner.__name__, field.name])  # fmt: skip
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        yield f"### {path.rstrip('.') or 'At the top'}"
        text = inspect.getdoc(kind) or ""
        if not text.startswith(f"{kind.__name__}("):  # what Python says of a dataclass without a docstring
            yield text
        yield "\n".join(["| key | type | default | allowed | what for |", "| --- | --- | --- | --- | --- |", *rows])
    for node in inner:
        yield from _node(*node)


def _value(default: Any) -> str:
    return f"`{yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}`"


def _type(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not getattr(hint, "__args__", None)
        else str(hint).replace("typing.", "")
    )


# ------------------------------------------------------------------ mixers, models, data sets, recipes


def _choices() -> Iterator[str]:
    yield "## Choices"
    yield "A file of `conf` is a choice by its name: `mixer=pooling` reads `conf/mixer/pooling.yaml`."
    for group in GROUPS:
        yield f"### {group}"
        files = [
            group_dir(group) / f"{name}.yaml"
            for name in names_in(group)
            if (group_dir(group) / f"{name}.yaml").exists()
        ]
        rows = [
            f"| [`{file.stem}`](../conf/{group}/{file.name}) | {_told(yaml.safe_load(file.read_text()))} |"
            for file in files
        ]
        yield "\n".join(["| choice | what it sets |", "| --- | --- |", *rows])
    yield "### Data sets"
    rows = [f"| `{name}` | {', '.join(f'`{key}`' for key in data.reads)} | `{data.find or data.reader}` |"
            for name, data in DATASETS.items()]  # fmt: skip
    yield "\n".join(["| `data.name` | keys that it reads | reader |", "| --- | --- | --- |", *rows])
    yield "### Published models"
    yield "`model=zoo model.name=NAME mixer=builtin`: " + ", ".join(f"`{name}`" for name in PUBLISHED)


def _told(node: Any) -> str:
    """The keys of a file and their values, in one line."""
    flow = yaml.safe_dump(node or {}, default_flow_style=True, sort_keys=False, width=10**6).strip().strip("{}")
    return f"`{flow}`".replace("|", "\\|") if flow else ""


if __name__ == "__main__":
    FILE.write_text(reference())
    print(f"written: {FILE}")
