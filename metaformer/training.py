"""From a configuration to trained weights: build and check the network, fit it with Lightning, test it once."""

import logging
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import Tensor, nn

if TYPE_CHECKING:
    from rich.table import Table

from metaformer import zoo
from metaformer.block import MetaFormerBlock
from metaformer.classifier import Classifier
from metaformer.config import cores
from metaformer.cost import count
from metaformer.data import ImageData, Images, balanced
from metaformer.metrics import MetricsFile
from metaformer.mirror import final, wandb_run
from metaformer.schema import ConfigError

PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def build_net(config: Mapping[str, Any], images: Images) -> nn.Module:
    """The network of a configuration, tried on two images, so that what cannot work is refused before it trains."""
    net = zoo.from_config(config, images.channels, len(images.classes), images.size)
    if config["recipe"]["initialize_from"]:
        zoo.initialize(net, config["recipe"]["initialize_from"])
    net = net.to(memory_format=torch.channels_last)
    blocks = [(name, module) for name, module in net.named_modules() if isinstance(module, MetaFormerBlock)]
    hooks = [block.mixer.register_forward_hook(_same_shape(name)) for name, block in blocks]
    try:
        with torch.no_grad():
            net.eval()(images.normalise(images.test.images[:2]))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the model fails on its first batch: {type(error).__name__}: {error}") from error
    for hook in hooks:
        hook.remove()
    return net.train()


def _same_shape(place: str) -> Any:
    def check(mixer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        wanted, got = list(inputs[0].shape), list(getattr(output, "shape", []))
        if got != wanted:
            kind = type(mixer).__name__
            raise ConfigError(f"mixer {kind} at {place} returned {got or type(output).__name__}, expected {wanted}")

    return check


def fit(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    net: nn.Module,
    images: Images,
    folder: Path,
    *,
    jobs: int,
    show: bool,
) -> dict:
    """Train from the start or from `last.ckpt`, then test once; the measured part of result.json."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertising, no list of absent devices
    recipe, debug = dict(config["recipe"]), config["debug"]["mode"]
    last = folder / "last.ckpt"
    try:
        resumed = torch.load(last, weights_only=True) if last.exists() else None
    except Exception as error:
        raise ConfigError(
            f"{last}: cannot be read ({type(error).__name__}); remove it to train from the start"
        ) from error
    # Sums depend on the number of threads in the last bits: a resumed run keeps the number that it began with.
    threads = resumed["threads"] if resumed else config["runtime"]["threads"] or max(1, cores() // jobs)
    torch.set_num_threads(threads)
    if debug == "overfit":
        batch = min(recipe["batch"], len(images.train))
        images = Images(
            images.train[balanced(images.train.labels, batch, "recipe.batch")[0]],
            images.val,
            images.test,
            images.classes,
        )
        recipe |= {"epochs": 200, "batch": batch, "label_smoothing": 0.0, "warmup_epochs": 0}
    cost = count(net, (images.channels, *images.size))
    teacher = build_teacher(recipe["distill"], images)
    module = Classifier(net, recipe, classes=len(images.classes), seed=config["seed"], teacher=teacher)
    data = ImageData(images, recipe, config["seed"], augment=debug != "overfit")
    with wandb_run(config, choices, folder) as mirror:
        metrics = MetricsFile(folder / "metrics.csv", mirror)
        trainer = make_trainer(
            config,
            max_epochs=1 if debug == "fast" else recipe["epochs"],
            deterministic=True,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            callbacks=[metrics, *_callbacks(folder, debug, threads, show)],
            enable_checkpointing=debug == "none",
            enable_progress_bar=show,
            default_root_dir=folder,
            **_limits(debug),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec|exists and is not empty)")
            try:
                trainer.fit(module, data, ckpt_path=str(last) if resumed else None, weights_only=True)
                tested = dict(trainer.test(module, data, verbose=False)[0])
            except SystemExit as stopped:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from stopped
        rows = metrics.rows()
        trained = {k: float(v) for k, v in rows[-1].items() if k.endswith(("_loss", "_accuracy")) and v}
        result: dict[str, Any] = {
            "metrics": trained | tested,
            "params": cost.params,
            "trainable": cost.trainable,
            "macs": cost.macs,
            "uncounted_ops": cost.uncounted,
            "epochs": len(rows),
            "seconds": round(sum(float(row["seconds"]) for row in rows), 3),
            "threads": threads,
            "device": device_name(trainer.strategy.root_device),
            "versions": {name: version(name) for name in ("torch", "lightning", "timm", "torchmetrics", "hydra-core")},
        }
        if mirror is not None:
            mirror.summarise(final(result))
    if debug == "none":
        keep(folder, config, net, torch.cat(module.predictions), images)
    return result


def make_trainer(config: Mapping[str, Any], **options: Any) -> L.Trainer:
    """A Trainer on the device and in the precision of a configuration."""
    accelerator = config["runtime"]["accelerator"]
    try:
        return L.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=PRECISION[config["recipe"]["precision"]],
            logger=False,
            enable_model_summary=False,
            **options,
        )
    except MisconfigurationException as error:
        raise ConfigError(f"runtime.accelerator={accelerator}: {error}") from error


def keep(folder: Path, config: Mapping[str, Any], net: nn.Module, predictions: Tensor, images: Images) -> None:
    """Write the weights (a state_dict and plain data) and what was predicted for each test image."""
    labels = images.test.labels.short().numpy()
    np.savez_compressed(folder / "predictions.npz", predictions=predictions.short().numpy(), labels=labels)
    pixels = {"mean": images.mean, "std": images.std}
    content = {"state_dict": net.state_dict(), "config": dict(config), "classes": images.classes, **pixels}
    torch.save(content, folder / "weights.pt")
    (folder / "last.ckpt").unlink(missing_ok=True)


def build_teacher(distill: Mapping[str, Any], images: Images) -> nn.Module | None:
    """The frozen teacher that a recipe names, tried on two images; None where there is none."""
    if distill["teacher"] is None:
        return None
    import timm

    try:
        teacher = timm.create_model(
            distill["teacher"],
            in_chans=images.channels,
            num_classes=len(images.classes),
            checkpoint_path=distill["weights"],
        ).eval()
        with torch.no_grad():
            teacher(images.normalise(images.test.images[:2]))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"recipe.distill.teacher={distill['teacher']}: {type(error).__name__}: {reason}") from error
    return teacher.requires_grad_(False).to(memory_format=torch.channels_last)


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _callbacks(folder: Path, debug: str, threads: int, show: bool) -> list[L.Callback]:
    callbacks: list[L.Callback] = [RichProgressBar()] if show else []
    if debug == "none":
        callbacks.append(RecordThreads(threads))
        callbacks.append(
            ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        )
    if debug == "overfit":
        callbacks.append(
            EarlyStopping(
                "train_accuracy",
                mode="max",
                stopping_threshold=1 - 1e-6,
                patience=200,
                check_on_train_epoch_end=True,
            )
        )
    return callbacks


def _limits(debug: str) -> dict[str, Any]:
    if debug == "fast":
        return {"limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 2}
    return {"limit_val_batches": 0} if debug == "overfit" else {}


class RecordThreads(L.Callback):
    """Keep the number of threads in the checkpoint, for the run that resumes from it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["threads"] = self.threads


def profile(config: Mapping[str, Any], net: nn.Module, images: Images, steps: int = 10) -> "Table":
    """Where the time of `steps` training steps goes on the CPU, as a table of ops."""
    from rich.table import Table
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    threads = config["runtime"]["threads"] or cores()
    torch.set_num_threads(threads)
    recipe = config["recipe"]
    data = ImageData(images, recipe, config["seed"]).train_dataloader()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe["lr"])

    def step(batch: tuple[Tensor, Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe["precision"] == "bf16"):
            loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batch = next(iter(data))
    step(batch)
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step(batch)
    ops = sorted(profiler.key_averages(), key=lambda op: -op.self_cpu_time_total)
    total = sum(op.self_cpu_time_total for op in ops)
    table = Table(title=f"A training step of {recipe['batch']} images, {threads} threads", title_justify="left")
    for name in ("op", "share", "ms a step", "calls a step"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for op in ops[:15]:
        share = op.self_cpu_time_total / total
        table.add_row(op.key, f"{share:.1%}", f"{op.self_cpu_time_total / steps / 1e3:.2f}", f"{op.count / steps:.0f}")
    return table
