"""Every key of the configuration, with its type and default; what a user is told of a wrong one. Imports no torch."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BUDGET_KEYS = {"width": "dims", "mlp_ratio": "mlp_ratio", "depth": "depths"}  # of the model, by budget.by
BUILTIN = {"_target_": "builtin"}  # mixer=builtin


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
    head_dropout: float | None = None  # None: 0, or what a published model has
    init: str = choice("official", "timm")  # of the patch embeddings
    crop_pct: float | None = None  # share of the short side that is evaluated; None: 0.9, or what a published model has


@dataclass
class Data:
    name: str = choice("fashion_small", "fashion_mnist", "cifar10", "cifar100", "image_folder", "timm", "digits")
    root: str | None = None  # a path of this machine: never hashed
    dataset: str | None = None  # timm: which one, like hfds/imagenet-1k or torch/imagenette
    train: int | None = None  # images kept for training, the same number of each class; None keeps all
    val: int = 5000  # images carved out of the training set where the data set has no validation split
    size: int = 224  # image_folder and timm: side in pixels of the square images that the model sees
    classes: int | None = None  # image_folder and timm: how many are expected; known without looking for the other sets
    decode: str = choice("once", "always")  # into a memory-mapped file that all runs share, or at every access
    decoded_size: int | None = None  # decode=once: side of the squares that are kept; None is `size`


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
    lr_base_size: int | None = None  # lr is for so many images a step and grows with recipe.batch; None: as it is
    schedule: str = choice("cosine", "constant")
    lr_interval: str = choice("step", "epoch")  # how often the rate changes
    cooldown_epochs: int = 0  # at min_lr, after `epochs`
    clip_grad: float | None = None  # largest norm of the gradient
    ema: float | None = None  # decay of the moving average of the weights, which is then validated and tested
    scale: list[float] | None = None  # share of an image's area that a random resized crop keeps; None: no such crop
    auto_augment: str | None = None  # in timm's notation, like rand-m9-mstd0.5-inc1
    erasing: float = 0.0  # probability that a rectangle of an image is replaced by noise
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha; with mixup each batch has one of them
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
    devices: int = 1  # of each node, one process for each
    nodes: int = 1
    accumulate: Any = 1  # parts that the batch of a device is split into; auto: as few as fit into its memory
    compile: bool = False  # torch.compile: minutes to begin with, on a CPU
    tf32: bool = False  # matrix products on a GPU with 10 bits of mantissa
    threads: int | None = None  # per run; None shares the cores between the runs that go on at once
    workers: int | None = None  # processes that read and augment images one by one; None: one for each free core
    checkpoint_minutes: float = 15.0  # a checkpoint that often, beside the one at each epoch's end
    cache: str | None = None  # folder of the decoded images; None: ~/.cache/metaformer
    per_gpu: int = 1  # runs at once on each GPU of this machine
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
    mode: str = choice("none", "fast", "overfit", "batch", "profile")


@dataclass
class Analysis:
    """How a study will be judged, fixed before its first run; a report says when, and whether it changed."""

    metric: str = choice("test_accuracy", "val_accuracy")
    factor: str = "mixer"  # what is compared, everything else equal: the last word of a key of the grid
    margin: float = 1.0  # in points of accuracy: smaller differences count as none
    alpha: float = 0.05
    correction: str = choice("holm", "none")  # over the comparisons within one setting of the other factors
    tolerance: float | None = 0.1  # share by which parameters and MACs may differ in a comparison; None: same shape
    tuned: list[str] = field(default_factory=list)  # keys chosen for each cell by an equal search, like recipe.lr


@dataclass
class Study:
    name: str | None = None
    question: str = ""
    reference: str = "pooling"  # the level of the factor that all others are compared with
    analysis: Analysis = field(default_factory=Analysis)


@dataclass
class Budget:
    """Cells of equal cost: each is changed until it costs what the target does. The result is an ordinary cell."""

    match: str = choice("none", "params", "macs", "time")  # time: of a training step on this machine
    target: Any = None  # a mixer, whose cell with all else equal sets the cost, or a number; None: study.reference
    by: str = choice("width", "mlp_ratio", "depth")  # what is changed
    tolerance: float = 0.01  # share by which the cost may miss, where whole numbers allow it


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
    budget: Budget = field(default_factory=Budget)
    cost: Cost = field(default_factory=Cost)
    seed: int = 0


GROUPS = ("model", "mixer", "data", "recipe", "runtime", "logger", "budget", "debug", "experiments")


def processes(runtime: Mapping[str, Any]) -> int:
    """How many processes train one run together, one for each of its devices."""
    return runtime["devices"] * runtime["nodes"]


def epochs_of(recipe: Mapping[str, Any]) -> int:
    """How many epochs are trained, those at the lowest rate included."""
    return recipe["epochs"] + recipe["cooldown_epochs"]


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def by_closeness(word: str, words: Iterable[str]) -> list[str]:
    return sorted(words, key=lambda w: -difflib.SequenceMatcher(None, word, w).ratio())
