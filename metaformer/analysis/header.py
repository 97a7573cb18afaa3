"""What was trained on what, in words for the head of a report, and the stages of its models for a drawing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from metaformer.analysis.cells import Cell
from metaformer.config.schema import Data, Model, Recipe
from metaformer.config.study_nodes import Study
from metaformer.data.registry import shape, size_of
from metaformer.runs.result import Result
from metaformer.system.errors import ConfigError

MOST = 3  # architectures that are drawn


@dataclass(frozen=True)
class Stage:
    """A stage of a model as it is drawn."""

    embedding: str  # kernel and stride of the patch embedding before it; empty where there is none
    tokens: tuple[int, int]
    channels: int
    blocks: int


@dataclass(frozen=True)
class Drawn:
    """A model as it is drawn, for the cells that have it."""

    cells: str
    image: tuple[int, int]
    stages: Sequence[Stage]
    last: str  # what comes after the stages


def facts(study: Study, cells: Sequence[Cell]) -> dict[str, str]:
    """A line each: data, images, model, recipe, epochs, seeds and what a cell is. What differs stands side by side."""
    runs = [run for cell in cells for run in cell.runs.values()]
    seeds = sorted({seed for cell in cells for seed in cell.values})
    factors = {factor: _distinct(cell.levels[factor] for cell in cells) for factor in cells[0].levels}
    grid = " with ".join(f"one {factor} ({', '.join(levels)})" for factor, levels in factors.items())
    return {
        "Data": _or(run.choices.get("data") or run.config.data.name for run in runs),
        "Images": _or(map(_images, runs)),
        "Model": _side_by_side(_model(run.config.model) for run in runs),
        "Size": f"{_span(run.params for run in runs)} parameters, {_span(run.macs for run in runs)} "
        "multiply-accumulates (MACs) for an image",
        **_segmentation(runs),
        "Recipe": _side_by_side(_recipe(run.config.recipe) for run in runs),
        "Epochs": _or(f"{run.epochs}{_steps(run.config.recipe)}" for run in runs),
        "Seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})",
        "A cell": f"{grid}: {len(cells)} cells. Its runs differ in the seed alone; cells are compared seed by seed, "
        f"with those of {study.reference}.",
    }


def _segmentation(runs: Sequence[Result]) -> dict[str, str]:
    """The decoder, where each pixel has a class."""
    tasks = [run.config.task for run in runs if run.config.task.segments]
    words = {"fpn": "Semantic FPN", "mlp": "all-MLP", "unet": "U-Net"}
    told = (
        f"{words[t.decoder]}, {t.width} channels" + (f", Dice loss with weight {t.dice:g}" if t.dice else "")
        for t in tasks
    )
    return {"Decoder": _or(told)} if tasks else {}


def drawings(study: Study, cells: Sequence[Cell]) -> list[Drawn]:
    """The first few distinct models, those of reference cells before others; none of a published model."""
    found: dict[tuple[Any, ...], list[Cell]] = {}
    ordered = sorted(cells, key=lambda cell: cell.levels[study.analysis.factor] != study.reference)
    for cell in ordered:
        config = cell.first.config
        size = _shape(config.data)
        if config.model.source == "metaformer" and size is not None:
            found.setdefault((size[1:], *_stages(size[1:], config.model)), []).append(cell)
    drawn = []
    for (image, *stages), own in found.items():
        names = _distinct(cell.setting(study.analysis.factor) or cell.name for cell in own)
        last = "decoder" if own[0].first.config.task.segments else "head"
        drawn.append(Drawn(", ".join(names) if len(found) > 1 else "", image, stages, last))
    return drawn[:MOST]


def _stages(size: tuple[int, int], model: Model) -> list[Stage]:
    """The maps after the stem, and after the patch embedding between two stages."""
    stages = []
    for i, (blocks, channels) in enumerate(zip(model.depths, model.dims, strict=True)):
        embedding = model.stem if i == 0 else model.downsample
        if embedding is not None:
            kernel, stride, padding = embedding
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
            size = height, width
        stages.append(Stage(f"{embedding[0]} / {embedding[1]}" if embedding else "", size, channels, blocks))
    return stages


def _shape(data: Data) -> tuple[int, int, int] | None:
    """Channels, height and width, where they are known without the images."""
    try:
        return shape(data)[0]
    except ConfigError:
        return (data.channels or 3, *size_of(data.size)) if data.size is not None else None


def _images(run: Result) -> str:
    tested = run.tested_images or sum(map(sum, run.confusion))
    counts = f"{run.images:,} to train" + (f", {tested:,} to test" if tested else "")
    kinds = f", of {len(run.recall)} classes" if run.recall else ""
    size = _shape(run.config.data)
    pixels = f", {size[1]} x {size[2]} pixels, {'grey' if size[0] == 1 else 'colour'}" if size else ""
    return counts + kinds + pixels


def _model(model: Model) -> list[str]:
    if model.source != "metaformer":
        return [f"{model.name} of {model.source}", "", "", ""]
    return [
        f"{sum(model.depths)} blocks in {len(model.depths)} stages",
        "no norm" if model.norm == "none" else f"{model.norm} norm",
        "" if model.residual else "no skip paths",
        "" if model.channel_mlp else "no channel MLP",
    ]


def _steps(recipe: Recipe) -> str:
    return "" if recipe.steps is None else f" ({recipe.steps:,} steps)"


def _taken(recipe: Recipe) -> str:
    return "" if recipe.initialize_stages is None else f", stem and {recipe.initialize_stages} stages"


def _warm_up(recipe: Recipe) -> str:
    if recipe.steps is None:
        return f"epochs of warm-up: {recipe.warmup_epochs:g}"
    return f"{recipe.warmup_epochs / recipe.all_epochs:.0%} of the steps for warm-up"


def _recipe(recipe: Recipe) -> list[str]:
    """Part by part, in the same places for each recipe; empty where there is nothing of it."""
    return [
        recipe.optimizer,
        f"learning rate {recipe.lr:g}",
        f"{recipe.schedule} schedule",
        _warm_up(recipe) if recipe.warmup_epochs else "",
        f"weight decay {recipe.weight_decay:g}",
        f"batches of {recipe.batch}",
        f"label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else "",
        f"crops after padding by {recipe.crop} pixels" if recipe.crop else "",
        "flips" if recipe.flip else "",
        f"random resized crops {recipe.scale}" if recipe.scale else "",
        f"crops after resizing by {recipe.resize}" if recipe.resize else "",
        recipe.auto_augment or "",
        f"erasing {recipe.erasing:g}" if recipe.erasing else "",
        f"Mixup {recipe.mixup:g}" if recipe.mixup else "",
        f"CutMix {recipe.cutmix:g}" if recipe.cutmix else "",
        f"moving average of the weights {recipe.ema:g}" if recipe.ema else "",
        f"gradients clipped at {recipe.clip_grad:g}" if recipe.clip_grad else "",
        "distilled from a teacher" if recipe.distill.teacher else "",
        "binary cross-entropy" if recipe.loss == "bce" else "",
        f"images repeated {recipe.repeated_augmentation} times" if recipe.repeated_augmentation > 1 else "",
        f"from weights of {recipe.initialize_from}{_taken(recipe)}" if recipe.initialize_from else "",
        f"frozen: {recipe.freeze}" if recipe.freeze != "none" else "",
        "" if recipe.precision == "fp32" else recipe.precision,
    ]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _side_by_side(descriptions: Iterable[Sequence[str]]) -> str:
    """Part by part what there is, and where only some have a part."""
    told = []
    for part in zip(*descriptions, strict=True):
        some = " in some cells" if "" in part and any(part) else ""
        told.append(_or(part) + some)
    return ", ".join(filter(None, told))


def _or(values: Iterable[str]) -> str:
    return " or ".join(filter(None, _distinct(values)))


def _span(counts: Iterable[int | None]) -> str:
    """`36,682`, or `36,682 to 102,474`."""
    known = sorted({count for count in counts if count is not None})
    return " to ".join(f"{count:,}" for count in dict.fromkeys([*known[:1], *known[-1:]])) or "uncounted"
