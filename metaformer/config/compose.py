"""From words like `mixer=attention` to a validated configuration. Imports no torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast, get_origin

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override, Transformer
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metaformer.config.hydra_internals import flags, in_mode, load, loader_of, parsed
from metaformer.config.kinds import has_keys, hint_of, in_words
from metaformer.config.schema import GROUPS, Config
from metaformer.config.validate import leaves, structure, validate
from metaformer.system.errors import ConfigError, by_closeness, nearest
from metaformer.system.files import try_folder
from metaformer.system.machine import places

# Nodes that take any key without a `+`: somebody looks at each
OPEN = ("trainer", "callbacks", "logger.lightning", "recipe.optimizer_options")
Choices = dict[str, str]  # what was chosen in each config group, by the word that the user typed


def conf_dir() -> Path:
    """`conf/` inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


@cache
def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra and OmegaConf."""
    schema = OmegaConf.structured(Config)
    for node in OPEN:
        OmegaConf.set_struct(OmegaConf.select(schema, node), False)
    ConfigStore.instance().store(name="metaformer_schema", node=schema)
    OmegaConf.register_new_resolver("experiments_root", lambda: str(conf_dir().parent), replace=True)
    OmegaConf.register_new_resolver("places", places, replace=True)


@cache
def loader() -> ConfigLoader:
    """Hydra's loader of the packaged and local configuration files."""
    register()
    return loader_of(conf_dir())


def compose(overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of some overrides, without Hydra's command line.

    Raises:
        ConfigError, HydraException, OmegaConfBaseException: see `metaformer.config.explain` for one line of each.
    """
    check_words(overrides)
    return config_of(load(loader(), overrides))


def check_command(arguments: Sequence[str]) -> AbstractContextManager[None]:
    """Refuse flags and words of Hydra's command that cannot be, before it begins; it is to run in what this returns."""
    given = [word for word in arguments if word[:1] == "-"]
    check_flags(given)
    check_words([word for word in arguments if word[:1] == "~" or ("=" in word and word[:1] != "-")])
    if not {*given} <= {"-m", "--multirun"}:  # others change where Hydra looks, or what it does
        return nullcontext()
    words = [word for word in arguments if word not in given]
    composed = load(loader(), words, multirun=True)
    mode = cast(RunMode | None, composed.hydra.mode)
    if mode is None and not given and not any(word.is_sweep_override() for word in parsed(loader(), words)):
        config_of(composed)  # of a single run
    return in_mode(mode)


ELSEWHERE = {"hydra.run.dir": "no run is there; runtime.runs=FOLDER says where they go"}
SEVERAL = ("callbacks", "logger")  # groups of which several choices may be taken at once
FREE = ("mixer.", "data.options.", "study.analysis.contrasts.", "hydra.sweeper.params.")  # keys that need not be there


def given_words(cfg: DictConfig, kind: str = "task") -> list[str]:
    """The words of the command line of a composed configuration. An interpolation is left for each run to resolve."""
    return list(cast(list[str], OmegaConf.to_container(cfg.hydra.overrides[kind], resolve=False)))


def key_of(word: str) -> str:
    """The key that a word sets, adds or deletes."""
    return word.lstrip("+~").partition("=")[0]


def keys_of(arguments: Sequence[str]) -> set[str]:
    """The keys that words set."""
    return set(map(key_of, arguments))


def changes(arguments: Sequence[str]) -> list[str]:
    """The overrides that change which runs a study is made of, or how it is judged."""
    kept = []
    for argument in arguments:
        key = key_of(argument)
        if key not in ("experiments", "data.root") and key.partition(".")[0] not in ("runtime", "logger"):
            kept.append(argument)
    return kept


def check_flags(words: Sequence[str]) -> None:
    """Refuse a flag that Hydra does not know, which would print how it is used in eight lines."""
    known = flags()
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in known:
            hint = f"; did you mean '{word.lstrip('-')}'?" if equals else nearest(name, known)
            raise ConfigError(f"{word}: no such flag; expected key=value{hint}")


def check_words(words: Sequence[str]) -> None:
    """Refuse a key that is deleted and a choice that is no name, where Hydra says nothing or has a traceback."""
    overrides = parsed(loader(), words)
    for override in overrides:
        key, word = str(override.key_or_group), str(override.input_line)
        if not key:
            raise ConfigError(f"{word}: expected key=value")
        if key in ELSEWHERE:
            raise ConfigError(f"{word}: {ELSEWHERE[key]}")
        _check_below(key)
        if override.is_delete() and not key.startswith(FREE):
            raise ConfigError(f"{word}: it cannot be deleted; expected {key}=VALUE, or nothing for the default")
        if key == "hydra.sweep.dir":
            _check_folder(word, override.value())
        if override.is_delete():
            continue
        sweep = override.is_discrete_sweep()
        values = override.sweep_iterator(Transformer.identity) if sweep else [override.value()]  # may be a billion
        if hint_of(key) is bool and any(type(value) is int and value not in (0, 1) for value in values):
            raise ConfigError(f"{word}: expected true or false")  # OmegaConf takes any number for true
        if not (key in GROUPS or "/" in key):
            continue
        for value in values:
            if key == "hydra/sweeper" and value == "basic":
                raise ConfigError(f"{word}: expected study, which is what -m has, or search")
            names = value if key in SEVERAL and isinstance(value, list) else [value]
            if not all(
                isinstance(name, dict) or (isinstance(name, str) and name and "${" not in name) for name in names
            ):
                known = ", ".join(names_in(key)) or "the files of its folder"
                raise ConfigError(f"{word}: expected the name of a choice, one of {known}")
    _check_epochs({str(override.key_or_group): override for override in overrides})


def _check_epochs(keys: Mapping[str, Override]) -> None:
    """Refuse epochs where steps count, of a file that is chosen or beside them."""
    if {"recipe.steps", "recipe.epochs"} <= keys.keys() and keys["recipe.steps"].value() is not None:
        raise ConfigError("recipe.steps: takes the place of recipe.epochs; expected one of them")
    if "recipe.epochs" in keys and "recipe.steps" not in keys:
        chosen = [keys[key] for key in ("experiments", "recipe") if key in keys]
        files = [str(override.input_line) for override in chosen if not override.is_sweep_override()]
        steps = load(loader(), files).recipe.steps if files else None
        if steps is not None:
            told = f"recipe.steps={steps} of {' and '.join(files)} takes its place"
            raise ConfigError(f"recipe.epochs: {told}; expected recipe.steps=NUMBER, or recipe.steps=null beside it")


def _check_below(key: str) -> None:
    """Refuse a key below another that has none, but for an item of a list that is there, like `model.dims.0`."""
    parent, _, last = key.rpartition(".")
    hint = hint_of(parent) if parent else None
    if not (hint is None or has_keys(hint) or (get_origin(hint) is list and last.isdigit())):
        raise ConfigError(f"{key}: there are no keys below {parent}; expected {parent}=VALUE, {in_words(hint)}")


def _check_folder(word: str, value: Any) -> None:
    if not (isinstance(value, str) and value):
        raise ConfigError(f"{word}: expected a folder")
    try:
        if "${" not in value:
            try_folder(Path(value))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{word}: cannot be made ({getattr(error, 'strerror', error)})") from error


def config_of(composed: DictConfig) -> Config:
    """The validated configuration that Hydra composed, with or without its own node."""
    plain: Any = OmegaConf.to_container(without_hydra(composed), resolve=True, throw_on_missing=True)
    config = structure(Config, plain)
    validate(config)
    return config


def without_hydra(composed: DictConfig) -> DictConfig:
    """What Hydra composed, but for its own node."""
    if "hydra" not in composed:
        return composed
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def _check_kept(file: Path, told: str, group: str) -> None:
    """Refuse what a file of a group says in vain: a `???` where a default would stay, and a folder that cannot be.

    Args:
        told: how the file is called in messages.
    """
    text = file.read_text(errors="replace")
    everywhere = "@package _global_" in text
    if "???" not in text and not (everywhere and re.search(r"\bsweep\b", text)):
        return  # most files: each command looks at all of them, and YAML is slow to read
    try:
        content = OmegaConf.create(text)
    except (YAMLError, OmegaConfBaseException):  # which Hydra tells where the file is chosen
        return
    if not isinstance(content, DictConfig):
        return
    known = {} if everywhere else {key for key, _, _ in leaves(Config())}
    for key in _without_value(content):
        path = key if everywhere else f"{group}.{key}"
        if everywhere or "defaults" in content or path in known:  # else there is no default: Hydra asks for it
            raise ConfigError(f"{told}: {path}: ??? does not replace the default; expected a value")
    place = OmegaConf.to_container(content).get("hydra") if everywhere else None  # type: ignore[union-attr]
    if isinstance(place, dict) and isinstance(sweep := place.get("sweep"), dict) and "dir" in sweep:
        _check_folder(f"{told}: hydra.sweep.dir={sweep['dir']}", sweep["dir"])


def _without_value(node: Any, path: str = "") -> Iterator[str]:
    """The keys that are `???`, at any depth; in a list of defaults that is a choice which has to be made."""
    for key in range(len(node)) if isinstance(node, ListConfig) else [key for key in node if key != "defaults"]:
        if OmegaConf.is_missing(node, key):
            yield f"{path}{key}"
        elif not OmegaConf.is_interpolation(node, key) and OmegaConf.is_config(node[key]):
            yield from _without_value(node[key], f"{path}{key}.")


def choices_of(hydra: Any) -> Choices:
    """What was chosen in the groups that name a run; `hydra` is Hydra's own node."""
    groups = ("mixer", "model", "recipe", "experiments")
    return {group: str(hydra.runtime.choices.get(group)) for group in groups}


def mixer_named(name: str) -> Any:
    """The node of `mixer/NAME.yaml`, packaged or of the working directory, with its default options.

    Raises:
        ConfigError: there is none; it names the nearest.
    """
    if name not in (known := names_in("mixer")):
        raise ConfigError(f"mixer={name}: no such choice; expected one of {', '.join(by_closeness(name, known))}")
    return OmegaConf.to_container(load(loader(), [f"mixer={name}"]).mixer, resolve=True)


def group_dir(group: str) -> Path:
    """The packaged folder of a config group."""
    return (conf_dir().parent if group == "experiments" else conf_dir()) / group


def names_in(group: str) -> list[str]:
    """The choices of a config group, packaged and of the working directory."""
    return sorted({path.stem for root in (group_dir(group), Path.cwd() / group) for path in root.glob("*.yaml")})


def check_local_files() -> None:
    """Refuse a file of the working directory that Hydra would hide behind a packaged one, or read in part."""
    here = Path.cwd()
    for group in GROUPS:
        packaged = group_dir(group)
        files = "*.yaml" if group == "data" else "**/*.yaml"  # below data/ images may lie, by the million
        for local in sorted((here / group).glob(files)):
            name = local.relative_to(here / group)
            _check_kept(local, f"{group}/{name}", group)
            if packaged != here / group and (packaged / name).exists():
                raise ConfigError(f"{group}/{name} has the name of a packaged file and would be ignored; rename it")
