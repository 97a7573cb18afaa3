"""Parts that are not trained: they stay as they were, bit for bit, with the statistics of their norms."""

import lightning as L
import pytest
import timm
import torch
from conftest import compose
from trained import go
from trained import weights as weights_of

from metaformer.config.schema import Recipe
from metaformer.models.frozen import freeze
from metaformer.models.metaformer import MetaFormer
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.training.fit import prepare

SMALL = {"depths": [1, 1], "dims": [8, 8], "img_size": 16, "seed": 0}


def test_frozen_stages_stay_as_they_are_and_the_others_learn():
    """With what moves most: BatchNorm, stochastic depth, weight decay, and a moving average of the weights."""
    short = ("recipe.epochs=1", "data.train=128", "recipe.batch=32", "recipe.warmup_epochs=0")
    kinds = ("model.norm=batch", "model.drop_path=0.5", "recipe.ema=0.5")
    frozen = go(*short, *kinds, "recipe.freeze=stages1-2")
    still = go(*short, *kinds, "recipe.lr=0", "recipe.min_lr=0", "recipe.warmup_lr=0")
    first, now = weights_of(still.folder), weights_of(frozen.folder)
    kept = [key for key in now if key.startswith(("stem.", "stages.0.", "stages.1."))]
    first_values = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    statistics = {key: first_values[name] for key in kept if (name := key.rpartition(".")[2]) in first_values}
    assert statistics
    assert all(torch.equal(first[key], now[key]) for key in kept if key not in statistics)
    assert all((now[key] == value).all() for key, value in statistics.items())
    assert not all((first[key] == value).all() for key, value in statistics.items())
    assert not torch.equal(first["stages.2.blocks.0.mlp.fc1.weight"], now["stages.2.blocks.0.mlp.fc1.weight"])
    parameters = sum(now[key].numel() for key in set(kept) - set(statistics))
    assert frozen.result.trainable == frozen.result.params - parameters < still.result.trainable


def test_what_is_new_and_stays_so_is_told():
    short = ("recipe.epochs=1", "data.train=128", "recipe.batch=32", "recipe.warmup_epochs=0")
    source = go(*short, "mixer=pooling").folder / "weights.pt"
    given = (f"recipe.initialize_from={source}", "recipe.initialize_stages=2", "recipe.freeze=stages1-2")
    found = prepare(compose("data=digits", *short, *given, "mixer=depthwise")).initialized
    assert found["new and frozen"] == [f"stages.{i}.blocks.0.mixer" for i in range(2)]
    assert "new and frozen" not in prepare(compose("data=digits", *short, *given, "mixer=pooling")).initialized


def test_frozen_parts_are_in_eval_mode_in_any_trainer():
    net = MetaFormer("pooling", num_classes=3, norm="batch", in_chans=1, **SMALL)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    module = Classifier(net, Recipe(epochs=1, batch=4, warmup_epochs=0, freeze="stem"), classes=3)
    assert not module.train().net.stem.training
    assert module.net.stages[0].training
    images = torch.utils.data.TensorDataset(torch.randn(8, 1, 16, 16), torch.arange(8) % 3)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=4))
    after = net.state_dict()
    assert {key for key, value in after.items() if torch.equal(value, before[key])} == {
        "stem.conv.weight",
        "stem.conv.bias",
    }


@pytest.mark.parametrize(
    ("net", "which", "message"),
    [
        (lambda: MetaFormer("pooling", **SMALL), "stages1-3", "recipe.freeze=stages1-3: the model has 2 stages"),
        (
            lambda: MetaFormer("pooling", num_classes=0, norm="none", **SMALL),
            "stages1-2",
            "recipe.freeze=stages1-2: nothing is left to train",
        ),
        (lambda: timm.create_model("test_resnet"), "stem", "recipe.freeze=stem: is for a model of this package"),
    ],
)
def test_what_cannot_be_frozen_is_refused(net, which, message):
    with pytest.raises(ConfigError, match=message):
        freeze(net(), which)


@pytest.mark.parametrize("word", ["stage1", "stages1-0", "stages2-3", "head"])
def test_other_words_are_refused(word):
    with pytest.raises(ConfigError, match=rf"recipe.freeze={word}: expected none, stem, or stages1-N"):
        compose(f"recipe.freeze={word}")


def test_a_picture_of_a_batch_needs_no_network_to_freeze():
    assert go("debug=batch", "recipe.freeze=stages1-2").shown.exists()
