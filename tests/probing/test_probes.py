"""Every measurement against what is known: the matrix of a linear mixer, theory, or the whole Jacobian."""

import copy
import math

import pytest
import torch
from conftest import compose
from torch import nn

from metaformer.checking.behaviour import extent
from metaformer.mixers import Attention, DepthwiseConv, Identity, Pooling, RandomMixing, SpatialMLP
from metaformer.models.build import build
from metaformer.probing import measures

SIZE = (5, 4)
N = 20


def network(*overrides: str) -> nn.Module:
    """The model of some overrides for grey images of 28 x 28 pixels, as it is evaluated."""
    config = compose(*overrides)
    return build(config.model, config.mixer, config.seed, shape=(1, 28, 28), classes=10).eval()


def averaging(size: tuple[int, int] = SIZE, window: int = 3) -> torch.Tensor:
    """The matrix of average pooling without padding, minus the identity."""
    places = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
    near = ((places[:, None] - places[None]).abs().amax(-1) <= window // 2).double()
    return near / near.sum(1, keepdim=True) - torch.eye(len(places), dtype=torch.float64)


def images(channels: int = 6, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, channels, *SIZE, dtype=torch.float64)


def depthwise(mixer: DepthwiseConv) -> torch.Tensor:
    """|J_ij|_F / sqrt(C): the root of the mean square of the kernels at the offset from i to j."""
    places = torch.cartesian_prod(torch.arange(SIZE[0]), torch.arange(SIZE[1]))
    offset = places[None] - places[:, None] + 1
    inside = ((offset >= 0) & (offset <= 2)).all(-1)
    clamped = offset.clamp(0, 2)
    return mixer.weight[:, 0].square().mean(0).sqrt()[clamped[..., 0], clamped[..., 1]] * inside


KNOWN = {
    "pooling": (Pooling, lambda _: averaging().abs()),
    "pooling 5": (lambda: Pooling(5), lambda _: averaging(window=5).abs()),
    "identity": (Identity, lambda _: torch.eye(N, dtype=torch.float64)),
    "random": (lambda: RandomMixing(SIZE), lambda m: m.matrix),
    "spatial_mlp": (lambda: SpatialMLP(SIZE), lambda m: m.mlp.weight.abs()),
    "depthwise": (lambda: DepthwiseConv(6), depthwise),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_mixing_matrix_of_a_linear_mixer_is_the_known_one(name):
    make, expected = KNOWN[name]
    mixer = make().double()
    found = measures.mixing_matrix(mixer, images()).double()
    torch.testing.assert_close(found, expected(mixer).double(), atol=1e-5, rtol=0)


def jacobian(mixer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[N, C, N, C] of one image."""
    whole = torch.autograd.functional.jacobian(lambda one: mixer(one[None])[0].flatten(1).T, x[0])
    return whole.flatten(3).transpose(2, 3)


def test_the_mixing_matrix_of_attention_is_that_of_its_jacobian(monkeypatch):
    monkeypatch.setattr(measures, "SIGNS", 2000)
    mixer, x = Attention(6, head_dim=3).double(), images(batch=1)
    for p in mixer.parameters():
        nn.init.normal_(p)
    expected = jacobian(mixer, x).square().sum((1, 3)).sqrt() / math.sqrt(6)
    torch.testing.assert_close(measures.mixing_matrix(mixer, x).double(), expected, rtol=0.15, atol=1e-3)


@pytest.mark.parametrize("make", [Pooling, lambda: Attention(6, head_dim=3), lambda: SpatialMLP(SIZE), Identity])
def test_the_spectral_norm_is_that_of_the_jacobian(make):
    mixer, x = make().double(), images(batch=1)
    for p in mixer.parameters():
        nn.init.normal_(p)
    expected = torch.linalg.matrix_norm(jacobian(mixer, x).flatten(2).flatten(0, 1), 2)
    assert measures.spectral_norm(mixer, x, steps=400) == pytest.approx(float(expected), rel=1e-3)


def test_a_mixer_without_any_dependence():
    x = images()
    assert measures.mixing_matrix(measures.Nothing(), x).abs().sum() == 0
    assert measures.spectral_norm(measures.Nothing(), x) == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_receptive_field_of_a_stack_of_pooling_is_that_of_theory(depth):
    stack = nn.Sequential(*(nn.AvgPool2d(3, 1, 1, count_include_pad=False) for _ in range(depth)))
    reach = measures.receptive_field(stack, torch.randn(2, 3, 15, 15))
    assert extent(reach) == (2 * depth + 1, 2 * depth + 1)
    kernel = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for _ in range(depth):
        kernel = nn.functional.conv_transpose2d(kernel, torch.ones(1, 1, 3, 3, dtype=torch.float64) / 9)
    inner = reach[7 - depth : 8 + depth, 7 - depth : 8 + depth].double()
    torch.testing.assert_close(inner, kernel[0, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "shape",
    ["model=iso_ti", "model.stem=[2,2,0] model.downsample=[2,2,0]", "model.stem=[4,2,1] model.downsample=[3,2,1]"],
)
def test_without_a_mixer_only_the_norm_reaches_beyond_the_patches(shape):
    """And the box is tight: something comes from each of its edges."""
    parts = ["mixer=identity", "model.layer_scale=1.0", *shape.split()]
    x = torch.randn(16, 1, 28, 28)
    for norm in ("layer", "group"):
        net = network(*parts, f"model.norm={norm}").requires_grad_(False)
        for stage in range(len(net.stages)):
            reach = measures.receptive_field(nn.Sequential(net.stem, *net.stages[: stage + 1]), x)
            box = measures.patch_box(net, stage, (28, 28))
            if norm == "group":
                assert measures.beyond(reach, box) > 0
                continue
            assert measures.beyond(reach, box) == pytest.approx(0, abs=1e-12)
            assert extent(reach) == tuple(s.stop - s.start for s in box) == reach[box].shape


def test_without_a_skip_path_a_branch_has_no_share():
    net = network("model.residual=false")
    shares = measures.branch_shares(net, torch.randn(2, 1, 28, 28))
    assert len(shares) == 4
    assert all(stage and all(map(math.isnan, stage)) for stage in shares)


def test_what_is_said_of_a_matrix():
    one, all_of_them = torch.eye(N), torch.full((N, N), 1 / N)
    assert measures.effective_rank(one) == pytest.approx(N)
    assert measures.effective_rank(all_of_them) == pytest.approx(1)
    assert (measures.entropy(one), measures.entropy(all_of_them)) == (0, pytest.approx(1))
    assert measures.mixing_distance(one, SIZE) == 0
    assert measures.mixing_distance(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), (1, 2)) == 0.25
    assert measures.half_area(torch.ones(4, 5)) == 0.5
    assert measures.half_area(one) == pytest.approx(0.5 / N)


def test_cka():
    torch.manual_seed(0)
    a, b = torch.randn(50, 6, 3, 3), torch.randn(50, 40)
    rotation = torch.linalg.qr(torch.randn(54, 54, dtype=torch.float64)).Q
    assert measures.cka(a, a) == pytest.approx(1, abs=1e-9)
    assert measures.cka(a, 3 * a.flatten(1).double() @ rotation) == pytest.approx(1, abs=1e-5)
    assert abs(measures.cka(a, b)) < 0.1  # the biased estimator says 0.5
    assert measures.cka(a, a + torch.tensor(5.0)) == pytest.approx(1, abs=1e-4)  # centred
    assert measures.cka(a, b) == pytest.approx(measures.cka(b, a))
    for nothing in (torch.zeros_like(a), torch.full_like(a, 3.7), a[:1].expand_as(a)):  # the same for every image
        assert math.isnan(measures.cka(a, nothing))
    with pytest.raises(ValueError, match="needs 4"):
        measures.cka(a[:3], a[:3])


@pytest.fixture
def net():
    return network("mixer=attention", "model.layer_scale=0.5")


def test_surgery_with_the_same_mixer_changes_nothing(net):
    x = torch.randn(4, 1, 28, 28)
    before = net(x)
    for stage in range(4):
        with measures.surgery(net, stage, copy.deepcopy):
            assert torch.equal(net(x), before)
        with measures.surgery(net, stage, lambda _: Pooling()):
            assert not torch.equal(net(x), before)
            mixers = [type(s.blocks[0].mixer) for s in net.stages]
            assert mixers == [Pooling if i == stage else Attention for i in range(4)]
        assert torch.equal(net(x), before)


def test_the_share_of_a_branch(net):
    x = torch.randn(4, 1, 28, 28)
    block = net.stages[0].blocks[0]
    skip = net.stem(x)
    branch = 0.5 * block.mixer(block.norm1(skip))
    expected = (branch.flatten(1).norm(dim=1) / skip.flatten(1).norm(dim=1)).mean()
    shares = measures.branch_shares(net, x)
    assert [len(s) for s in shares] == [1, 1, 1, 1]
    assert shares[0][0] == pytest.approx(expected.item(), rel=1e-5)


def test_accuracy():
    class Right(nn.Module):
        def forward(self, x):
            return x

    batches = [(torch.eye(4), torch.arange(4)), (torch.eye(4)[:2], torch.tensor([0, 3]))]
    assert measures.accuracy(Right(), batches) == 5 / 6
