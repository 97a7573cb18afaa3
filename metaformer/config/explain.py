"""Errors of Hydra and OmegaConf as one line: what was wrong, what was expected, the nearest valid choice."""

import re
from collections.abc import Collection
from difflib import get_close_matches

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigIndexError, MissingMandatoryValue, OmegaConfBaseException

from metaformer.config.compose import names_in
from metaformer.config.extensions import TRAINER_FLAGS
from metaformer.config.kinds import hint_of, in_words
from metaformer.config.schema import GROUPS, Config
from metaformer.config.validate import leaves
from metaformer.system.errors import ConfigError, by_closeness, install, nearest

USER_ERRORS = (ConfigError, HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)
EXTRAS = {"optuna": "optuna", "submitit_slurm": "slurm"}  # what a choice of Hydra's plugins needs
CALLED_ELSEWHERE = {  # what timm and others call a key; flags of Lightning's Trainer are in extensions.py
    "recipe.lr": ("learning_rate", "base_lr"),
    "recipe.epochs": ("num_epochs",),
    "recipe.steps": ("num_steps",),
    "recipe.batch": ("batch_size", "train_batch_size"),
    "recipe.optimizer": ("opt", "optim"),
    "recipe.weight_decay": ("wd", "decay"),
    "recipe.schedule": ("sched", "scheduler", "lr_scheduler"),
    "recipe.auto_augment": ("aa", "randaugment"),
    "recipe.erasing": ("reprob", "random_erasing"),
    "recipe.label_smoothing": ("smoothing",),
    "recipe.ema": ("model_ema", "ema_decay"),
    "recipe.clip_grad": ("clip_norm", "max_grad_norm"),
    "recipe.precision": ("amp", "dtype"),
    "recipe.optimizer_options.momentum": ("momentum",),
    "recipe.optimizer_options.betas": ("betas",),
    "recipe.optimizer_options.eps": ("eps",),
    "recipe.optimizer_options.layer_decay": ("layer_decay",),
    "model.drop_path": ("drop_path_rate",),
    "data.size": ("img_size", "image_size", "input_size", "resolution"),
    "data.root": ("data_dir", "data_path", "dataset_path"),
    "data.classes": ("num_classes",),
    "data.channels": ("in_chans", "in_channels"),
    "runtime.workers": ("num_workers",),
    "runtime.threads": ("num_threads",),
    "runtime.devices": ("gpus", "num_gpus"),
    "runtime.runs": ("output_dir", "out_dir", "save_dir", "log_dir"),
}


def explain(error: Exception) -> str:
    """An error of the user's as one line."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        return _no_such_choice(str(error.missing_cfg_file), list(error.options))
    if isinstance(error, OverrideParseException):
        return _not_readable(str(error.override))
    causes = _chain(error)
    if sweep := re.search(r"Ambiguous value for argument '(.*)'", str(error)):
        return f"{sweep[1]}: several values are a sweep, which needs -m; a list stands in brackets"
    if "Key '_target_' not in 'Logger'" in str(error):
        return "logger._target_: expected it below a name, as in `lightning: {mine: {_target_: my_module.MyLogger}}`"
    if absent := re.search(r"Could not load '([^']+)/([^/']+)'", str(error)):
        return _no_such_choice(f"{absent[1]}/{absent[2]}", names_in(absent[1]))
    if there := re.search(r"Could not append to config. An item is already at '([^']+)'", str(error)):
        return f"+{there[1]}: there is such a key; expected {there[1]}=VALUE, without the +"
    if unknown := re.search(r"Could not override '([^']+)'", str(error)):
        return _no_such_key(unknown[1], causes)
    for cause in causes:
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: has to be given, there is no default"
        if isinstance(cause, ConfigIndexError):
            return f"{cause.full_key}: the list is shorter than that; its first item is 0"
        if line := _wrong_type(cause):
            file = re.match(r"In '([^']+)'", str(error))
            return f"{line} (in {file[1]}.yaml)" if file else line
    return " ".join(str(causes[-1] if isinstance(error, ConfigCompositionException) else error).split())


def _chain(error: Exception) -> list[Exception]:
    """An error and what caused it, in turn."""
    causes = [error]
    while isinstance(cause := causes[-1].__cause__ or causes[-1].__context__, Exception):
        causes.append(cause)
    return causes


def _not_readable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: expected key=value{choice_called(word)}"
    if value.startswith(("[", "{", "'", '"')):
        return f"{word}: cannot be read; expected brackets and quotes in pairs"
    return f"{word}: cannot be read; quote a value with special characters, twice: '{key}=\"{value}\"'"


def _no_such_choice(file: str, options: list[str]) -> str:
    group, _, name = file.rpartition("/")
    if name in EXTRAS:
        return f"{group}={name}: not installed; it comes with {install(EXTRAS[name])}"
    return f"{group}={name}: no such choice; expected one of {', '.join(by_closeness(name, options))}"


def _no_such_key(key: str, causes: list[Exception]) -> str:
    parents = [parent for c in causes if (parent := getattr(c, "parent_node", None))]
    of_mixer = [f"mixer.{name}" for parent in parents if "mixer" in parent for name in parent.mixer or ()]
    known, node = [*(path for path, _, _ in leaves(Config())), *of_mixer], key.partition(".")[0]
    if key in known:  # a mapping, in which it is another key that is not there
        return f"{key}: its keys are new ones; expected +{key}=..."
    if "." in key and node not in (*Config.__dataclass_fields__, "hydra") and (hint := nearest(key, known)):
        return f"{key}: no such key{hint}"
    if hint := whole_key(key, known):
        return f"{key}: no such key{hint}"
    siblings = _siblings(key) or [str(k) for parent in parents for k in parent]
    siblings = [sibling for sibling in dict.fromkeys(siblings) if sibling != "_target_"]
    if "." not in key:  # its node may be missing as well
        close = get_close_matches(key, [*siblings, *(path.rpartition(".")[2] for path in known)], n=1)
        if close and close[0] not in siblings:
            return f"{key}: no such key{whole_key(close[0], known)}"
    parent, dot, last = key.rpartition(".")
    hint = nearest(last, siblings, f"{parent}{dot}") or f"; there are {', '.join(siblings) or 'none'}"
    targets = [parent.get("_target_") for parent in parents if node == "mixer"]
    if any(isinstance(target, str) and not target.startswith("metaformer.") for target in targets):
        hint += f"; an option of a class of yours is new: +{key}=..."
    return f"{key}: no such key{hint}"


def whole_key(key: str, known: Collection[str]) -> str:
    """`; did you mean 'recipe.lr'?` for a key that says too little of one, or has the name of another library."""
    last = key.rpartition(".")[2]
    places = [path for path in known if path.rpartition(".")[2] == key or _letters(path) == _letters(key)]
    places = places or [path for path, names in CALLED_ELSEWHERE.items() if last in names]
    if not places and last in TRAINER_FLAGS:
        places = [TRAINER_FLAGS[last].partition(",")[0]]
    return f"; did you mean {' or '.join(map(repr, places))}?" if places else ""


def keys_of(nodes: Collection[str]) -> list[str]:
    """The keys of some nodes of the configuration."""
    return [path for path, _, _ in leaves(Config()) if path.partition(".")[0] in nodes]


def _letters(key: str) -> str:
    return re.sub(r"[._-]", "", key)


def choice_called(word: str) -> str:
    """`; did you mean 'mixer=pooling'?` for the choice of a group that has that name, or nothing."""
    group = next((group for group in GROUPS if word in names_in(group)), None)
    return f"; did you mean '{group}={word}'?" if group else ""


def _wrong_type(cause: Exception) -> str:
    """The line for a value that has not the type of its field, or nothing."""
    key = getattr(cause, "full_key", None) or ""
    if not (isinstance(cause, OmegaConfBaseException) and key):
        return ""
    value = re.search(r"(?:V|Incompatible v)alue '(.*?)' ", str(cause))
    null = "not Optional" in str(cause) or (value is not None and value[1] == "None")
    given = "=null" if null else f"={value[1]}" if value else ""
    hint = hint_of(key)
    what = f"expected {in_words(hint)}" if hint is not None else str(cause).splitlines()[0]
    return f"{key}{given}: {what}"


def _siblings(key: str) -> list[str]:
    """The valid keys beside an unknown one, as far as the schema knows them."""
    parent = key.rpartition(".")[0]
    node = hint_of(parent) if parent else Config
    return [*getattr(node, "__dataclass_fields__", ()), *(GROUPS if node is Config else ())]
