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
from metaformer.schema import BUILTIN, Config, ConfigError, Data, Distill, Model, by_closeness, nearest


def validate(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as a plain dict, or a ConfigError. Checks all that can be known without torch."""
    tree = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    config: dict[str, Any] = {str(key): value for key, value in plain.items()}
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


def _check_published(config: dict[str, Any]) -> None:
    """A model that brings its mixers: nothing that would not be used may be set."""
    source, defaults = config["model"]["source"], dataclasses.asdict(Model())
    if config["mixer"] != BUILTIN:
        raise ConfigError(f"mixer: model.source={source} brings its own mixers; expected mixer=builtin")
    if config["model"]["name"] is None:
        raise ConfigError(f"model.name: expected the name of a model, since model.source={source}")
    for key, value in config["model"].items():
        if key not in ("source", "name", "drop_path") and value != defaults[key]:
            raise ConfigError(
                f"model.{key}={value}: '{config['model']['name']}' has its own; only drop_path can be set"
            )


READS = {  # the keys beside name and train that each data set looks at
    "fashion_small": (),
    "digits": ("val",),
    **dict.fromkeys(("fashion_mnist", "cifar10", "cifar100"), ("root", "val")),
    "image_folder": ("root", "val", "size", "classes"),
}


def _check_used(config: dict[str, Any]) -> None:
    """Refuse a key that nothing would read."""
    data, defaults = config["data"], dataclasses.asdict(Data())
    for key in ("root", "val", "size", "classes"):
        if key not in READS[data["name"]] and data[key] != defaults[key]:
            raise ConfigError(f"data.{key}={data[key]}: data={data['name']} does not read it")
    if config["logger"]["mode"] != "online" and not config["logger"]["wandb"]:
        raise ConfigError(f"logger.mode={config['logger']['mode']}: belongs to logger=wandb")


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


def _check_values(config: dict[str, Any]) -> None:
    model, recipe, data = config["model"], config["recipe"], config["data"]
    threads = config["runtime"]["threads"]
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
        "recipe.label_smoothing": (recipe["label_smoothing"], 0),
        "runtime.threads": (1 if threads is None else threads, 1),
        "runtime.per_gpu": (config["runtime"]["per_gpu"], 1),
        "model.mlp_ratio * model.dims": (model["mlp_ratio"] * min(model["dims"], default=0), 1),
        "data.size": (data["size"], 1),
        "data.val": (data["val"], 1),
        "seed": (config["seed"], 0),
    }
    for key, (value, least) in at_least.items():
        if not least <= value < float("inf"):
            raise ConfigError(f"{key}={value}: expected at least {least}")
    if recipe["warmup_epochs"] > recipe["epochs"]:
        raise ConfigError(
            f"recipe.warmup_epochs={recipe['warmup_epochs']}: longer than recipe.epochs={recipe['epochs']}"
        )
    if recipe["label_smoothing"] > 1:
        raise ConfigError(f"recipe.label_smoothing={recipe['label_smoothing']}: expected a share from 0 to 1")
    _check_study(config)
    name = config["study"]["name"]
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"study.name={name}: expected letters, digits, '_', '-' and '.'")
    if not 0 <= (model["drop_path"] or 0) < 1:
        raise ConfigError(f"model.drop_path={model['drop_path']}: expected a rate from 0 up to, not including, 1")
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
