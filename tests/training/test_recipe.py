"""Recipes train as the papers do: augmentation, averaging, accumulation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from trained import CHOICES, equal, go, weights

from metaformer.config.schema import Runtime
from metaformer.data.images import load
from metaformer.data.module import ImageData
from metaformer.models.precision import out_of_memory
from metaformer.studies.points import resolve
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.training.debug import picture
from metaformer.training.trainer import workers


def test_accumulation_gives_the_same_run_up_to_rounding():
    whole = go("recipe.epochs=1", "recipe.clip_grad=1.0")
    parts = go("recipe.epochs=1", "recipe.clip_grad=1.0", "runtime.accumulate=4", "runtime.runs=parts")
    assert whole.folder.name == parts.folder.name  # it is no part of the identity
    assert parts.result.accumulate == 4
    a, b = weights(whole.folder), weights(parts.folder)
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    first, second = (r.result.metrics for r in (whole, parts))
    assert first["val_loss"] == pytest.approx(second["val_loss"], abs=1e-3)


def test_clipping_and_averaging_change_the_run():
    plain = go("recipe.epochs=1")
    clipped = go("recipe.epochs=1", "recipe.clip_grad=0.01")
    averaged = go("recipe.epochs=1", "recipe.ema=0.9")
    folders = [r.folder for r in (plain, clipped, averaged)]
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
    folder = go("recipe.epochs=1", "recipe.ema=0.8").folder
    average = history[0]  # torch's AveragedModel begins with a copy of the weights after the first step
    for state in history[1:]:
        average = {k: v.lerp(state[k], 0.2) for k, v in average.items()}
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
        resolve(compose(*overrides), CHOICES)


def test_out_of_memory_splits_the_batch_or_says_how(monkeypatch, capfd):
    step = Classifier.training_step

    def small_device(self, batch):
        if len(batch[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return step(self, batch)

    monkeypatch.setattr(Classifier, "training_step", small_device)
    with pytest.raises(MemoryError, match=r"out of memory with 64 images on a device at once \(1 part.*accumulate=2"):
        go("recipe.epochs=1")
    folder = next(Path("runs").glob("*-*"))
    assert "out of memory" in json.loads((folder / "failed.json").read_text())["reason"]
    auto = go("recipe.epochs=1", "runtime.accumulate=auto")
    assert auto.result.accumulate == 4
    assert (
        "out of memory with 32 images on a device at once (2 parts of a batch); trying 4 parts"
        in capfd.readouterr().err
    )
    monkeypatch.setattr(Classifier, "training_step", step)
    assert equal(folder, go("recipe.epochs=1", "runtime.accumulate=4", "runtime.runs=plain").folder)


def test_memory_that_runs_out_has_many_names():
    for words in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):
        assert out_of_memory(RuntimeError(words))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_out_of_memory_behind_a_checkpoint_is_not_tried_in_other_parts(monkeypatch):
    step = Classifier.training_step

    def others_came(self, batch):
        if self.current_epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch)

    monkeypatch.setattr(Classifier, "training_step", others_came)
    line = r"^out of memory; a checkpoint goes on with 1 parts of a batch; runtime.force=true begins anew$"
    with pytest.raises(MemoryError, match=line):
        go("recipe.epochs=2", "runtime.accumulate=auto")


def test_a_batch_that_can_be_split_no_further_is_named(monkeypatch):
    def nothing_fits(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "training_step", nothing_fits)
    with pytest.raises(MemoryError, match=r"with 3 images on a device .* no more parts of equal size"):
        go("recipe.epochs=1", "recipe.batch=6", "runtime.accumulate=auto")


def test_a_picture_of_the_first_batch():
    file = go("debug=batch", "recipe.mixup=0.2").shown
    assert file.name == "batch.png"
    assert file.stat().st_size > 1000


def test_the_debug_picture_shows_what_training_sees(tmp_path):
    config = compose("data=digits", "recipe.crop=2")
    images = load(config.data)
    batch = next(iter(ImageData(images, config.recipe, 0).train_dataloader()))[0]
    shown = torch.from_numpy(np.asarray(Image.open(picture(config.recipe, 0, images, tmp_path)))[..., 0].copy())
    first = (batch[0, 0] * images.std + images.mean).round().byte()
    torch.testing.assert_close(shown[2:10, 2:10], first, atol=1, rtol=0)  # behind the edge of the grid


def test_as_many_processes_read_as_are_asked_for():
    assert workers(Runtime(workers=3, devices=1), 1) == 3


def test_what_was_trained_before_the_memory_ran_out_is_not_kept(monkeypatch):
    step, small = Classifier.training_step, ("recipe.epochs=1", "data.train=192", "recipe.batch=64")

    def small_device(self, batch):
        if len(batch[0]) > 32 and self.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch)

    monkeypatch.setattr(Classifier, "training_step", small_device)
    again = go(*small, "runtime.accumulate=auto")
    assert again.result.accumulate == 2
    assert equal(again.folder, go(*small, "runtime.accumulate=2", "runtime.runs=plain").folder)
