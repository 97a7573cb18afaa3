"""What people bring to Lightning: flags of its Trainer, callbacks, loggers. What is refused of them, and what counts.

Imports no torch: the flags and their types are read in the source of the Trainer.
"""

import ast
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metaformer.config.metrics import SPLITS, metrics_of
from metaformer.config.schema import Config, Logger
from metaformer.system.errors import ConfigError, by_closeness, nearest

TRAINER_FLAGS = {  # flags that the bench sets, and the key that sets them
    "callbacks": "callbacks=early_stopping, or another choice",
    "logger": "logger=tensorboard, or another choice",
    "max_epochs": "recipe.epochs",
    "precision": "recipe.precision",
    "gradient_clip_val": "recipe.clip_grad",
    "accelerator": "runtime.accelerator",
    "devices": "runtime.devices",
    "num_nodes": "runtime.nodes",
    "strategy": "runtime.strategy",
    "accumulate_grad_batches": "runtime.accumulate",
    "enable_progress_bar": "runtime.progress",
    "enable_checkpointing": "runtime.checkpoint_minutes",
    "default_root_dir": "runtime.runs",
    "fast_dev_run": "debug=fast",
    "overfit_batches": "debug=overfit",
    "max_steps": "recipe.steps, whose last epoch is validated too",
    "check_val_every_n_epoch": "recipe.validate_steps, which counts steps",
    "val_check_interval": "recipe.validate_steps, at the end of an epoch",
    "profiler": "debug=profile",
}
WHOLE = "a validation is at the end of an epoch, on all validation images"
FIXED = {  # flags that have one value here, and why
    "plugins": "they are objects, which no word can be",
    "barebones": "it takes away what a run is recorded with",
    "deterministic": "the same configuration gives the same result, so it is true",
    "use_distributed_sampler": "batches are a function of seed, epoch and place, so it is false",
    "reload_dataloaders_every_n_epochs": "each epoch has its own batches, so it is 1",
    "num_sanity_val_steps": f"{WHOLE}, and not before",
    "limit_val_batches": WHOLE,
    "limit_test_batches": "every run is tested on all test images",
    "limit_predict_batches": "a run predicts nothing but the test images",
    "model_registry": "it belongs to checkpoints of Lightning's own, and a run has others",
}
# Flags that change no result: what is printed, logged and checked. Whatever else there is, or will be, counts.
HARMLESS = ("log_every_n_steps", "enable_model_summary", "enable_autolog_hparams", "detect_anomaly", "inference_mode")
# Callbacks that look on and say what they see. Any other may stop the training or change weights, so that it is part of
# the identity with all its options, and with the code that it names.
LOGGING = ("LearningRateMonitor", "ThroughputMonitor", "DeviceStatsMonitor")  # to Lightning's loggers only
ONLOOKERS = (*LOGGING, "ModelSummary", "RichModelSummary")
THEIRS = "lightning.pytorch.callbacks."
KINDS: dict[str, tuple[type, ...]] = {  # names in the Trainer's annotations: what a word of a command line may be
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "dict": (dict,),
    "Optional": (type(None),),
}


def counted(config: Config) -> dict[str, Any]:
    """What can change a result: a part of the identity of a run. Empty where nothing is set."""
    flags = {flag: value for flag, value in config.trainer.items() if flag not in HARMLESS}
    acting = {name: node for name, node in config.callbacks.items() if not _is(node, ONLOOKERS)}
    return {node: values for node, values in {"trainer": flags, "callbacks": acting}.items() if values}


def _is(node: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a node is one of these callbacks of Lightning's."""
    return str(node["_target_"]) in [THEIRS + name for name in names]


def unheard(logger: Logger, finished: int) -> str:
    """Which of Lightning's loggers heard nothing of runs that were there already; they are told while a run trains."""
    if not logger.lightning or not finished:
        return ""
    told = f"{finished} run{'s' * (finished > 1)} finished before: metrics.csv has the curve"
    return f"note: {', '.join(logger.lightning)}: nothing of {told}; runtime.force=true trains again"


def check_extensions(config: Config) -> None:
    """Raise a ConfigError for what cannot be, or that nothing would read."""
    _check_nodes("callbacks", config.callbacks)
    _check_nodes("logger.lightning", config.logger.lightning)
    for name, node in config.callbacks.items():
        _check_callback(f"callbacks.{name}", node, config)
    for flag, value in config.trainer.items():
        _check_flag(flag, value)
    batches = config.trainer.get("limit_train_batches")  # 1.0 would be all of them, and 1 one: the id knows no 1.0
    if batches is not None and (batches <= 0 or (isinstance(batches, float) and batches >= 1)):
        raise ConfigError(
            f"trainer.limit_train_batches={batches}: expected a number of batches from 1, or a share below 1"
        )
    if batches is not None and config.recipe.steps is not None:
        raise ConfigError(f"trainer.limit_train_batches={batches}: recipe.steps counts whole epochs; give one of them")
    if (how := config.trainer.get("gradient_clip_algorithm")) and config.recipe.clip_grad is None:
        raise ConfigError(f"trainer.gradient_clip_algorithm={how}: is read with recipe.clip_grad only")
    if config.trainer.get("sync_batchnorm") and config.runtime.processes == 1:
        raise ConfigError("trainer.sync_batchnorm=True: is for several devices (runtime.devices)")
    if config.trainer.get("sync_batchnorm") and config.runtime.strategy == "fsdp":  # Lightning would leave it out
        raise ConfigError("trainer.sync_batchnorm=True: is not for runtime.strategy=fsdp; expected ddp")
    recipe = config.recipe
    most = {"min_epochs": None if recipe.steps else recipe.epochs + recipe.cooldown_epochs, "min_steps": recipe.steps}
    for flag, end in most.items():
        if end is not None and (least := config.trainer.get(flag)) is not None and least > end:
            raise ConfigError(f"trainer.{flag}={least}: the recipe ends before; expected at most {end}")
    steps = config.trainer.get("log_every_n_steps", 1)
    if not steps or steps < 1:
        raise ConfigError(f"trainer.log_every_n_steps={steps}: expected at least 1")
    if "log_every_n_steps" in config.trainer and not config.logger.lightning:
        raise ConfigError("trainer.log_every_n_steps: is read by Lightning's loggers only, like logger=tensorboard")


def _check_nodes(path: str, nodes: Mapping[str, Any]) -> None:
    for name, node in nodes.items():
        target = node.get("_target_") if isinstance(node, Mapping) else None
        if name == "_target_":
            raise ConfigError(f"{path}._target_: expected it below a name, as in `mine: {{_target_: {node}}}`")
        if not isinstance(target, str) or "." not in target:
            hint = nearest(name, [other for other in nodes if other != name])
            chosen = f"{path.partition('.')[0]}={name}"
            raise ConfigError(
                f"{path}.{name}: expected _target_, the dotted path of a class, from a file ({chosen}) or by hand{hint}"
            )


def metrics_asked_for(config: Config) -> dict[str, str]:
    """By their keys: the metric of the study, and those that callbacks look at."""
    monitors = {f"callbacks.{name}.monitor": str(node.get("monitor")) for name, node in config.callbacks.items()}
    known = [name for split in SPLITS for name in metrics_of(split)]
    found = {key: metric for key, metric in monitors.items() if metric in known}
    return {"study.analysis.metric": config.study.analysis.metric, **found}


def _check_callback(key: str, node: Mapping[str, Any], config: Config) -> None:
    if _is(node, LOGGING) and not config.logger.lightning:
        raise ConfigError(f"{key}: tells Lightning's loggers only, and there is none; expected logger=steps or another")
    known = [name for split in ("train", "val") for name in metrics_of(split, config.task.name)]
    monitor = node.get("monitor")
    if monitor is not None and monitor not in known and str(node["_target_"]).startswith(THEIRS):
        expected = ", ".join(by_closeness(str(monitor), known))
        raise ConfigError(f"{key}.monitor={monitor}: expected one of {expected}")
    if monitor is not None and str(monitor).startswith("val_") and config.debug.mode == "overfit":
        raise ConfigError(f"{key}.monitor={monitor}: debug=overfit validates nothing; leave the callback out")
    rare, flag = config.recipe.validate_steps is not None, "check_on_train_epoch_end"
    if rare and str(monitor).startswith("val_") and _is(node, ("EarlyStopping",)) and node.get(flag) is not False:
        raise ConfigError(
            f"recipe.validate_steps: {key} looks for {monitor} after each epoch; add +{key}.{flag}=false to look after "
            "each validation"
        )


def _check_flag(flag: str, value: Any) -> None:
    key, known = f"trainer.{flag}", _annotations()
    if flag not in known:
        settable = [name for name in known if name not in FIXED]
        raise ConfigError(f"{key}: Lightning's Trainer has no such flag{nearest(flag, settable)}")
    if flag in TRAINER_FLAGS:
        raise ConfigError(f"{key}: the bench sets it; expected {TRAINER_FLAGS[flag]}")
    if flag in FIXED:
        raise ConfigError(f"{key}: the bench sets it: {FIXED[flag]}")
    kinds = [kind for kind in KINDS if kind in known[flag]]
    fits = {type(value)} & {own for kind in kinds for own in KINDS[kind]}
    if not fits:
        words = ["null" if kind == "Optional" else kind for kind in kinds]
        raise ConfigError(f"{key}={value}: expected {' or '.join(words)}")


@cache
def _annotations() -> Mapping[str, frozenset[str]]:
    """The flags of the Trainer, each with the names in its annotation, like {"Optional", "int", "float"}."""
    package = find_spec("lightning")
    assert package is not None
    assert package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], "pytorch", "trainer", "trainer.py").read_text()
    init = next(
        function
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    )
    return {flag.arg: frozenset(_names(flag.annotation)) for flag in init.args.kwonlyargs}


def _names(annotation: ast.AST | None) -> list[str]:
    """`Optional[Union[int, dict[str, int]]]` -> Optional, Union, int, dict: the words for what a value may be."""
    match annotation:
        case ast.Name():
            return [annotation.id]
        case ast.Subscript() if _names(annotation.value)[0] in ("Optional", "Union"):
            return [*_names(annotation.value), *_names(annotation.slice)]
        case ast.Subscript():
            return _names(annotation.value)
        case ast.Tuple():
            return [name for part in annotation.elts for name in _names(part)]
    return [""]
