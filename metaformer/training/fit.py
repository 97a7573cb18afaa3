"""From a configuration to trained weights: build and check the network, fit it with Lightning, test it once."""

import contextlib
import copy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from metaformer.config.extensions import metrics_asked_for
from metaformer.config.identity import flat
from metaformer.config.schema import Config
from metaformer.config.validate import plain
from metaformer.data.images import Images, check_masks, load
from metaformer.data.module import ImageData, check_reading
from metaformer.models.build import build, check_split, checkpoint_blocks, crop_of, ready
from metaformer.models.compiling import compiling, refuse_without_graph, why_not_compiled
from metaformer.models.cost import Cost, count
from metaformer.models.frozen import freeze, frozen
from metaformer.models.initial import Initialized, in_words, initialize
from metaformer.models.precision import device_of, out_of_memory
from metaformer.runs.folder import Planned
from metaformer.runs.result import Measured
from metaformer.runs.wandb_run import check_size, wandb_run
from metaformer.system.errors import ConfigError
from metaformer.system.files import replacing
from metaformer.system.machine import rank
from metaformer.system.version import library_versions
from metaformer.tasks.build import build as learner
from metaformer.tasks.classification import Classifier, build_teacher
from metaformer.tasks.learner import Learner
from metaformer.tasks.optimization import check_optimizer, try_optimizer
from metaformer.tasks.pixels import PixelScores
from metaformer.tasks.scores import Scores, check_metric
from metaformer.training import stop_and_resume
from metaformer.training.best import Best
from metaformer.training.callbacks import brought_callbacks, callbacks_of
from metaformer.training.curve_file import CurveFile
from metaformer.training.debug import one_batch
from metaformer.training.examples import examples
from metaformer.training.loggers import Steps, loggers_of
from metaformer.training.memory import forget_peak, more_parts
from metaformer.training.restored import unlike
from metaformer.training.sharding import Sharded, weights_of
from metaformer.training.step_values import StepValues
from metaformer.training.stop_and_resume import Saved
from metaformer.training.trainer import NOISE, device_name, fitting_trainer, steps_of_an_epoch, threads, workers


@dataclass
class Prepared:
    """What a run is made of. Whatever cannot work has been refused, and nothing has been written."""

    images: Images
    net: nn.Module
    teacher: nn.Module | None
    initialized: Initialized  # what recipe.initialize_from gave; empty without it


@dataclass(frozen=True)
class Tested:
    """What the test found, and the epoch whose weights were tested; None for the last one."""

    metrics: dict[str, float]
    scores: Scores | PixelScores
    epoch: int | None


def prepare(config: Config, images: Images | None = None, *, here: bool = True) -> Prepared:
    """Read the images, build the networks and try them.

    Args:
        images: those of the configuration, where they are read already.
        here: it is to train on the devices of this machine.

    Raises:
        ConfigError: something does not fit; it names the key.
    """
    recipe = config.recipe
    check_optimizer(recipe)
    images = images or load(config.data, config.runtime.cache)
    check_masks(config, images)
    check_reading(images, recipe)
    if recipe.crop >= (side := min(images.shape[1:])):  # arrays say themselves how large they are
        raise ConfigError(f"recipe.crop={recipe.crop}: expected less than the {side} pixels of an image")
    if recipe.batch > len(images.train):
        raise ConfigError(f"recipe.batch={recipe.batch}: there are {len(images.train)} training images")
    whole = steps_of_an_epoch(config.trainer.get("limit_train_batches", 1.0), len(images.train), recipe)
    if recipe.steps is None and recipe.validate_steps is not None and recipe.validate_steps < whole:
        has = f"an epoch, at whose end it is validated, has {whole} steps"
        expected = f"expected at least {whole}, or recipe.steps=NUMBER, whose epochs follow recipe.validate_steps"
        raise ConfigError(f"recipe.validate_steps={recipe.validate_steps}: {has}; {expected}")
    for key, metric in metrics_asked_for(config).items():
        check_metric(key, metric, images)
    net = build(
        config.model, config.mixer, config.seed, shape=images.shape, classes=len(images.classes), task=config.task
    )
    source, stages = recipe.initialize_from, recipe.initialize_stages
    initialized = initialize(net, source, stages) if source else {}
    if source and (other := unlike(source, config)):
        initialized["unlike the file"] = other
    freeze(net, recipe.freeze)
    if untrained := [name for name in initialized.get("new", []) if frozen(net, name)]:
        initialized["new and frozen"] = untrained
    net = ready(net, images.sample())
    check_size(config.logger, sum(v.numel() * v.element_size() for v in net.state_dict().values()), "this model")
    if config.runtime.checkpoint_blocks:
        checkpoint_blocks(net)
    on_cpu = here and device_of(config.runtime.accelerator).type == "cpu"
    try_optimizer(net, recipe, on_cpu=on_cpu)
    check_split(net, config, config.runtime.parts)
    ImageData(images, recipe, config.seed)  # refuses what the transforms cannot do
    if here and config.debug.mode not in ("profile", "batch"):  # which have no Trainer
        folder = Path(config.runtime.runs)  # nothing is written; it refuses devices, flags, callbacks and loggers
        brought, loggers = brought_callbacks(config), loggers_of(config, folder)
        epochs = recipe.epochs_on(len(images.train))
        fitting_trainer(config, recipe, brought, loggers, epochs=epochs, parts=1, folder=folder, show=False)
    return Prepared(images, net, build_teacher(recipe.distill, images), initialized)


def fit(planned: Planned, prepared: Prepared, *, jobs: int, show: bool) -> Measured | None:
    """Train from the start or from the newest checkpoint, then test once; None in all processes but the first.

    Where the device is too small for a batch, `runtime.accumulate=auto` tries again with twice as many parts; where a
    network cannot be compiled, it is trained as it is, and the result says so.

    Args:
        jobs: how many runs share the cores of this machine.
        show: a progress bar.
    """
    config = planned.config
    parts, compiled = config.runtime.parts, config.runtime.compile
    again = config.runtime.processes == 1 and (config.runtime.accumulate == "auto" or compiled)
    initial = copy.deepcopy(prepared.net.state_dict()) if again else {}
    if prepared.initialized and rank() == 0:
        print(in_words(str(config.recipe.initialize_from), prepared.initialized))
    while True:
        forget_peak()
        try:
            return _fit(planned, prepared, jobs=jobs, show=show, parts=parts, compiled=compiled)
        except RuntimeError as error:
            refuse_without_graph(error)
            reason = why_not_compiled(error) if compiled else None
            if reason and not again:
                told = f"this network cannot be compiled ({reason}); expected false, as it is on several devices"
                raise ConfigError(f"runtime.compile=true: {told}") from error
            if reason:
                print(f"runtime.compile=true: this network cannot be compiled ({reason}); training it as it is",
                      file=sys.stderr)  # fmt: skip
                compiled = False
            elif out_of_memory(error):
                saved = stop_and_resume.read(planned.folder)
                parts = more_parts(config, parts, saved.accumulate if saved else None)
            else:
                raise
        prepared.net.load_state_dict(initial)
        prepared.net.zero_grad()


def _fit(planned: Planned, prepared: Prepared, *, jobs: int, show: bool, parts: int, compiled: bool) -> Measured | None:
    config, debug = planned.config, planned.config.debug.mode
    images, recipe, net, main = prepared.images, config.recipe, prepared.net, rank() == 0
    saved = stop_and_resume.read(planned.folder) if main else None
    if saved is not None:
        stop_and_resume.check_parts(saved, config)
    kept: dict[str, int] = {}  # what a checkpoint has beside the weights: told as soon as all devices know it
    if debug == "overfit":
        images, recipe = one_batch(images, recipe)
    cost = count(net, images.shape)
    kind = Sharded if config.runtime.strategy == "fsdp" else Classifier
    module = learner(replace(config, recipe=recipe), net, images, prepared.teacher, kind)
    module.save_hyperparameters({}, logger=False)  # loggers get the configuration flat, by training.loggers
    data = ImageData(
        images,
        recipe,
        config.seed,
        augment=debug != "overfit",
        crop_pct=crop_of(config.model),
        workers=workers(config.runtime, jobs),
    )
    with wandb_run(planned, saved.step if saved else 0) if main else contextlib.nullcontext() as mirror:
        curve = CurveFile(planned.folder, mirror, config.task.name)
        callbacks = [curve, *callbacks_of(planned.folder, config, kept, show=show and main)]
        if config.logger.wandb and config.logger.every:  # on all devices: the norm may be that of parts
            callbacks.append(StepValues(planned.folder, mirror, config.logger.every, recipe.batch))
        if loggers := loggers_of(config, planned.folder):
            callbacks.append(Steps({**planned.choices, **flat(config)}, f"val_{config.task.leading}"))
        callbacks += brought_callbacks(config)
        epochs = recipe.epochs_on(len(images.train))
        trainer = fitting_trainer(
            config, recipe, callbacks, loggers, epochs=epochs, parts=parts, folder=planned.folder, show=show and main
        )
        trainer.strategy.connect(module)  # FSDP meets around it
        saved = stop_and_resume.agreed(trainer, saved)
        kept["threads"] = saved.threads if saved else threads(config.runtime, jobs)
        kept["accumulate"] = trainer.accumulate_grad_batches = saved.accumulate if saved else parts
        limit = trainer.limit_train_batches
        if isinstance(limit, int) or limit < 1:
            trainer.limit_train_batches = steps_of_an_epoch(limit, len(images.train), recipe) * kept["accumulate"]
        torch.set_num_threads(kept["threads"])
        check_split(net, config, kept["accumulate"])
        with compiling(net, compiled, planned.cell_id, graph=config.runtime.graph):
            tested = _train_and_test(trainer, module, data, saved, curve)
        weights = weights_of(net)
        if not main:
            return None
        measured = _measured(curve.rows(), tested, cost, trainer, images, compiled=compiled, **kept)
        measured = replace(measured, initialized=prepared.initialized)
        if debug == "none":
            keep(planned.folder, config, weights, tested.scores, images)
        if mirror is not None:
            mirror.summarise(measured)
            mirror.show(lambda: examples(images, tested.scores))
            if config.logger.weights:
                mirror.keep(planned.folder / "weights.pt")
    return measured


def _train_and_test(
    trainer: L.Trainer, module: Learner, data: ImageData, saved: Saved | None, curve: CurveFile
) -> Tested:
    """Fit, put the weights in place that are to be tested, and test them."""
    metrics: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOISE)
        try:
            with stop_and_resume.listening(trainer):
                trainer.fit(module, data, ckpt_path=saved.path if saved else None, weights_only=True)
                for average in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(average, EMAWeightAveraging):  # also where nothing was left to train
                        average.on_train_end(trainer, module)
                best = next((c for c in trainer.callbacks if isinstance(c, Best) and c.weights), None)  # type: ignore[attr-defined]
                if best is not None:
                    best.restore(module.net)
                elif trainer.limit_val_batches and trainer.strategy.broadcast(not curve.ends_validated()):
                    metrics |= trainer.validate(module, data, verbose=False)[0]  # a callback has ended the training
                metrics |= trainer.test(module, data, verbose=False)[0]
        except SystemExit as stopped:
            if stopped.code == 1:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from stopped
            raise
    assert module.scores is not None
    return Tested(metrics, module.scores, best.epoch if best else None)


def _measured(
    rows: list[dict[str, str]],
    tested: Tested,
    cost: Cost,
    trainer: L.Trainer,
    images: Images,
    *,
    compiled: bool,
    threads: int,
    accumulate: int,
) -> Measured:
    epoch, device = tested.epoch or len(rows), trainer.strategy.root_device
    trained = {k: float(v) for k, v in rows[epoch - 1].items() if k.startswith(("train_", "val_")) and v}
    return Measured(
        metrics=trained | tested.metrics,
        recall=dict(zip(images.classes, tested.scores.recall(), strict=True)),
        confusion=tested.scores.confusion().tolist(),
        params=cost.params,
        trainable=cost.trainable,
        macs=cost.macs,
        uncounted_ops=cost.uncounted,
        epochs=len(rows),
        tested_epoch=epoch,
        images=len(images.train),
        tested_images=tested.scores.images,
        seconds=round(sum(float(row["seconds"]) for row in rows), 3),
        threads=threads,
        devices=trainer.world_size,
        accumulate=accumulate,
        device=device_name(device),
        compiled=compiled,
        versions=library_versions() | ({"cuda": str(torch.version.cuda)} if device.type == "cuda" else {}),
    )


def keep(
    folder: Path, config: Config, weights: Mapping[str, Tensor], scores: Scores | PixelScores, images: Images
) -> None:
    """Write the weights (a state_dict and plain data), and what the network says of the test images."""
    with replacing(folder / "predictions.npz") as part:
        np.savez_compressed(part, **scores.kept(images))  # type: ignore[arg-type]
    pixels = {"mean": images.mean, "std": images.std, "shape": list(images.shape)}
    content = {"state_dict": weights, "config": plain(config), "classes": images.classes, **pixels}
    with replacing(folder / "weights.pt") as part, part.open("wb") as file:
        torch.save(content, file)  # to a file that is open a full disk is an OSError
