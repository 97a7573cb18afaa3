"""Composition: where the configuration files are, Hydra's part, and its errors as one line. Imports no torch."""

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metaformer.schema import GROUPS, Config, ConfigError, by_closeness, nearest


def conf_dir() -> Path:
    """`conf/` inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra and OmegaConf."""
    ConfigStore.instance().store(name="metaformer_schema", node=Config)
    OmegaConf.register_new_resolver("experiments_root", lambda: str(conf_dir().parent), replace=True)
    OmegaConf.register_new_resolver("places", _places, replace=True)
    OmegaConf.register_new_resolver("help_groups", help_groups, replace=True)


def _places(accelerator: str, per_gpu: int) -> int:
    from metaformer.slots import places

    return places(accelerator, per_gpu)


def cores() -> int:
    """The processor cores that this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(os.environ.get("SLURM_CPUS_PER_TASK") or there))  # not every site binds a job to its cores


def group_dir(group: str) -> Path:
    """The packaged folder of a config group."""
    return (conf_dir().parent if group == "experiments" else conf_dir()) / group


def help_groups() -> str:
    """A line for each config group: its choices, packaged and of the working directory."""
    lines = []
    for group in GROUPS:
        names = {path.stem for root in (group_dir(group), Path.cwd() / group) for path in root.glob("*.yaml")}
        lines.append(f"{group}: {', '.join(sorted(names))}")
    return "\n".join(lines)


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


def import_object(path: str, key: str) -> Any:
    """The object at a dotted path; `key` is named when it cannot be imported, with the cause."""
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}={path}: cannot import '{module_name}' ({type(error).__name__}: {error})") from error
    if not hasattr(module, name):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise ConfigError(f"{key}={path}: '{module_name}' has no '{name}'{nearest(name, public)}")
    return getattr(module, name)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration without Hydra's command line, `hydra` node included."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    running = GlobalHydra.instance().is_initialized()  # within a command of Hydra's, whose places are the same
    with contextlib.nullcontext() if running else initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose("train", list(overrides), return_hydra_config=True)


EXTRAS = {"optuna": "optuna", "submitit_slurm": "slurm"}  # what a choice of Hydra's plugins needs


def explain(error: Exception) -> str:
    """A Hydra or OmegaConf error as one line: what was wrong, what was expected, the nearest valid choice."""
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if name in EXTRAS:
            return f"{group}={name}: not installed; it comes with pip install 'metaformer-bench[{EXTRAS[name]}]'"
        return f"{group}={name}: no such choice; expected one of {', '.join(by_closeness(name, error.options))}"
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and isinstance(cause, Exception):
        causes.append(cause)
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        siblings = _siblings(unknown[1]) or [str(k) for c in causes for k in getattr(c, "parent_node", None) or ()]
        siblings = [key for key in dict.fromkeys(siblings) if key != "_target_"]
        hint = nearest(unknown[1].rpartition(".")[2], siblings) or f"; there are {', '.join(siblings) or 'none'}"
        return f"{unknown[1]}: no such key{hint}"
    for cause in causes:
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: has to be given, there is no default"
        if isinstance(cause, OmegaConfBaseException):
            key = getattr(cause, "full_key", None) or ""
            expected = re.search(r"could not be converted to (\w+)|is not a valid (\w+)", str(cause))
            if expected and key:
                value = re.search(r"Value '([^']*)'", str(cause))
                kind = (expected[1] or expected[2]).lower().replace("bool", "boolean")
                return f"{key}={value[1] if value else ''}: expected {_article(kind)}"
    return " ".join(str(causes[-1] if isinstance(error, ConfigCompositionException) else error).split())


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _siblings(key: str) -> list[str]:
    """The valid keys beside an unknown one, as far as the schema knows them."""
    schema: Any = Config
    for part in key.split(".")[:-1]:
        hints = get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}
        kinds = [hints.get(part), *get_args(hints.get(part))]
        schema = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if schema is None:
            return []
    return [f.name for f in dataclasses.fields(schema)] + (list(GROUPS) if schema is Config else [])


USER_ERRORS = (ConfigError, HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)

RUN_ERRORS = (FloatingPointError, MemoryError)  # a run that diverges or does not fit; its failed.json has the traceback


def explain_or_raise(error: Exception) -> None:
    """Print an error of the user's as one line and leave with status 2; with HYDRA_FULL_ERROR=1 let it go on."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    message = explain(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else str(error)
    message = " ".join(message.split())
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def answer(doc: str | None, action: Callable[[list[str]], None]) -> None:
    """The body of a command: its help, or `action` on its arguments, where an error of the user's is one line."""
    arguments = sys.argv[1:]
    if set(arguments) & {"-h", "--help"}:
        print(doc)
        return
    try:
        check_local_files()
        action(arguments)
    except USER_ERRORS as error:
        explain_or_raise(error)
