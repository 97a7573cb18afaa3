"""Trained networks again: restored with their images, and evaluated; weights from a file on a folder of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_transform
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder

from metaformer.config.schema import Config
from metaformer.data.images import Images, load
from metaformer.data.module import ImageData
from metaformer.data.registry import check
from metaformer.models.build import build, crop_of, try_on
from metaformer.models.weights import classes_of, load_into, read, to_ours
from metaformer.runs.finished import Finished
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.training.trainer import make_trainer, workers


def restore(run: Finished) -> tuple[nn.Module, Images]:
    """The trained network of a run, and the images that its configuration names, normalised as for that run."""
    config, path = run.config, run.folder / "weights.pt"
    check(config.data, config.recipe)
    try:
        saved = torch.load(path, weights_only=True)
    except Exception as error:  # whatever torch raises of half a file
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from error
    images = load(config.data, config.runtime.cache)
    if len(saved["classes"]) != len(images.classes):
        here, there = len(images.classes), len(saved["classes"])
        raise ConfigError(f"data={config.data.name}: it has {here} classes, the run {there}")
    images.mean, images.std = saved["mean"], saved["std"]  # of the images that it was trained on
    net = build(config.model, config.mixer, config.seed, shape=images.shape, classes=len(images.classes))
    net = net.to(memory_format=torch.channels_last)
    try_on(net, images.sample())
    try:
        net.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ConfigError(f"run={run.folder}: its weights do not fit the model for these images: {first}") from error
    return net.eval(), images


def image_data(config: Config, images: Images, jobs: int = 1) -> ImageData:
    """The images of a run as its evaluation sees them."""
    crop, processes = crop_of(config.model), workers(config.runtime, jobs)
    return ImageData(images, config.recipe, config.seed, crop_pct=crop, workers=processes)


def evaluate(run: Finished) -> dict[str, float]:
    """Loss and metrics on the validation and test splits, with the number of images of each as `val_n`, `test_n`."""
    net, images = restore(run)
    config = run.config
    module = Classifier(net, config.recipe, classes=len(images.classes), seed=config.seed)
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    trainer = make_trainer(config.runtime, config.recipe, enable_checkpointing=False, enable_progress_bar=False)
    source = image_data(config, images)
    found: dict[str, float] = {}
    for measured in (trainer.validate(module, source, verbose=False), trainer.test(module, source, verbose=False)):
        found |= measured[0]
    return found | {"val_n": len(images.val), "test_n": len(images.test)}


@dataclass(frozen=True)
class Top:
    """Accuracies of weights on a folder of images."""

    top1: float
    top5: float
    images: int
    crop_pct: float


def evaluate_weights(file: str, config: Config) -> Top:
    """Top-1 and top-5 of a model with weights from a file, with the model's own resize and centre crop."""
    if config.data.name != "image_folder" or config.data.root is None:
        raise ConfigError("data: expected data=image_folder data.root=FOLDER, the images that the weights are tried on")
    check(config.data, config.recipe)
    loaded = read(file) if config.model.source == "timm" else to_ours(read(file))
    classes = classes_of(loaded)
    if not classes:
        raise ConfigError(f"weights={file}: no classifier in it (head.weight or head.fc2.weight)")
    side, crop = config.data.size, crop_of(config.model)
    net = build(config.model, config.mixer, config.seed, shape=(3, side, side), classes=classes)
    net = net.eval().to(memory_format=torch.channels_last)
    load_into(net, loaded, file)
    images = _folder(Path(config.data.root), side, crop)
    labels = torch.tensor(class_indices(images.classes, classes))
    top = [MulticlassAccuracy(classes, top_k=k, average="micro") for k in (1, min(5, classes))]
    with torch.no_grad():
        for batch, target in torch.utils.data.DataLoader(images, batch_size=32):
            logits = net(batch.to(memory_format=torch.channels_last))
            for metric in top:
                metric.update(logits, labels[target])
    return Top(top[0].compute().item(), top[1].compute().item(), len(images), crop)


def _folder(root: Path, side: int, crop: float) -> ImageFolder:
    """The images under `root`, or in its `test` or `val`, as timm evaluates them."""
    root = next((root / split for split in ("test", "val") if (root / split).is_dir()), root)
    transform: Any = create_transform((3, side, side), is_training=False, interpolation="bicubic", crop_pct=crop)
    try:
        return ImageFolder(str(root), transform)
    except FileNotFoundError as error:
        raise ConfigError(f"data.root={root}: {error}") from error


def class_indices(folders: Sequence[str], classes: int) -> list[int]:
    """The class of each folder: by its synset where the classes are ImageNet's, or else by its place."""
    synsets = {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if classes == len(synsets) and all(folder in synsets for folder in folders):
        return [synsets[folder] for folder in folders]
    if len(folders) != classes:
        raise ConfigError(f"data.root: it has {len(folders)} class folders, the weights {classes} classes")
    return list(range(classes))
