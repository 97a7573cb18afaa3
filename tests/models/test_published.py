"""Published models in use: trained under a recipe like any other, and fine-tuned."""

import pytest
import timm
import torch
from conftest import compose
from torch import nn
from trained import go

from metaformer.config.schema import Config
from metaformer.models import weights, zoo
from metaformer.models.build import build
from metaformer.models.initial import initialize
from metaformer.system.errors import ConfigError


def test_a_timm_model_under_the_same_recipe():
    timms = ("model=timm", "model.name=test_resnet", "mixer=builtin", "model.drop_path=null")
    result = go("recipe.epochs=1", *timms).result
    theirs = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    assert result.params == sum(p.numel() for p in theirs.parameters())
    assert result.macs > 0
    nearest = r"model.name=deit_smal_patch16_224: no such model of timm; nearest: deit_small_patch16_224"
    with pytest.raises(ConfigError, match=nearest):
        go("recipe.epochs=1", "model=timm", "model.name=deit_smal_patch16_224", "mixer=builtin")


def test_a_model_of_the_zoo():
    zoos = ("model=zoo", "model.name=caformer_s18", "mixer=builtin")
    result = go("recipe.epochs=1", *zoos, "data=fashion_small", "data.train=128").result
    with torch.device("meta"):
        net = zoo.create("caformer_s18", in_chans=1, num_classes=10)
    assert result.params == sum(p.numel() for p in net.parameters())


def untrained(config: Config, classes: int) -> nn.Module:
    return build(config.model, config.mixer, config.seed, shape=(1, 28, 28), classes=classes)


def test_fine_tuning_begins_with_the_weights_of_the_file(tmp_path):
    options = ("recipe.epochs=1", "data=fashion_small", "data.train=128", "recipe.lr=0")
    file = tmp_path / go(*options).folder / "weights.pt"
    trained = weights.read(file)
    again = go(*options, f"recipe.initialize_from={file}", "recipe.warmup_lr=0", "recipe.min_lr=0", "seed=5")
    loaded = weights.read(again.folder / "weights.pt")
    assert all(torch.equal(loaded[key], trained[key]) for key in trained)

    net = untrained(compose("seed=1"), classes=3)
    head = net.head.weight.clone()
    initialize(net, str(file))
    assert torch.equal(net.head.weight, head)
    assert torch.equal(net.stem.conv.weight, trained["stem.conv.weight"])
    with pytest.raises(ConfigError, match=r"weights\.pt: does not fit the model"):
        initialize(untrained(compose("model=iso_ti"), classes=10), str(file))
