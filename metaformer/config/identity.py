"""The identity of a run: a hash of whatever can change its result, the code of a mixer and the images included."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaformer.config.extensions import counted
from metaformer.config.named_code import hashes_of_code
from metaformer.config.schema import Config
from metaformer.config.validate import leaves, plain
from metaformer.system.files import file_hash
from metaformer.system.version import TRAINING_VERSION

# What came after published results: at its default it is no part of the content of a run
OPTIONS = (
    "optimizer_options",
    "loss",
    "color_jitter",
    "repeated_augmentation",
    "initialize_stages",
    "freeze",
    "resize",
    "power",
    "decoder_lr",
    "steps",
    "validate_steps",
)
LATER = ("task", "data.ignore", "data.mask_column", "data.class_names", *(f"recipe.{key}" for key in OPTIONS))
HASHED = ("mixer", "model", "data", "task", "recipe", "seed")  # the other nodes change no result beyond rounding
DEFAULTS = plain(Config())
FILES = ("recipe.initialize_from", "recipe.distill.weights")  # paths: their contents count
# How images are found. Where they have a fingerprint, that tells which they are, and in what order of classes
COLUMNS = ("image_column", "label_column", "mask_column", "split_column")  # a set that has splits has no last one
WHERE = ("root", "dataset", "classes", "class_names", "overlap", *COLUMNS, "_target_", "options")


def content_of(config: Config, fingerprint: str | None) -> dict[str, Any]:
    """All that can change the result of a run, whole, as plain data.

    Args:
        fingerprint: a hash of the images, for data sets that are not known by their name.
    """
    nodes = {key: value for key, value in plain(config).items() if key in HASHED}
    nodes["recipe"]["select"] = _selected(config)
    for path in LATER:
        node, _, key = path.rpartition(".")
        own, default = (nodes[node], DEFAULTS[node]) if node else (nodes, DEFAULTS)
        if own[key] == default[key]:
            del own[key]
    brought = counted(config)
    if config.task.segments and config.recipe.class_weights != "none":
        nodes["recipe"]["class_weights"] += ", of each pixel"  # earlier its smoothed label was weighed by other classes
    code = hashes_of_code({"mixer": config.mixer, "data": [config.data._target_, config.data.options], "more": brought})
    for key in ("name", *WHERE) if fingerprint else ("root",):
        nodes["data"].pop(key, None)
    for node, key in ((nodes["recipe"], "initialize_from"), (nodes["recipe"]["distill"], "weights")):
        if node[key] is not None and Path(node[key]).is_file():
            node[key] = file_hash(node[key])
    return nodes | brought | {"images": fingerprint, "code": code, "training": TRAINING_VERSION}


def run_id(content: Mapping[str, Any]) -> str:
    """Twelve hex digits for the content of a run."""
    return hashlib.sha256(json.dumps(_canonical(content), sort_keys=True).encode()).hexdigest()[:12]


def cell_id(content: Mapping[str, Any]) -> str:
    """Twelve hex digits for a run without its seed."""
    return run_id({**content, "seed": None})


def _canonical(value: Any) -> Any:
    """The same with numbers written in one way: an option of a mixer may be 0 or 0.0."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _selected(config: Config) -> str:
    """Which epoch is tested: by which metric is a matter of the study."""
    return config.selected_by or "last"


def differences(a: Config, b: Config, *, same_images: bool) -> dict[str, tuple[Any, Any]]:
    """The keys that count for the result and differ between two configurations, as `recipe.lr`: (0.1, 0.2).

    Args:
        same_images: both have the same fingerprint of images, so that the name of the data set does not count.
    """
    return unlike(flat(a), flat(b), same_images=same_images)


def unlike(mine: Mapping[str, Any], other: Mapping[str, Any], *, same_images: bool) -> dict[str, tuple[Any, Any]]:
    """The same of two configurations as `flat` gives them."""
    keys = [key for key, value in mine.items() if value != other.get(key)]
    keys += [key for key, value in other.items() if key not in mine and value is not None]
    return {key: (mine.get(key), other.get(key)) for key in keys if key != "data.name" or not same_images}


def flat(config: Config) -> dict[str, Any]:
    """What counts for the result of a configuration, as `recipe.lr`: value; the options of the mixer one by one."""
    where = {f"data.{key}" for key in WHERE}
    found = {key: value for key, _, value in leaves(config) if key.split(".")[0] in HASHED and key not in where}
    mixer = unfolded({"mixer": found.pop("mixer")})
    extensions = {"recipe.optimizer_options": found.pop("recipe.optimizer_options"), **counted(config)}
    return {**mixer, **found, "recipe.select": _selected(config), **unfolded(extensions)}


def unfolded(node: Mapping[str, Any], sign: str = ".") -> dict[str, Any]:
    """A nested node as one flat one, whose keys are paths with a sign between their words."""
    found: dict[str, Any] = {}
    for name, inner in node.items():
        if isinstance(inner, Mapping):
            found |= {f"{name}{sign}{key}": leaf for key, leaf in unfolded(inner, sign).items()}
        else:
            found[name] = inner
    return found
