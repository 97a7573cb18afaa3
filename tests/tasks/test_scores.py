"""Every metric against an implementation of other people, or by hand; the same on unequal, missing and two classes."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from metaformer.config.metrics import METRICS, in_words, metric_of, metrics_of, selecting
from metaformer.tasks.scores import Running, Scores, in_order


def scores(images: int, classes: int, seed: int, missing: int | None = None) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, generator=generator) ** 3 * classes).long()  # the first classes are the most frequent
    if missing is not None:
        labels[labels == missing] = 0
    logits = 2 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1.5
    return Scores(logits, labels)


def calibration_error(found: Scores, bins: int = 15) -> float:
    """Mean over images of |accuracy - confidence| of their bin (Guo et al., arXiv:1706.04599, Eq. 3)."""
    probabilities, labels = found.logits.softmax(1).numpy(), found.labels.numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(right[places == b].mean() - confidence[places == b].mean()) * (places == b).sum() for b in set(places)]
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "missing"), [(5, None), (5, 3), (2, None), (12, None)])
def test_against_scikit_learn(classes, missing, seed):
    found = scores(400, classes, seed, missing)
    labels, predicted = found.labels.numpy(), found.logits.argmax(1).numpy()
    probabilities = found.logits.double().softmax(1).numpy()
    measured = found.measured()
    there = np.unique(labels)
    areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in there]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.recall_score(labels, predicted, labels=there, average="macro"),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "macro_auroc": np.mean(areas),
        "loss": sk.log_loss(labels, probabilities, labels=range(classes)),
        "calibration_error": calibration_error(found),
    }
    if classes == 2:
        expected |= {
            "sensitivity": sk.recall_score(labels, predicted, pos_label=1),
            "specificity": sk.recall_score(labels, predicted, pos_label=0),
        }
    assert measured == pytest.approx(expected, abs=2e-6)
    matrix = sk.confusion_matrix(labels, predicted, labels=range(classes))
    assert found.confusion().tolist() == matrix.tolist()
    recalls = [matrix[c, c] / matrix[c].sum() if matrix[c].sum() else None for c in range(classes)]
    assert found.recall() == [None if r is None else pytest.approx(r, abs=1e-6) for r in recalls]


def test_a_class_that_is_never_found_shows():
    """Of the 57 images two are of the rare class: nobody sees them in the accuracy."""
    logits = torch.zeros(57, 2)
    logits[:, 0] = 1.0
    measured = Scores(logits, torch.tensor([0] * 55 + [1] * 2)).measured()
    assert measured["accuracy"] == pytest.approx(55 / 57)
    assert measured["balanced_accuracy"] == 0.5
    assert measured["macro_f1"] == pytest.approx((2 * 55 / (2 * 55 + 2)) / 2)
    assert (measured["sensitivity"], measured["specificity"]) == (0.0, 1.0)


def test_logits_between_zero_and_one_are_no_probabilities():
    found = scores(200, 4, 0)
    small = Scores(found.logits.sigmoid(), found.labels)
    assert small.measured()["calibration_error"] == pytest.approx(calibration_error(small), abs=1e-6)


def test_logits_that_are_not_finite_have_no_metrics():
    found = scores(10, 3, 0)
    found.logits[4, 1] = float("nan")
    measured = found.measured()
    assert {"accuracy", "loss"} <= measured.keys()
    assert all(map(np.isnan, measured.values()))


def test_top_k():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    assert [Scores(logits, torch.tensor([2, 0])).top(k) for k in (1, 3, 4, 9)] == [0.0, 0.5, 1.0, 1.0]


def test_devices_that_read_every_nth_image():
    rows = torch.arange(14).reshape(7, 2)
    assert torch.equal(in_order(torch.stack([rows[:6][rank::3] for rank in range(3)])), rows[:6])


def test_running_metrics_are_means_over_images():
    running, found = Running("accuracy"), scores(30, 4, 1)
    for rows in (slice(0, 15), slice(15, 30)):
        loss = torch.nn.functional.cross_entropy(found.logits[rows], found.labels[rows])
        running.update(loss, 15, (found.predictions[rows] == found.labels[rows]).sum(), 15)
    whole = found.measured()
    assert {name: own.compute().item() for name, own in running.items()} == pytest.approx(
        {"train_accuracy": whole["accuracy"], "train_loss": whole["loss"]}
    )
    assert sorted(running.state_dict()) == [
        f"by_name.train_{name}.{sum}" for name in ("accuracy", "loss") for sum in ("count", "total")
    ]


def test_names_and_words():
    assert in_words("val_macro_f1") == "validation macro F1"
    assert metric_of("test_loss").unit == "nats"
    assert selecting("test_balanced_accuracy") == selecting("val_balanced_accuracy") == "val_balanced_accuracy"
    assert metrics_of("train", "classification") == ["train_accuracy", "train_loss"]
    assert metrics_of("train", "segmentation") == ["train_loss", "train_pixel_accuracy"]
    assert len(metrics_of("test")) == len(METRICS)
    assert [METRICS[name].told(0.51234) for name in ("accuracy", "loss")] == ["51.23%", "0.5123"]


def test_logits_beyond_half_precision_are_kept_as_its_largest_numbers():
    kept = Scores(torch.tensor([[1e6, -1e6]]), torch.tensor([0])).kept(None)["logits"]
    assert kept.tolist() == [[65504, -65504]]
