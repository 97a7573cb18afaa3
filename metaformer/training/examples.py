"""Test images with what a trained network says of them, for a page that people look at."""

import numpy as np
import torch.nn.functional as F
from PIL.Image import Image, fromarray

from metaformer.config.tasks import IGNORED
from metaformer.data.images import Images
from metaformer.tasks.pixels import PixelScores
from metaformer.tasks.scores import Scores

MOST = 16  # of each kind


def examples(images: Images, scores: Scores | PixelScores) -> dict[str, list[tuple[Image, str]]]:
    """Images with captions: some that are the same for every run of a data set, and those with the largest loss.

    Of segmentation the first ones, beside their masks and what was predicted.
    """
    if isinstance(scores, PixelScores):
        return _segmented(images, scores)
    every, worst = -(-len(scores.labels) // MOST), F.cross_entropy(scores.logits, scores.labels, reduction="none")
    kinds = {
        "examples/same": range(0, len(scores.labels), every),
        "examples/worst": worst.argsort(descending=True)[:MOST].tolist(),
    }
    shares = scores.logits.softmax(1)

    def caption(row: int) -> str:
        true, said = int(scores.labels[row]), int(shares[row].argmax())
        what = "right" if said == true else f"is {images.classes[true]}"
        return f"{images.classes[said]} {shares[row, said]:.0%}, {what}"

    return {kind: [(images.test.read(row), caption(row)) for row in rows] for kind, rows in kinds.items()}


def _segmented(images: Images, scores: PixelScores) -> dict[str, list[tuple[Image, str]]]:
    first = scores.answers(images).examples
    assert first is not None
    rows = zip(first.images, first.masks, first.predictions, strict=True)
    grey = 255 // max(len(images.classes) - 1, 1)
    pictures = [
        np.concatenate([image.mean(2), *(np.where(labels == IGNORED, 0, grey * labels) for labels in pair)], axis=1)
        for image, *pair in rows
    ]
    caption = "image, mask, prediction"
    return {"examples/segmented": [(fromarray(picture.astype(np.uint8)), caption) for picture in pictures]}
