"""From a configuration to a network that is about to train."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from traceback import extract_tb
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from metaformer.config.schema import Architecture, Config, Model
from metaformer.config.tasks import Task
from metaformer.config.validate import plain, structure
from metaformer.mixers.factory import from_config
from metaformer.models.block import MetaFormerBlock
from metaformer.models.encoder_decoder import EncoderDecoder, check_norms, over_metaformer, over_timm
from metaformer.models.metaformer import MetaFormer
from metaformer.models.zoo import CROP_PCT, create, find
from metaformer.system.errors import ConfigError, by_closeness
from metaformer.system.seeds import seeded

CLASSIFIES = Task()
Shape = tuple[int, int, int]  # channels, height and width of an image


def build(model: Model, mixer: Any, seed: int, *, shape: Shape, classes: int, task: Task = CLASSIFIES) -> nn.Module:
    """The network for such images: a MetaFormer with its mixer, a published model, or one of timm.

    Args:
        model, mixer, task: the nodes of a configuration. A segmenter has the model as its encoder.

    Raises:
        ConfigError: model, mixer and images do not fit together.
    """
    if task.segments:
        segmenter = _segmenter(model, mixer, seed, shape, classes, task)
        check_norms(segmenter, task, shape[1:])
        told = {"model": plain(model), "mixer": mixer, "seed": seed, "shape": list(shape), "task": plain(task)}
        segmenter.made_of = told  # type: ignore[assignment]
        return segmenter
    own: dict[str, Any] = {"in_chans": shape[0], "num_classes": classes}
    rates = {key: rate for key in ("drop_path", "head_dropout") if (rate := getattr(model, key)) is not None}
    try:
        if model.source == "timm":
            with seeded(seed, "net"):
                net = _timm_model(str(model.name), shape[1:], rates, **own)
            net.made_of = {"model": plain(model), "mixer": mixer, "seed": seed, "shape": list(shape)}  # type: ignore[assignment]
            return net
        own |= {"img_size": shape[1:], "seed": seed}
        if model.source == "zoo":
            return create(str(model.name), **own, **rates)
        options = {f.name: getattr(model, f.name) for f in fields(Architecture)}
        return MetaFormer(from_config(mixer, len(model.depths)), **own, **options)
    except ConfigError:
        raise
    except Exception as error:  # whatever a constructor raises
        if type(error) is ValueError:
            raise ConfigError(f"model or mixer cannot be made: {error}") from error
        last = extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
        raise ConfigError(f"model or mixer cannot be made: {what}; HYDRA_FULL_ERROR=1 shows the traceback") from error


def _segmenter(model: Model, mixer: Any, seed: int, shape: Shape, classes: int, task: Task) -> EncoderDecoder:
    if model.source == "timm":
        name = _known_to_timm(str(model.name))
        rates = {} if model.drop_path is None else {"drop_path_rate": model.drop_path}
        try:
            with seeded(seed, "net"):
                encoder = _sized(name, shape[1:], features_only=True, in_chans=shape[0], **rates)
        except (RuntimeError, AttributeError, AssertionError, KeyError, TypeError) as error:
            told = f"gives no maps of its stages for task=segmentation ({type(error).__name__}: {error})"
            raise ConfigError(f"model.name={name}: {told}") from error
        return over_timm(encoder, task, classes, seed)
    encoder = build(model, mixer, seed, shape=shape, classes=0)
    assert isinstance(encoder, MetaFormer)
    return over_metaformer(encoder, task, classes, seed)


def described(net: nn.Module) -> dict[str, Any] | None:
    """Plain data from which `rebuilt` makes the same network; None where nothing says how it was made."""
    made = getattr(net, "made_of", None)
    return {**made, "classes": net.num_classes} if made else None


def rebuilt(description: Mapping[str, Any]) -> nn.Module:
    """The network that `described` describes, with its first weights."""
    told = dict(description)
    model, shape = structure(Model, told.pop("model"), "model."), tuple(told.pop("shape"))
    task = structure(Task, told.pop("task", {}), "task.")
    return build(model, shape=shape, task=task, **told)


def on_meta(model: Model, mixer: Any, *, shape: Shape, classes: int, task: Task = CLASSIFIES) -> nn.Module:
    """The same network without any memory, to be counted."""
    with torch.device("meta"):
        return build(model, mixer, 0, shape=shape, classes=classes, task=task)


def ready(net: nn.Module, sample: Tensor) -> nn.Module:
    """The network about to train: in channels_last, tried on two images."""
    if lazy := next((name for name, p in net.named_parameters() if isinstance(p, UninitializedParameter)), None):
        raise ConfigError(f"{lazy}: a lazy module has no weights before its first input; expected one with its sizes")
    net = net.to(memory_format=torch.channels_last)
    try_on(net, sample)
    return net


def _known_to_timm(name: str) -> str:
    if not timm.is_model(name):
        nearest = ", ".join(by_closeness(name, timm.list_models())[:5])
        raise ConfigError(f"model.name={name}: no such model of timm; nearest: {nearest}")
    return name


def _timm_model(name: str, size: tuple[int, ...], rates: Mapping[str, float], **options: Any) -> nn.Module:
    _known_to_timm(name)
    theirs = {"drop_path": "drop_path_rate", "head_dropout": "drop_rate"}
    options |= {theirs[key]: rate for key, rate in rates.items()}
    try:
        return _sized(name, size, **options)
    except TypeError as error:
        raise ConfigError(f"model.name={name}: {error}") from error


def _sized(name: str, size: tuple[int, ...], **options: Any) -> nn.Module:
    """A model of timm for images of this height and width, which only some have to know."""
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)


def crop_of(model: Model) -> float:
    """The evaluation crop: the share of the short side that the square takes."""
    if model.crop_pct is not None:
        return model.crop_pct
    if model.source == "zoo":
        return find(str(model.name)).crop_pct
    if model.source == "timm":
        return getattr(get_pretrained_cfg(str(model.name)), "crop_pct", CROP_PCT)
    return CROP_PCT


def checkpoint_blocks(net: nn.Module) -> None:
    """Have the insides of blocks computed again in the backward pass: less memory, the same gradients.

    Raises:
        ConfigError: a model that cannot, or whose running statistics a second pass would move once more.
    """
    key = "runtime.checkpoint_blocks=True"
    if (name := _batch_norm(net)) is not None:
        raise ConfigError(f"{key}: {name} is a BatchNorm, whose statistics would take each batch in twice")
    try:
        net.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:  # of timm's models not all can
        raise ConfigError(f"{key}: {type(net).__name__} cannot; expected false") from error


def check_split(net: nn.Module, config: Config, parts: int) -> None:
    """A ConfigError where a BatchNorm would see less than the batch of the recipe.

    Its statistics would depend on the split, and so would the result, of which the id of a run says nothing.
    """
    apart = parts * (1 if config.trainer.get("sync_batchnorm") else config.runtime.processes)
    if apart > 1 and (name := _batch_norm(net)) is not None:
        raise ConfigError(
            f"runtime.devices, runtime.accumulate: {name} is a BatchNorm, and each of {apart} parts of a batch would "
            "have its own statistics; expected 1 of both, or several GPUs with trainer.sync_batchnorm=true"
        )


def _batch_norm(net: nn.Module) -> str | None:
    """The place of the first BatchNorm, or None."""
    return next((name for name, module in net.named_modules() if isinstance(module, _BatchNorm)), None)


def try_on(net: nn.Module, images: Tensor) -> None:
    """Run a network once in evaluation mode, and leave it in training mode.

    Raises:
        ConfigError: it fails, or one of its mixers breaks the contract.
    """
    blocks = {name: module for name, module in net.named_modules() if isinstance(module, MetaFormerBlock)}
    try:
        with torch.no_grad(), contract({name: block.mixer for name, block in blocks.items()}):
            net.eval()(images)
    except ConfigError:
        raise
    except Exception as error:  # whatever a foreign mixer or model raises
        raise ConfigError(f"the model fails on its first batch: {type(error).__name__}: {error}") from error
    net.train()


@contextmanager
def contract(mixers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While a model runs, see that its mixers, by their places, do what the contract wants.

    Raises:
        ConfigError: one that crashes, writes to its input, draws at random in evaluation, or returns another shape or
            dtype, NaN or infinity.
    """
    running: list[tuple[str, nn.Module, Tensor]] = []

    def enter(place: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda mixer, inputs: running.append((f"{type(mixer).__name__} at {place}", mixer, inputs[0].clone()))

    def leave(mixer: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        name, _, given = running.pop()
        wanted, got = list(given.shape), list(getattr(output, "shape", []))
        if got != wanted:
            raise ConfigError(f"mixer {name} returned {got or type(output).__name__}, expected {wanted}")
        if output.dtype != given.dtype:
            raise ConfigError(f"mixer {name} returned {output.dtype}, expected {given.dtype}")
        if not torch.equal(inputs[0], given):
            raise ConfigError(f"mixer {name} wrote to its input, expected that it is left as it was")
        if not output.isfinite().all():
            raise ConfigError(f"mixer {name} returned NaN or infinity, expected finite numbers")
        if not torch.allclose(mixer.forward(given), output, rtol=1e-3, atol=1e-4):
            told = "what it draws is to be drawn in training only (self.training)"
            raise ConfigError(f"mixer {name} returned something else for the same input in evaluation; {told}")

    hooks = [m.register_forward_pre_hook(enter(place)) for place, m in mixers.items()]
    hooks += [m.register_forward_hook(leave) for m in mixers.values()]
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not running:
            raise
        name, mixer, given = running[-1]
        path = f"{type(mixer).__module__}.{type(mixer).__name__}"
        raise ConfigError(
            f"mixer {name} fails on {list(given.shape)}: {type(error).__name__}: {error}; expected [B, C, H, W] -> the "
            f"same shape (python -m metaformer.check {path} tells more)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
