"""What each test image gives to a metric of segmentation: jackknife pseudo-values, as in `terms`. No torch."""

from collections.abc import Callable

import numpy as np


def terms_of_pixels(name: str, counts: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """[images] float64 of a metric by its own name, as a fraction.

    Args:
        counts: [images, classes, 3] pixels that were found, wrongly taken for the class, and missed.
        losses: [images] sums of the cross-entropy over pixels.
    """
    pixels = (counts[..., 0] + counts[..., 2]).sum(1)
    if name == "loss":
        return _pseudo(np.stack([losses, pixels], 1), lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1))
    return _pseudo(counts, METRICS[name])


def _pseudo(parts: np.ndarray, metric: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """n x (metric) - (n - 1) x (metric without the image), of a metric of the sum over the images."""
    n, whole = len(parts), parts.sum(0)
    return np.asarray(n * metric(whole) - (n - 1) * metric(whole - parts))


def _mean(own: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Of the ratios [..., classes], over the classes that are there."""
    ratios = np.divide(own, of, out=np.zeros(own.shape), where=of > 0)
    return np.asarray(ratios.sum(-1) / np.maximum((of > 0).sum(-1), 1))


def _iou(counts: np.ndarray) -> np.ndarray:
    return _mean(counts[..., 0], counts.sum(-1))


def _dice(counts: np.ndarray) -> np.ndarray:
    return _mean(2 * counts[..., 0], counts.sum(-1) + counts[..., 0])


def _accuracy(counts: np.ndarray) -> np.ndarray:
    labelled = (counts[..., 0] + counts[..., 2]).sum(-1)
    return np.asarray(counts[..., 0].sum(-1) / np.maximum(labelled, 1))


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_iou": _iou,
    "mean_dice": _dice,
    "pixel_accuracy": _accuracy,
}
