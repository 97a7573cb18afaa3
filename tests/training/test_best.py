"""Which epoch is tested, and weights for rare classes."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from trained import CHOICES, equal, go, metrics, stop_at, weights

from metaformer.config.schema import Recipe
from metaformer.data.images import load
from metaformer.data.splits import Split
from metaformer.models.build import build
from metaformer.studies.points import resolve
from metaformer.system.errors import ConfigError
from metaformer.tasks.build import build as build_learner
from metaformer.tasks.classification import Classifier
from metaformer.tasks.learner import balanced_weights, favoured
from metaformer.training.best import Best
from metaformer.training.evaluation import evaluate

# A rate that rises and falls: some epoch in the middle is the best
UNSTEADY = (
    "recipe.epochs=6",
    "recipe.lr=0.03",
    "recipe.schedule=constant",
    "recipe.warmup_epochs=0",
    "recipe.batch=32",
)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("ema", [(), ("recipe.ema=0.8",)])
def test_the_best_epoch_is_tested(ema):
    last = go(*UNSTEADY, *ema).folder
    best = go(*UNSTEADY, *ema, "recipe.select=best").folder
    assert best != last
    curve = [float(row["val_accuracy"]) for row in metrics(best)]
    assert metrics(last) == metrics(best)  # the same training
    found = result(best)
    epoch = 1 + curve.index(max(curve))
    assert 0 < found["tested_epoch"] == epoch < 6
    assert result(last)["tested_epoch"] == 6
    assert found["metrics"]["val_accuracy"] == max(curve)
    config = resolve(compose(*TINY, *UNSTEADY, *ema, "recipe.select=best"), CHOICES)[0].config
    again = evaluate(config, best / "weights.pt").metrics  # the averaged weights where they were validated
    assert again["val_accuracy"] == pytest.approx(max(curve))
    assert again["test_accuracy"] == pytest.approx(found["metrics"]["test_accuracy"])
    predictions = np.load(best / "predictions.npz")
    assert predictions["logits"].dtype == np.float16
    assert (predictions["logits"].argmax(1) == predictions["predictions"]).mean() > 0.99
    assert (predictions["predictions"] == predictions["labels"]).mean() == pytest.approx(again["test_accuracy"])


@pytest.mark.parametrize("at", [100, 200])
def test_a_run_that_is_stopped_tests_the_same_epoch(monkeypatch, at):
    options = (*UNSTEADY, "recipe.ema=0.8", "recipe.select=best")
    whole = go(*options, "runtime.runs=whole").folder
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=at)  # of 37 an epoch
        with pytest.raises(SystemExit):
            go(*options)
    folder = go(*options).folder
    assert equal(folder, whole)
    assert result(folder)["tested_epoch"] == result(whole)["tested_epoch"]


def test_the_metric_of_the_study_selects_and_counts():
    def id_of(*overrides: str) -> str:
        return resolve(compose(*TINY, *overrides), CHOICES)[0].run_id

    by = {
        m: id_of("recipe.select=best", f"study.analysis.metric={m}")
        for m in ("test_accuracy", "val_accuracy", "test_loss")
    }
    assert by["test_accuracy"] == by["val_accuracy"] != by["test_loss"]
    assert id_of() == id_of("study.analysis.metric=test_loss")  # the last epoch is the last, however it is judged
    assert id_of() not in by.values()
    loss = go(*UNSTEADY, "recipe.select=best", "study.analysis.metric=test_loss").folder
    curve = [float(row["val_loss"]) for row in metrics(loss)]
    assert result(loss)["tested_epoch"] == 1 + curve.index(min(curve))


def test_the_first_of_equal_epochs_is_kept():
    best = Best("val_accuracy")
    trainer = type("Trainer", (), {"callback_metrics": {"val_accuracy": torch.tensor(0.5)}, "current_epoch": 0})()
    module = type("Module", (), {"net": torch.nn.Linear(2, 2)})()
    for epoch in range(3):
        trainer.current_epoch = epoch
        best.on_validation_epoch_end(trainer, module)
        best.on_validation_end(trainer, module)
    assert best.epoch == 1


def classifier(weights: torch.Tensor | None, **recipe) -> Classifier:
    config = compose(*TINY)
    net = build(config.model, config.mixer, 0, shape=(1, 8, 8), classes=4)
    return Classifier(net, Recipe(**recipe), classes=4, seed=0, class_weights=weights)


def test_class_weights_by_hand():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    weights = balanced_weights(labels.bincount(minlength=4))
    assert weights.tolist() == pytest.approx([100 / 150, 100 / 90, 100 / 60, 0])  # of the last one there is none
    assert weights[labels].mean().item() == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    logs = logits.log_softmax(1)
    plain = classifier(weights, label_smoothing=0.0)._loss(logits, targets)
    torch.testing.assert_close(plain, (-logs[torch.arange(12), targets] * weights[targets]).mean())
    smooth = classifier(weights, label_smoothing=0.2)._loss(logits, targets)
    soft = 0.8 * torch.nn.functional.one_hot(targets, 4) + 0.05
    torch.testing.assert_close(smooth, (-(soft * weights * logs).sum(1)).mean())
    parts = [classifier(weights, label_smoothing=0.2)._loss(logits[i::3], targets[i::3]) for i in range(3)]
    torch.testing.assert_close(torch.stack(parts).mean(), smooth)  # however a batch is split


def test_a_class_that_weights_and_smoothing_favour_is_told(capsys):
    counts = torch.tensor([100, 1])
    weights = balanced_weights(counts)
    assert favoured(counts, weights, 0.0)[1] == pytest.approx(1)
    answers = torch.arange(1, 1000) / 1000  # of the second class, whatever the image is
    logits = torch.stack([(1 - answers).log(), answers.log()], 1)
    losses = [  # of a hundred of one class and one of the other
        100
        * torch.nn.functional.cross_entropy(row[None], torch.tensor([0]), weights, reduction="sum", label_smoothing=0.1)
        + torch.nn.functional.cross_entropy(row[None], torch.tensor([1]), weights, reduction="sum", label_smoothing=0.1)
        for row in logits
    ]
    best = float(answers[torch.stack(losses).argmin()])
    assert favoured(counts, weights, 0.1) == (1, pytest.approx(2 * best, abs=2e-3))
    assert best > 0.8
    go("recipe.class_weights=balanced")
    assert "favoured" not in capsys.readouterr().err
    images = replace(load(compose(*TINY).data), classes=["cat", "dog"])
    images.train = Split(images.train.pixels[:101], (torch.arange(101) == 0).long())
    build_learner(compose(*TINY, "recipe.class_weights=balanced"), torch.nn.Identity(), images)
    told = "note: recipe.class_weights=balanced: dog is favoured 1.7 times by recipe.label_smoothing=0.1, whose share"
    assert told in capsys.readouterr().err


def test_class_weights_change_the_training_and_the_id():
    plain, balanced = go(), go("recipe.class_weights=balanced")
    assert plain.folder != balanced.folder
    a, b = weights(plain.folder), weights(balanced.folder)
    assert not all(torch.equal(a[key], b[key]) for key in a)


def test_metrics_of_two_classes_need_two():
    with pytest.raises(
        ConfigError, match=r"study.analysis.metric=test_sensitivity: is for two classes, and there are 10"
    ):
        go("study.analysis.metric=test_sensitivity")
