"""A budget in optimizer steps in place of epochs."""

import signal
from pathlib import Path

import pytest
import torch
from conftest import compose
from torch.optim import SGD
from trained import CHOICES, equal, metrics, same, steps_of, stop_at, weights

from metaformer.config.schema import Recipe
from metaformer.data.images import load
from metaformer.data.module import ImageData
from metaformer.studies.points import expand, resolve, unread
from metaformer.studies.worker import run
from metaformer.system.errors import ConfigError
from metaformer.tasks.optimization import make_scheduler

WORDS = ("data=digits", "data.train=192", "recipe.batch=64", "runtime.threads=1", "runtime.progress=false")


def go(*words: str):
    """A run with three steps an epoch."""
    return run(resolve(compose(*WORDS, "model.drop_path=0.2", *words), CHOICES)[0])


def stopped_and_resumed(monkeypatch, at: int, *words: str):
    """A run that a signal stopped in the middle of a step, and the steps that were trained when it went on."""
    words += (f"runtime.runs=stopped{at}",)
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at)
        with pytest.raises(SystemExit):
            go(*words)
    with monkeypatch.context() as patch:
        seen = steps_of(patch)
        return go(*words), seen


def test_the_steps_of_whole_epochs_are_those_epochs():
    epochs = go("recipe.epochs=2", "recipe.warmup_epochs=1").folder
    half = compose().recipe.epochs / 2  # of the recipe's own, as one of two epochs is
    steps = go("recipe.steps=6", f"recipe.warmup_epochs={half}", "runtime.runs=steps").folder
    assert equal(epochs, steps)


def test_the_last_epoch_ends_at_the_last_step_and_resumes_there(monkeypatch):
    words = ("recipe.steps=8", "recipe.ema=0.9", "runtime.accumulate=2")
    whole = go(*words, "runtime.runs=whole")
    assert [row["step"] for row in metrics(whole.folder)] == ["3", "6", "8"]
    assert all(row["val_loss"] for row in metrics(whole.folder))
    assert (whole.result.epochs, whole.result.tested_epoch) == (3, 3)
    for at in (1, 6):  # in the first epoch, and in the last
        resumed, seen = stopped_and_resumed(monkeypatch, at, *words)
        assert seen == [step for step in range(at + 1, 8) for _ in range(2)]
        assert equal(resumed.folder, whole.folder)


def test_fewer_steps_than_an_epoch_has():
    outcome = go("recipe.steps=2")
    assert [row["step"] for row in metrics(outcome.folder)] == ["2"]


def test_images_that_are_read_one_at_a_time_have_the_same_steps():
    images = load(compose(*WORDS).data, None)
    data = ImageData(images, Recipe(batch=64, steps=2, crop=0, scale=[0.5, 1.0]), seed=0)
    assert (len(images.train) // 64, len(list(data.train_dataloader()))) == (3, 2)


def test_schedule_warm_up_and_cool_down_share_the_steps():
    recipe = Recipe(epochs=8, warmup_epochs=2, cooldown_epochs=2, steps=100, lr=1.0, min_lr=0.01, warmup_lr=0.1)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = make_scheduler(optimizer, recipe, 7)
    rates = []
    for step in range(100):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:2] == pytest.approx([0.1, 0.145])
    assert rates[10] == pytest.approx((0.1 + 1) / 2)
    assert max(rates) == pytest.approx(max(rates[19:22]))
    assert rates[79] > 0.01
    assert rates[80:] == [0.01] * 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["recipe.steps=10", "recipe.epochs=3"],
            r"recipe.steps: takes the place of recipe.epochs; expected one of them",
        ),
        (
            ["recipe.steps=10", "recipe.validate_steps=11"],
            r"recipe.validate_steps=11: expected at most recipe.steps=10",
        ),
        (["recipe.steps=0"], r"recipe.steps=0: expected at least 1"),
        (
            ["recipe.steps=10", "recipe.lr_interval=epoch"],
            r"recipe.lr_interval=epoch: with recipe.steps the rate follows",
        ),
        (
            ["recipe.steps=9", "trainer.limit_train_batches=2"],
            r"trainer.limit_train_batches=2: recipe.steps counts whole",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        compose(*words)


def test_epochs_beside_a_file_that_has_steps_are_refused():
    Path("experiments").mkdir()
    Path("experiments/mine.yaml").write_text("# @package _global_\nrecipe: {steps: 40}")
    with pytest.raises(
        ConfigError, match=r"recipe.epochs: recipe.steps=40 of experiments=mine takes its place; expected"
    ):
        compose("experiments=mine", "recipe.epochs=2")
    with pytest.raises(ConfigError, match=r"recipe.epochs: recipe.steps=40 of experiments=mine"):
        expand(["experiments=mine", "recipe.epochs=2,3"], unread)
    assert compose("experiments=mine", "recipe.epochs=2", "recipe.steps=null").recipe.epochs == 2
    assert compose("experiments=mine", "recipe.steps=20").recipe.steps == 20


def test_epochs_are_back_where_the_steps_of_a_file_are_taken_away():
    assert compose("recipe.steps=null", "recipe.epochs=3").recipe.epochs == 3


def test_an_early_stop_waits_for_a_validation():
    words = ("recipe.steps=14", "recipe.validate_steps=6", "callbacks=early_stopping")
    flag = "callbacks.early_stopping.check_on_train_epoch_end=false"
    with pytest.raises(
        ConfigError, match=rf"recipe.validate_steps: .* looks for val_loss after each epoch; add \+{flag}"
    ):
        compose(*words)
    words += (f"+{flag}",)
    outcome = go(*words, "callbacks.early_stopping.patience=1", "callbacks.early_stopping.mode=max")  # never better
    assert [row["step"] for row in metrics(outcome.folder) if row["val_loss"]] == ["6", "12"]
    assert metrics(outcome.folder)[-1]["step"] == "12"


def test_a_run_that_ends_in_an_epoch_without_validation_is_validated_at_its_end():
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: train_loss, divergence_threshold: 0.0}"
    outcome = go("recipe.steps=14", "recipe.validate_steps=6", f"+callbacks.stop={stop}")
    [row] = metrics(outcome.folder)
    assert (row["step"], row["val_loss"]) == ("3", "")
    whole = go("recipe.steps=14", "recipe.validate_steps=3", f"+callbacks.stop={stop}", "runtime.runs=whole")
    [row] = metrics(whole.folder)
    assert outcome.result.metrics == whole.result.metrics
    assert outcome.result.metrics["val_loss"] == float(row["val_loss"])


def test_validation_every_so_many_steps_changes_no_weight_and_resumes(monkeypatch):
    words = ("recipe.steps=14", "recipe.ema=0.9")
    often = go(*words, "runtime.runs=often")
    words += ("recipe.validate_steps=6", "recipe.select=best")
    whole = go(*words, "runtime.runs=whole")
    rows = metrics(whole.folder)
    assert [row["step"] for row in rows if row["val_loss"]] == ["6", "12", "14"]
    assert all((row["val_accuracy"] == "") == (row["val_loss"] == "") for row in rows)
    validated = [row for row in metrics(often.folder) if row["step"] in ("6", "12", "14")]
    assert [row["val_loss"] for row in validated] == [row["val_loss"] for row in rows if row["val_loss"]]
    assert whole.result.tested_epoch in (2, 4, 5)
    assert whole.result.metrics["val_accuracy"] == max(float(row["val_accuracy"]) for row in validated)
    for at in (1, 7):  # in an epoch that is not validated
        assert equal(stopped_and_resumed(monkeypatch, at, *words)[0].folder, whole.folder)


def test_validation_more_often_than_a_pass_ends_changes_no_weight_and_resumes(monkeypatch):
    """An epoch has two steps then, where a pass over the images has three."""
    words = ("recipe.steps=11", "recipe.ema=0.9", "recipe.mixup=0.4", "recipe.flip=true")
    passes = go(*words, "runtime.runs=passes")
    words += ("recipe.validate_steps=2",)
    whole = go(*words, "runtime.runs=whole")
    rows = {row["step"]: row for row in metrics(whole.folder)}
    assert [*rows] == ["2", "4", "6", "8", "10", "11"]
    assert all(row["val_loss"] for row in rows.values())
    assert same(weights(whole.folder), weights(passes.folder))
    for row in metrics(passes.folder):
        if row["step"] in rows:  # 6 and 11
            assert [row[key] for key in ("val_loss", "val_accuracy", "lr")] == [
                rows[row["step"]][key] for key in ("val_loss", "val_accuracy", "lr")
            ]
    assert (whole.result.epochs, whole.result.images) == (6, 192)
    for at in (2, 5):  # the third step of the first pass, after which a pass begins; the last one of an epoch
        resumed, seen = stopped_and_resumed(monkeypatch, at, *words)
        assert seen == list(range(at + 1, 11))
        assert equal(resumed.folder, whole.folder)


@pytest.mark.parametrize("recipe", [{"crop": 2}, {"crop": 0, "scale": [0.5, 1.0], "repeated_augmentation": 2}])
def test_epochs_of_a_part_of_a_pass_have_its_batches(recipe):
    """In memory, and read one at a time: 20 steps, 3 a pass, in epochs of 2 and of 3."""
    images = load(compose(*WORDS).data, None)

    def batches(**options) -> list[torch.Tensor]:
        own = Recipe(batch=64, steps=20, **recipe, **options)
        data, found = ImageData(images, own, seed=3), []
        for epoch in range(own.epochs_on(192)):
            found += [batch[0].clone() for batch in data.batches_of(epoch)]
        return found

    whole, parts = batches(), batches(validate_steps=2)
    assert len(whole) == len(parts) == 20
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("steps", "every", "images"), [(35, 4, 100), (35, 10, 100), (7, 3, 50), (2, 1, 99)])
def test_the_steps_of_all_epochs_are_those_of_the_passes_in_their_order(steps, every, images):
    recipe = Recipe(batch=10, steps=steps, validate_steps=every)
    found = [(number, step) for epoch in range(recipe.epochs_on(images))
             for number, own in recipe.passes_of(epoch, images) for step in own]  # fmt: skip
    whole = images // 10
    assert found == [divmod(step, whole) for step in range(steps)]
    lengths = [sum(len(own) for _, own in recipe.passes_of(e, images)) for e in range(recipe.epochs_on(images))]
    assert set(lengths[:-1]) <= {min(every, whole)}


def test_an_epoch_is_validated_once_at_most():
    told = "validate_steps=2: an epoch, at whose end it is validated, has 3 steps; expected at least 3, or recipe.steps"
    with pytest.raises(ConfigError, match=told):
        go("recipe.validate_steps=2")
    assert go("recipe.validate_steps=2", "trainer.limit_train_batches=2", "recipe.epochs=1").status == "finished"
    assert id_of("recipe.validate_steps=3") != id_of() == id_of("recipe.validate_steps=null")


def id_of(*words: str) -> str:
    return resolve(compose(*WORDS, *words), CHOICES)[0].run_id
