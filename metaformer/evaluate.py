"""Evaluate a finished run again, or weights from a file on a folder of images.

    python -m metaformer.evaluate run=runs/RUN [data=...] [runtime=...]
    python -m metaformer.evaluate weights=FILE model=s12 [mixer=pooling] data=image_folder data.root=FOLDER

FOLDER holds one folder for each class, or those in its `test` or `val`. Folders named by ImageNet's synsets (n01440764)
are matched with the 1,000 classes of ImageNet; others are taken in alphabetical order.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaformer.config import answer, compose
from metaformer.identity import with_defaults
from metaformer.run import output_to, read_result
from metaformer.schema import ConfigError
from metaformer.validation import validate

if TYPE_CHECKING:
    from torch import nn

    from metaformer.data import Images

ALLOWED = ("data", "runtime")


def parse(arguments: Sequence[str]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The run folder, its configuration with the data and runtime that the command line changes, and its result."""
    folders = [a.partition("=")[2] for a in arguments if a.startswith("run=")]
    overrides = [a for a in arguments if not a.startswith("run=")]
    if len(folders) != 1:
        raise ConfigError("expected run=FOLDER, the folder of one finished run, or weights=FILE")
    folder = Path(folders[0])
    if not (folder / "weights.pt").exists():
        known = sorted(p.parent.name for p in folder.parent.glob("*/weights.pt"))
        names = ", ".join(known[:5]) or "none"
        raise ConfigError(f"run={folder}: no finished run there (weights.pt); finished beside it: {names}")
    groups = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides}
    if odd := sorted(groups - set(ALLOWED)):
        raise ConfigError(f"{odd[0]}: belongs to the run; what can change here is {' and '.join(ALLOWED)}")
    result = read_result(folder)
    if result is None:
        raise ConfigError(f"run={folder}: it has no result.json, so it is not finished")
    result["config"] = with_defaults(result["config"])
    # The run's own data, with what is changed here: `data=NAME` starts from that file, `data.root=...` from the run.
    chosen = any(override.startswith("data=") for override in overrides)
    data, recipe = result["config"]["data"], result["config"]["recipe"]
    kept = [] if chosen else [f"data={data['name']}", *_as_overrides("data", data, DATA)]
    kept += _as_overrides("recipe", recipe, ("scale", "crop"))  # how the images are looked at
    now = validate(compose([*kept, *overrides]))
    return folder, result["config"] | {"data": now["data"], "runtime": now["runtime"]}, result


DATA = ("root", "dataset", "train", "val", "size", "classes", "decode", "decoded_size")


def _as_overrides(group: str, node: dict[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{group}.{key}={json.dumps(node[key])}" for key in keys]


def restore(folder: Path, config: dict[str, Any]) -> tuple["nn.Module", "Images"]:
    """The trained network of a run, and the images that its configuration names, normalised as for that run."""
    import torch

    from metaformer import data, training

    try:
        saved = torch.load(folder / "weights.pt", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{folder / 'weights.pt'}: cannot be read ({type(error).__name__})") from error
    images = data.load(config["data"], config["runtime"]["cache"])
    if len(saved["classes"]) != len(images.classes):
        here, there = len(images.classes), len(saved["classes"])
        raise ConfigError(f"data={config['data']['name']}: it has {here} classes, the run {there}")
    images.mean, images.std = saved["mean"], saved["std"]  # of the images that it was trained on
    config["recipe"] |= {"initialize_from": None}
    net = training.build_net(config, images)
    try:
        net.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ConfigError(f"run={folder}: its weights do not fit the model for these images: {first}") from error
    return net.eval(), images


def evaluate(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Loss and accuracy on the validation and test splits, with the number of images of each."""
    import torch

    from metaformer import training, zoo
    from metaformer.batches import ImageData
    from metaformer.classifier import Classifier

    net, images = restore(folder, config)
    module = Classifier(net, config["recipe"], classes=len(images.classes), seed=config["seed"])
    crop, workers = zoo.crop_of(config["model"]), training.workers(config["runtime"], 1)
    source = ImageData(images, config["recipe"], config["seed"], crop_pct=crop, workers=workers)
    if config["runtime"]["threads"]:
        torch.set_num_threads(config["runtime"]["threads"])
    trainer = training.make_trainer(config, enable_checkpointing=False, enable_progress_bar=False)
    measured = {**trainer.validate(module, source, verbose=False)[0], **trainer.test(module, source, verbose=False)[0]}
    return measured | {"val_n": len(images.val), "test_n": len(images.test)}


def evaluate_weights(file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Top-1 and top-5 of a model with weights from a file, with the model's own resize and centre crop."""
    import torch
    from timm.data import create_transform
    from torchmetrics.classification import MulticlassAccuracy
    from torchvision.datasets import ImageFolder

    from metaformer import weights, zoo

    config = validate(compose(overrides))
    if config["data"]["name"] != "image_folder" or config["data"]["root"] is None:
        raise ConfigError("data: expected data=image_folder data.root=FOLDER, the images that the weights are tried on")
    root = Path(config["data"]["root"])
    root = next((root / split for split in ("test", "val") if (root / split).is_dir()), root)
    loaded = weights.to_ours(weights.read(file)) if config["model"]["source"] != "timm" else weights.read(file)
    classes = zoo.classes_of(loaded)
    if not classes:
        raise ConfigError(f"weights={file}: no classifier in it (head.weight or head.fc2.weight)")
    side = config["data"]["size"]
    net = zoo.from_config(config, 3, classes, (side, side)).eval().to(memory_format=torch.channels_last)
    zoo.load_into(net, loaded, file)
    crop = zoo.crop_of(config["model"])
    transform = create_transform((3, side, side), is_training=False, interpolation="bicubic", crop_pct=crop)
    try:
        images = ImageFolder(str(root), transform)
    except FileNotFoundError as error:
        raise ConfigError(f"data.root={root}: {error}") from error
    labels = torch.tensor(class_indices(images.classes, classes))
    top = [MulticlassAccuracy(classes, top_k=k, average="micro") for k in (1, min(5, classes))]
    with torch.no_grad():
        for batch, target in torch.utils.data.DataLoader(images, batch_size=32):
            logits = net(batch.to(memory_format=torch.channels_last))
            for metric in top:
                metric.update(logits, labels[target])
    return {"top1": top[0].compute().item(), "top5": top[1].compute().item(), "n": len(images), "crop_pct": crop}


def class_indices(folders: Sequence[str], classes: int) -> list[int]:
    """The class of each folder: by its synset where the classes are ImageNet's, or else by its place."""
    from timm.data import ImageNetInfo

    synsets = {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if classes == len(synsets) and all(folder in synsets for folder in folders):
        return [synsets[folder] for folder in folders]
    if len(folders) != classes:
        raise ConfigError(f"data.root: it has {len(folders)} class folders, the weights {classes} classes")
    return list(range(classes))


def main() -> None:
    answer(__doc__, command)


def command(arguments: Sequence[str]) -> None:
    """Evaluate what the command line names, a run or weights, and print it."""
    files = [a.partition("=")[2] for a in arguments if a.startswith("weights=")]
    if files:
        measured = evaluate_weights(files[0], [a for a in arguments if not a.startswith("weights=")])
        top1, top5, n = measured["top1"], measured["top5"], measured["n"]
        print(f"top-1 {top1:.2%}, top-5 {top5:.2%}, {n:,} images, crop {measured['crop_pct']}")
        return
    folder, config, recorded = parse(arguments)
    with output_to(Path(os.devnull)):
        measured = evaluate(folder, config)
    for split in ("val", "test"):
        line = f"{split}: accuracy {measured[f'{split}_accuracy']:.2%}, loss {measured[f'{split}_loss']:.4f}"
        line += f", {measured[f'{split}_n']:,} images"
        if config["data"] == recorded["config"]["data"]:
            line += f" (recorded: {recorded['metrics'][f'{split}_accuracy']:.2%})"
        print(line)


if __name__ == "__main__":
    main()
