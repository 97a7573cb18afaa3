"""Weights from a file on a folder of images."""

import numpy as np
import pytest
import timm
import torch
from conftest import compose
from PIL import Image

from metaformer.models import weights, zoo
from metaformer.system.errors import ConfigError
from metaformer.training.evaluation import Top, evaluate_weights


def test_published_weights_on_a_folder_of_images(tmp_path):
    """The accuracy that timm's own model and transform give."""
    torch.manual_seed(3)
    theirs = timm.create_model("poolformerv2_s12", num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    random = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "images" / f"c{i % 3}").mkdir(parents=True, exist_ok=True)
        pixels = np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((50, 50, 1))).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / "images" / f"c{i % 3}" / f"{i}.png")
    overrides = [
        "model=zoo",
        "model.name=poolformerv2_s12",
        "mixer=builtin",
        "data=image_folder",
        f"data.root={tmp_path / 'images'}",
    ]
    measured = evaluate_weights(str(tmp_path / "w.pth"), compose(*overrides))

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    hits = []
    for file in sorted((tmp_path / "images").rglob("*.png")):
        with torch.no_grad():
            logits = theirs(transform(Image.open(file).convert("RGB"))[None])
        hits.append(int(logits.argmax()) == int(file.parent.name[1]))
    assert measured == Top(top1=pytest.approx(np.mean(hits)), top5=1.0, images=12, crop_pct=1.0)
    with pytest.raises(ConfigError, match="the weights are those of identityformer_s12, poolformerv2_s12"):
        evaluate_weights(str(tmp_path / "w.pth"), compose("model=s12", *overrides[3:]))
    torch.save(zoo.create("poolformer_s12").state_dict(), tmp_path / "k.pth")
    weights.save(zoo.create("poolformer_s12", num_classes=0).state_dict(), tmp_path / "headless.pth")
    with pytest.raises(ConfigError, match=r"headless.pth: no classifier in it"):
        evaluate_weights(str(tmp_path / "headless.pth"), compose("model=s12", *overrides[3:]))
    with pytest.raises(ConfigError, match="3 class folders, the weights 1000 classes"):
        evaluate_weights(str(tmp_path / "k.pth"), compose("model=s12", *overrides[3:]))
