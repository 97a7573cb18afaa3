"""Recipes train as the papers do: rates per epoch, decayed weights, augmentation, averaging, accumulation."""

import json
from pathlib import Path

import pytest
import torch
from conftest import compose
from lightning.pytorch.callbacks import EMAWeightAveraging
from test_run import equal, go, weights

from metaformer import classifier, data, training, zoo
from metaformer.batches import ImageData
from metaformer.classifier import Classifier
from metaformer.schema import ConfigError


def rates(recipe: dict, epochs: int, steps: int = 1) -> list[float]:
    """The rate of every step of a run that trains nothing."""
    module = Classifier(torch.nn.Linear(2, 2), recipe, classes=2, seed=0)

    class Loop:
        estimated_stepping_batches, max_epochs, world_size = steps * epochs, epochs, 1

    module._fabric = None
    module.trainer = Loop()  # type: ignore[assignment]
    scheduled = module.configure_optimizers()
    optimizer = scheduled["optimizer"] if isinstance(scheduled, dict) else scheduled
    seen = []
    for epoch in range(epochs):
        for step in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            if isinstance(scheduled, dict) and recipe["lr_interval"] == "step":
                scheduled["lr_scheduler"]["scheduler"].step_update(epoch * steps + step + 1)
        if isinstance(scheduled, dict) and recipe["lr_interval"] == "epoch":
            scheduled["lr_scheduler"]["scheduler"].step(epoch + 1)
    return seen


def test_poolformers_rate_at_every_epoch():
    recipe = compose("recipe=poolformer")["recipe"]
    assert recipe["epochs"] + recipe["cooldown_epochs"] == 310
    seen = rates(recipe, 310)
    expected = {0: 1e-6, 1: 2.008e-4, 2: 4.006e-4, 3: 6.004e-4, 4: 8.002e-4, 5: 9.9932e-4, 150: 5.05e-4, 299: 1.0027e-5}
    for epoch, rate in expected.items():
        assert seen[epoch] == pytest.approx(rate, rel=1e-4), epoch
    assert seen[300:] == [pytest.approx(1e-5)] * 10
    assert max(rates(compose("recipe=poolformer", "recipe.batch=4096")["recipe"], 310)[5:]) == pytest.approx(
        4e-3, rel=1e-3
    )


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "batch", "warmup"),
    [
        ("poolformer", "adamw", 1e-3, 1024, 5),
        ("metaformer_baselines", "adamw", 4e-3, 4096, 5),
        ("convformer", "adamw", 4e-3, 4096, 20),
        ("caformer", "lamb", 8e-3, 4096, 20),
    ],
)
def test_recipes_of_the_papers(name, optimizer, lr, batch, warmup):
    recipe = compose(f"recipe={name}")["recipe"]
    facts = {"optimizer": optimizer, "lr": lr, "batch": batch, "warmup_epochs": warmup, "lr_base_size": batch}
    facts |= {"weight_decay": 0.05, "epochs": 300, "min_lr": 1e-5, "warmup_lr": 1e-6, "label_smoothing": 0.1}
    facts |= {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "auto_augment": "rand-m9-mstd0.5-inc1", "ema": None}
    facts |= {"scale": [0.08, 1.0], "clip_grad": None, "schedule": "cosine", "lr_interval": "epoch", "crop": 0}
    assert {key: recipe[key] for key in facts} == facts
    assert rates(recipe, 310)[warmup] == pytest.approx(lr, rel=2e-2)


def test_finetuning_is_constant_and_averages(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    recipe = compose("recipe=finetune", f"recipe.initialize_from={file}")["recipe"]
    assert set(rates(recipe, 30)) == {5e-5}
    assert (recipe["ema"], recipe["mixup"], recipe["cutmix"], recipe["epochs"]) == (0.9999, 0, 0, 30)


def test_decayed_and_undecayed_weights_of_s12():
    config = compose("model=s12", "recipe=poolformer", "data=imagenet")
    net = zoo.from_config(config, 3, 1000, (224, 224))
    module = Classifier(net, config["recipe"], classes=1000, seed=0)
    module.trainer = type("T", (), {"estimated_stepping_batches": 310, "max_epochs": 310})()
    groups = module.configure_optimizers()["optimizer"].param_groups
    counts = {g["weight_decay"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups}
    assert counts == {0.0: (103, 39_656), 0.05: (29, 11_875_520)}
    assert {(g["betas"], g["eps"]) for g in groups} == {((0.9, 0.999), 1e-8)}
    depth = [getattr(b.drop_path, "drop_prob", 0) for s in net.stages for b in s.blocks]
    assert depth == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_the_transform_of_the_paper():
    config = compose("recipe=poolformer")
    shape, pixels = (3, 224, 224), {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    from metaformer import photos

    train = photos.training_transform(config["recipe"], shape, pixels)
    names = [type(t).__name__ for t in train.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert names[-1] == "RandomErasing"
    assert not any("Jitter" in name for name in names)
    assert train.transforms[0].scale == (0.08, 1.0)
    assert (train.transforms[-1].probability, train.transforms[-1].min_count) == (0.25, 1)
    evaluation = photos.evaluation_transform(0.9, shape, pixels)
    assert "248" in str(evaluation.transforms[0])
    assert "224" in str(evaluation.transforms[1])
    with pytest.raises(ConfigError, match=r"recipe.auto_augment=nonsense: timm does not know it"):
        photos.training_transform(config["recipe"] | {"auto_augment": "nonsense"}, shape, pixels)


def test_mixup_is_timms_and_a_function_of_the_step(monkeypatch):
    seen = []
    step = Classifier._step

    def watch(self, split, batch, smoothing=0.0):
        if split == "train":
            seen.append((batch[0].clone(), batch[1].clone(), smoothing))
        return step(self, split, batch, smoothing)

    monkeypatch.setattr(Classifier, "_step", watch)
    go("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.epochs=1")
    first = list(seen)
    _, targets, smoothing = first[0]
    assert smoothing == 0.0  # it is in the targets
    assert targets.shape == (64, 10)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 64)
    assert targets.min() == pytest.approx(0.1 / 10)
    assert len({round(t[1].std().item(), 4) for t in first}) > 10  # another share in every step
    seen.clear()
    go("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.epochs=1", "runtime.runs=b")
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, seen, strict=True))
    seen.clear()
    go("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.epochs=1", "mixer=identity", "runtime.runs=c")
    assert torch.equal(first[5][0], seen[5][0])  # the same images for every mixer


def test_accumulation_gives_the_same_run_up_to_rounding():
    whole = go("recipe.epochs=1", "recipe.clip_grad=1.0")
    parts = go("recipe.epochs=1", "recipe.clip_grad=1.0", "runtime.accumulate=4", "runtime.runs=parts")
    assert Path(whole["folder"]).name == Path(parts["folder"]).name  # it is no part of the identity
    assert parts["result"]["accumulate"] == 4
    a, b = weights(Path(whole["folder"])), weights(Path(parts["folder"]))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    first, second = (r["result"]["metrics"] for r in (whole, parts))
    assert first["val_loss"] == pytest.approx(second["val_loss"], abs=1e-3)


def test_clipping_and_averaging_change_the_run():
    plain = go("recipe.epochs=1")
    clipped = go("recipe.epochs=1", "recipe.clip_grad=0.01")
    averaged = go("recipe.epochs=1", "recipe.ema=0.9")
    folders = [Path(r["folder"]) for r in (plain, clipped, averaged)]
    assert len(set(folders)) == 3
    assert not any(equal(a, b) for a, b in ((folders[0], folders[1]), (folders[0], folders[2])))


def test_the_average_is_what_is_tested_and_kept(monkeypatch):
    """A moving average, computed here by hand, is what Lightning's callback leaves."""
    history = []
    update = EMAWeightAveraging.on_train_batch_end

    def watch(self, trainer, module, *rest):
        history.append({k: v.clone() for k, v in module.net.state_dict().items()})
        return update(self, trainer, module, *rest)

    monkeypatch.setattr(EMAWeightAveraging, "on_train_batch_end", watch)
    folder = Path(go("recipe.epochs=1", "recipe.ema=0.8")["folder"])
    config = compose("data=digits")
    average = zoo.from_config(config, 1, 10, (8, 8)).state_dict()
    first = True
    for state in history:
        # torch's AveragedModel begins with a copy of the weights after the first step
        average = state if first else {k: v.lerp(state[k], 0.2) for k, v in average.items()}
        first = False
    kept = weights(folder)
    assert all(torch.allclose(kept[k], average[k], atol=1e-6) for k in kept)
    assert not all(torch.equal(kept[k], history[-1][k]) for k in kept)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.batch=64", "runtime.accumulate=3"], "recipe.batch=64: is for all devices, and 1 device x 3 acc"),
        (["runtime.accumulate=none"], "runtime.accumulate=none: expected a number of parts from 1, or auto"),
        (["runtime.accumulate=true"], "runtime.accumulate=True: expected a number"),
        (["recipe.batch=6", "recipe.mixup=0.2", "runtime.accumulate=2"], "Mixup needs an even number"),
        (["recipe.auto_augment=rand-m9"], "recipe.auto_augment=rand-m9: is read with a random resized crop only"),
        (["recipe.scale=[0.5]"], r"recipe.scale=\[0.5\]: expected the least and the largest share"),
        (["recipe.scale=[0.5,1]", "recipe.crop=2"], "recipe.crop=2: recipe.scale crops already; expected 0"),
        (["recipe.schedule=constant"], "recipe.warmup_epochs=1.0: recipe.schedule=constant has none"),
        (["recipe.lr_interval=epoch", "recipe.warmup_epochs=0.5"], "expected whole epochs"),
        (["recipe.ema=1"], "recipe.ema=1.0: expected a decay between 0 and 1"),
        (["recipe.erasing=2", "recipe.scale=[0.5,1]"], "recipe.erasing=2.0: expected a share from 0 to 1"),
        (["recipe.lr_base_size=0"], "recipe.lr_base_size=0: expected at least 1"),
        (["recipe.clip_grad=0"], "recipe.clip_grad=0.0: expected a norm above 0"),
        (["recipe=finetune"], "recipe.initialize_from=WEIGHTS.pth: no such file"),
        (["data.decoded_size=64", "data=image_folder"], "data.decoded_size=64: needs a random resized crop"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(*overrides)


def test_out_of_memory_splits_the_batch_or_says_how(monkeypatch, capfd):
    forward = classifier.Classifier._step

    def small_device(self, split, batch, smoothing=0.0):
        if split == "train" and len(batch[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, split, batch, smoothing)

    monkeypatch.setattr(Classifier, "_step", small_device)
    with pytest.raises(MemoryError, match=r"out of memory with 64 images on a device at once \(1 part.*accumulate=2"):
        go("recipe.epochs=1")
    folder = next(Path("runs").iterdir())
    assert "out of memory" in json.loads((folder / "failed.json").read_text())["reason"]
    auto = go("recipe.epochs=1", "runtime.accumulate=auto")
    assert auto["result"]["accumulate"] == 4
    assert (
        "out of memory with 32 images on a device at once (2 parts of a batch); trying 4 parts"
        in capfd.readouterr().err
    )
    monkeypatch.setattr(Classifier, "_step", forward)
    assert equal(folder, Path(go("recipe.epochs=1", "runtime.accumulate=4", "runtime.runs=plain")["folder"]))


def test_a_batch_that_can_be_split_no_further_is_named(monkeypatch):
    def nothing_fits(self, split, batch, smoothing=0.0):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "_step", nothing_fits)
    with pytest.raises(MemoryError, match=r"with 3 images on a device .* no more parts of equal size"):
        go("recipe.epochs=1", "recipe.batch=6", "runtime.accumulate=auto")


def test_a_picture_of_the_first_batch():
    file = go("debug=batch", "recipe.mixup=0.2")["picture"]
    assert file.name == "batch.png"
    assert file.stat().st_size > 1000


def test_the_debug_picture_shows_what_training_sees():
    images = data.load(compose("data=digits")["data"])
    recipe = compose("data=digits")["recipe"]
    source = ImageData(images, recipe, 0)
    assert torch.equal(next(iter(source.train_dataloader()))[0], next(iter(source.train_dataloader()))[0])
    assert training.workers({"workers": 3, "devices": 1}, 1) == 3
