"""The configuration: a typed schema, strict validation, composition, and the run id. Imports no torch.

Hydra accepts `+typo=1` even under a typed schema, and its choices are open strings. Here every node is compared with
its own dataclass, so that nothing is silently ignored.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

SCHEMA_VERSION = 1  # raise it when a default changes: the run id hashes only what differs from the defaults
UNHASHED = ("study", "runtime", "logger", "debug", "reference", "cost")  # these change no result beyond float rounding
BUILTIN = {"_target_": "builtin"}  # mixer=builtin
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class ConfigError(ValueError):
    """What the user wrote cannot be run; the message is one line that names the key and the nearest valid choice."""


def choice(*allowed: str) -> Any:
    """A string field whose first value is the default and the only other values are those listed."""
    return field(default=allowed[0], metadata={"choices": allowed})


def ints(*values: int) -> Any:
    return field(default_factory=lambda: list(values))


@dataclass
class Model:
    """The architecture round the mixer; the fields after `name` are arguments of `metaformer.model.MetaFormer`.

    A published model (`source` zoo or timm, and its `name`) brings its mixers: it takes `mixer=builtin` only.
    """

    source: str = choice("metaformer", "zoo", "timm")
    name: str | None = None
    depths: list[int] = ints(2, 2, 6, 2)
    dims: list[int] = ints(64, 128, 320, 512)
    mlp_ratio: float = 4.0
    stem: list[int] = ints(7, 4, 2)  # kernel, stride, padding
    downsample: list[int] | None = ints(3, 2, 1)  # between stages; None keeps one resolution and one width
    patch_norm: bool = False
    norm: str = choice("group", "layer", "batch", "none")
    norm_eps: float = 1e-5
    act: str = choice("gelu", "relu", "silu", "star_relu")
    bias: bool = True  # in the channel MLPs and the norms of the blocks
    layer_scale: float | None = 1e-5
    res_scale: list[float | None] | None = None  # initial scale of the skip paths of stage i
    residual: bool = True
    channel_mlp: bool = True
    position: list[bool] | None = None  # a learned position embedding before stage i
    drop_path: float | None = None  # None: 0, or what a published model has
    head: str = choice("norm_pool", "pool_norm", "mlp")
    head_dropout: float = 0.0
    init: str = choice("official", "timm")  # of the patch embeddings


@dataclass
class Data:
    name: str = choice("fashion_small", "fashion_mnist", "cifar10", "cifar100", "image_folder", "digits")
    root: str | None = None  # a path of this machine: never hashed
    train: int | None = None  # images kept for training, the same number of each class; None keeps all
    val: int = 5000  # images carved out of the training set where the data set has no validation split
    size: int = 224  # image_folder: side of the square images, in pixels
    classes: int | None = None  # image_folder: how many are expected; known without looking for the other sets


@dataclass
class Distill:
    """A teacher of timm with weights from a file (DeiT, arXiv:2012.12877, Eq. 2 and 3)."""

    teacher: str | None = None
    weights: str | None = None
    mode: str = choice("hard", "soft")
    alpha: float = 0.5  # weight of the teacher's loss
    tau: float = 1.0  # temperature, soft only


@dataclass
class Recipe:
    """How every mixer of a study is trained."""

    epochs: int = 5
    batch: int = 128  # images per optimizer step, over all devices
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    label_smoothing: float = 0.1
    crop: int = 2  # random crop after padding by so many pixels
    flip: bool = True  # random horizontal flip
    precision: str = choice("fp32", "bf16")
    initialize_from: str | None = None  # a file of weights to fine-tune
    distill: Distill = field(default_factory=Distill)


@dataclass
class Reference:
    """What a paper reports for this cell; not part of the run id."""

    params: float | None = None  # in millions
    macs: float | None = None  # in billions
    top1: float | None = None  # in %


@dataclass
class Runtime:
    accelerator: str = choice("auto", "cpu", "gpu")
    threads: int | None = None  # per run; None shares the cores between the runs that go on at once
    runs: str = "runs"  # the folder of the run folders
    force: bool = False  # train again what is finished
    progress: bool = True


@dataclass
class Logger:
    """metrics.csv is always written; wandb mirrors it."""

    wandb: bool = False
    mode: str = choice("online", "offline")
    project: str = "metaformer"
    entity: str | None = None


@dataclass
class Debug:
    mode: str = choice("none", "fast", "overfit", "profile")


@dataclass
class Study:
    name: str | None = None
    question: str = ""
    reference: str = "pooling"  # the mixer that all others are compared with


@dataclass
class Cost:
    """The command `python -m metaformer.cost`."""

    modules: bool = False  # a row for each module of the model
    throughput: bool = False  # images per second of this machine, forward and training step
    batch: int = 8  # of the throughput
    out: str | None = None  # a .csv or .json file


@dataclass
class Config:
    mixer: Any = None
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)
    logger: Logger = field(default_factory=Logger)
    debug: Debug = field(default_factory=Debug)
    study: Study = field(default_factory=Study)
    reference: Reference = field(default_factory=Reference)
    cost: Cost = field(default_factory=Cost)
    seed: int = 0


GROUPS = ("model", "mixer", "data", "recipe", "runtime", "logger", "debug", "experiments")


# ------------------------------------------------------------------ where the configuration files are


def conf_dir() -> Path:
    """`conf/` inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register() -> None:
    """Make the schema and the resolvers of `conf/` known to Hydra and OmegaConf."""
    ConfigStore.instance().store(name="metaformer_schema", node=Config)
    OmegaConf.register_new_resolver("experiments_root", lambda: str(conf_dir().parent), replace=True)
    OmegaConf.register_new_resolver("cores", cores, replace=True)
    OmegaConf.register_new_resolver("help_groups", help_groups, replace=True)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


# ------------------------------------------------------------------ validation


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def by_closeness(word: str, words: Iterable[str]) -> list[str]:
    return sorted(words, key=lambda w: -difflib.SequenceMatcher(None, word, w).ratio())


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


def _check_values(config: dict[str, Any]) -> None:
    model, recipe, data = config["model"], config["recipe"], config["data"]
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
        "runtime.threads": (config["runtime"]["threads"] or 1, 1),
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
    if config["runtime"]["threads"] == 0:
        raise ConfigError("runtime.threads=0: expected at least 1, or null to share the cores")
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


@cache
def folder_fingerprint(root: str) -> str:
    """A hash of name, size and first 4 KiB of every image of the splits under `root`, but not of where it lies."""
    digest = hashlib.sha256()
    for split in ("train", "val", "test"):
        for path in sorted(p for p in (Path(root) / split).rglob("*") if p.suffix.lower() in IMAGES and p.is_file()):
            with path.open("rb") as file:
                head = file.read(4096)
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + head)
    return digest.hexdigest()[:16]


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


# ------------------------------------------------------------------ the run id


def run_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits: a hash of all that can change the result of a run."""
    return _digest(config)


def cell_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits: a run without its seed."""
    return _digest({**config, "seed": None})


def _digest(config: Mapping[str, Any]) -> str:
    defaults = dataclasses.asdict(Config())
    hashed = {key: value for key, value in config.items() if key not in UNHASHED}
    hashed["data"] = {key: value for key, value in hashed["data"].items() if key != "root"}
    hashed["recipe"] = _with_contents(hashed["recipe"])
    content = _differences(hashed, defaults)
    content["schema"] = SCHEMA_VERSION
    content["sources"] = [_source_hash(target) for target in _targets(config["mixer"])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _with_contents(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the hash of each file of weights in place of its path."""
    recipe = {**recipe, "distill": dict(recipe["distill"])}
    for node, key in ((recipe, "initialize_from"), (recipe["distill"], "weights")):
        if node[key] is not None and Path(node[key]).is_file():
            node[key] = _file_hash(node[key], Path(node[key]).stat().st_mtime_ns)
    return recipe


@cache
def _file_hash(path: str, modified: int) -> str:
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


# ------------------------------------------------------------------ composition and its errors


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Compose a configuration without Hydra's command line, `hydra` node included."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(config_name, list(overrides), return_hydra_config=True)


def explain(error: Exception) -> str:
    """A Hydra or OmegaConf error as one line: what was wrong, what was expected, the nearest valid choice."""
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name}: no such choice; expected one of {', '.join(by_closeness(name, error.options))}"
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and isinstance(cause, Exception):
        causes.append(cause)
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        siblings = _siblings(unknown[1]) or [str(k) for c in causes for k in getattr(c, "parent_node", None) or ()]
        siblings = [key for key in siblings if key != "_target_"]
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


def explain_or_raise(error: Exception) -> None:
    """Print an error of the user's as one line and leave with status 2; with HYDRA_FULL_ERROR=1 let it go on."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    message = explain(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else str(error)
    message = " ".join(message.split())
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
