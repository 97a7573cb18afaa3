"""From words like `mixer=attention` to a validated configuration. Imports no torch."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Transformer
from omegaconf import DictConfig, OmegaConf

from metaformer.config.hydra_internals import load, loader_of, parsed
from metaformer.config.schema import GROUPS, Config
from metaformer.config.validate import structure, validate
from metaformer.system.errors import ConfigError, by_closeness
from metaformer.system.machine import places

# Nodes that take any key without a `+`: somebody looks at each
OPEN = ("trainer", "callbacks", "logger.lightning", "recipe.optimizer_options")
Choices = dict[str, str]  # what was chosen in each config group, by the word that the user typed


def conf_dir() -> Path:
    """`conf/` inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


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


ELSEWHERE = {"hydra.run.dir": "no run is there; runtime.runs=FOLDER says where they go"}
FREE = ("mixer.", "data.options.", "study.analysis.contrasts.", "hydra.sweeper.params.")  # keys that need not be there


def check_words(words: Sequence[str]) -> None:
    """Refuse a key that is deleted and a choice that is no name, where Hydra says nothing or has a traceback."""
    for override in parsed(loader(), words):
        key, word = str(override.key_or_group), str(override.input_line)
        if not key:
            raise ConfigError(f"{word}: expected key=value")
        if key in ELSEWHERE:
            raise ConfigError(f"{word}: {ELSEWHERE[key]}")
        if override.is_delete() and not key.startswith(FREE):
            raise ConfigError(f"{word}: it cannot be deleted; expected {key}=VALUE, or nothing for the default")
        if override.is_delete() or not (key in GROUPS or "/" in key):
            continue
        sweep = override.is_discrete_sweep()
        for value in override.sweep_iterator(Transformer.identity) if sweep else [override.value()]:
            if key == "hydra/sweeper" and value == "basic":
                raise ConfigError(f"{word}: expected study, which is what -m has, or search")
            if not (isinstance(value, dict) or (isinstance(value, str) and value and "${" not in value)):
                known = ", ".join(names_in(key)) or "the files of its folder"
                raise ConfigError(f"{word}: expected the name of a choice, one of {known}")


def config_of(composed: DictConfig) -> Config:
    """The validated configuration that Hydra composed."""
    plain: Any = OmegaConf.to_container(without_hydra(composed), resolve=True, throw_on_missing=True)
    config = structure(Config, plain)
    validate(config)
    return config


def without_hydra(composed: DictConfig) -> DictConfig:
    """What Hydra composed, but for its own node."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


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
    """Refuse a file of the working directory that Hydra would hide behind a packaged one of the same name."""
    here = Path.cwd()
    for group in GROUPS:
        packaged = group_dir(group)
        if packaged == here / group:
            continue
        for local in sorted((here / group).glob("*.yaml")):
            if (packaged / local.name).exists():
                raise ConfigError(
                    f"{group}/{local.name} has the name of a packaged file and would be ignored; rename it"
                )
