"""Segmentation: metrics and losses to the number, and runs that are stopped, looked at, compared and reported."""

import csv
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE, compose
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex
from trained import CHOICES, equal, metrics, stop_at

from metaformer import cost, plan
from metaformer.analysis.pixel_terms import terms_of_pixels
from metaformer.config.identity import content_of
from metaformer.config.schema import Recipe
from metaformer.config.tasks import FILLED, IGNORED
from metaformer.data import batches
from metaformer.data.images import load
from metaformer.models.build import build
from metaformer.runs.answers import PixelAnswers, read_answers
from metaformer.runs.result import read_result
from metaformer.studies.points import resolve
from metaformer.studies.worker import run
from metaformer.system.errors import ConfigError
from metaformer.tasks.pixels import PixelScores, scores_of
from metaformer.tasks.segmentation import Segmenter, dice_loss

TINY = ("model=tiny_pyramid", "model.depths=[1,1]", "model.dims=[8,16]", "task.width=8", "data.train=64")
WORDS = ("task=segmentation", "data=fashion_mosaics", *TINY, "recipe.batch=32", "recipe.epochs=2", "runtime.threads=1")


def go(*words: str):
    return run(resolve(compose(*WORDS, "runtime.progress=false", *words), CHOICES)[0])


def rows_of(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def drawn(images: int = 9, classes: int = 4, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, classes, H, W], and masks with every class but the last and some pixels without one."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, classes, (images, size, size), generator=generator)
    logits = torch.randn(images, classes, size, size, generator=generator) + 2 * torch.nn.functional.one_hot(
        masks, classes
    ).movedim(-1, 1)
    masks[masks == classes - 1] = IGNORED
    return logits, masks.byte()


def test_metrics_are_those_of_torchmetrics_over_all_pixels():
    logits, masks = drawn()
    found, options = scores_of(logits, masks).measured(), {"ignore_index": IGNORED}
    expected = {
        "mean_iou": MulticlassJaccardIndex(4, average="macro", **options),
        "mean_dice": MulticlassF1Score(4, average="macro", **options),
        "pixel_accuracy": MulticlassAccuracy(4, average="micro", **options),
    }
    for name, metric in expected.items():
        assert found[name] == pytest.approx(metric(logits, masks.long()).item(), abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits, masks.long(), ignore_index=IGNORED).item()
    assert found["loss"] == pytest.approx(loss, abs=1e-6)


def test_one_class_everywhere_is_found_whole_and_what_fills_up_counts_nowhere():
    logits, masks = torch.zeros(3, 4, 6, 6), torch.zeros(3, 6, 6, dtype=torch.uint8)
    logits[:, 0] = 1
    assert scores_of(logits, masks).measured()["mean_iou"] == 1
    logits[2, 1], masks[2] = 9, FILLED
    found = scores_of(logits, masks)
    assert (found.counts[2] == -1).all()
    assert found.confused.tolist()[0] == [72, 0, 0, 0]


def test_a_logit_that_is_not_finite_gives_no_number():
    logits, masks = drawn()
    logits[0, 0, 0, 0] = torch.nan
    masks[0, 0, 0] = 0
    measured = scores_of(logits, masks).measured()
    assert {"mean_iou", "loss"} <= measured.keys()
    assert all(map(np.isnan, measured.values()))


@pytest.mark.parametrize("name", ["mean_iou", "mean_dice", "pixel_accuracy", "loss"])
def test_what_an_image_gives_is_what_leaving_it_out_changes(name):
    scores = scores_of(*drawn())
    found = terms_of_pixels(name, PixelAnswers(scores.counts.numpy(), scores.losses.double().numpy()))
    whole, n = scores.measured()[name], scores.images
    for i in (0, 5):
        left = torch.arange(n) != i
        without = PixelScores(scores.counts[left], scores.losses[left], scores.confused, scores.shown)
        assert found[i] == pytest.approx(n * whole - (n - 1) * without.measured()[name], abs=1e-6)


def test_the_dice_loss_is_nothing_where_all_is_right_and_all_where_nothing_is():
    logits, masks = drawn()
    right = torch.nn.functional.one_hot(masks.long().where(masks != IGNORED, 0), 4).movedim(-1, 1)
    assert dice_loss(100.0 * right, masks.long()) == pytest.approx(0, abs=1e-6)
    assert dice_loss(100.0 * right.roll(1, 1), masks.long()) == pytest.approx(1, abs=1e-6)
    shares, truth = logits[:1].softmax(1) * (masks[:1] != IGNORED), right[:1] * (masks[:1] != IGNORED)[:, None]
    by_hand = [1 - 2 * (shares[0, c] * truth[0, c]).sum() / (shares[0, c].sum() + truth[0, c].sum()) for c in range(3)]
    assert dice_loss(logits[:1], masks[:1].long()) == pytest.approx(sum(by_hand).item() / 3, abs=1e-6)


def test_a_pixel_has_the_weight_of_its_class():
    """And its smoothed label has it whole: torch would weigh each of its parts by a class of its own."""
    logits, masks = drawn(8)
    weights = torch.tensor([0.5, 1.0, 2000.0, 0.0])
    for smoothing in (0.0, 0.2):
        module = Segmenter(
            torch.nn.Conv2d(1, 4, 1), Recipe(label_smoothing=smoothing), classes=4, class_weights=weights
        )
        there = masks != IGNORED
        soft = (1 - smoothing) * torch.nn.functional.one_hot(masks[there].long(), 4) + smoothing / 4
        logs = logits.log_softmax(1).movedim(1, -1)[there]
        by_hand = -((soft * logs).sum(1) * weights[masks[there].long()]).sum() / masks.numel()
        torch.testing.assert_close(module._loss(logits, masks.long()), by_hand)
        if not smoothing:
            theirs = torch.nn.functional.cross_entropy(
                logits, masks.long(), weights, ignore_index=IGNORED, reduction="sum"
            )
            torch.testing.assert_close(by_hand, theirs / masks.numel())


@pytest.mark.parametrize("dice", [0.0, 0.3])
def test_the_parts_of_a_batch_add_up(dice):
    logits, masks = drawn(8)
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0])
    module = Segmenter(torch.nn.Conv2d(1, 4, 1), classes=4, class_weights=weights, dice=dice)
    whole = module._loss(logits, masks.long())
    parts = [module._loss(*part) for part in zip(logits.split(2), masks.long().split(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize(
    "crop", [(), ("recipe.crop=0", "recipe.scale=[0.5,1]"), ("recipe.crop=0", "recipe.resize=[0.5,2]")]
)
def test_a_run_that_is_stopped_ends_with_the_same_bits(monkeypatch, crop):
    words = ("task.dice=0.5", "recipe.class_weights=balanced", "recipe.ema=0.9", "model.drop_path=0.2", *crop)
    whole = go(*words, "runtime.runs=whole")
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, 2, Segmenter)  # of 2 an epoch
        with pytest.raises(SystemExit):
            go(*words)
    resumed = go(*words)
    assert resumed.status == "finished"
    assert equal(resumed.folder, whole.folder)
    assert list(metrics(whole.folder)[0])[3:9] == [
        *("train_loss", "train_pixel_accuracy", "val_loss", "val_mean_iou", "val_mean_dice", "val_pixel_accuracy")
    ]
    answers = read_answers(whole.folder)
    assert isinstance(answers, PixelAnswers)
    assert (answers.counts.shape, answers.examples.predictions.shape) == ((750, 11, 3), (6, 64, 64))
    assert answers.accuracy == pytest.approx(whole.result.metrics["test_pixel_accuracy"], abs=1e-7)
    terms = terms_of_pixels("mean_iou", answers)
    assert terms.mean() == pytest.approx(whole.result.metrics["test_mean_iou"], abs=0.01)
    assert whole.result.tested_images == 750


def test_weights_of_a_classifier_begin_the_encoder_and_may_be_frozen(capfd):
    model = (*TINY, "data.train=200", "recipe.epochs=1", "runtime.threads=1", "runtime.progress=false")
    first = run(resolve(compose("data=fashion_small", *model[:3], *model[4:]), CHOICES)[0])
    words = (f"recipe.initialize_from={first.folder}/weights.pt", "recipe.freeze=stages1-2", "recipe.epochs=1")
    second = go(*words)
    assert "taken stem, stages; new encoder.norms, decoder, classifier" in capfd.readouterr().out
    ours, theirs = (torch.load(o.folder / "weights.pt", weights_only=True)["state_dict"] for o in (second, first))
    for key, value in theirs.items():
        if key.startswith(("stem.", "stages.")):
            assert torch.equal(ours[f"encoder.net.{key}"], value), key
    assert 0 < second.result.trainable < second.result.params


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("recipe.mixup=0.2",), "recipe.mixup=0.2: is for task=classification"),
        (("recipe.loss=bce",), "recipe.loss=bce: is for task=classification"),
        (("recipe.scale=[0.5,1]", "recipe.crop=0", "recipe.erasing=0.1"), "erasing=0.1: is for task=classification"),
        (("recipe.scale=[0.5,1]", "recipe.color_jitter=0.4"), "recipe.color_jitter=0.4: needs images in colour"),
        (
            ("recipe.resize=[2,0.5]", "recipe.crop=0"),
            "recipe.resize=[2.0, 0.5]: expected the least and the largest fact",
        ),
        (("recipe.resize=[0.5,2]", "recipe.crop=2"), "recipe.crop=2: recipe.resize crops already; expected 0"),
        (("recipe.resize=[0.5,2]", "recipe.scale=[0.5,1]"), "recipe.resize=[0.5, 2.0]: expected null, since recipe.sc"),
        (("task=classification", "recipe.resize=[0.5,2]"), "recipe.resize=[0.5, 2.0]: belongs to task=segmentation"),
        (("study.analysis.metric=test_accuracy",), "metric=test_accuracy: task=segmentation has test_pixel_accuracy"),
        (("task=classification", "task.dice=0.5"), "task.dice=0.5: belongs to task=segmentation"),
        (("task=classification", "study.analysis.metric=test_mean_iou"), "task=classification has test_macro"),
        (("data=fashion_small",), "task=segmentation: data=fashion_small has a class for each image; expected masks"),
        (("task=classification",), "task=classification: data=fashion_mosaics has masks; expected task=segmentation"),
        (("model=tiny",), "needs a model whose stages get coarser, and those here have strides of 4, 4, 4, 4"),
        (("task.decoder=fnp",), "task.decoder=fnp: expected one of fpn, mlp, unet"),
        (("model=timm", "model.name=vit_tiny_patch16_224", "mixer=builtin"), "strides of 16, 16, 16"),
    ],
)
def test_what_does_not_go_together_is_refused(words, message):
    own = [w for w in WORDS if w.partition("=")[0] not in ("model.depths", "model.dims")]
    own = [w for w in own if w.partition("=")[0] not in {word.partition("=")[0] for word in words}]
    if words[0].startswith("task=classification"):
        own = [w for w in own if not w.startswith("task.")]
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        run(resolve(compose(*own, "runtime.progress=false", *words), CHOICES)[0])


@pytest.mark.parametrize("command", [cost, plan])
def test_who_reads_no_image_refuses_images_of_another_task(refusal, command):
    told = refusal(command, "task=segmentation", "data=digits", "model=tiny_pyramid")
    assert "task=segmentation: data=digits has a class for each image; expected masks" in told
    told = refusal(command, "data=fashion_mosaics")
    assert "task=classification: data=fashion_mosaics has masks; expected task=segmentation" in told


def test_masks_without_anything_in_them_are_refused(tmp_path):
    draw = np.random.default_rng(0).integers
    found = {
        f"{split}_images": draw(256, size=(n, 16, 16), dtype=np.uint8)
        for split, n in {"train": 40, "val": 4, "test": 4}.items()
    }
    found |= {name.replace("images", "masks"): np.zeros_like(images) for name, images in found.items()}
    np.savez(tmp_path / "a.npz", **found)
    own = [w for w in WORDS if not w.startswith("data")]
    message = r"data=npz: the training masks have pixels of one class alone \(those of data.ignore=255 .*; expected two"
    with pytest.raises(ConfigError, match=message):
        run(resolve(compose(*own, "data=npz", f"data.root={tmp_path}/a.npz", "data.classes=2"), CHOICES)[0])


@pytest.mark.processes
def test_the_commands_about_a_run_know_of_segmentation(cli):
    done = cli("train", *WORDS, "recipe.epochs=1", "runtime.progress=false", "logger=wandb", "logger.mode=offline")
    assert done.returncode == 0, done.stderr
    assert re.search(r"finished mean IoU val \d+\.\d\d%, test \d+\.\d\d%; ", done.stdout)
    folder = next(Path("runs").glob("*-*"))
    iou = json.loads((folder / "result.json").read_text())["metrics"]["test_mean_iou"]
    told = cli("evaluate", f"run={folder}").stdout
    assert f"mean IoU {iou:.2%}" in told
    assert f"750 images (recorded: {iou:.2%})" in told
    assert "top-5" not in told
    same = cli("evaluate", f"weights={folder}/weights.pt", "data=fashion_mosaics", "data.train=64")
    assert f"mean IoU {iou:.2%}" in same.stdout, same.stderr
    refused = cli("probe", f"run={folder}")
    assert refused.stderr.count("\n") == 1
    assert "is of segmentation; expected runs of task=classification" in refused.stderr
    predicted = cli("predict", f"run={folder}")
    assert predicted.stdout == "written: masks, 750 masks\n", predicted.stderr
    config = read_result(folder).config
    truth, numbers = load(config.data).test, {row["number"]: row["class"] for row in rows_of("masks/classes.csv")}
    assert list(numbers.values()) == list(read_result(folder).recall)
    found = np.stack([np.asarray(Image.open(f"masks/test/{row}.png")) for row in range(750)])
    scorer = MulticlassJaccardIndex(len(numbers), average="macro", ignore_index=IGNORED)
    scored = scorer(torch.from_numpy(found).long(), truth.targets(torch.arange(750)).long())
    assert scored.item() == pytest.approx(iou, abs=1e-4)
    table = cli("predict", f"run={folder}", "out=x.csv")
    line = "error: out=x.csv: task=segmentation writes no table; expected a new or an empty folder for the masks\n"
    assert table.stderr == line
    again = cli("predict", f"run={folder}")
    assert again.stderr == "error: out=masks: is there already; expected a new or an empty folder for the masks\n"

    photos = {"a/wide.png": (90, 40), "tall.jpg": (31, 64), "small.png": (7, 7)}
    for row, (name, size) in enumerate(photos.items()):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        truth.read(row).resize(size).save(Path("photos", name))
    assert "3 masks" in cli("predict", f"run={folder}", "data.root=photos", "out=mine").stdout
    for name, size in photos.items():
        mask = Image.open(Path("mine", name).with_suffix(".png"))
        values = np.asarray(mask)
        assert mask.size == size
        assert len(np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0)) == len(
            np.unique(values)
        )  # seen in colours
        assert (values != IGNORED).all()  # it was seen whole
    truth.read(0).save("photos/small.jpg")
    twice = cli("predict", f"run={folder}", "data.root=photos", "out=more")
    assert "data.root=photos: small.jpg and small.png would have the same mask, more/small.png" in twice.stderr
    assert not Path("more").exists()


def test_a_norm_that_would_see_one_number_is_refused():
    """In the coarsest map, of one token, where each of its groups has one channel."""
    words = ("task=segmentation", "data=fashion_mosaics", "data.size=64", "model=s12", "task.decoder=fpn")
    task = compose(*words, "task.width=32").task
    net = build(compose(*words).model, compose(*words).mixer, 0, shape=(1, 64, 64), classes=3, task=task)
    assert net(torch.rand(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    told = "^task.width=32: the coarsest map of 32 x 32 pixels is one token, and a norm has one channel; expected 64"
    for side, message in ((32, told), (16, told.replace("32 x 32", "16 x 16"))):
        with pytest.raises(ConfigError, match=message):
            build(compose(*words).model, compose(*words).mixer, 0, shape=(1, side, side), classes=3, task=task)


def test_a_file_that_does_not_fit_an_encoder_is_told_by_its_key(tmp_path):
    other = compose("model=tiny", "data=fashion_small")
    net = build(other.model, other.mixer, 0, shape=(1, 28, 28), classes=10)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    message = r"^recipe.initialize_from=.*w.pt: nothing in it fits stem: stem.conv.weight is "
    with pytest.raises(ConfigError, match=message):
        go(f"recipe.initialize_from={tmp_path}/w.pt")


def test_debug_modes_with_masks():
    assert go("debug=overfit", "recipe.batch=4").result.metrics["train_pixel_accuracy"] > 0.9
    assert go("debug=batch").shown.exists()
    assert go("debug=profile").shown.row_count == 15


def test_a_sweep_is_reported_with_its_classes_and_pictures(cli):
    done = cli("train", "-m", *WORDS, "mixer=pooling,identity", "seed=0,1", "recipe.epochs=1", "study.name=mine", HERE)
    assert done.returncode == 0, done.stderr
    (folder,) = Path("runs/reports").iterdir()
    rows = rows_of(str(folder / "tables" / "accuracy.csv"))
    kept = [read_result(path) for path in Path("runs").glob("*-*")]
    assert {row["cell"] for row in rows} == {"pooling", "identity"}
    for row in rows:
        values = [r.metrics["test_mean_iou"] for r in kept if r.choices["mixer"] == row["cell"]]
        assert (row["n"], len(values)) == ("2", 2)
        assert float(row["test"].split()[0]) == pytest.approx(100 * np.mean(values), abs=0.006)
    page = (folder / "report.html").read_text()
    assert "mean IoU" in page
    assert "T-shirt/top" in page
    assert {"predictions.svg", "predictions.pdf"} <= {path.name for path in (folder / "figures").iterdir()}


def test_pictures_are_kept_of_images_of_several_batches(monkeypatch):
    """Of large images a batch is one."""
    whole = go("recipe.epochs=1", "runtime.runs=whole")
    monkeypatch.setattr(batches, "EVAL_LOGITS", 1)
    single = go("recipe.epochs=1", "runtime.runs=single")
    shown = [np.load(outcome.folder / "predictions.npz")["shown"] for outcome in (whole, single)]
    assert len(shown[0]) == len(shown[1]) == 6
    assert (shown[0] == shown[1]).mean() > 0.99  # up to rounding


def test_runs_that_weighed_smoothed_labels_by_other_classes_are_other_runs():
    config = compose(*WORDS, "recipe.class_weights=balanced")
    assert content_of(config, None)["recipe"]["class_weights"] == "balanced, of each pixel"
    assert content_of(compose("recipe.class_weights=balanced"), None)["recipe"]["class_weights"] == "balanced"
