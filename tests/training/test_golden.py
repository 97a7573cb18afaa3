"""Golden losses, one for each path through training: whoever changes them has to raise TRAINING_VERSION."""

import pytest
from conftest import MIXERS, compose, configured

from metaformer.studies.points import resolve
from metaformer.studies.worker import run
from metaformer.system.version import TRAINING_VERSION

CHOICES = {"mixer": "golden", "model": "tiny"}
ZOO = ["model=zoo", "mixer=builtin", "model.name=poolformerv2_s12", "data.train=192", "recipe.lr=1e-3"]
MIXED = ["recipe.mixup=0.8", "recipe.cutmix=1", "recipe.ema=0.9", "recipe.clip_grad=1"]
GOLDEN = {  # test loss after one epoch of 18 steps, under TRAINING_VERSION 1
    "plain": ([], 1.355819),
    "augmented in memory": (["recipe.crop=1", "recipe.flip=true"], 1.929328),
    "stochastic depth and a position": (["model.drop_path=0.2", "model.position=[true,false,false,false]"], 1.340865),
    "Mixup, average, clipping": (MIXED, 1.687532),
    "rate by epoch, LAMB": (["recipe.lr_interval=epoch", "recipe.warmup_epochs=0", "recipe.optimizer=lamb"], 2.031513),
    "parts of a batch": (["runtime.accumulate=2", "recipe.mixup=0.8"], 1.352727),
    "one image at a time": (["recipe.scale=[0.5,1]", "data.train=320"], 2.106576),
    "attention": (["mixer=attention"], 1.445808),
    "spatial MLP": (["mixer=spatial_mlp"], 1.424252),
    "Fourier": (["mixer=fourier"], 1.406904),
    "published": (ZOO, 1.665851),
    "timm": (["model=timm", "mixer=builtin", "model.name=test_resnet", "data.train=192"], 2.297287),
}


@pytest.mark.parametrize("path", GOLDEN)
def test_golden_loss(path):
    overrides, loss = GOLDEN[path]
    config = compose("data=digits", "recipe.epochs=1", "runtime.threads=1", "runtime.progress=false", *overrides)
    result = run(resolve(config, CHOICES)[0]).result
    assert (TRAINING_VERSION, result.metrics["test_loss"]) == (1, pytest.approx(loss, rel=2e-4)), (
        "training gives another result: raise TRAINING_VERSION and write the new losses down"
    )


INITIAL = {  # sums of squares of the initial weights of seed 0, at 32 channels and 7x5 tokens; others have none
    "attention": 1.646521,
    "spatial_mlp": 0.480621,
    "depthwise": 11.17375,
    "sepconv": 3.961904,
    "random": 1.082635,
    "global_filter": 0.5640594,
    "afno": 0.2717829,
    "window_attention": 1.700711,
    "linear_attention": 1.646521,
    "spatial_reduction": 98.15712,
    "large_kernel": 321.0729,
    "conv": 10.64441,
    "grouped_conv": 10.62338,
    "neighbourhood_attention": 1.646521,
    "state_space": 3222.857,
    "xca": 2.646521,
    "outlook_attention": 1.895904,
    "focal_modulation": 2.16084,
    "gated_conv": 3.894738,
    "spatial_gating": 68.24804,
}


@pytest.mark.parametrize("name", MIXERS)
def test_golden_initial_weights(name):
    weights = [w.double() for w in configured(name).state_dict().values() if w.is_floating_point()]
    found = sum(float(w.square().sum()) for w in weights)
    told = "a mixer begins from other weights: raise TRAINING_VERSION and write the new sums down"
    assert (TRAINING_VERSION, found) == (1, pytest.approx(INITIAL.get(name, 0), rel=1e-5)), told
