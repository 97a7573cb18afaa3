"""Images of more channels than colours, as those of satellites, from a file of arrays to the last picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from timm.models import adapt_input_conv
from trained import go, weights

import metaformer
from metaformer.analysis.segmented import predictions
from metaformer.data.images import load
from metaformer.runs.answers import read_answers
from metaformer.runs.launch import Run
from metaformer.system.errors import ConfigError
from metaformer.tasks.scores import Scores
from metaformer.training.evaluation import evaluate
from metaformer.training.examples import examples
from metaformer.training.prediction import predict

SIZES = {"train": 60, "val": 20, "test": 20}


def arrays(channels: int, *, masks: bool = False) -> dict[str, np.ndarray]:
    """The class is said by one channel alone, the last one."""
    random, made = np.random.default_rng(0), {}
    for split, count in SIZES.items():
        images = random.integers(0, 200, (count, 16, 16, channels)).astype(np.uint8)
        labels = np.arange(count) % 2
        images[..., -1] = images[..., -1] // 10 + np.where(labels, 200, 20)[:, None, None]
        made[f"{split}_images"] = images
        made |= {f"{split}_masks": images[..., -1] // 100} if masks else {f"{split}_labels": labels}
    return made


def npz(content: dict[str, np.ndarray], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "a.npz", **content)
    return folder / "a.npz"


def words(file: Path, *more: str) -> tuple[str, ...]:
    return ("data=npz", f"data.root={file}", "recipe.batch=20", *more)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run on images of four channels, and their file."""
    folder = tmp_path_factory.mktemp("four")
    file = npz(arrays(4), folder)
    return go(*words(file), "recipe.epochs=6", f"runtime.runs={folder / 'runs'}"), file


def test_they_train_and_all_channels_are_seen(four):
    run, file = four
    images = load(compose(*words(file)).data)
    assert images.shape == (4, 16, 16)
    assert len(images.mean) == len(images.std) == 4
    normal = images.normalise(images.train.images)
    assert float(normal.mean((0, 2, 3)).abs().max()) < 1e-3
    assert run.result.metrics["test_accuracy"] == 1.0
    assert weights(run.folder)["stem.conv.weight"].shape[1] == 4


def test_predictions_evaluation_and_arrays_of_ones_own(four):
    run, file = four
    config = compose(*words(file))
    measured = evaluate(run.result.config, run.folder / "weights.pt").metrics
    assert measured["test_accuracy"] == run.result.metrics["test_accuracy"]
    predicted = predict(run.folder, run.result.config, folder=False)
    assert predicted.probabilities.argmax(1).tolist() == read_answers(run.folder).predictions.tolist()
    trained, images = metaformer.load(run.folder), load(config.data)
    seen = torch.stack([trained.transform(images.test.array(row)) for row in range(3)])
    torch.testing.assert_close(seen, images.normalise(images.test.images[:3]).contiguous())
    with pytest.raises(ConfigError, match=r"image: uint8 \(8, 8, 4\); expected an array of uint8 \(16, 16, 4\)"):
        trained.transform(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(ConfigError, match=r"image: L; expected an array \[H, W, 4\] uint8"):
        trained.transform(images.test.read(0))
    with pytest.raises(ConfigError, match="this run was trained on images of 4 channels, which no file of an image"):
        predict(run.folder, run.result.config, folder=True)


def test_people_see_the_mean_of_the_channels(four, tmp_path):
    _, file = four
    images = load(compose(*words(file)).data)
    picture = images.test.read(1)
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), images.test.array(1).mean(2).astype(np.uint8))
    assert go(*words(file), "debug=batch", f"runtime.runs={tmp_path}").shown.exists()
    assert images.test.read(0).size == (16, 16)


def test_a_random_resized_crop_is_refused(four):
    told = r"recipe.scale=\[0.5, 1.0\]: is for grey or colours, and the images have 4 channels; expected null"
    with pytest.raises(ConfigError, match=told):
        go(*words(four[1]), "recipe.scale=[0.5,1]", "recipe.crop=0")
    with pytest.raises(ConfigError, match=r"data.channels=4: expected 1 for grey or 3 for colour"):
        go("data=image_folder", f"data.root={four[1].parent}", "data.channels=4")


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_the_stem_of_a_network_for_colours_is_taken_by_timms_rule(four, channels, tmp_path):
    colours = go(*words(npz(arrays(3), tmp_path / "colours")), "recipe.epochs=1")
    file = colours.folder / "weights.pt"
    run = go(*words(npz(arrays(channels), tmp_path / "more")), f"recipe.initialize_from={file}", "recipe.lr=0",
             "recipe.warmup_lr=0", "recipe.min_lr=0", "recipe.epochs=1")  # fmt: skip
    first, own = (weights(folder)["stem.conv.weight"] for folder in (colours.folder, run.folder))
    torch.testing.assert_close(own, adapt_input_conv(channels, first))
    assert "stem.conv.weight" in " ".join(run.result.initialized["adapted"])


def test_masks_of_such_images_are_learnt_and_drawn(tmp_path):
    file = npz(arrays(4, masks=True), tmp_path)
    run = go(*words(file), "task=segmentation", "task.width=8", "recipe.epochs=1", "model.depths=[1,1]",
             "model.dims=[16,16]", "model.stem=[3,2,1]", "model.downsample=[3,2,1]")  # fmt: skip
    listed = Run("pooling", {"mixer": "pooling"}, "pooling", 0, run.result.run_id, folder=run.folder, result=run.result)
    assert predictions([listed]) is not None


def test_pictures_for_wandb(four):
    _, file = four
    images = load(compose(*words(file)).data)
    shown = examples(images, Scores(torch.zeros(20, 2), images.test.labels))
    assert {image.mode for kind in shown.values() for image, _ in kind} == {"L"}
