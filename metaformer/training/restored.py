"""A trained network for other programs: with its classes and its way of seeing images, without its data set.

    trained = metaformer.load("runs/RUN")
    probabilities = trained.net(trained.transform(image)[None]).softmax(1)

The network is in eval mode; an image may be of any mode and size.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from metaformer.config.identity import unfolded
from metaformer.config.schema import COLOURS, Config, Data
from metaformer.config.validate import structure
from metaformer.data.decoding import fit, plain
from metaformer.data.module import evaluation_transform, normalisation
from metaformer.data.registry import find, shape, size_of
from metaformer.models import weights
from metaformer.models.build import Shape, build, crop_of
from metaformer.models.metaformer import MetaFormer
from metaformer.runs.finished import finished
from metaformer.system.errors import ConfigError

KEPT = ("state_dict", "config", "classes", "mean", "std")  # of the weights.pt of a run


@dataclass(frozen=True)
class Transform:
    """A PIL image of any mode and size -> [C, H, W] fp32, as the network saw the images of its test.

    Or an array [H, W, C] uint8 of the size of the run: of more channels than colours there is no other image.
    """

    data: Data  # channels and range of the pixels
    size: tuple[int, int]
    mean: Tensor  # of each channel, from 0 to 255
    std: Tensor
    streamed: Any = None  # timm's transform, where images were read one at a time
    decoded: tuple[int, int] | None = None  # height and width that photographs were decoded to before it

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """As the class says; a ConfigError where an array has another shape."""
        if isinstance(image, np.ndarray):
            expected = (*self.size, len(self.mean))
            if image.shape != expected or image.dtype != np.uint8:
                raise ConfigError(f"image: {image.dtype} {image.shape}; expected an array of uint8 {expected}")
            return normalised(torch.from_numpy(image).permute(2, 0, 1), self.mean, self.std)
        if len(self.mean) not in COLOURS:
            raise ConfigError(f"image: {image.mode}; expected an array [H, W, {len(self.mean)}] uint8")
        whole = plain(ImageOps.exif_transpose(image), "image", self.data)
        if self.streamed is not None:
            return torch.as_tensor(self.streamed(fit(whole, self.decoded) if self.decoded else whole))
        return normalised(pil_to_tensor(fit(whole, self.size)), self.mean, self.std)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """[C, H, W] from 0 to 255 -> fp32, zero mean and unit variance per channel."""
    return (pixels.float() - mean[:, None, None]) / std[:, None, None]


@dataclass(frozen=True)
class Trained:
    """A trained network, in eval mode and channels_last."""

    net: nn.Module
    classes: list[str]
    transform: Transform
    config: Config
    shape: tuple[int, int, int]  # of the images that the network takes: channels, height, width


def load(source: str | Path, name: str | None = None, **options: Any) -> Trained | MetaFormer:
    """A finished run by its folder, its weights.pt or its export as safetensors.

    Or a published model.

    Args:
        name, options: of a published model alone, as in `metaformer.weights.load`.

    Raises:
        ConfigError: there is no such run, or the file cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        finished(path)
        path = path / "weights.pt"
    if not path.exists() and len(path.parts) > 1:  # a single word may be the name of a published model
        raise ConfigError(f"{path}: no such file or folder")
    saved = read_kept(path) if path.exists() else None
    if saved is None:
        return weights.load(source, name, **options)
    if name is not None or options:
        words = ", ".join(["name"] if name else list(options))
        raise ConfigError(f"{path}: is a run, which knows its model; {words} belongs to a published one")
    return trained_from(saved, path)


def load_run(folder: Path) -> Trained:
    """`load` of a finished run alone."""
    trained = load(folder)
    assert isinstance(trained, Trained)
    return trained


def read_kept(path: str | Path) -> Mapping[str, Any] | None:
    """The contents of a file of weights, where this package wrote it: of a run, or exported as safetensors."""
    try:
        if Path(path).suffix == ".safetensors":
            saved = from_safetensors(Path(path).read_bytes())
        else:
            saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # whatever it is, it is not ours: who reads it for good will say what is wrong
        return None
    return saved if isinstance(saved, Mapping) and all(key in saved for key in KEPT) else None


def unlike(path: str | Path, config: Config) -> list[str]:
    """What a file of this package says otherwise of model and mixer, where no shape may tell.

    Like `model.norm (group there)`. Where mixers are of another kind, their options are not compared.
    """
    saved = read_kept(path)
    if saved is None:
        return []
    there, own = saved["config"]["model"], asdict(config.model)
    told = [f"model.{key} ({value} there)" for key, value in there.items() if key in own and own[key] != value]
    mine, theirs = (unfolded({"mixer": node}) for node in (config.mixer, saved["config"]["mixer"]))
    keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
    kinds = [key for key in keys if key.endswith("_target_")]
    return told + [f"{key} ({theirs.get(key, 'none')} there)" for key in kinds or keys]


def from_safetensors(content: bytes) -> Mapping[str, Any]:
    """What `python -m metaformer.export format=safetensors` writes, as the weights.pt of the run has it."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    told = {key: json.loads(value) for key, value in header["__metadata__"].items()}
    pixels = {key: torch.tensor(told[key]) for key in ("mean", "std")}
    return {"state_dict": safetensors.torch.load(content), **told, **pixels}


def fill(net: nn.Module, saved: Mapping[str, Any], path: str | Path, model: str) -> None:
    """Load the weights of a run's file into a network; a ConfigError that names the first that does not fit `model`."""
    try:
        net.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ConfigError(f"{path}: its weights do not fit {model}: {first}") from error


def trained_from(saved: Mapping[str, Any], path: str | Path) -> Trained:
    """The network that such contents describe, with their weights."""
    config, classes = structure(Config, saved["config"]), list(saved["classes"])
    data = replace(config.data, classes=len(classes))
    found: Shape = tuple(saved["shape"]) if "shape" in saved else shape(data)[0]  # older files do not say it
    net = build(config.model, config.mixer, config.seed, shape=found, classes=len(classes), task=config.task)
    fill(net, saved, path, "its model")
    mean, std = saved["mean"], saved["std"]
    streamed = decoded = None
    if config.recipe.scale is not None and not config.task.segments:
        streamed = evaluation_transform(crop_of(config.model), found, normalisation(mean, std), "bicubic")
        if data.decode == "once" and "decode" in find(data.name).reads:
            decoded = size_of(data.decoded_size or data.size)
    seen = Transform(replace(data, channels=found[0]), (found[1], found[2]), mean, std, streamed, decoded)
    return Trained(net.eval().to(memory_format=torch.channels_last), classes, seen, config, found)
