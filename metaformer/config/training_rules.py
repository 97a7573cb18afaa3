"""Which keys of a recipe go together, and with which of the runtime."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaformer.config.metrics import metric_of, metrics_of
from metaformer.config.schema import Config, Distill, Recipe, Runtime
from metaformer.system.errors import ConfigError, by_closeness


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def check_task(config: Config) -> None:
    """What a task would not read, or cannot do."""
    task, metric = config.task, config.study.analysis.metric
    if task.name not in metric_of(metric).tasks:
        expected = ", ".join(by_closeness(metric, metrics_of(metric.partition("_")[0], task.name)))
        raise ConfigError(f"study.analysis.metric={metric}: task={task.name} has {expected}")
    if task.segments:
        _check_segmentation(config)
        return
    own = ("task.decoder", "task.width", "task.dice", "data.mask_column", "data.ignore", "data.class_names",
           "recipe.resize", "recipe.decoder_lr")  # fmt: skip
    for key in own:
        node, _, name = key.partition(".")
        if (value := getattr(getattr(config, node), name)) != getattr(getattr(Config(), node), name):
            raise ConfigError(f"{key}={value}: belongs to task=segmentation")


def _check_segmentation(config: Config) -> None:
    """Of the keys of a classifier those that have no meaning for pixels, or that nobody has made for masks."""
    recipe = config.recipe
    if config.runtime.strategy == "fsdp":
        raise ConfigError("runtime.strategy=fsdp: is for task=classification; expected ddp")
    given = {
        "recipe.auto_augment": recipe.auto_augment,
        "recipe.erasing": recipe.erasing,
        "recipe.mixup": recipe.mixup,
        "recipe.cutmix": recipe.cutmix,
        "recipe.distill.teacher": recipe.distill.teacher,
        "recipe.loss": recipe.loss if recipe.loss != "ce" else None,
        "model.head_dropout": config.model.head_dropout,
    }
    for key, value in given.items():
        if value:
            raise ConfigError(f"{key}={value}: is for task=classification; task=segmentation has none")


def check_recipe(recipe: Recipe) -> None:
    if recipe.warmup_epochs > recipe.epochs:
        raise ConfigError(f"recipe.warmup_epochs={recipe.warmup_epochs}: longer than recipe.epochs={recipe.epochs}")
    if recipe.schedule == "constant":
        for key, epochs in {"warmup": recipe.warmup_epochs, "cooldown": recipe.cooldown_epochs}.items():
            if epochs:
                raise ConfigError(f"recipe.{key}_epochs={epochs}: recipe.schedule=constant has none; expected 0")
    if recipe.lr_interval == "epoch" and recipe.warmup_epochs != int(recipe.warmup_epochs):
        raise ConfigError(
            f"recipe.warmup_epochs={recipe.warmup_epochs}: expected whole epochs, since recipe.lr_interval=epoch"
        )
    if recipe.steps is not None and (recipe.validate_steps or 0) > recipe.steps:
        raise ConfigError(
            f"recipe.validate_steps={recipe.validate_steps}: expected at most recipe.steps={recipe.steps}"
        )
    if recipe.steps is not None and recipe.lr_interval == "epoch":
        raise ConfigError("recipe.lr_interval=epoch: with recipe.steps the rate follows the steps; expected step")
    _check_augmentation(recipe)
    _check_loss(recipe)
    _check_distill(recipe.distill)
    _check_rates(recipe)
    if recipe.initialize_from is not None and not (source := Path(recipe.initialize_from)).is_file():
        expected = inside if (inside := source / "weights.pt").exists() else "a file of weights"
        told = f"is a folder; expected {expected}" if source.is_dir() else "no such file"
        raise ConfigError(f"recipe.initialize_from={source}: {told}")
    if (stages := recipe.initialize_stages) is not None and recipe.initialize_from is None:
        raise ConfigError(f"recipe.initialize_stages={stages}: belongs to recipe.initialize_from=FILE")
    frozen_stages(recipe.freeze)


def _check_rates(recipe: Recipe) -> None:
    """The schedule, and what has a rate of its own in it."""
    if recipe.power != Recipe().power and recipe.schedule != "poly":
        raise ConfigError(f"recipe.power={recipe.power:g}: belongs to recipe.schedule=poly")
    options = recipe.optimizer_options
    own = [f"recipe.decoder_lr={recipe.decoder_lr:g}"] if recipe.decoder_lr != 1 else []
    if options.get("layer_decay") is not None:
        own.append("recipe.optimizer_options.layer_decay")
    if own and recipe.schedule == "constant":
        raise ConfigError(f"{own[0]}: timm's schedule applies it, and recipe.schedule has none")
    if recipe.decoder_lr != 1 and (grouped := sorted({"layer_decay", "filter_bias_and_bn"} & options.keys())):
        told = f"expected 1 with recipe.optimizer_options.{grouped[0]}, which has groups of its own"
        raise ConfigError(f"{own[0]}: {told}")


def _check_loss(recipe: Recipe) -> None:
    if recipe.loss == "bce" and recipe.class_weights != "none":
        raise ConfigError(f"recipe.class_weights={recipe.class_weights}: belongs to recipe.loss=ce")
    if recipe.loss == "bce" and recipe.label_smoothing == 1:
        raise ConfigError("recipe.label_smoothing=1.0: expected less, since recipe.loss=bce")


def _check_augmentation(recipe: Recipe) -> None:
    _check_range("scale", recipe.scale, 1, "the least and the largest share of the area, like [0.08, 1]")
    _check_range("resize", recipe.resize, 16, "the least and the largest factor, up to 16, like [0.5, 2]")
    if recipe.scale is not None and recipe.resize is not None:
        raise ConfigError(f"recipe.resize={recipe.resize}: expected null, since recipe.scale crops already")
    if recipe.crops_by is None:
        for key in ("auto_augment", "erasing", "color_jitter", "repeated_augmentation"):
            if (value := getattr(recipe, key)) != getattr(Recipe(), key):
                raise ConfigError(f"recipe.{key}={value}: is read with a random resized crop only (recipe.scale)")
    elif recipe.crop:
        raise ConfigError(f"recipe.crop={recipe.crop}: recipe.{recipe.crops_by} crops already; expected 0")
    _check_color_jitter(recipe)


def _check_range(key: str, value: Sequence[float] | None, most: float, expected: str) -> None:
    if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1] <= most):
        raise ConfigError(f"recipe.{key}={value}: expected {expected}")


def _check_color_jitter(recipe: Recipe) -> None:
    jitter = recipe.color_jitter
    if jitter is None:
        return
    strengths = jitter if isinstance(jitter, list) else 3 * [jitter]
    right = all(is_number(strength) and strength >= 0 for strength in strengths)
    if not right or len(strengths) not in (3, 4) or max(strengths[3:], default=0) > 0.5:
        raise ConfigError(
            f"recipe.color_jitter={jitter}: expected a strength like 0.4, or [brightness, contrast, saturation] and "
            "perhaps a hue up to 0.5"
        )
    if recipe.auto_augment:
        raise ConfigError(f"recipe.color_jitter={jitter}: timm drops it where there is recipe.auto_augment")


def _check_distill(distill: Distill) -> None:
    if distill.weights is not None and not Path(distill.weights).is_file():
        raise ConfigError(f"recipe.distill.weights={distill.weights}: no such file")
    if distill.teacher is None and distill != Distill():
        raise ConfigError(
            "recipe.distill.teacher: expected the name of a timm model, since other keys of distill are set"
        )
    if distill.teacher is not None and distill.weights is None:
        raise ConfigError("recipe.distill.weights: expected a file with the weights of the teacher")


def _check_fsdp(runtime: Runtime, recipe: Recipe) -> None:
    """What does not work with weights in parts, or would not be what it is with whole ones."""
    wrong = {
        f"runtime.devices={runtime.devices}": runtime.processes == 1 and "is one, and it is for several",
        "runtime.compile=true": runtime.compile and "compiles whole networks",
        "runtime.accelerator=mps": runtime.accelerator == "mps" and "has one device",
        f"recipe.ema={recipe.ema}": recipe.ema is not None and "averages whole weights",
        "recipe.precision=fp16": recipe.precision == "fp16" and "scales whole gradients",
    }
    for key, reason in wrong.items():
        if reason:
            raise ConfigError(f"runtime.strategy=fsdp: {key} {reason}; expected runtime.strategy=ddp, or another value")


def check_runtime(runtime: Runtime, recipe: Recipe) -> None:
    """Keys of the runtime that exclude each other or the recipe; the batch divides into those of devices and parts."""
    parts = runtime.parts
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ConfigError(f"runtime.accumulate={parts}: expected a number of parts from 1, or auto")
    devices = runtime.processes
    if devices > 1 and runtime.accumulate == "auto":
        raise ConfigError(
            f"runtime.accumulate=auto: is for one device, and here are {devices}, which would wait for ever for one "
            "that is out of memory; expected a number of parts"
        )
    share, rest = divmod(recipe.batch, devices * parts)
    if rest:
        raise ConfigError(
            f"recipe.batch={recipe.batch}: is for all devices, and {devices} device{'s' * (devices > 1)} x "
            f"{parts} accumulated part{'s' * (parts > 1)} do not divide it (runtime.devices, nodes, accumulate)"
        )
    if recipe.mixes and share % 2:
        raise ConfigError(f"recipe.batch={recipe.batch}: Mixup needs an even number of images a part, not {share}")
    if runtime.graph and not runtime.compile:
        raise ConfigError("runtime.graph=true: belongs to runtime.compile=true")
    if runtime.graph and runtime.accumulate != 1:
        raise ConfigError(
            f"runtime.accumulate={runtime.accumulate}: with runtime.graph=true the gradients of a part lie where those "
            "of the next one are written; expected 1"
        )
    if runtime.graph and runtime.accelerator in ("cpu", "mps"):
        raise ConfigError(
            f"runtime.graph=true: is for a GPU of CUDA; here is runtime.accelerator={runtime.accelerator}"
        )
    if runtime.strategy == "fsdp":
        _check_fsdp(runtime, recipe)
    if recipe.precision == "fp16" and runtime.accelerator == "cpu":
        raise ConfigError("recipe.precision=fp16: is for a GPU; runtime.accelerator=cpu has fp32 or bf16")
    if not runtime.runs.strip():
        raise ConfigError("runtime.runs: expected the folder of the run folders, like runs")
    # Lightning writes checkpoints with fsspec, which reads these in its own way
    if runtime.runs.startswith("~") or "::" in runtime.runs or "://" in runtime.runs:
        raise ConfigError(f"runtime.runs={runtime.runs}: expected the path of a folder, without ~, :: or ://")


def frozen_stages(which: str) -> int | None:
    """How many stages `recipe.freeze` names beside the stem; None where nothing is frozen.

    Raises:
        ConfigError: it is no such word.
    """
    if which == "none":
        return None
    if (given := re.fullmatch(r"stem|stages1-([1-9]\d*)", which)) is None:
        raise ConfigError(f"recipe.freeze={which}: expected none, stem, or stages1-N, like stages1-2")
    return int(given[1] or 0)
