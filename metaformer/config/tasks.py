"""What is learned: the class of an image, or that of each of its pixels. Imports no torch."""

from dataclasses import dataclass

from metaformer.config.fields import choice, number, share

IGNORED = 255  # the label of a pixel that has no class, once its mask is read
FILLED = 254  # that of all pixels of an image that only fills up a batch, on several devices
MOST_CLASSES = 254  # of pixels


@dataclass
class Task:
    """The `task` node. The keys beside `name` are those of segmentation."""

    name: str = choice("classification", "segmentation")  # of images, or of each pixel
    # Semantic FPN (arXiv:1901.02446); all-MLP of SegFormer (arXiv:2105.15203); U-Net (arXiv:1505.04597)
    decoder: str = choice("fpn", "mlp", "unet")
    width: int = number(64, at_least=1, at_most=65_536)  # channels of the decoder
    dice: float = share(0.0)  # weight of the soft Dice loss; the rest is that of cross-entropy

    @property
    def segments(self) -> bool:
        """Whether each pixel has a class, and not the image."""
        return self.name == "segmentation"

    @property
    def leading(self) -> str:
        """The metric that is told first, by its own name."""
        return "mean_iou" if self.segments else "accuracy"

    @property
    def accuracy(self) -> str:
        """The share of images, or of pixels, that are right, by its own name."""
        return "pixel_accuracy" if self.segments else "accuracy"
