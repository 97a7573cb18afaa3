"""Images and their masks, resized, cut, mirrored and coloured as one by torchvision's transforms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from metaformer.config.schema import Recipe
from metaformer.config.tasks import IGNORED
from metaformer.data.batches import Transformed
from metaformer.data.splits import Split
from metaformer.system.errors import ConfigError


def joint_transform(
    recipe: Recipe, shape: tuple[int, int, int], pixels: Mapping[str, Sequence[float]], short: int
) -> Any:
    """Random crop of another scale, flip and colour jitter of an image and its mask, whose pixels are the nearest.

    Args:
        shape: channels, height and width of what the network sees.
        pixels: `mean` and `std` of each channel, from 0 to 1.
        short: the shorter side of the images, in pixels.
    """
    channels, *size = shape
    steps: list[Any]
    if recipe.resize is not None:
        shortest, longest = (max(1, round(factor * short)) for factor in recipe.resize)
        beside = {tv_tensors.Mask: IGNORED, "others": [round(255 * mean) for mean in pixels["mean"]]}
        steps = [
            v2.RandomResize(shortest, longest + 1, interpolation=InterpolationMode.BICUBIC),
            v2.RandomCrop(size, pad_if_needed=True, fill=beside),
        ]
    else:
        least, most = recipe.scale or (1, 1)
        steps = [v2.RandomResizedCrop(size, scale=(least, most), interpolation=InterpolationMode.BICUBIC)]
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    if (jitter := recipe.color_jitter) is not None:
        if channels != 3:
            raise ConfigError(f"recipe.color_jitter={jitter}: needs images in colour")
        steps.append(v2.ColorJitter(*(jitter if isinstance(jitter, list) else 3 * [jitter])))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**pixels)])


class TransformedPairs(Transformed):
    """The images of a split with masks in memory, with their masks [H, W] uint8, at (epoch, place)."""

    split: Split

    def item(self, row: int) -> tuple[Tensor, Tensor]:
        image: Image = self.split.read(row)
        mask = tv_tensors.Mask(self.split.targets(torch.tensor(row)))
        seen, labels = self.transform(image, mask)
        return seen.as_subclass(Tensor), labels.as_subclass(Tensor)
