"""From a configuration to the LightningModule that trains or evaluates its network."""

from torch import nn

from metaformer.config.schema import Config
from metaformer.data.images import Images
from metaformer.tasks.classification import Classifier
from metaformer.tasks.learner import Learner, balanced_weights
from metaformer.tasks.segmentation import Segmenter


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
    weights = balanced_weights(images.class_counts) if balanced else None
    classes, seed = len(images.classes), config.seed
    if config.task.segments:
        dice = config.task.dice
        return Segmenter(net, config.recipe, classes=classes, seed=seed, class_weights=weights, dice=dice)
    return classifier(net, config.recipe, classes=classes, seed=seed, teacher=teacher, class_weights=weights)
