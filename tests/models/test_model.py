"""The architecture against the published numbers, and the promise that two models differ in their mixer alone."""

import itertools

import pytest
import torch
from conftest import MIXERS, compose
from torch import nn

from metaformer.mixers import Attention, DepthwiseConv, Fourier, Identity, Pooling, RandomMixing, SpatialMLP
from metaformer.mixers.factory import from_config
from metaformer.models.block import MetaFormerBlock, PositionEmbedding, make_norm
from metaformer.models.build import build
from metaformer.models.metaformer import MetaFormer

S12 = {"depths": [2, 2, 6, 2], "dims": [64, 128, 320, 512], "drop_path": 0.1}
P, A, S = Pooling, Attention, SpatialMLP


def parameters(module: nn.Module, trainable: bool = True) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad == trainable)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mixer": P}, 11_915_176),
        ({"mixer": Identity}, 11_915_176),
        ({"mixer": Fourier}, 11_915_176),
        ({"mixer": RandomMixing}, 11_915_176),
        ({"mixer": DepthwiseConv}, 11_948_456),
        ({"mixer": P, "norm": "layer"}, 11_915_176),
        ({"mixer": P, "norm": "batch"}, 11_915_176),
        ({"mixer": P, "norm": "none"}, 11_900_840),
        ({"mixer": P, "layer_scale": None}, 11_908_520),
        ({"mixer": P, "residual": False}, 11_915_176),
        ({"mixer": P, "channel_mlp": False}, 2_451_368),
        ({"mixer": P, "num_classes": 10}, 11_407_306),
        ({"mixer": [P, P, A, A]}, 16_472_872),
        ({"mixer": [P, P, A, A], "norm": "layer", "position": [False, False, True, False]}, 16_535_592),
        ({"mixer": [P, P, P, A], "norm": "layer", "position": [False, False, False, True]}, 14_038_440),
        ({"mixer": [P, P, P, S]}, 11_919_978),
        ({"mixer": [P, P, S, S]}, 12_150_474),
        ({"mixer": P, "depths": [4, 4, 12, 4]}, 21_388_968),
        ({"mixer": P, "depths": [6, 6, 18, 6]}, 30_862_760),
        ({"mixer": P, "depths": [6, 6, 18, 6], "dims": [96, 192, 384, 768]}, 56_172_520),
        ({"mixer": P, "depths": [8, 8, 24, 8], "dims": [96, 192, 384, 768]}, 73_473_448),
    ],
)
def test_parameters_are_the_published_ones(options, expected):
    with torch.device("meta"):
        assert parameters(MetaFormer(**{**S12, **options})) == expected


def test_random_mixing_adds_frozen_parameters_only():
    with torch.device("meta"):
        assert parameters(MetaFormer(RandomMixing, **S12), trainable=False) == 21_133_602


@pytest.mark.parametrize("dim", [64, 128, 320, 512])
def test_parameters_of_a_block(dim):
    assert parameters(MetaFormerBlock(dim, (7, 7), P)) == 8 * dim**2 + 11 * dim


def test_parameters_of_the_patch_embeddings():
    with torch.device("meta"):
        net = MetaFormer(P, **S12)
    assert parameters(net.stem) == 9_472
    assert [parameters(stage.downsample) for stage in net.stages[1:]] == [73_856, 368_960, 1_475_072]


def test_shapes_of_the_stages_at_224_and_of_a_small_image():
    with torch.device("meta"):
        net = MetaFormer(P, **S12)
        for size, sides in {(224, 224): (56, 28, 14, 7), (32, 32): (8, 4, 2, 1)}.items():
            x = net.stem(torch.zeros(2, 3, *size))
            for stage, dim, side in zip(net.stages, S12["dims"], sides, strict=True):
                x = stage(x)
                assert x.shape == (2, dim, side, side)
            assert net.forward_head(x).shape == (2, 1000)


def test_drop_path_grows_linearly_to_the_last_block():
    with torch.device("meta"):
        net = MetaFormer(P, **S12)
        single = MetaFormer(P, depths=[1], dims=[8], drop_path=0.1)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in net.modules() if isinstance(b, MetaFormerBlock)]
    assert rates == pytest.approx([i * 0.1 / 11 for i in range(12)])
    assert isinstance(single.stages[0].blocks[0].drop_path, nn.Identity)


def test_drop_path_drops_whole_samples_and_rescales():
    block = MetaFormerBlock(4, (2, 2), Identity, drop_path=0.5, layer_scale=None, channel_mlp=False, norm="none")
    x = torch.ones(400, 4, 2, 2)
    change = (block(x) - x).flatten(1)
    assert torch.equal(change.amin(1), change.amax(1))
    assert set(change[:, 0].tolist()) == {0.0, 2.0}  # branch / keep
    assert torch.equal(block.eval()(x), 2 * x)


def test_layer_scale_is_a_vector_and_zero_is_not_none():
    block = MetaFormerBlock(8, (2, 2), P, layer_scale=1e-5)
    assert block.layer_scale1.gamma.shape == block.layer_scale2.gamma.shape == (8,)
    assert torch.equal(block.layer_scale1.gamma, torch.full((8,), 1e-5))
    x = torch.randn(2, 8, 2, 2)
    assert torch.equal(MetaFormerBlock(8, (2, 2), P, layer_scale=0.0)(x), x)
    assert not torch.equal(MetaFormerBlock(8, (2, 2), P, layer_scale=None)(x), x)


def test_the_block_is_its_formula():
    block = MetaFormerBlock(8, (5, 4), P, layer_scale=0.3).double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    y = x + 0.3 * P()(nn.functional.group_norm(x, 1))
    z = y + 0.3 * block.mlp(nn.functional.group_norm(y, 1))
    torch.testing.assert_close(block(x), z)
    block.residual = False
    y = 0.3 * P()(nn.functional.group_norm(x, 1))
    torch.testing.assert_close(block(x), 0.3 * block.mlp(nn.functional.group_norm(y, 1)))


def test_norms_differ_and_the_head_norms_before_it_pools():
    x = torch.randn(2, 64, 8, 8)
    kinds = ("group", "layer", "batch", "none")
    outputs = {kind: make_norm(kind, 64).train()(x) for kind in kinds}
    for a, b in itertools.combinations(outputs, 2):
        assert not torch.allclose(outputs[a], outputs[b], atol=1e-3), (a, b)
    net = MetaFormer(P, depths=[1], dims=[64], num_classes=5)
    official = net.head(nn.functional.group_norm(x, 1).mean((2, 3)))
    torch.testing.assert_close(net.forward_head(x), official)
    assert not torch.allclose(net.head(nn.functional.group_norm(x.mean((2, 3)), 1)), official, atol=1e-3)


def test_initialisation_is_the_official_one():
    net = MetaFormer(P, **S12, seed=0)
    mlp = net.stages[3].blocks[0].mlp
    assert mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert net.head.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert net.stem.conv.weight.std().item() == pytest.approx(0.0475, rel=0.03)
    assert net.stages[1].downsample.conv.weight.std().item() == pytest.approx(0.0241, rel=0.01)
    assert net.stem.conv.bias.abs().max() > 0.05
    assert not mlp.fc1.bias.any()
    assert not net.head.bias.any()


def test_position_embedding_is_zero_at_first_and_bound_to_its_size():
    position = PositionEmbedding(8, (7, 7))
    assert not position.offset.any()
    with pytest.raises(ValueError, match="built for 7x7 tokens and got 8x8"):
        position(torch.randn(1, 8, 8, 8))


@pytest.mark.parametrize("name", ["identity", "pooling", "attention", "fourier", "depthwise"])
@pytest.mark.parametrize("size", [(192, 192), (256, 256), (224, 160), (65, 97)])
def test_free_mixers_take_any_resolution(name, size):
    factories = from_config(compose(f"mixer={name}", "mixer.head_dim=16" if name == "attention" else "seed=0").mixer, 2)
    net = MetaFormer(factories, depths=[1, 1], dims=[16, 32], stem=(16, 16, 0), num_classes=3, seed=0).eval()
    x = torch.randn(1, 3, *size)
    assert net(x).shape == (1, 3)
    torch.testing.assert_close(net(torch.cat([x, x])), net(x).expand(2, -1))


def tiny(name: str, seed: int = 0) -> MetaFormer:
    config = compose(f"mixer={name}", f"seed={seed}")
    return build(config.model, config.mixer, config.seed, shape=(1, 28, 28), classes=10)


@pytest.mark.parametrize("mixer", [*MIXERS, "ppaa"])
def test_all_mixers_start_with_the_same_weights_everywhere_else(mixer):
    first, second = tiny(mixer).state_dict(), tiny("identity").state_dict()
    shared = {name for name in first if ".mixer." not in name}
    assert shared == {name for name in second if ".mixer." not in name}
    assert len(shared) > 40
    assert all(torch.equal(first[name], second[name]) for name in shared)


def test_the_seed_decides_all_weights_and_leaves_the_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = tiny("attention", 0).state_dict(), tiny("attention", 0).state_dict(), tiny("attention", 1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    drawn = [name for name in a if name.endswith("weight") and "norm" not in name]
    assert not any(torch.equal(a[name], c[name]) for name in drawn)


def test_blocks_differ_from_one_another():
    net = tiny("attention")
    weights = [net.stages[i].blocks[0].mlp.fc1.weight for i in range(4)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_without_a_seed_torchs_generator_decides():
    torch.manual_seed(3)
    a = MetaFormer(P, depths=[1], dims=[8]).stem.conv.weight
    b = MetaFormer(P, depths=[1], dims=[8]).stem.conv.weight
    torch.manual_seed(3)
    assert torch.equal(MetaFormer(P, depths=[1], dims=[8]).stem.conv.weight, a)
    assert not torch.equal(a, b)


def test_a_mixer_that_is_made_already_is_refused():
    with pytest.raises(ValueError, match="mixer is one Pooling; expected the class, of which each block makes its own"):
        MetaFormer(Pooling(), depths=[1], dims=[8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": [P, P]}, "^mixer has 2 values for 1 stages$"),
        ({"dims": [8, 8]}, r"^dims=\[8, 8\]: expected 1 values, one for each of depths$"),
        ({"position": (True, False)}, r"^position=\[True, False\]: expected 1 values, one for each of depths$"),
        ({"stem": (7, 4)}, r"^stem=\[7, 4\]: expected kernel, stride, padding$"),
        ({"head": "pool"}, "^head=pool: expected one of "),
        ({"act": "swish"}, "^act=swish: expected one of "),
        ({"init": "kaiming"}, "^init=kaiming: expected one of "),
        ({"drop_path": -0.1}, "^drop_path=-0.1: expected "),
        ({"dims": [8.5]}, r"^dims=\[8.5\]: expected a list of integers"),
    ],
)
def test_options_that_cannot_be_are_refused_in_python_too(options, message):
    with pytest.raises(ValueError, match=message):
        MetaFormer(**{"mixer": P, "depths": [1], "dims": [8], **options})


def test_an_image_smaller_than_the_patch_is_refused():
    with pytest.raises(ValueError, match="2x2 is too small for a patch of 4"):
        MetaFormer(P, depths=[1], dims=[8], stem=(4, 4, 0), img_size=2)
