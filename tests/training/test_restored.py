"""A trained network in another program: without its data set it says of its test images what it said in its test."""

import numpy as np
import pytest
import torch
from conftest import compose
from PIL import Image
from trained import go

import metaformer
from metaformer.data.images import load
from metaformer.system.errors import ConfigError
from metaformer.training import restored


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        for i, name in enumerate(("cat", "dog")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 255, (40 + k, 50, 3), dtype=np.uint8) // (i + 1)
                Image.fromarray(pixels).save(place / f"{k}.png")
    return tmp_path / "images"


CROPPED = ("recipe.scale=[0.5,1]", "recipe.crop=0")


@pytest.mark.parametrize(
    "words",
    [(), ("data.channels=1",), (*CROPPED, "data.decode=always"), CROPPED, (*CROPPED, "data.decoded_size=[40,64]")],
)
def test_it_sees_a_photograph_as_in_its_test(folder, words):
    root = ("data=image_folder", f"data.root={folder}", "data.size=32", "recipe.batch=8", "runtime.workers=0")
    run = go(*root, *words, "mixer=spatial_mlp", "model.head_dropout=0.5").folder
    (folder / "train").rename(folder.parent / "gone")  # its data set is not needed
    trained = metaformer.load(run)
    assert trained.classes == ["cat", "dog"]
    assert trained.config.recipe.batch == 8
    files = [folder / "test" / name / f"{k}.png" for name in trained.classes for k in range(4)]
    with torch.no_grad():
        logits = torch.cat([trained.net(trained.transform(Image.open(file))[None]) for file in files])
    recorded = torch.from_numpy(np.load(run / "predictions.npz")["logits"]).float()  # ordered by contents
    place = torch.cdist(recorded, logits).argmin(1)
    assert sorted(place.tolist()) == list(range(8))
    torch.testing.assert_close(logits[place], recorded, rtol=2e-3, atol=2e-3)  # kept as float16
    torch.testing.assert_close(metaformer.load(run / "weights.pt").net.state_dict(), trained.net.state_dict())


def test_images_in_memory():
    run = go("mixer=pooling").folder
    trained = metaformer.load(str(run))
    images = load(compose("data=digits").data).test
    pictures = [Image.fromarray(pixels.numpy().squeeze()) for pixels in images.images[:20]]
    with torch.no_grad():
        logits = trained.net(torch.stack([trained.transform(picture) for picture in pictures]))
    recorded = torch.from_numpy(np.load(run / "predictions.npz")["logits"]).float()[:20]
    torch.testing.assert_close(logits, recorded, rtol=2e-3, atol=2e-3)


def test_what_is_no_run():
    run = go("mixer=pooling").folder
    (run.parent / "nobody-tiny").mkdir()
    with pytest.raises(ConfigError, match=rf"no finished run there .*{run.name}"):
        metaformer.load(run.parent / "nobody-tiny")
    with pytest.raises(ConfigError, match="is a run, which knows its model; name belongs to a published one"):
        metaformer.load(run, "poolformer_s12")
    with pytest.raises(ConfigError, match=r"^runs/nowhere: no such file or folder$"):
        metaformer.load("runs/nowhere")
    with pytest.raises(ConfigError, match="no such file, nor a published model"):
        metaformer.load("poolformer_s13")
    assert restored.read_kept(run / "result.json") is None


def test_weights_that_do_not_fit_their_model_are_named():
    run = go("mixer=pooling", "recipe.epochs=1").folder
    saved = torch.load(run / "weights.pt", weights_only=True)
    del saved["state_dict"]["norm.weight"]
    torch.save(saved, run / "weights.pt")
    with pytest.raises(ConfigError, match=r'its weights do not fit its model: Missing key\(s\).*"norm.weight"'):
        metaformer.load(run / "weights.pt")
