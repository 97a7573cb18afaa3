"""Code that a configuration names by a dotted path: imported, and hashed so that an edit is a new run."""

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

from metaformer.system.errors import ConfigError, nearest

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
STANDARD = Path(sysconfig.get_path("stdlib"))
OWN = __name__.partition(".")[0]


def import_object(path: str, key: str) -> Any:
    """The object at a dotted path.

    Args:
        key: what the path stands for in the configuration, for messages.

    Raises:
        ConfigError: it cannot be imported; with the cause.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        told = f"{key}={path}: cannot import '{module_name}' ({type(error).__name__}: {error})"
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            told += "; it has to be in this folder or on PYTHONPATH"
        raise ConfigError(told) from error
    if not hasattr(module, name):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise ConfigError(f"{key}={path}: '{module_name}' has no '{name}'{nearest(name, public)}")
    return getattr(module, name)


def hashes_of_code(node: Any) -> dict[str, str]:
    """A hash for each piece of foreign code that a node names, by its dotted path.

    Every string counts that looks like a dotted path and leads to a module: `_target_`, at any depth, and options that
    name code, like `layer: timm.layers.Attention`. Of a local module its file counts and every local file that it
    imports, in whatever form and in turn; of an installed library its version; code of this package does not count,
    it has `TRAINING_VERSION`.
    """
    return {path: found for path in sorted(set(dotted_names(node))) if (found := _hash_of(path))}


def dotted_names(node: Any) -> Iterator[str]:
    """Every string in a node that looks like the path of code, at any depth."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from dotted_names(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from dotted_names(value)
    elif isinstance(node, str) and DOTTED.fullmatch(node):
        yield node


def _hash_of(path: str) -> str:
    top = path.partition(".")[0]
    found = _find(top)
    if found is None or top == OWN:
        return ""  # importing it will say what is wrong
    if _installed(found.file or found.places[0]):
        names = sorted(set(_packages().get(top, [])))
        return " ".join(f"{name} {version(name)}" for name in names)  # nothing for the standard library
    files: dict[str, Path] = {}
    _follow(path, files)
    if not files:
        return ""  # a folder of that name is there by chance
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _packages() -> Mapping[str, list[str]]:
    """The distributions that bring each package: all of them are looked at for it, which takes a third of a second."""
    return packages_distributions()


def _installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(STANDARD)


class Found(NamedTuple):
    """A module: its file, if it has one, and where the modules inside of it are, if it is a package."""

    file: Path | None
    places: list[Path]


def _find(module: str) -> Found | None:
    """Where a module is, without running it or the packages that it is in; the working directory counts as well."""
    found = Found(None, [Path.cwd(), *map(Path, sys.path)])
    for depth, part in enumerate(module.split(".")):
        folders = [place / part for place in found.places]
        files = [file for folder in folders for file in (folder / "__init__.py", folder.with_name(f"{part}.py"))]
        file = next((file for file in files if file.is_file()), None)
        inside = [folder for folder in folders if folder.is_dir()]
        if file is not None:
            found = Found(file, [file.parent] if file.name == "__init__.py" else [])
        elif inside:
            found = Found(None, inside)  # a package without __init__.py
        elif depth == 0 and (editable := _known_to_a_finder(part)) is not None:
            found = editable
        else:
            return None
    return found


def _known_to_a_finder(name: str) -> Found | None:
    """A module that is in no folder of the path, as one of an editable install."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    places = [Path(place) for place in spec.submodule_search_locations or []]
    return Found(file, places) if file or places else None


def _follow(path: str, files: dict[str, Path]) -> None:
    """Add the local modules along a dotted path, and those that they import in turn, to `files`: name and file.

    The standard library's modulefinder does not know packages without `__init__.py`.
    """
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        found = _find(name)
        if found is None or name == OWN or (found.file and _installed(found.file)):
            return  # what is left of the path is the name of a class, or it is a library
        if found.file and name not in files:
            files[name] = found.file
            for imported in _imports(found.file, parts[: end if found.places else end - 1]):
                _follow(imported, files)


def _imports(file: Path, package: list[str]) -> Iterator[str]:
    """The dotted paths that a file imports, relative ones made absolute: modules, and what is taken from them."""
    try:
        tree = ast.parse(file.read_text(errors="replace"))
    except (SyntaxError, ValueError):
        return  # importing it will say what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
