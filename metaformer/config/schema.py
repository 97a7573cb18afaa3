"""Every key of the configuration, with its type, default and bounds. Imports no torch.

A field's comment says what it is for; its bounds stand beside it (`fields`) and are checked by `validate`.
"""

from dataclasses import dataclass, field
from typing import Any

from metaformer.config.fields import choice, ints, number, rate, share
from metaformer.config.metrics import selecting
from metaformer.config.study_nodes import Budget, Study
from metaformer.config.tasks import Task

BUILTIN = {"_target_": "builtin"}  # mixer=builtin
OPTIMISATION = ("optimizer", "lr", "weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "schedule", "lr_interval")
TUNABLE = (*(f"recipe.{key}" for key in (*OPTIMISATION, "clip_grad", "ema", "label_smoothing")), "model.drop_path")
GROUPS = "model", "mixer", "data", "task", "recipe", "runtime", "callbacks", "logger", "budget", "debug", "experiments"


@dataclass
class BlockOptions:
    """What the papers vary in a MetaFormer block beside the mixer. An option of the block is a field here."""

    mlp_ratio: float = number(4.0, above=0, at_most=1000)  # hidden channels of the MLP for each channel of the block
    norm: str = choice("group", "layer", "batch", "none")  # group: over channels and space (the paper); layer: channels
    norm_eps: float = number(1e-5, above=0)  # added to the variance
    act: str = choice("gelu", "relu", "silu", "star_relu")  # in the channel MLP
    bias: bool = True  # in the channel MLP and the norms
    layer_scale: float | None = 1e-5  # initial scale of the branches; None for none
    residual: bool = True  # the skip paths
    channel_mlp: bool = True  # the second half of the block


@dataclass
class Architecture(BlockOptions):
    """The architecture round the mixer: the options of `MetaFormer`. The defaults are PoolFormer-S12."""

    depths: list[int] = ints(2, 2, 6, 2, at_most=1000)  # blocks of each stage
    dims: list[int] = ints(64, 128, 320, 512)  # channels of each stage
    stem: list[int] = ints(7, 4, 2, at_least=0)  # kernel, stride, padding of the patch embedding
    downsample: list[int] | None = ints(3, 2, 1, at_least=0)  # the same between stages; None keeps one resolution
    patch_norm: bool = False  # a norm after the stem's convolution and before the others'
    res_scale: list[float | None] | None = None  # initial scale of the skip paths of stage i
    position: list[bool] | None = None  # a learned position embedding before stage i
    drop_path: float | None = rate()  # stochastic depth of the last block, growing from 0 at the first
    # norm_pool: norm on the map, mean over space, linear (the official v1); pool_norm: mean, layer norm, linear (v2,
    # and timm's v1); mlp: the same with two layers
    head: str = choice("norm_pool", "pool_norm", "mlp")
    head_dropout: float | None = rate()  # before the last linear layer
    init: str = choice("official", "timm")  # of the patch embeddings: PyTorch's default, or truncated normal (0.02)


@dataclass
class Model(Architecture):
    """The `model` node. A published model (`source` zoo or timm, and its `name`) takes `mixer=builtin` only."""

    source: str = choice("metaformer", "zoo", "timm")  # this package, a published model (zoo), or timm
    name: str | None = None  # of a published model or of one of timm
    crop_pct: float | None = number(None, "a share of the short side, up to 1", above=0, at_most=1)  # None: 0.9, or own


MOST_CHANNELS = 16  # of an image; more are the side of a volume
COLOURS = (1, 3)  # channels of what image files hold and people see


@dataclass
class Data:
    """The `data` node. Which of the keys a data set reads is said in `metaformer.data.registry`."""

    name: str = "fashion_small"  # of an entry in the registry; chosen by data=NAME
    root: str | None = None  # a folder or file of this machine: its contents count and its place does not
    dataset: str | None = None  # hub, timm: which one
    train: int | None = number(None, at_least=1)  # images kept for training, as many of each class; None keeps all
    val: int | None = number(None, at_least=1)  # taken out of the training images; None: a tenth, or the split there is
    test: int | None = number(None, at_least=1)  # the same, where there is no test split
    size: Any = 224  # side in pixels of the images that the model sees, or [height, width]
    classes: int | None = number(None, at_least=2)  # how many are expected
    # Image files: 1 for grey, or 3; None: 3. Arrays bring their own number
    channels: int | None = number(None, at_least=1, at_most=MOST_CHANNELS)
    decode: str = choice("once", "always")  # into a memory-mapped file that all runs share, or at every access
    decoded_size: Any = None  # decode=once: side of what is kept, or [height, width]; None: `size`
    range: list[float] | None = None  # what is black and what is white in images of 32 bits or floating point
    overlap: str = choice("refuse", "allow")  # an image that is in two splits
    image_column: str | None = None  # table, hub: None: the first of image, path, file, ...
    label_column: str | None = None  # None: the first of label, class, target, ...
    split_column: str | None = None  # None: the first of split, subset, ..., if any
    mask_column: str | None = None  # of the masks, for task=segmentation
    ignore: int | None = number(255, at_least=0, at_most=255)  # the number of pixels of a mask that have no class
    class_names: list[str] | None = None  # of masks, in the order of their numbers; None: the numbers
    _target_: str | None = None  # custom: the function that returns the data set
    options: dict[str, Any] = field(default_factory=dict)  # custom: its arguments


@dataclass
class Distill:
    """A teacher of timm with weights from a file (DeiT, arXiv:2012.12877, Eq. 2 and 3)."""

    teacher: str | None = None  # a model of timm; None: no distillation
    weights: str | None = None  # the file of its weights
    mode: str = choice("hard", "soft")  # from its decisions, or from its probabilities
    alpha: float = share(0.5)  # weight of the teacher's loss
    tau: float = number(1.0, above=0)  # temperature, soft only


@dataclass
class Recipe:
    """How every mixer of a study is trained."""

    epochs: int = number(5, at_least=1, at_most=100_000)  # of training, warm-up included
    # Optimizer steps in all, in place of epochs: those of the recipe, for its warm-up and cool-down, share them equally
    steps: int | None = number(None, at_least=1)
    # Steps between two validations, the last step has one too; None: every epoch. Each is at the end of an epoch: where
    # it comes more often than a pass over the images ends, recipe.steps has epochs of so many steps
    validate_steps: int | None = number(None, at_least=1)
    batch: int = number(128, at_least=1)  # images per optimizer step, over all devices
    optimizer: str = "adamw"  # any of timm's
    # betas, momentum, eps, layer_decay, ...: as timm's create_optimizer_v2 takes them
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    lr: float = number(2e-3, at_least=0)  # learning rate after the warm-up
    weight_decay: float = number(0.05, at_least=0)  # of weights, not of vectors: biases, norms, scales
    warmup_epochs: float = number(1.0, at_least=0)  # in which the rate rises to lr
    warmup_lr: float = number(1e-6, at_least=0)  # where it rises from
    min_lr: float = number(1e-5, at_least=0)  # where the schedule ends
    loss: str = choice("ce", "bce")  # cross-entropy, or timm's binary cross-entropy of each class
    label_smoothing: float = share(0.1)  # of a label that all classes share
    crop: int = number(2, at_least=0)  # random crop after padding by so many pixels
    flip: bool = True  # random horizontal flip
    precision: str = choice("fp32", "bf16", "fp16")  # the halves beside weights in fp32; fp16 on a GPU only
    lr_base_size: int | None = number(None, at_least=1)  # lr is for so many images a step and grows with recipe.batch
    schedule: str = choice("cosine", "poly", "constant")  # of the rate, after the warm-up
    power: float = number(0.9, above=0)  # of the schedule poly: the rate falls like (1 - time) ** power
    decoder_lr: float = number(1.0, above=0)  # of task=segmentation: the rate of decoder and classifier, in rates of lr
    lr_interval: str = choice("step", "epoch")  # how often the rate changes
    cooldown_epochs: int = number(0, at_least=0, at_most=100_000)  # at min_lr, after `epochs`
    clip_grad: float | None = number(None, "a norm above 0, or null", above=0)  # largest norm of the gradient
    # Decay of the moving average of the weights, which is then validated and tested
    ema: float | None = number(None, "a decay between 0 and 1, like 0.9999, or null", above=0, below=1)
    scale: list[float] | None = None  # share of an image's area that a random resized crop keeps; None: no such crop
    # Images with masks are resized by a factor between these two, like [0.5, 2], before a random crop of data.size, in
    # which pixels beside the image have no class; None: no such crop
    resize: list[float] | None = None
    auto_augment: str | None = None  # in timm's notation, like rand-m9-mstd0.5-inc1
    color_jitter: Any = None  # as timm takes it: a strength, or [brightness, contrast, saturation] and perhaps hue
    repeated_augmentation: int = number(1, at_least=1)  # how often an epoch sees an image, of fewer images
    erasing: float = share(0.0)  # probability that a rectangle of an image is replaced by noise
    mixup: float = number(0.0, at_least=0)  # alpha
    cutmix: float = number(0.0, at_least=0)  # alpha; with mixup each batch has one of them
    class_weights: str = choice("none", "balanced")  # balanced: in the loss, by how rare the classes are
    select: str = choice("last", "best")  # the epoch that is tested; best: by the study's metric on validation images
    initialize_from: str | None = None  # a file of weights to fine-tune
    # So many first stages and the stem come from it, as far as they fit, the rest from the seed; None: all of it
    initialize_stages: int | None = number(None, at_least=0)
    freeze: str = "none"  # what is not trained: none, stem, or stages1-N for the stem and stages 1 to N
    distill: Distill = field(default_factory=Distill)

    @property
    def crops_by(self) -> str | None:
        """The key by which each image has a random crop of another scale, and is read alone; None: batches are cut."""
        return next((key for key in ("scale", "resize") if getattr(self, key) is not None), None)

    @property
    def all_epochs(self) -> int:
        """How many epochs the schedule has, those at the lowest rate included."""
        return self.epochs + self.cooldown_epochs

    def epochs_on(self, images: int) -> int:
        """How many epochs are trained on so many images; with `steps` the last one may end early."""
        return self.all_epochs if self.steps is None else -(-self.steps // self.epoch_steps(images))

    def epoch_steps(self, images: int) -> int:
        """How many optimizer steps an epoch has on so many images: a pass over them, or less up to the validation."""
        whole = images // self.batch
        return whole if self.steps is None else min(whole, self.validate_steps or whole)

    def passes_of(self, epoch: int, images: int) -> list[tuple[int, range]]:
        """The passes over so many images that an epoch, counted from 0, has steps of: the number of each, and those."""
        whole, own = images // self.batch, self.epoch_steps(images)
        first, last = epoch * own, (epoch + 1) * own
        last = last if self.steps is None else max(first, min(last, self.steps))
        return [
            (number, range(max(first - number * whole, 0), min(last - number * whole, whole)))
            for number in range(first // whole, -(-last // whole))
        ]

    def images_seen(self, images: int) -> int:
        """How many images are trained on in all, of a set of so many."""
        return images * self.all_epochs if self.steps is None else self.steps * self.batch

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other, by Mixup or CutMix."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass
class Reference:
    """What a paper reports for this cell; not part of the run id."""

    params: float | None = number(None, at_least=0)  # in millions
    macs: float | None = number(None, at_least=0)  # in billions
    top1: float | None = number(None, at_least=0, at_most=100)  # in %


@dataclass
class Runtime:
    """Where and how fast it runs: no key here changes a result beyond rounding."""

    accelerator: str = choice("auto", "cpu", "gpu", "mps")  # auto: a GPU where there is one
    devices: int = number(1, at_least=1, at_most=1024)  # of each node, one process for each
    nodes: int = number(1, at_least=1, at_most=65_536)  # machines of one run
    strategy: str = choice("auto", "ddp", "fsdp")  # auto: ddp where there are several; fsdp: weights in parts
    checkpoint_blocks: bool = False  # compute the insides of blocks again in the backward pass instead of keeping them
    accumulate: Any = 1  # parts that the batch of a device is split into; auto: as few as fit, on one device
    compile: bool = False  # torch.compile: minutes to begin with, on a CPU; what cannot be compiled is trained as it is
    graph: bool = False  # compiled code is replayed as CUDA graphs (torch's reduce-overhead): few launches, more memory
    tf32: bool = False  # products and convolutions on a GPU with 10 bits of mantissa
    threads: int | None = number(None, at_least=1, at_most=1024)  # per run; None shares the cores between the runs
    workers: int | None = number(
        None, at_least=0, at_most=1024
    )  # processes that read images one by one; None: one per free core
    checkpoint_minutes: float = number(15.0, at_least=0)  # a checkpoint that often, beside the one at each epoch's end
    cache: str | None = None  # folder of the decoded images; None: ~/.cache/metaformer
    per_gpu: int = number(1, at_least=1, at_most=1024)  # runs at once on each GPU of this machine
    runs: str = "runs"  # the folder of the run folders
    most_runs: int = number(10_000, at_least=1)  # of a sweep: one with more is refused, as it is rarely meant
    force: bool = False  # train again what is finished
    packed: bool = False  # a run that experiments/NAME/runs.npz holds counts as finished, with no folder here
    progress: bool = True  # a bar, or of a sweep a display

    @property
    def processes(self) -> int:
        """How many processes train one run together, one for each of its devices."""
        return self.devices * self.nodes

    @property
    def parts(self) -> Any:
        """In how many parts a batch begins; with auto there may be more."""
        return 1 if self.accumulate == "auto" else self.accumulate


@dataclass
class Logger:
    """metrics.csv is always written; wandb mirrors it, and Lightning's loggers get each step too."""

    wandb: bool = False  # whether wandb mirrors the run
    mode: str = choice("online", "offline")  # offline: in a folder, for dashboard sync=true
    project: str = "metaformer"  # of wandb
    entity: str | None = None  # of wandb: a user or a team; None: the default there
    every: int = number(50, at_least=0)  # every which step is told: loss, rate, gradient, speed; 0: none
    weights: bool = False  # the weights.pt of a run as an artifact
    weights_limit: float = number(500.0, above=0)  # MB; larger ones are refused, before training
    lightning: dict[str, Any] = field(default_factory=dict)  # Lightning's loggers: a name and `_target_` with options


@dataclass
class Debug:
    mode: str = choice("none", "fast", "overfit", "batch", "profile")  # a short look at a run, which is not kept


@dataclass
class Cost:
    """The command `python -m metaformer.cost`."""

    modules: bool = False  # a row for each module of the model
    throughput: bool = False  # images per second of this machine, forward and training step
    batch: int = number(8, at_least=1, at_most=65_536)  # of the throughput
    out: str | None = None  # a .csv or .json file


@dataclass
class Config:
    mixer: Any = None  # _target_ and the options of a mixer, or stage1, stage2, ... with one each
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    task: Task = field(default_factory=Task)
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)
    logger: Logger = field(default_factory=Logger)
    callbacks: dict[str, Any] = field(default_factory=dict)  # of Lightning: a name and `_target_` with options
    trainer: dict[str, Any] = field(default_factory=dict)  # flags of Lightning's Trainer; see extensions.py
    debug: Debug = field(default_factory=Debug)
    study: Study = field(default_factory=Study)
    reference: Reference = field(default_factory=Reference)
    budget: Budget = field(default_factory=Budget)
    cost: Cost = field(default_factory=Cost)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)  # of weights, of the order of images, and of all that is drawn

    @property
    def batch_at_once(self) -> int:
        """How many images of a batch a device has at once; with accumulate=auto at most."""
        return -(-self.recipe.batch // self.runtime.processes) // int(self.runtime.parts)

    @property
    def selected_by(self) -> str:
        """The metric by which the tested epoch is chosen, on validation images; empty where it is the last one."""
        return selecting(self.study.analysis.metric) if self.recipe.select == "best" else ""
