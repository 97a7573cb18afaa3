"""What can be set, for --help: each key with its value, kind, choices or bounds, and its comment in the schema."""

import ast
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import wrap
from typing import Any

from omegaconf import OmegaConf

from metaformer.config import schema, study_nodes, tasks
from metaformer.config.compose import loader, names_in, without_hydra
from metaformer.config.hydra_internals import load
from metaformer.config.kinds import in_words
from metaformer.config.validate import leaves

WIDTH, LEFT = 120, 34
RUN_NODES = tuple(field.name for field in fields(schema.Config) if field.name != "cost")  # what a run has


def help_on(overrides: Sequence[str], nodes: Collection[str] = ()) -> str:
    """The choices of each group, local files included, and the keys of some nodes, or of all, with their values.

    Args:
        overrides: whose configuration it is.
    """
    composed = without_hydra(load(loader(), overrides, multirun=True))
    wanted = [key for key in composed if not nodes or key in nodes]
    groups = [group for group in schema.GROUPS if group in wanted or (group == "experiments" and "study" in wanted)]
    lines = ["Groups, local files included:", ""]
    for group in groups:
        lines += wrap(f"{group}: {', '.join(names_in(group))}", WIDTH, subsequent_indent="    ")
    values = OmegaConf.to_container(composed)
    described = {path: (field, _comment(path)) for path, field, _ in leaves(schema.Config())}
    lines += ["", "Keys, with their values:"]
    for node in wanted:
        lines += [""]
        for path, value in _flat(values[node], str(node), described):  # type: ignore[index]
            lines += _told(path, value, *described.get(path, (None, "")))
    return "\n".join(lines)


def _flat(value: Any, path: str, known: Collection[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and (path == "mixer" or path not in known):
        for key, inside in value.items():
            yield from _flat(inside, f"{path}.{key}", known)
    else:
        yield path, value


def _told(path: str, value: Any, field: Any, comment: str) -> list[str]:
    """`recipe.lr=0.002`, and beside it what it may be and what it is for."""
    word = f"{path}={value if isinstance(value, str) else json.dumps(value)}"
    told = comment
    if field is not None:
        choices, bounds = (field.metadata.get(key) for key in ("choices", "bounds"))
        kind = " | ".join(choices) if choices else in_words(field.type)
        told = ": ".join(filter(None, [", ".join(filter(None, [kind, str(bounds or "")])), comment]))
    lines = wrap(told, WIDTH - LEFT) or [""]
    if len(word) >= LEFT:
        return [word[:WIDTH], *(" " * LEFT + line for line in lines if line)]
    return [f"{word:{LEFT}}{lines[0]}".rstrip(), *(" " * LEFT + line for line in lines[1:])]


def _comment(path: str) -> str:
    """The comment of a key: above its field in the schema, or behind it."""
    kind: Any = schema.Config
    *nodes, name = path.split(".")
    for node in nodes:
        kind = kind.__dataclass_fields__[node].type
    found = (COMMENTS.get((owner.__name__, name)) for owner in kind.__mro__)
    return next((comment for comment in found if comment), "")


def _comments() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for module in (schema, study_nodes, tasks):
        found |= _comments_in(Path(str(module.__file__)).read_text())
    return found


def _comments_in(source: str) -> dict[tuple[str, str], str]:
    lines, found = source.splitlines(), {}
    for owner in [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]:
        for node in owner.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                last = lines[(node.end_lineno or 0) - 1].encode()[node.end_col_offset or 0 :].decode()
                above = node.lineno - 1
                while lines[above - 1].lstrip().startswith("#"):
                    above -= 1
                told = [*lines[above : node.lineno - 1], last]
                found[owner.name, node.target.id] = " ".join(line.strip().lstrip("# ") for line in told).strip()
    return found


COMMENTS = _comments()
