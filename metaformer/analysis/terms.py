"""What each test image gives to a metric: numbers whose mean over images is the metric, or nearly so.

They carry the choice of the images into the intervals. For metrics that are means over images they are the terms of the
mean; for others jackknife pseudo-values, n x (metric) - (n - 1) x (metric without the image) (Tukey 1958).
"""

from collections.abc import Callable

import numpy as np

from metaformer.config.metrics import METRICS

BINS = METRICS["calibration_error"].options["n_bins"]


def terms(name: str, predictions: np.ndarray, labels: np.ndarray, logits: np.ndarray | None) -> np.ndarray | None:
    """[images] float64 of a metric by its own name, as a fraction.

    None where it needs logits that are not there, or where nobody has said what an image gives to it.

    Args:
        predictions, labels: [images] integers.
        logits: [images, classes].
    """
    if name in FROM_LOGITS:
        return None if logits is None else np.asarray(FROM_LOGITS[name](logits.astype(float), labels))
    by_image = _FROM_PREDICTIONS.get(name)
    return None if by_image is None else np.asarray(by_image(predictions, labels))


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(predictions == labels, dtype=float)


def _balanced_accuracy(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.bincount(labels)
    weight = len(labels) / ((counts > 0).sum() * counts[labels])
    return np.asarray((predictions == labels) * weight)


def _recall_of(label: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def found(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        own = labels == label
        return np.asarray((predictions == labels) * own * (len(labels) / max(own.sum(), 1)))

    return found


def _macro_f1(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What leaving an image out changes depends on its class and its prediction alone."""
    classes = int(max(predictions.max(), labels.max())) + 1
    counts = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)

    def f1(matrix: np.ndarray) -> float:
        right, all_of = np.diag(matrix), matrix.sum(0) + matrix.sum(1)
        return float((2 * right[all_of > 0] / all_of[all_of > 0]).mean())

    whole, n, without = f1(counts), len(labels), np.zeros((classes, classes))
    for label, prediction in zip(*np.nonzero(counts), strict=True):
        counts[label, prediction] -= 1
        without[label, prediction] = f1(counts)
        counts[label, prediction] += 1
    return np.asarray(n * whole - (n - 1) * without[labels, predictions])


def _loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels])


def _calibration_error(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gap of a bin, |sum of (right - confidence)|, without the image and with it."""
    from scipy.special import softmax

    probabilities = softmax(logits, axis=1)
    confidence = probabilities.max(1)
    gap = (probabilities.argmax(1) == labels) - confidence
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    sums = np.bincount(bins, gap, BINS)[bins]
    return np.asarray(abs(sums) - abs(sums - gap))


def _macro_auroc(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each class against the others: an area is the share of pairs in the right order, which can be left out."""
    from scipy.special import softmax
    from scipy.stats import rankdata

    probabilities, n = softmax(logits, axis=1), len(labels)
    present = [c for c in np.unique(labels) if (labels == c).sum() < n]
    total = np.zeros(n)
    for label in present:
        own = labels == label
        score = probabilities[:, label]
        ranks = rankdata(score)
        wins = np.empty(n)  # of the pairs of an image, those in the right order
        wins[own] = ranks[own] - rankdata(score[own])
        wins[~own] = own.sum() - (ranks[~own] - rankdata(score[~own]))
        pairs = own.sum() * (~own).sum()
        area = wins[own].sum() / pairs
        left = np.maximum(pairs - np.where(own, (~own).sum(), own.sum()), 1)  # pairs without the image
        total += n * area - (n - 1) * (wins[own].sum() - wins) / left
    return total / max(len(present), 1)


_FROM_PREDICTIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "sensitivity": _recall_of(1),
    "specificity": _recall_of(0),
}
FROM_LOGITS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "loss": _loss,
    "macro_auroc": _macro_auroc,
    "calibration_error": _calibration_error,
}
