"""Golden losses, one for each path through training: whoever changes them has to raise TRAINING_VERSION."""

import pytest
from conftest import compose

from metaformer.studies.points import resolve
from metaformer.studies.worker import run
from metaformer.system.version import TRAINING_VERSION

CHOICES = {"mixer": "golden", "model": "tiny"}
ZOO = ["model=zoo", "mixer=builtin", "model.name=poolformerv2_s12", "data.train=192", "recipe.lr=1e-3"]
MIXED = ["recipe.mixup=0.8", "recipe.cutmix=1", "recipe.ema=0.9", "recipe.clip_grad=1"]
GOLDEN = {  # test loss after one epoch of 18 steps, under TRAINING_VERSION 1
    "plain": ([], 1.326803),
    "augmented in memory": (["recipe.crop=1", "recipe.flip=true"], 1.923659),
    "stochastic depth and a position": (["model.drop_path=0.2", "model.position=[true,false,false,false]"], 1.323964),
    "Mixup, average, clipping": (MIXED, 1.701547),
    "rate by epoch, LAMB": (["recipe.lr_interval=epoch", "recipe.warmup_epochs=0", "recipe.optimizer=lamb"], 2.033996),
    "parts of a batch": (["runtime.accumulate=2", "recipe.mixup=0.8"], 1.365771),
    "one image at a time": (["recipe.scale=[0.5,1]", "data.train=320"], 2.149841),
    "attention": (["mixer=attention"], 1.431169),
    "spatial MLP": (["mixer=spatial_mlp"], 1.427237),
    "Fourier": (["mixer=fourier"], 1.413443),
    "published": (ZOO, 1.729852),
    "timm": (["model=timm", "mixer=builtin", "model.name=test_resnet", "data.train=192"], 2.296722),
}


@pytest.mark.parametrize("path", GOLDEN)
def test_golden_loss(path):
    overrides, loss = GOLDEN[path]
    config = compose("data=digits", "recipe.epochs=1", "runtime.threads=1", "runtime.progress=false", *overrides)
    result = run(resolve(config, CHOICES)[0]).result
    assert (TRAINING_VERSION, result.metrics["test_loss"]) == (1, pytest.approx(loss, rel=2e-4)), (
        "training gives another result: raise TRAINING_VERSION and write the new losses down"
    )
