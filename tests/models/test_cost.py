"""Multiply-accumulates against numbers worked out by hand and the published ones."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metaformer.mixers import Attention, DepthwiseConv, Fourier, Identity, Pooling, RandomMixing, SpatialMLP
from metaformer.models.cost import best, count
from metaformer.models.metaformer import MetaFormer

CONVS_AND_HEAD = 1_811_755_008 + 512_000  # of S12 at 224
TOKENS = [(3136, 64, 2), (784, 128, 2), (196, 320, 6), (49, 512, 2)]  # N, C and blocks of each stage


def s12(mixer, **options) -> int:
    with torch.device("meta"):
        net = MetaFormer(mixer, **options)
    cost = count(net, (3, 224, 224))
    assert cost.uncounted == []
    return cost.macs


@pytest.mark.parametrize(
    ("mixer", "options", "mixing"),
    [
        (Identity, {}, 0),
        (Pooling, {}, sum(9 * n * c * blocks for n, c, blocks in TOKENS)),
        (DepthwiseConv, {}, 1_831_936_000 - 10_411_520 - CONVS_AND_HEAD),  # less the norms, which are free here
        (RandomMixing, {}, 1_492_384_768),
        (SpatialMLP, {}, 1_492_384_768),
        (Attention, {}, sum((4 * n * c * c + 2 * n * n * c) * blocks for n, c, blocks in TOKENS)),
        (Pooling, {"norm": "layer"}, sum(9 * n * c * blocks for n, c, blocks in TOKENS)),
    ],
)
def test_s12(mixer, options, mixing):
    assert s12(mixer, **options) == CONVS_AND_HEAD + mixing


def test_a_fourier_transform_is_counted():
    expected = sum(2.5 * n * c * math.log2(n * c) * blocks for n, c, blocks in TOKENS)
    assert s12(Fourier) - CONVS_AND_HEAD == pytest.approx(expected, rel=1e-3)


def test_attention_costs_the_same_on_every_device():
    net = MetaFormer(Attention, depths=[1], dims=[64], stem=(4, 4, 0), img_size=28)
    with torch.device("meta"):
        meta = MetaFormer(Attention, depths=[1], dims=[64], stem=(4, 4, 0), img_size=28)
    assert count(net, (3, 28, 28)).macs == count(meta, (3, 28, 28)).macs
    assert count(net.bfloat16(), (3, 28, 28)).macs == count(meta, (3, 28, 28)).macs


def test_an_op_without_a_formula_is_named_and_not_counted_as_zero():
    class Sorting(nn.Module):
        def forward(self, x):
            return x.sort(dim=2).values

    cost = count(MetaFormer(Sorting, depths=[1], dims=[8]), (3, 32, 32))
    assert cost.macs is None
    assert cost.uncounted == ["aten.sort"]


def test_counting_leaves_the_mode_and_counts_what_is_frozen_apart():
    net = MetaFormer(RandomMixing, depths=[1], dims=[8], img_size=32).train()
    cost = count(net, (3, 32, 32))
    assert net.training
    assert cost.params - cost.trainable == 64**2


def test_a_module_that_states_its_cost_may_be_called_by_name_and_one_that_fails_is_left_as_it_was():
    class Doubling(nn.Module):
        def macs(self, x, times):
            return times * x.numel()

        def forward(self, x, times):
            return times * x

    class Net(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.inner, self.times = Doubling(), times

        def forward(self, x):
            return self.inner(x, times=self.times)

    assert count(Net(2), (3, 4, 4)).macs == 2 * 48
    failing = Net(None)
    with pytest.raises(TypeError):
        count(failing, (3, 4, 4))
    assert failing.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in failing.modules())


def test_attention_that_torch_fuses_in_evaluation_is_counted():
    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

        def forward(self, x):
            return self.layer(x.flatten(2).transpose(1, 2))

    cost = count(Tokens().eval(), (16, 4, 4))
    assert (cost.uncounted, cost.macs) == ([], 16 * (4 * 16 * 16 + 2 * 16 * 16 + 2 * 16 * 32))
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_round_that_warms_up_does_not_count(monkeypatch):
    clock = iter([0, 1, 0, 5, 0, 4])
    monkeypatch.setattr("metaformer.models.cost.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert best([lambda: None], torch.device("cpu"), rounds=2) == [4]
