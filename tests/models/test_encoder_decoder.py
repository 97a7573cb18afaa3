"""Encoders with decoders: the sizes of the papers, shapes, and what two mixers have in common."""

import pytest
import torch

from metaformer.config.schema import Model
from metaformer.config.tasks import Task
from metaformer.models.build import build, described, on_meta, rebuilt
from metaformer.models.cost import count
from metaformer.models.decoders import DECODERS
from metaformer.system.errors import ConfigError

POOLING, IDENTITY = ({"_target_": f"metaformer.mixers.{name}"} for name in ("Pooling", "Identity"))
SMALL = Model(depths=[1, 1, 1], dims=[16, 24, 32], stem=[3, 2, 1])


@pytest.mark.parametrize(("name", "params"), [("s12", 15.7), ("s36", 34.6), ("m36", 59.8)])
def test_semantic_fpn_has_the_parameters_of_the_paper(name, params):
    """PoolFormer with Semantic FPN on ADE20K, arXiv:2111.11418, Table 4, in millions."""
    from metaformer.models.zoo import size

    task = Task("segmentation", "fpn", width=128)
    net = on_meta(Model(**size(name)[0]), POOLING, shape=(3, 512, 512), classes=150, task=task)
    found = sum(p.numel() for p in net.parameters()) / 1e6
    assert found == pytest.approx(params, abs=0.06)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_every_pixel_has_logits(decoder, size):
    task = Task("segmentation", decoder, width=8)
    net = build(SMALL, POOLING, 0, shape=(1, *size), classes=5, task=task)
    out = net(torch.randn(2, 1, *size))
    assert out.shape == (2, 5, *size)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())  # nothing is there that nobody uses
    assert count(net, (1, *size)).uncounted == []
    again = rebuilt(described(net))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mambaout_femto"])
def test_an_encoder_of_timm_may_have_its_channels_last_and_a_size_of_its_own(name):
    net = build(
        Model(source="timm", name=name), {"_target_": "builtin"}, 0, shape=(3, 64, 64), classes=5,
        task=Task("segmentation", width=8),
    )  # fmt: skip
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5, 64, 64)


def test_a_model_of_timm_that_does_not_know_an_option_is_one_line():
    model = Model(source="timm", name="vgg11", drop_path=0.1)
    with pytest.raises(ConfigError, match=r"model\.name=vgg11: gives no maps .*'drop_path_rate'"):
        build(model, {"_target_": "builtin"}, 0, shape=(3, 64, 64), classes=5, task=Task("segmentation"))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_model_of_timm_is_an_encoder_too(decoder):
    task = Task("segmentation", decoder, width=8)
    net = build(
        Model(source="timm", name="resnet18"), {"_target_": "builtin"}, 0, shape=(3, 64, 64), classes=5, task=task
    )
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5, 64, 64)
    assert net.skipped == (0 if decoder == "unet" else 1)


def test_two_mixers_start_with_the_same_decoder():
    task = Task("segmentation", width=8)
    nets = [
        build(SMALL, mixer, 3, shape=(1, 64, 64), classes=5, task=task).state_dict() for mixer in (POOLING, IDENTITY)
    ]
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())
