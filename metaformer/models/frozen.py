"""Parts of a network that are not trained."""

from torch import nn

from metaformer.config.training_rules import frozen_stages
from metaformer.models.encoder_decoder import EncoderDecoder
from metaformer.models.metaformer import MetaFormer
from metaformer.system.errors import ConfigError


def freeze(net: nn.Module, which: str) -> list[nn.Module]:
    """Take the gradients from the stem, or from stem and stages 1 to N; returns these parts.

    Who trains the network keeps them in eval mode, so that norms keep their statistics and nothing is dropped.

    Args:
        which: `none`, `stem`, or `stages1-N`.

    Raises:
        ConfigError: the model has no such parts, or nothing is left to train.
    """
    if (stages := frozen_stages(which)) is None:
        return []
    whole, net = net, net.body if isinstance(net, EncoderDecoder) else net
    if not isinstance(net, MetaFormer):
        raise ConfigError(f"recipe.freeze={which}: is for a model of this package; for one of timm expected none")
    if stages > len(net.stages):
        raise ConfigError(f"recipe.freeze={which}: the model has {len(net.stages)} stages")
    parts = [net.stem, *net.stages[:stages]]
    for part in parts:
        part.requires_grad_(False)
    if not any(weight.requires_grad for weight in whole.parameters()):
        raise ConfigError(f"recipe.freeze={which}: nothing is left to train")
    return parts


def frozen(net: nn.Module, name: str) -> bool:
    """Whether nothing is trained of what has this name, a module or a tensor, or begins with it."""
    own = [p for key, p in net.named_parameters() if key == name or key.startswith(f"{name}.")]
    return bool(own) and not any(p.requires_grad for p in own)
