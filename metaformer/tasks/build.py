"""From a configuration to the LightningModule that trains or evaluates its network."""

from torch import nn

from metaformer.config.schema import Config
from metaformer.data.images import Images
from metaformer.system.errors import tell
from metaformer.system.machine import rank
from metaformer.tasks.classification import Classifier
from metaformer.tasks.learner import Learner, balanced_weights, favoured
from metaformer.tasks.segmentation import Segmenter

MUCH = 1.5  # times as often as a class among equals: from here on a favoured class is told


def build(
    config: Config,
    net: nn.Module,
    images: Images,
    teacher: nn.Module | None = None,
    classifier: type[Classifier] = Classifier,
    *,
    trains: bool = True,
) -> Learner:
    """What the task of a configuration learns from such images.

    Args:
        classifier: a kind of Classifier.
        trains: otherwise it needs no weights of the classes.
    """
    balanced = trains and config.recipe.class_weights == "balanced"
    weights = balanced_weights(counts := images.class_counts) if balanced else None
    classes, seed = len(images.classes), config.seed
    if weights is not None and not config.task.segments and rank() == 0:
        place, times = favoured(counts, weights, smoothing := config.recipe.label_smoothing)
        if times > MUCH:
            told = f"{images.classes[place]} is favoured {times:.1f} times by recipe.label_smoothing={smoothing:g}"
            tell(f"recipe.class_weights=balanced: {told}, whose share torch weighs by class too; 0 has none of it")
    if config.task.segments:
        dice = config.task.dice
        return Segmenter(net, config.recipe, classes=classes, seed=seed, class_weights=weights, dice=dice)
    return classifier(net, config.recipe, classes=classes, seed=seed, teacher=teacher, class_weights=weights)
