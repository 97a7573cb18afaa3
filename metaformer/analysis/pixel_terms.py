"""What each test image gives to a metric of segmentation: jackknife pseudo-values, as in `terms`. No torch."""

from collections.abc import Callable

import numpy as np

from metaformer.runs.answers import PIXEL_METRICS, PixelAnswers


def terms_of_pixels(name: str, answers: PixelAnswers) -> np.ndarray:
    """[images] float64 of a metric by its own name, as a fraction."""
    if name == "loss":
        pixels = answers.truth.sum(1)
        return _pseudo(np.stack([answers.losses, pixels], 1), lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1))
    return _pseudo(answers.counts, PIXEL_METRICS[name])


def _pseudo(parts: np.ndarray, metric: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """n x (metric) - (n - 1) x (metric without the image), of a metric of the sum over the images."""
    n, whole = len(parts), parts.sum(0)
    return np.asarray(n * metric(whole) - (n - 1) * metric(whole - parts))
