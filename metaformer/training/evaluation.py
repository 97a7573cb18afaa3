"""Trained networks again: restored with their images and evaluated, and weights of other people on images."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from timm.models import get_pretrained_cfg
from torch import nn

from metaformer.config.metrics import METRICS
from metaformer.config.schema import Config, Model
from metaformer.config.validate import structure
from metaformer.data.images import Images, load
from metaformer.data.module import ImageData
from metaformer.data.registry import check, find
from metaformer.data.splits import Split
from metaformer.models.build import build, crop_of, on_meta, try_on
from metaformer.models.ends import classes_of, classifiers
from metaformer.models.weights import load_into, read, to_ours
from metaformer.system.errors import ConfigError, tell
from metaformer.tasks.build import build as learner
from metaformer.tasks.learner import Learner
from metaformer.tasks.scores import Scores
from metaformer.training.restored import fill, read_kept
from metaformer.training.trainer import NOISE, make_trainer, workers
from metaformer.training.whole_images import WholePairs, WholeSegmenter, whole_transform, why_not_whole


@dataclass(frozen=True)
class Evaluated:
    """Metrics by split and name, like `test_accuracy`, and the number of images of each split."""

    metrics: dict[str, float]
    images: dict[str, int]
    crop_pct: float
    interpolation: str = "bicubic"

    def lines(self, recorded: Mapping[str, float] | None = None) -> list[str]:
        """Each split in a line: every metric, and the leading one as it was recorded where the images are the same."""
        lines = []
        for split, count in self.images.items():
            of_split = {name: self.metrics[key] for name in METRICS if (key := f"{split}_{name}") in self.metrics}
            told = [f"{METRICS[name].words} {METRICS[name].told(value)}" for name, value in of_split.items()]
            if (top5 := self.metrics.get(f"{split}_top5")) is not None:
                told.insert(1, f"top-5 {top5:.2%}")
            line = f"{split}: {', '.join(told)}, {count:,} images"
            lines.append(line + (f" (recorded: {recorded[split]:.2%})" if recorded else ""))
        return lines


def kept_config(path: str | Path) -> Config | None:
    """The configuration in a file of weights, where a run of this package wrote it."""
    saved = read_kept(path)
    return structure(Config, saved["config"]) if saved is not None else None


def restore(config: Config, path: Path) -> tuple[nn.Module, Images]:
    """The trained network of a run, and the images that a configuration names, as that network sees them.

    Args:
        config: that of the run, with the data and the runtime of today.
        path: its weights.pt, or its export as safetensors.

    Raises:
        ConfigError: they do not fit together.
    """
    check(config.data, config.recipe, config.task)
    saved = read_kept(path)
    if saved is None:
        raise ConfigError(f"{path}: cannot be read; expected the weights.pt of a run, or its export as safetensors")
    images = load(config.data, config.runtime.cache, training=False).named(saved["classes"], str(path))
    images.mean, images.std = saved["mean"], saved["std"]  # of the images that it was trained on
    net = build(
        config.model, config.mixer, config.seed, shape=images.shape, classes=len(images.classes), task=config.task
    )
    net = net.to(memory_format=torch.channels_last)
    try_on(net, images.sample())
    fill(net, saved, path, "the model for these images")
    return net.eval(), images


def image_data(config: Config, images: Images, jobs: int = 1) -> ImageData:
    """The images of a run as its evaluation sees them."""
    crop, processes = crop_of(config.model), workers(config.runtime, jobs)
    return ImageData(images, config.recipe, config.seed, crop_pct=crop, workers=processes)


def evaluate(config: Config, path: Path, *, whole: bool = False) -> Evaluated:
    """Loss and metrics of a run's weights on the validation and test splits; arguments as of `restore`.

    Args:
        whole: images with masks are not cut: see `whole_images`.
    """
    net, images = restore(config, path)
    if not whole:
        return _evaluated(learner(config, net, images, trains=False), images, config, image_data(config, images))
    if not config.task.segments:
        raise ConfigError(f"whole=true: is for task=segmentation, and this run is one of task={config.task.name}")
    if config.runtime.processes > 1:
        raise ConfigError("whole=true: runtime.devices, runtime.nodes: expected 1 of each")
    splits = {name: split for name, split in images.splits().items() if isinstance(split, Split) and split.uncut}
    if not splits:
        raise ConfigError(f"whole=true: data={config.data.name} has arrays, of which nothing is cut; leave it out")
    seen = whole_transform(net, images.shape[1:], images.mean, images.std)
    if reason := why_not_whole(net, seen):
        raise ConfigError(f"whole=true: {reason}")
    module = WholeSegmenter(net, config.recipe, classes=len(images.classes), seed=config.seed)
    return _evaluated(module, images, config, {name: WholePairs(split, seen) for name, split in splits.items()})


def evaluate_weights(file: str, config: Config) -> Evaluated:
    """The same of weights from a file of anybody's, seen as their model sees images: its size, crop, mean, deviation.

    Classes go by their names where there are names: a file of ours holds them, and 1,000 classes are ImageNet's where
    the images are in folders named by its synsets. Others are taken in the order of the images' own, and that is said.
    """
    if config.task.segments:
        raise ConfigError("weights: are those of a classifier; task=segmentation evaluates a run (run=FOLDER)")
    if "decode" not in find(config.data.name).reads:
        raise ConfigError(
            f"data={config.data.name}: expected images to decode, like image_folder, since weights={file}"
        )
    if config.data.decoded_size is not None:
        raise ConfigError(f"data.decoded_size={config.data.decoded_size}: expected null, since weights={file}")
    config = replace(config, data=replace(config.data, decode="always"))
    config = replace(config, recipe=replace(config.recipe, scale=[0.08, 1.0], crop=0, auto_augment=None))
    check(config.data, config.recipe, config.task)
    images = load(config.data, config.runtime.cache, training=False)
    channels = config.data.channels or 3
    heads = classifiers(on_meta(config.model, config.mixer, shape=images.shape, classes=len(images.classes)))
    weights = read(file) if config.model.source == "timm" else to_ours(read(file))
    classes = classes_of(weights, heads)
    if not classes:
        expected = " or ".join(f"{head}.weight" for head in heads)
        raise ConfigError(f"weights={file}: no classifier in it (expected {expected})")
    images = images.named(_names(images.classes, classes), file)
    seen = _preprocessing(config.model)
    for key in ("mean", "std"):
        values = 255 * torch.tensor(seen[key])
        setattr(images, key, values if channels == 3 else values.mean(0, keepdim=True))
    net = build(config.model, config.mixer, config.seed, shape=images.shape, classes=classes)
    load_into(net.eval().to(memory_format=torch.channels_last), weights, f"weights={file}")
    crop, interpolation = crop_of(config.model), str(seen["interpolation"])
    processes = workers(config.runtime, 1)
    data = ImageData(images, config.recipe, config.seed, crop_pct=crop, interpolation=interpolation, workers=processes)
    return _evaluated(learner(config, net, images, trains=False), images, config, data, interpolation)


def _evaluated(
    module: Learner,
    images: Images,
    config: Config,
    data: ImageData | Mapping[str, WholePairs],
    interpolation: str = "bicubic",
) -> Evaluated:
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    trainer = make_trainer(config.runtime, config.recipe, enable_checkpointing=False, enable_progress_bar=False)
    found: dict[str, float] = {}
    counts = {}
    for split in ("test",) if images.only_test else ("val", "test"):
        measure = trainer.validate if split == "val" else trainer.test
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NOISE)
            given = data if isinstance(data, ImageData) else data[split]
            found |= measure(module, given, verbose=False)[0]
        assert module.scores is not None
        if isinstance(module.scores, Scores):
            found[f"{split}_top5"] = module.scores.top(5)
        counts[split] = module.scores.images
    return Evaluated(found, counts, crop_of(config.model), interpolation)


def _preprocessing(model: Model) -> dict[str, Any]:
    """Mean and deviation of the pixels (from 0 to 1) and the interpolation that a published model is meant for."""
    usual = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}
    if model.source != "timm":
        return usual
    config = get_pretrained_cfg(str(model.name))
    return {key: getattr(config, key, value) for key, value in usual.items()}


def _names(there: list[str], classes: int) -> list[str]:
    """The names of the classes of weights that come without names."""
    synsets: list[str] = ImageNetInfo("imagenet-1k").label_names()
    if classes == len(synsets) and set(there) <= set(synsets):
        return synsets
    if len(there) != classes:
        raise ConfigError(f"data: it has {len(there)} classes, the weights {classes}")
    tell("the file of weights has no names of classes: those of the images are taken, in natural order")
    return there
