"""The layers at the two ends of a network, which change with the channels of images and with the number of classes."""

from collections.abc import Mapping, Sequence

from timm.models import adapt_input_conv
from torch import Tensor, nn

from metaformer.models.metaformer import MetaFormer


def first_convs(net: nn.Module) -> tuple[str, ...]:
    """The names of the convolutions that see the image."""
    if isinstance(net, MetaFormer):
        return ("stem.conv",)
    return _names(getattr(net, "pretrained_cfg", {}).get("first_conv"))


def adapt_stem(weights: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights for images in colour, for grey ones or for more channels, by timm's rule."""
    own, adapted = net.state_dict(), {}
    for key in (f"{name}.weight" for name in first_convs(net)):
        if key in own and key in weights and own[key].ndim == 4 and weights[key].shape[1] == 3:
            adapted[key] = adapt_input_conv(own[key].shape[1], weights[key])
    return weights | adapted


def classifiers(net: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the logits."""
    if isinstance(net, MetaFormer):
        return ("head.fc2" if net.mlp_head else "head",)
    return _names(net.pretrained_cfg["classifier"])  # type: ignore[index, arg-type]


def classes_of(weights: Mapping[str, Tensor], heads: Sequence[str] = ("head",)) -> int:
    """How many classes the classifier in a state dict tells apart; 0 where there is none."""
    keys = [f"{head}{inner}.weight" for head in heads for inner in ("", ".fc2")]
    return next((len(weights[key]) for key in keys if key in weights), 0)


def _names(told: str | Sequence[str] | None) -> tuple[str, ...]:
    """What timm's `pretrained_cfg` tells: one name, several or none."""
    return (told,) if isinstance(told, str) else tuple(told or ())
