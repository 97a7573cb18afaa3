"""An encoder and a decoder: the class of each pixel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from metaformer.config.tasks import Task
from metaformer.models.decoders import DECODERS, GROUPS, resized
from metaformer.models.ends import first_convs
from metaformer.models.metaformer import MetaFormer, undecayed
from metaformer.system.errors import ConfigError
from metaformer.system.seeds import seeded

T = TypeVar("T")
FINEST = 4  # of timm's models, which have maps of their stems too; a U-Net looks at all


class Pyramid(nn.Module):
    """The maps of a MetaFormer's stages, each after a norm of its own, as in the official code for dense prediction.

    The classifier and the norm before it are left out.
    """

    def __init__(self, net: MetaFormer) -> None:
        super().__init__()
        net.norm = net.head = nn.Identity()
        self.net = net
        self.norms = nn.ModuleList(net.make_norm(info["num_chs"]) for info in net.feature_info)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.net.forward_intermediates(x, intermediates_only=True)
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class EncoderDecoder(nn.Module):
    """[B, in_chans, H, W] -> logits [B, classes, H, W], bilinear from the size of the finest map.

    Args:
        encoder: puts out a list of maps, the finest first.
        dims, reductions: channels and strides of the maps.
        first: the convolutions of the encoder that see the image; `pretrained_cfg` names them as timm does.
        skipped: how many of the finest maps the decoder does not look at.

    Raises:
        ConfigError: the maps are no pyramid.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dims: Sequence[int],
        reductions: Sequence[int],
        task: Task,
        classes: int,
        seed: int,
        first: Sequence[str],
        skipped: int = 0,
    ) -> None:
        super().__init__()
        if len(dims) - skipped < 2 or sorted(set(reductions)) != list(reductions):
            strides = ", ".join(map(str, reductions))
            raise ConfigError(
                f"task.decoder={task.decoder}: needs a model whose stages get coarser, and those here have strides of "
                f"{strides}; expected a hierarchical one, like model=s12 or model=tiny_pyramid"
            )
        self.encoder, self.skipped, self.num_classes, self.stride = encoder, skipped, classes, reductions[-1]
        self.pretrained_cfg = {"classifier": "classifier", "first_conv": tuple(f"encoder.{name}" for name in first)}
        with seeded(seed, "decoder"):
            self.decoder = DECODERS[task.decoder](dims[skipped:], reductions[skipped:], task.width)
            self.classifier = nn.Conv2d(task.width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder(x)[self.skipped :]
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":  # some of timm's
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return resized(self.classifier(self.decoder(maps)), x.shape[2:])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters of the encoder belong to which depth, for layer-wise rates; all else has the whole rate."""
        if not isinstance(self.body, MetaFormer):
            raise ConfigError("recipe.optimizer_options.layer_decay: is for encoders of this package, not for timm's")

        def inside(pattern: str) -> str:
            return pattern.replace("^", r"^encoder\.net\.")

        own = self.body.group_matcher(coarse)
        blocks = own["blocks"]
        blocks = inside(blocks) if coarse else [(inside(pattern), order) for pattern, order in blocks]
        return {"stem": inside(own["stem"]), "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """As that of a MetaFormer: what modules of the encoder name."""
        return undecayed(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models have it: of the encoder."""
        self.body.set_grad_checkpointing(enable)

    @property
    def body(self) -> Any:
        """The encoder's model, whose weights may come from classification."""
        return self.encoder.net if isinstance(self.encoder, Pyramid) else self.encoder


def check_norms(net: EncoderDecoder, task: Task, size: Sequence[int]) -> None:
    """A ConfigError where a norm of the decoder would see a single number of an image, and make nothing of it.

    Args:
        size: height and width of an image.
    """
    single = math.gcd(GROUPS, task.width) == task.width and all(side <= net.stride for side in size)
    if task.decoder == "fpn" and single:
        told = f"the coarsest map of {size[0]} x {size[1]} pixels is one token, and a norm has one channel"
        raise ConfigError(f"task.width={task.width}: {told}; expected {2 * GROUPS}, or task.decoder=mlp")


def over_metaformer(net: MetaFormer, task: Task, classes: int, seed: int) -> EncoderDecoder:
    """A segmenter whose encoder is a MetaFormer."""
    dims, reductions = ([info[key] for info in net.feature_info] for key in ("num_chs", "reduction"))
    return EncoderDecoder(Pyramid(net), dims, reductions, task, classes, seed, ["net.stem.conv"])


def over_timm(encoder: nn.Module, task: Task, classes: int, seed: int) -> EncoderDecoder:
    """A segmenter whose encoder is a model of timm made with `features_only`."""
    info: Any = encoder.feature_info
    skipped = 0 if task.decoder == "unet" else sum(reduction < FINEST for reduction in info.reduction())
    named = in_features(dict.fromkeys(f"{name}.weight" for name in first_convs(encoder)), encoder)
    first = [key.removesuffix(".weight") for key in named]
    return EncoderDecoder(encoder, info.channels(), info.reduction(), task, classes, seed, first, skipped)


def in_features(named: Mapping[str, T], features: nn.Module) -> dict[str, T]:
    """What has the names of a timm model, under those that it has when it is made with `features_only`.

    There `layers.0` is `layers_0`, or everything is below `model.`; what has no place there keeps its name.
    """
    places = {key.removeprefix("model.").replace(".", "_"): key for key in features.state_dict()}
    return {places.get(key.replace(".", "_"), key): value for key, value in named.items()}
