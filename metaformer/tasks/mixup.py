"""Images mixed with each other: Mixup and CutMix."""

from timm.data import Mixup

from metaformer.config.schema import Recipe


def mixup_of(recipe: Recipe, classes: int) -> Mixup | None:
    """timm's Mixup and CutMix, one of them for each batch, with label smoothing in their targets; None without."""
    if not recipe.mixes:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )
