"""Debug modes: two batches, overfitting one batch, a picture of a batch, a profile of a step."""

from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torchvision.utils import draw_segmentation_masks, make_grid, save_image

from metaformer.config.schema import COLOURS, Config, Recipe
from metaformer.config.tasks import IGNORED
from metaformer.data.images import Images
from metaformer.data.module import ImageData
from metaformer.data.splits import balanced
from metaformer.models.cost import synchronise
from metaformer.models.precision import autocast, deterministic
from metaformer.system.errors import ConfigError
from metaformer.system.files import replacing
from metaformer.tasks.classification import Classifier
from metaformer.tasks.optimization import make_optimizer
from metaformer.training.trainer import device_name, make_trainer, threads, workers


def one_batch(images: Images, recipe: Recipe) -> tuple[Images, Recipe]:
    """One batch of images with every class, and a recipe that learns it by heart."""
    part = images.train[balanced(images.train.labels, recipe.batch, "recipe.batch")[0]]
    changed = replace(
        recipe, epochs=200, steps=None, cooldown_epochs=0, label_smoothing=0.0, warmup_epochs=0, mixup=0.0, cutmix=0.0
    )
    return replace(images, train=part), changed


def picture(recipe: Recipe, seed: int, images: Images, folder: Path, most: int = 64) -> Path:
    """The first images of the first training batch as the model sees them, Mixup included, in one PNG file."""
    batch = next(iter(ImageData(images, recipe, seed, workers=0).train_dataloader()))
    module = Classifier(nn.Identity(), replace(recipe, freeze="none"), classes=len(images.classes), seed=seed)
    if module.mixup is not None:
        module.seed_step(0)
        batch = module.mixup(*batch)
    mean, std = (v[:, None, None] / 255 for v in (images.mean, images.std))
    shown = (batch[0][:most] * std + mean).clamp(0, 1)
    shown = shown if images.channels in COLOURS else shown.mean(1, keepdim=True)
    if images.masked:
        shown = torch.stack([_with_mask(*pair) for pair in zip(shown, batch[1], strict=False)])
    file = folder / "batch.png"
    with replacing(file) as part:
        save_image(make_grid(shown, nrow=int(len(shown) ** 0.5)), part)
    return file


def _with_mask(image: Tensor, mask: Tensor) -> Tensor:
    """An image [C, H, W] from 0 to 1, classes but the first in colour, pixels without a class in black."""
    masks = mask == torch.arange(1, int(mask.where(mask != IGNORED, 0).max()) + 1)[:, None, None]
    grey = (255 * image.expand(3, -1, -1)).byte() * (mask != IGNORED)
    return draw_segmentation_masks(grey, masks, 0.5) / 255 if len(masks) else grey / 255


def profile(config: Config, net: nn.Module, images: Images, steps: int = 10) -> Table:
    """Where the time of `steps` training steps goes on the device of the runs, as a table of ops."""
    recipe, runtime = config.recipe, config.runtime
    torch.set_num_threads(threads(runtime, 1))
    device = make_trainer(runtime, recipe).strategy.root_device
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"debug=profile: torch's profiler does not know {device.type}; add runtime.accelerator=cpu")
    data = ImageData(images, recipe, config.seed, workers=workers(runtime, 1)).train_dataloader()
    optimizer = make_optimizer(net.to(device), recipe, on_gpu=device.type == "cuda")

    def step(batch: tuple[Tensor, Tensor]) -> None:
        with autocast(device, recipe.precision):
            ignore = IGNORED if images.masked else -100  # -100: torch's default, which no label is
            given = net(batch[0]), batch[1].long()
            # A mean over pixels has no deterministic form on CUDA, and is refused
            loss = nn.functional.cross_entropy(*given, ignore_index=ignore, reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    x, labels = next(iter(data))
    batch = x.to(device, memory_format=torch.channels_last), labels.to(device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with deterministic():
        step(batch)
        with torch_profile(activities=activities) as profiler:
            for _ in range(steps):
                step(batch)
            synchronise(device)
    cost = attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")
    # Not the kernels of a GPU, whose time the ops that start them have already
    ops = [op for op in profiler.key_averages() if op.device_type.name == "CPU"]
    ops.sort(key=cost, reverse=True)
    total = sum(cost(op) for op in ops)
    where = device_name(device) if on_gpu else f"{threads(runtime, 1)} threads"
    table = Table(title=f"A training step of {recipe.batch} images, {where}", title_justify="left")
    for name in ("op", "share", "ms a step", "calls a step"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for op in ops[:15]:
        table.add_row(op.key, f"{cost(op) / total:.1%}", f"{cost(op) / steps / 1e3:.2f}", f"{op.count / steps:.0f}")
    return table
