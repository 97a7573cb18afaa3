"""Evaluate a finished run again: `python -m metaformer.evaluate run=runs/RUN [data=...] [runtime=...]`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaformer.config import USER_ERRORS, ConfigError, compose, explain_or_raise, validate
from metaformer.run import output_to, read_result

ALLOWED = ("data", "runtime")


def parse(arguments: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The run folder and its configuration, with the data and runtime that the command line changes."""
    folders = [a.partition("=")[2] for a in arguments if a.startswith("run=")]
    overrides = [a for a in arguments if not a.startswith("run=")]
    if len(folders) != 1:
        raise ConfigError("expected run=FOLDER, the folder of one finished run")
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
    now = validate(compose(overrides))
    config = result["config"] | {"runtime": now["runtime"]} | ({"data": now["data"]} if "data" in groups else {})
    return folder, config


def evaluate(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Loss and accuracy on the validation and test splits, with the number of images of each."""
    import lightning as L
    import torch

    from metaformer import data, training
    from metaformer.classifier import Classifier

    saved = torch.load(folder / "weights.pt", weights_only=True)
    images = data.load(config["data"])
    if len(saved["classes"]) != len(images.classes):
        here, there = len(images.classes), len(saved["classes"])
        raise ConfigError(f"data={config['data']['name']}: it has {here} classes, the run {there}")
    config["recipe"] |= {"initialize_from": None}
    net = training.build_net(config, images)
    try:
        net.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ConfigError(f"run={folder}: its weights fit the images of its training only: {first}") from error
    module = Classifier(net, config["recipe"], classes=len(images.classes), seed=config["seed"])
    source = data.ImageData(images, config["recipe"], config["seed"])
    if config["runtime"]["threads"]:
        torch.set_num_threads(config["runtime"]["threads"])
    trainer = L.Trainer(
        accelerator=config["runtime"]["accelerator"],
        devices=1,
        precision=training.PRECISION[config["recipe"]["precision"]],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    measured = {**trainer.validate(module, source, verbose=False)[0], **trainer.test(module, source, verbose=False)[0]}
    return measured | {"val_n": len(images.val), "test_n": len(images.test)}


def main() -> None:
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(__doc__)
        return
    try:
        folder, config = parse(sys.argv[1:])
        with output_to(Path(os.devnull)):
            measured = evaluate(folder, config)
    except USER_ERRORS as error:
        explain_or_raise(error)
        return
    recorded = json.loads((folder / "result.json").read_text())
    for split in ("val", "test"):
        line = f"{split}: accuracy {measured[f'{split}_accuracy']:.2%}, loss {measured[f'{split}_loss']:.4f}"
        line += f", {measured[f'{split}_n']:,} images"
        if config["data"] == recorded["config"]["data"]:
            line += f" (recorded: {recorded['metrics'][f'{split}_accuracy']:.2%})"
        print(line)


if __name__ == "__main__":
    main()
