"""One run on two processes is the run on one, up to rounding, whoever starts them."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, compose
from trained import go, stop_at

from metaformer import train
from metaformer.system.machine import rank

ONE = (*TINY, "runtime.accelerator=cpu")
TWO = (*ONE, "runtime.devices=2", "runtime.runs=two")


def the(root, name):
    return next(root.glob(f"{name}/*-*"))


def compare(tmp_path) -> None:
    one, two = the(tmp_path, "runs"), the(tmp_path, "two")
    assert one.name == two.name
    a, b = (torch.load(folder / "weights.pt", weights_only=True)["state_dict"] for folder in (one, two))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 3e-3
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (one, two))
    assert (first["devices"], second["devices"]) == (1, 2)
    for name in ("train_loss", "val_loss", "test_loss"):
        assert first["metrics"][name] == pytest.approx(second["metrics"][name], abs=2e-3)
    kept = [np.load(folder / "predictions.npz") for folder in (one, two)]
    assert (kept[0]["labels"] == kept[1]["labels"]).all()
    assert (kept[0]["predictions"] == kept[1]["predictions"]).mean() > 0.99  # in the order of the images
    for folder, result in ((one, first), (two, second)):
        stored = np.load(folder / "predictions.npz")
        accuracy = (stored["predictions"] == stored["labels"]).mean()
        assert accuracy == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-6)
    assert not list(two.glob("*.ckpt"))


@pytest.mark.processes
def test_two_processes_started_by_lightning_or_by_torchrun(cli, tmp_path):
    assert cli("train", *ONE).returncode == 0
    done = cli("train", *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1
    compare(tmp_path)
    assert cli("train", *TWO).stdout.startswith("found")

    shutil.rmtree(tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, "-m", "metaformer.train", *TWO], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1
    compare(tmp_path)


@pytest.mark.processes
def test_two_devices_with_two_parts_draw_what_four_parts_draw(cli, tmp_path):
    """Each part of a batch has its own draws, wherever it is trained."""
    drawn = ("model.drop_path=0.3", "recipe.mixup=0.5", "recipe.epochs=1")
    done = cli("train", *ONE, *drawn, "runtime.accumulate=4")
    assert done.returncode == 0, done.stderr
    done = cli("train", *TWO, *drawn, "runtime.accumulate=2")
    assert done.returncode == 0, done.stderr
    compare(tmp_path)


@pytest.mark.processes
def test_masks_on_two_devices(cli, tmp_path):
    """5 test images leave one device an image that only fills up; what is kept of each image is that of one device."""
    random = np.random.default_rng(0)
    counts = {"train": 64, "val": 7, "test": 5}
    images = {f"{s}_images": random.integers(256, size=(n, 16, 16)).astype(np.uint8) for s, n in counts.items()}
    masks = {f"{split}_masks": (images[f"{split}_images"] > 127).astype(np.uint8) for split in counts}
    np.savez(tmp_path / "a.npz", **images, **masks)
    words = ("task=segmentation", "data=npz", "data.root=a.npz", "model=tiny_pyramid", "model.dims=[8,16,24]")
    words = (*words, "task.width=8", "task.dice=0.3", "recipe.batch=16", "recipe.crop=2", "recipe.epochs=2")
    words = (*words, "runtime.threads=1", "runtime.progress=false", "runtime.accelerator=cpu")
    for own in ((), ("runtime.devices=2", "runtime.runs=two")):
        done = cli("train", *words, *own)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((the(tmp_path, runs) / "result.json").read_text()) for runs in ("runs", "two"))
    assert one["tested_images"] == two["tested_images"] == 5
    for name, value in one["metrics"].items():
        assert value == pytest.approx(two["metrics"][name], abs=5e-3), name
    first, second = (np.load(the(tmp_path, runs) / "predictions.npz")["counts"] for runs in ("runs", "two"))
    pixels = [counts[..., 0] + counts[..., 2] for counts in (first, second)]
    assert (pixels[0] == pixels[1]).all()  # in the order of the images
    shown = [np.load(the(tmp_path, runs) / "predictions.npz")["shown"] for runs in ("runs", "two")]
    assert len(shown[0]) == len(shown[1]) == 5
    assert (shown[0] == shown[1]).mean() > 0.9  # each with its own image, up to rounding
    assert np.array(two["confusion"]).sum() == 5 * 16 * 16


@pytest.mark.processes
def test_a_run_goes_on_with_another_number_of_devices(cli, tmp_path, monkeypatch):
    """Both processes go on from what the first one has found."""
    assert cli("train", *ONE).returncode == 0
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=20)  # of 18 an epoch
        with pytest.raises(SystemExit):
            go("runtime.accelerator=cpu", "runtime.runs=two")
    before = (the(tmp_path, "two") / "metrics.csv").read_text()
    done = cli("train", *TWO)
    assert done.returncode == 0, done.stderr
    assert (the(tmp_path, "two") / "metrics.csv").read_text().startswith(before)
    compare(tmp_path)


def test_words_that_lightning_adds_for_the_second_process_are_not_refused(monkeypatch):
    """They are no user's: hydra.run.dir is refused from the first process alone."""
    ran = []
    monkeypatch.setattr(train, "app", lambda: ran.append(rank()))
    monkeypatch.setattr(sys, "argv", ["train", 'hydra.run.dir="."', "hydra.output_subdir=null"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    train.main()
    assert ran == [1]
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # which is set while a command runs
    with pytest.raises(SystemExit) as left:
        train.main()
    assert (left.value.code, ran) == (2, [1])


def test_a_sweep_on_several_devices_is_refused_with_what_works(cli):
    done = cli("train", *TWO, "-m", "mixer=identity,pooling")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "runtime.devices=2: a sweep trains each run on one device, but with hydra/launcher=slurm" in done.stderr
    assert "one run at a time: python -m metaformer.train" in done.stderr
    assert "mixer=identity" in done.stderr


def test_more_gpus_than_there_are(cli):
    if torch.cuda.device_count() >= 99:
        pytest.skip("there are")
    done = cli("train", *TINY, "runtime=gpu", "runtime.compile=false", "runtime.devices=99", "recipe.batch=99")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "error: runtime.accelerator=gpu, runtime.devices=99: " in done.stderr


def test_a_batch_that_the_devices_do_not_divide():
    with pytest.raises(ValueError, match=r"recipe.batch=65: is for all devices, and 2 devices x 1 accumulated part"):
        compose("recipe.batch=65", "runtime.devices=2")
