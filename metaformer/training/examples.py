"""Test images with what a trained network says of them, for a page that people look at."""

import torch.nn.functional as F
from PIL.Image import Image

from metaformer.data.images import Images
from metaformer.tasks.scores import Scores

MOST = 16  # of each kind


def examples(images: Images, scores: Scores) -> dict[str, list[tuple[Image, str]]]:
    """Images with captions: some that are the same for every run of a data set, and those with the largest loss."""
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
