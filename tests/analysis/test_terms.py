"""Per-image terms: their mean is the metric, and they are what leaving one image out changes."""

import numpy as np
import pytest
from sklearn import metrics as sk

from metaformer.analysis.terms import BINS, terms
from metaformer.config.metrics import METRICS


def metric(name: str, predictions, labels, logits) -> float:
    """By scikit-learn, as a fraction; the calibration error by hand."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if name == "calibration_error":
        sure, right = p.max(1), p.argmax(1) == labels
        bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        return sum(abs((right[bins == b] - sure[bins == b]).sum()) for b in range(BINS)) / len(labels)
    present = np.unique(labels)
    return {
        "accuracy": lambda: sk.accuracy_score(labels, predictions),
        "balanced_accuracy": lambda: sk.recall_score(labels, predictions, labels=present, average="macro"),
        "macro_f1": lambda: sk.f1_score(labels, predictions, average="macro"),
        "loss": lambda: sk.log_loss(labels, p, labels=np.arange(p.shape[1])),
        "macro_auroc": lambda: np.mean([sk.roc_auc_score(labels == c, p[:, c]) for c in present]),
        "sensitivity": lambda: sk.recall_score(labels, predictions, labels=[1], average="macro"),
        "specificity": lambda: sk.recall_score(labels, predictions, labels=[0], average="macro"),
    }[name]()


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "classification" in metric.tasks])
def test_terms_are_those_of_the_metric(name):
    random, classes = np.random.default_rng(0), 2 if METRICS[name].of_class is not None else 4
    logits = random.normal(size=(120, classes))
    labels = np.where(random.random(120) < 0.5, logits.argmax(1), random.integers(0, classes, 120))
    predictions = logits.argmax(1)
    found = terms(name, predictions, labels, logits)
    whole = metric(name, predictions, labels, logits)
    linear = name in ("accuracy", "loss", "balanced_accuracy", "sensitivity", "specificity")
    assert found.mean() == pytest.approx(whole, abs=1e-9 if linear else 0.06)
    if linear:
        return
    n = len(labels)
    for i in (0, 7, 77):
        left = [np.delete(x, i, 0) for x in (predictions, labels, logits)]
        # for the calibration error it is the change of a sum
        assert found[i] == pytest.approx(n * whole - (n - 1) * metric(name, *left), abs=1e-6)


def test_terms_from_scores_that_are_not_kept():
    assert terms("loss", np.zeros(3, int), np.zeros(3, int), None) is None
    assert terms("of_my_own", np.zeros(3, int), np.zeros(3, int), None) is None


def test_a_class_without_images_counts_for_nothing():
    labels, predictions = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 1])
    assert terms("balanced_accuracy", predictions, labels, None).mean() == pytest.approx(0.5)
    logits = np.eye(3)[predictions] * 3
    assert np.isfinite(terms("macro_auroc", predictions, labels, logits)).all()
