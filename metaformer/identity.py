"""The identity of a run: a hash of whatever can change its result, the code of a mixer and the images included."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from metaformer.schema import Config

SCHEMA_VERSION = 1  # raise it when a default changes: only what differs from the defaults is hashed
UNHASHED = (
    "study",
    "runtime",
    "logger",
    "debug",
    "reference",
    "budget",
    "cost",
)  # these change no result beyond float rounding
SPLITS = ("train", "val", "test")
MANY = 100_000  # files, from which on a fingerprint is kept
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def run_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits: a hash of all that can change the result of a run."""
    return _digest(config)


def cell_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits: a run without its seed."""
    return _digest({**config, "seed": None})


def _digest(config: Mapping[str, Any]) -> str:
    defaults = _defaults()
    hashed = {key: value for key, value in config.items() if key not in UNHASHED}
    hashed["data"] = {key: value for key, value in hashed["data"].items() if key != "root"}
    hashed["recipe"] = _with_contents(hashed["recipe"])
    content = _differences(hashed, defaults)
    content["schema"] = SCHEMA_VERSION
    content["sources"] = sources(config["mixer"])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def sources(mixer: Any) -> list[str]:
    """A hash for each piece of code that a mixer node names; empty words for code of this package."""
    return [_source_hash(target) for target in _targets(mixer)]


@cache
def _defaults() -> dict[str, Any]:
    return dataclasses.asdict(Config())


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with the keys that the schema has gained since: whatever is not set has its default."""
    return {
        key: {**default, **node}
        if isinstance(node, dict) and isinstance(default := _defaults().get(key), dict)
        else node
        for key, node in config.items()
    }


def _with_contents(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the hash of each file of weights in place of its path."""
    recipe = {**recipe, "distill": dict(recipe["distill"])}
    for node, key in ((recipe, "initialize_from"), (recipe["distill"], "weights")):
        if node[key] is not None and Path(node[key]).is_file():
            node[key] = file_hash(node[key], Path(node[key]).stat().st_mtime_ns)
    return recipe


@cache
def file_hash(path: str, modified: int) -> str:
    """A hash of a file's contents, read once as long as its time of modification stays."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _differences(node: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in node.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _differences(value, default), {}
        if key not in defaults or value != default:
            changed[key] = value
    return changed


def _targets(node: Any) -> Iterable[str]:
    """The dotted paths of code that a mixer node names: its class, and the layer that it adapts."""
    if isinstance(node, dict):
        for key, value in sorted(node.items()):
            if key in ("_target_", "layer") and isinstance(value, str):
                yield value
            else:
                yield from _targets(value)


def _source_hash(target: str) -> str:
    """A hash of the code of a mixer outside this package, so that an edited mixer is a new run.

    Of a package all its files count, of a lone file also the files beside it that it imports; of an installed
    distribution its version.
    """
    module = target.rpartition(".")[0]
    top = module.split(".")[0]
    if top == __package__:
        return ""
    try:
        spec = importlib.util.find_spec(top)
    except Exception:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""  # importing it will say what is wrong
    origin = Path(spec.origin)
    if "site-packages" in origin.parts:
        from importlib.metadata import packages_distributions, version

        return " ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(top, [top]))))
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else sorted(_imported(origin))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(origin.parent).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _imported(file: Path, seen: frozenset[Path] = frozenset()) -> set[Path]:
    """A file and the files beside it that it imports, and they import, in turn."""
    files = {file}
    for name in re.findall(r"^\s*(?:from|import)\s+(\w+)", file.read_text(errors="replace"), re.MULTILINE):
        beside = file.with_name(f"{name}.py")
        if beside.is_file() and beside not in seen | files:
            files |= _imported(beside, seen | files)
    return files


def cache_dir() -> Path:
    """Where decoded images and the fingerprints of large folders are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaformer"


def _split_of(path: Path) -> int:
    return next(i for i, split in enumerate(SPLITS) if path.parts[0].startswith(split))


@cache
def folder_fingerprint(root: str) -> str:
    """A hash of name, size and first 4 KiB of every image file of the splits under `root`, but not of where it lies.

    Reading the heads of a million files takes minutes: their fingerprint is kept until a folder among them changes.
    """
    files: list[Path] = []
    listing = hashlib.sha256(str(Path(root).resolve()).encode())
    for folder, inner, names in os.walk(root, followlinks=True):
        inner.sort()
        place = Path(folder).relative_to(root).parts
        if place and place[0] not in SPLITS:
            inner.clear()
            continue
        images = [name for name in sorted(names) if Path(name).suffix.lower() in IMAGES] if place else []
        tars = [name for name in sorted(names) if name.endswith(".tar") and (place or name.startswith(SPLITS))]
        files += [Path(folder, name) for name in images + tars]
        listing.update(f"{'/'.join(place)} {Path(folder).stat().st_mtime_ns} {len(images + tars)}\n".encode())
    kept = cache_dir() / f"{listing.hexdigest()[:16]}.fingerprint"
    if len(files) > MANY and kept.exists():
        return kept.read_text()
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: (_split_of(path.relative_to(root)), path)):
        with path.open("rb") as file:
            head = file.read(4096)
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + head)
    if len(files) > MANY:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(digest.hexdigest()[:16])
    return digest.hexdigest()[:16]
