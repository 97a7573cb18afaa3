"""From a configuration to trained weights: build and check the network, fit it with Lightning, test it once."""

import contextlib
import copy
import logging
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor, nn

if TYPE_CHECKING:
    from rich.table import Table

from metaformer import checkpoints, zoo
from metaformer.batches import ImageData
from metaformer.block import MetaFormerBlock
from metaformer.checkpoints import Checkpoints
from metaformer.classifier import Classifier
from metaformer.config import cores
from metaformer.cost import count
from metaformer.data import Images, balanced
from metaformer.factory import contract
from metaformer.metrics import MetricsFile
from metaformer.mirror import final, wandb_run
from metaformer.run import rank
from metaformer.schema import ConfigError, epochs_of, processes

PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def build_net(config: Mapping[str, Any], images: Images) -> nn.Module:
    """The network of a configuration, tried on two images, so that what cannot work is refused before it trains."""
    net = zoo.from_config(config, images.channels, len(images.classes), images.size)
    if config["recipe"]["initialize_from"]:
        zoo.initialize(net, config["recipe"]["initialize_from"])
    net = net.to(memory_format=torch.channels_last)
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, MetaFormerBlock)}
    try:
        with torch.no_grad(), contract({name: block.mixer for name, block in blocks.items()}):
            net.eval()(images.sample())
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the model fails on its first batch: {type(error).__name__}: {error}") from error
    return net.train()


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
    """Train from the start or from the newest checkpoint, then test once; the measured part of result.json.

    Where the device is too small for a batch, `runtime.accumulate=auto` tries again with twice as many parts.
    """
    parts = config["runtime"]["accumulate"]
    initial = copy.deepcopy(net.state_dict()) if parts == "auto" else {}
    batch = config["recipe"]["batch"] // processes(config["runtime"])
    smallest = 2 if config["recipe"]["mixup"] or config["recipe"]["cutmix"] else 1  # Mixup pairs images
    for accumulate in (1 << i for i in range(32)) if parts == "auto" else [parts]:
        try:
            return _fit(config, choices, net, images, folder, jobs=jobs, show=show, accumulate=accumulate)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        more = 2 * accumulate
        words = f"out of memory with {batch // accumulate} images on a device at once ({accumulate} parts of a batch)"
        if batch % more or batch // more % smallest:
            raise MemoryError(f"{words}; it has no more parts of equal size")
        if parts != "auto":
            raise MemoryError(
                f"{words}; runtime.accumulate={more} halves them, runtime.accumulate=auto finds the least"
            )
        print(f"{words}; trying {more} parts", file=sys.stderr)
        net.load_state_dict(initial)
        net.zero_grad()
        torch.cuda.empty_cache()
    raise AssertionError


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _fit(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    net: nn.Module,
    images: Images,
    folder: Path,
    *,
    jobs: int,
    show: bool,
    accumulate: int,
) -> dict:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertising, no list of absent devices
    recipe, runtime, debug = dict(config["recipe"]), config["runtime"], config["debug"]["mode"]
    path, found = checkpoints.read(folder) or (None, None)
    # Sums depend on the number of threads in the last bits: a resumed run keeps the number that it began with.
    threads = found["threads"] if found else runtime["threads"] or max(1, cores() // (jobs * runtime["devices"]))
    accumulate = found["accumulate"] if found else accumulate  # and the places in the middle of an epoch on the parts
    kept = {"threads": threads, "accumulate": accumulate}
    torch.set_num_threads(threads)
    if debug == "overfit":
        batch = min(recipe["batch"], len(images.train))
        part = images.train[balanced(images.train.labels, batch, "recipe.batch")[0]]
        images = Images(part, images.val, images.test, images.classes, images.side)
        recipe |= {"epochs": 200, "cooldown_epochs": 0, "batch": batch, "label_smoothing": 0.0}
        recipe |= {"warmup_epochs": 0, "mixup": 0.0, "cutmix": 0.0}
    cost = count(net, images.shape)
    teacher = build_teacher(recipe["distill"], images)
    module = Classifier(net, recipe, classes=len(images.classes), seed=config["seed"], teacher=teacher)
    data = ImageData(
        images,
        recipe,
        config["seed"],
        augment=debug != "overfit",
        crop_pct=zoo.crop_of(config["model"]),
        workers=workers(runtime, jobs),
    )
    if runtime["compile"]:
        net.compile()
    main = rank() == 0
    with wandb_run(config, choices, folder) if main else contextlib.nullcontext() as mirror:
        metrics = MetricsFile(folder / "metrics.csv", mirror)
        average = [EMAWeightAveraging(decay=recipe["ema"])] if recipe["ema"] is not None else []
        own = [metrics, *average, *_callbacks(folder, runtime, debug, kept, show and main)]
        trainer = make_trainer(
            config,
            max_epochs=1 if debug == "fast" else epochs_of(recipe),
            accumulate_grad_batches=accumulate,
            gradient_clip_val=recipe["clip_grad"],
            deterministic=True,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            callbacks=own,
            enable_checkpointing=debug == "none",
            enable_progress_bar=show and main,
            default_root_dir=folder,
            **_limits(debug),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=QUIET)
            try:
                trainer.fit(module, data, ckpt_path=path, weights_only=True)
                for averaged in average:  # also where nothing was left to train
                    averaged.on_train_end(trainer, module)
                tested = dict(trainer.test(module, data, verbose=False)[0])
            except SystemExit as stopped:
                if stopped.code == 1:  # Lightning's answer to Ctrl-C
                    raise KeyboardInterrupt from stopped
                raise
        if not main:
            return {}
        rows = metrics.rows()
        trained = {k: float(v) for k, v in rows[-1].items() if k.endswith(("_loss", "_accuracy")) and v}
        result: dict[str, Any] = {
            "metrics": trained | tested,
            "params": cost.params,
            "trainable": cost.trainable,
            "macs": cost.macs,
            "uncounted_ops": cost.uncounted,
            "epochs": len(rows),
            "images": len(images.train),  # of the training set
            "seconds": round(sum(float(row["seconds"]) for row in rows), 3),
            "threads": threads,
            "devices": trainer.world_size,
            "accumulate": accumulate,
            "device": device_name(trainer.strategy.root_device),
            "versions": {name: version(name) for name in ("torch", "lightning", "timm", "torchmetrics", "hydra-core")},
        }
        if mirror is not None:
            mirror.summarise(final(result))
    if debug == "none":
        keep(folder, config, net, torch.cat(module.predictions), images)
    return result


# What Lightning warns of and this package takes care of: batches are functions of their place.
QUIET = ".*(does not have many workers|LeafSpec|exists and is not empty|dataloader is not resumable)"


def workers(runtime: Mapping[str, Any], jobs: int) -> int:
    """How many processes read the photographs of one device: runtime.workers, or one for each core that is left."""
    share = cores() // (jobs * runtime["devices"])
    return runtime["workers"] if runtime["workers"] is not None else min(16, share) if share > 1 else 0


def make_trainer(config: Mapping[str, Any], **options: Any) -> L.Trainer:
    """A Trainer on the devices and in the precision of a configuration."""
    runtime = config["runtime"]
    asked = f"runtime.accelerator={runtime['accelerator']}, runtime.devices={runtime['devices']}"
    if runtime["tf32"] and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    together = processes(runtime)
    warnings.filterwarnings("ignore", message=".*srun. command is available")  # on any machine of a cluster
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) == together:  # submitit requeues its jobs itself
        options["plugins"] = [SLURMEnvironment(auto_requeue=False)]
    try:
        return L.Trainer(
            accelerator=runtime["accelerator"],
            devices=runtime["devices"],
            num_nodes=runtime["nodes"],
            strategy="ddp" if together > 1 else "auto",
            use_distributed_sampler=False,
            precision=PRECISION[config["recipe"]["precision"]],
            logger=False,
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"{asked}: {error}") from error


def keep(folder: Path, config: Mapping[str, Any], net: nn.Module, predictions: Tensor, images: Images) -> None:
    """Write the weights (a state_dict and plain data) and what was predicted for each test image."""
    labels = images.test.labels.short().numpy()
    np.savez_compressed(folder / "predictions.npz", predictions=predictions.short().numpy(), labels=labels)
    pixels = {"mean": images.mean, "std": images.std}
    content = {"state_dict": net.state_dict(), "config": dict(config), "classes": images.classes, **pixels}
    torch.save(content, folder / "weights.pt")
    checkpoints.remove(folder)


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
            teacher(images.sample())
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


def _callbacks(
    folder: Path, runtime: Mapping[str, Any], debug: str, kept: Mapping[str, int], show: bool
) -> list[L.Callback]:
    callbacks: list[L.Callback] = [RichProgressBar()] if show else []
    if debug == "none":
        callbacks.append(Checkpoints(folder, runtime["checkpoint_minutes"], kept))
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


def picture(config: Mapping[str, Any], images: Images, folder: Path, most: int = 64) -> Path:
    """The first images of the first training batch as the model sees them, Mixup included, in one PNG file."""
    from torchvision.utils import make_grid, save_image

    recipe, seed = config["recipe"], config["seed"]
    batch = next(iter(ImageData(images, recipe, seed, workers=0).train_dataloader()))
    module = Classifier(nn.Identity(), recipe, classes=len(images.classes), seed=seed)
    if module.mixup is not None:
        module.seed_step(0)
        batch = module.mixup(*batch)
    mean, std = (v[:, None, None] / 255 for v in (images.mean, images.std))
    shown = (batch[0][:most] * std + mean).clamp(0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "batch.png"
    save_image(make_grid(shown, nrow=int(len(shown) ** 0.5)), file)
    return file


def profile(config: Mapping[str, Any], net: nn.Module, images: Images, steps: int = 10) -> "Table":
    """Where the time of `steps` training steps goes on the CPU, as a table of ops."""
    from rich.table import Table
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    threads = config["runtime"]["threads"] or cores()
    torch.set_num_threads(threads)
    recipe = config["recipe"]
    data = ImageData(images, recipe, config["seed"], workers=workers(config["runtime"], 1)).train_dataloader()
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
