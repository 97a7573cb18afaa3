"""What can be known of a configuration without torch: keys, types, values, and that nothing set goes unread.

Hydra accepts `+typo=1` even under a typed schema, and its choices are open strings. Here every node is compared with
its own dataclass.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from metaformer.identity import folder_fingerprint
from metaformer.schema import (
    BUDGET_KEYS,
    BUILTIN,
    Budget,
    Config,
    ConfigError,
    Data,
    Distill,
    Model,
    by_closeness,
    nearest,
    processes,
)


def validate(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a plain dict, or a ConfigError. Checks all that can be known without torch."""
    plain = OmegaConf.to_container(without_hydra(cfg), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return check({str(key): value for key, value in plain.items()})


def without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def check(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with the fingerprint of its images, or a ConfigError."""
    _check_keys(config, Config, "")
    if config["model"]["source"] == "metaformer":
        _check_mixer(config["mixer"], len(config["model"]["depths"]))
    else:
        _check_published(config)
    _check_values(config)
    if config["data"]["name"] == "image_folder" and config["data"]["root"] is not None:
        config["data"]["fingerprint"] = folder_fingerprint(config["data"]["root"])
    return config


def _check_keys(node: dict[str, Any], schema: type, path: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = get_type_hints(schema)
    for key, value in node.items():
        if key not in fields:
            hint = nearest(key, fields) or f"; there are {', '.join(fields)}"
            raise ConfigError(f"{path}{key}: no such key{hint}")
        allowed = fields[key].metadata.get("choices")
        if allowed and value not in allowed:
            ordered = ", ".join(by_closeness(str(value), allowed))
            raise ConfigError(f"{path}{key}={value}: expected one of {ordered}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            _check_keys(value, hints[key], f"{path}{key}.")


def _check_mixer(mixer: Any, stages: int) -> None:
    if not isinstance(mixer, dict) or not mixer:
        raise ConfigError("mixer: expected a config with _target_, or with stage1, stage2, ...")
    per_stage = [f"stage{i}" for i in range(1, stages + 1)]
    if "_target_" in mixer:
        both = [key for key in mixer if re.fullmatch(r"stage\d+", key)]
        if both:
            raise ConfigError(f"mixer.{both[0]}: the mixer is the same in every stage; options go to mixer.<option>")
        nodes = {"mixer": mixer}
    else:
        stray = [key for key in mixer if not re.fullmatch(r"stage\d+", key)]
        if stray:
            keys = ", ".join(f"mixer.{stage}.{stray[0]}" for stage in per_stage)
            raise ConfigError(f"mixer.{stray[0]}: the mixer differs by stage; expected one of {keys}")
        if sorted(mixer) != sorted(per_stage):
            raise ConfigError(f"mixer: names {', '.join(sorted(mixer))}, but the model has {stages} stages")
        nodes = {f"mixer.{stage}": mixer[stage] for stage in per_stage}
    for key, node in nodes.items():
        target = node.get("_target_") if isinstance(node, dict) else None
        if node == BUILTIN:
            raise ConfigError("mixer=builtin: belongs to a published model (model=zoo or model=timm); choose a mixer")
        if not isinstance(target, str) or "." not in target:
            raise ConfigError(f"{key}._target_={target}: expected the dotted path of a class, like my_mixer.Shift")


SET_ON_PUBLISHED = ("drop_path", "head_dropout", "crop_pct")


def _check_published(config: dict[str, Any]) -> None:
    """A model that brings its mixers: nothing that would not be used may be set."""
    source, defaults = config["model"]["source"], dataclasses.asdict(Model())
    if config["mixer"] != BUILTIN:
        raise ConfigError(f"mixer: model.source={source} brings its own mixers; expected mixer=builtin")
    if config["model"]["name"] is None:
        raise ConfigError(f"model.name: expected the name of a model, since model.source={source}")
    for key, value in config["model"].items():
        if key not in ("source", "name", *SET_ON_PUBLISHED) and value != defaults[key]:
            raise ConfigError(
                f"model.{key}={value}: '{config['model']['name']}' has its own; what can be set is "
                f"{', '.join(SET_ON_PUBLISHED)}"
            )


READS = {  # the keys beside name and train that each data set looks at
    "fashion_small": (),
    "digits": ("val",),
    **dict.fromkeys(("fashion_mnist", "cifar10", "cifar100"), ("root", "val")),
    "image_folder": ("root", "val", "size", "classes", "decode", "decoded_size"),
    "timm": ("root", "dataset", "val", "size", "classes", "decode", "decoded_size"),
}


def _check_used(config: dict[str, Any]) -> None:
    """Refuse a key that nothing would read."""
    data, defaults = config["data"], dataclasses.asdict(Data())
    for key in READS["timm"]:
        if key not in READS[data["name"]] and data[key] != defaults[key]:
            raise ConfigError(f"data.{key}={data[key]}: data={data['name']} does not read it")
    if config["logger"]["mode"] != "online" and not config["logger"]["wandb"]:
        raise ConfigError(f"logger.mode={config['logger']['mode']}: belongs to logger=wandb")


def _check_images(data: dict[str, Any], recipe: dict[str, Any]) -> None:
    """How images are kept and augmented: in batches from memory, or with recipe.scale one at a time."""
    scale, size, kept = recipe["scale"], data["size"], data["decoded_size"]
    if data["name"] == "timm" and data["dataset"] is None:
        raise ConfigError("data.dataset: expected one that timm reads, like hfds/imagenet-1k, since data=timm")
    if scale is None:
        for key in ("auto_augment", "erasing"):
            if recipe[key]:
                raise ConfigError(f"recipe.{key}={recipe[key]}: is read with a random resized crop only (recipe.scale)")
        if kept not in (None, size):
            raise ConfigError(f"data.decoded_size={kept}: needs a random resized crop (recipe.scale), of size {size}")
        return
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"recipe.scale={scale}: expected the least and the largest share of the area, like [0.08, 1]")
    if recipe["crop"]:
        raise ConfigError(f"recipe.crop={recipe['crop']}: recipe.scale crops already; expected 0")
    if kept is not None and (kept < size or data["decode"] == "always"):
        raise ConfigError(f"data.decoded_size={kept}: expected at least data.size={size}, with data.decode=once")


def _check_division(recipe: dict[str, Any], runtime: dict[str, Any]) -> None:
    """The batch has to divide into those of the devices and of the parts that each of them accumulates."""
    parts = runtime["accumulate"]
    if parts == "auto":
        parts = 1
    elif isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ConfigError(f"runtime.accumulate={parts}: expected a number of parts from 1, or auto")
    devices = processes(runtime)
    share, rest = divmod(recipe["batch"], devices * parts)
    if rest:
        raise ConfigError(
            f"recipe.batch={recipe['batch']}: is for all devices, and {devices} device{'s' * (devices > 1)} x "
            f"{parts} accumulated part{'s' * (parts > 1)} do not divide it"
        )
    if (recipe["mixup"] or recipe["cutmix"]) and share % 2:
        raise ConfigError(f"recipe.batch={recipe['batch']}: Mixup needs an even number of images a part, not {share}")


def _check_recipe(recipe: dict[str, Any]) -> None:
    for key in ("erasing", "label_smoothing"):
        if not 0 <= recipe[key] <= 1:
            raise ConfigError(f"recipe.{key}={recipe[key]}: expected a share from 0 to 1")
    if recipe["ema"] is not None and not 0 < recipe["ema"] < 1:
        raise ConfigError(f"recipe.ema={recipe['ema']}: expected a decay between 0 and 1, like 0.9999, or null")
    if recipe["clip_grad"] is not None and not 0 < recipe["clip_grad"] < float("inf"):
        raise ConfigError(f"recipe.clip_grad={recipe['clip_grad']}: expected a norm above 0, or null")
    if recipe["warmup_epochs"] > recipe["epochs"]:
        raise ConfigError(
            f"recipe.warmup_epochs={recipe['warmup_epochs']}: longer than recipe.epochs={recipe['epochs']}"
        )
    if recipe["schedule"] == "constant":
        for key in ("warmup_epochs", "cooldown_epochs"):
            if recipe[key]:
                raise ConfigError(f"recipe.{key}={recipe[key]}: recipe.schedule=constant has none; expected 0")
    if recipe["lr_interval"] == "epoch" and recipe["warmup_epochs"] != int(recipe["warmup_epochs"]):
        raise ConfigError(
            f"recipe.warmup_epochs={recipe['warmup_epochs']}: expected whole epochs, since recipe.lr_interval=epoch"
        )


def _check_study(config: dict[str, Any]) -> None:
    """The analysis: numbers that mean something, and keys that there are."""
    analysis = config["study"]["analysis"]
    if not 0 < analysis["margin"] < 100:
        raise ConfigError(f"study.analysis.margin={analysis['margin']}: expected points of accuracy, above 0")
    if not 0 < analysis["alpha"] < 0.5:
        raise ConfigError(f"study.analysis.alpha={analysis['alpha']}: expected a small probability, like 0.05")
    if analysis["tolerance"] is not None and not 0 <= analysis["tolerance"] < float("inf"):
        raise ConfigError(f"study.analysis.tolerance={analysis['tolerance']}: expected a share like 0.1, or null")
    groups = ("model", "data", "recipe")
    known = [f"{group}.{key}" for group in groups for key in config[group]]
    for key in analysis["tuned"]:
        if key not in known:
            raise ConfigError(f"study.analysis.tuned: {key}: no such key{nearest(key, known)}")


def _check_budget(config: dict[str, Any]) -> None:
    """A budget that says what it wants; the key that it changes may differ between cells that are compared."""
    budget, study = config["budget"], config["study"]
    key = f"model.{BUDGET_KEYS[budget['by']]}"
    if budget["match"] == "none":
        for name, value in dataclasses.asdict(Budget()).items():
            if budget[name] != value:
                raise ConfigError(f"budget.{name}={budget[name]}: belongs to budget=params, budget=macs or budget=time")
        return
    if config["model"]["source"] != "metaformer":
        raise ConfigError(f"budget={budget['match']}: a published model is as it is; expected a model of this package")
    if budget["by"] == "mlp_ratio" and not config["model"]["channel_mlp"]:
        raise ConfigError("budget.by=mlp_ratio: model.channel_mlp is false; expected width or depth")
    if not 0 < budget["tolerance"] < 1:
        raise ConfigError(f"budget.tolerance={budget['tolerance']}: expected a share like 0.01")
    target = study["reference"] if budget["target"] is None else budget["target"]
    if not (isinstance(target, str) or (isinstance(target, int | float) and 0 < target < float("inf"))):
        raise ConfigError(f"budget.target={target}: expected a mixer, or a number above 0")
    if key not in study["analysis"]["tuned"]:
        study["analysis"]["tuned"] = [*study["analysis"]["tuned"], key]


def _check_values(config: dict[str, Any]) -> None:
    model, recipe, data, runtime = (config[key] for key in ("model", "recipe", "data", "runtime"))
    threads = runtime["threads"]
    for key in ("dims", "position", "res_scale"):
        if model[key] is not None and len(model[key]) != len(model["depths"]):
            raise ConfigError(
                f"model.{key}={model[key]}: expected {len(model['depths'])} values, one for each of model.depths"
            )
    for key in ("stem", "downsample"):
        if model[key] is not None and (len(model[key]) != 3 or min(model[key][:2]) < 1 or model[key][2] < 0):
            raise ConfigError(f"model.{key}={model[key]}: expected kernel, stride, padding")
    if model["downsample"] is None and len(set(model["dims"])) > 1:
        raise ConfigError(f"model.dims={model['dims']}: expected one width, since model.downsample is null")
    _check_used(config)
    at_least: dict[str, tuple[float, float]] = {
        "model.depths": (min(model["depths"], default=0), 1),
        "model.dims": (min(model["dims"], default=0), 1),
        "recipe.epochs": (recipe["epochs"], 1),
        "recipe.batch": (recipe["batch"], 1),
        "recipe.lr": (recipe["lr"], 0),
        "recipe.crop": (recipe["crop"], 0),
        "recipe.warmup_epochs": (recipe["warmup_epochs"], 0),
        "recipe.weight_decay": (recipe["weight_decay"], 0),
        "recipe.min_lr": (recipe["min_lr"], 0),
        "recipe.warmup_lr": (recipe["warmup_lr"], 0),
        "recipe.cooldown_epochs": (recipe["cooldown_epochs"], 0),
        "recipe.lr_base_size": (1 if recipe["lr_base_size"] is None else recipe["lr_base_size"], 1),
        "recipe.mixup": (recipe["mixup"], 0),
        "recipe.cutmix": (recipe["cutmix"], 0),
        "runtime.threads": (1 if threads is None else threads, 1),
        "runtime.workers": (runtime["workers"] or 0, 0),
        "runtime.checkpoint_minutes": (runtime["checkpoint_minutes"], 0),
        **{f"runtime.{key}": (runtime[key], 1) for key in ("per_gpu", "devices", "nodes")},
        "model.mlp_ratio * model.dims": (model["mlp_ratio"] * min(model["dims"], default=0), 1),
        "data.size": (data["size"], 1),
        "data.val": (data["val"], 1),
        "seed": (config["seed"], 0),
    }
    for key, (value, least) in at_least.items():
        if not least <= value < float("inf"):
            raise ConfigError(f"{key}={value}: expected at least {least}")
    _check_recipe(recipe)
    _check_division(recipe, runtime)
    _check_images(data, recipe)
    _check_study(config)
    _check_budget(config)
    name = config["study"]["name"]
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"study.name={name}: expected letters, digits, '_', '-' and '.'")
    for key in ("drop_path", "head_dropout"):
        if not 0 <= (model[key] or 0) < 1:
            raise ConfigError(f"model.{key}={model[key]}: expected a rate from 0 up to, not including, 1")
    if not 0 < (1 if model["crop_pct"] is None else model["crop_pct"]) <= 1:
        raise ConfigError(f"model.crop_pct={model['crop_pct']}: expected a share of the short side, up to 1")
    if data["root"] is not None and not Path(data["root"]).is_dir():
        raise ConfigError(f"data.root={data['root']}: no such folder")
    distill = recipe["distill"]
    for key, file in {
        "recipe.initialize_from": recipe["initialize_from"],
        "recipe.distill.weights": distill["weights"],
    }.items():
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{key}={file}: no such file")
    if distill["teacher"] is None and distill != dataclasses.asdict(Distill()):
        raise ConfigError(
            "recipe.distill.teacher: expected the name of a timm model, since other keys of distill are set"
        )
    if distill["teacher"] is not None and distill["weights"] is None:
        raise ConfigError("recipe.distill.weights: expected a file with the weights of the teacher")
