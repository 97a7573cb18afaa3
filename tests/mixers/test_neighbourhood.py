"""Neighbourhood attention against its definition, global attention, and itself by another way."""

import pytest
import torch
from conftest import configured
from torch import nn

from metaformer.mixers import NeighbourhoodAttention, neighbourhood
from metaformer.mixers.layout import to_tokens
from metaformer.models.cost import count

SIZES = [(7, 5), (9, 11), (20, 17), (3, 30), (30, 3)]  # few tokens and many, square and not


def made(kernel_size: int, size: tuple[int, int], dim: int = 8) -> tuple[nn.Module, torch.Tensor]:
    words = f"mixer.kernel_size={kernel_size}", "mixer.head_dim=4"
    mixer = configured("neighbourhood_attention", dim, size, *words).double()
    nn.init.normal_(mixer.qkv.weight)  # so that attention is not even
    return mixer, torch.randn(2, dim, *size, dtype=torch.float64, requires_grad=True)


def by_definition(mixer: nn.Module, x: torch.Tensor, window: int) -> torch.Tensor:
    """One query after the other, with the window of NATTEN: as centred as the border lets it be."""
    height, width = x.shape[2:]
    q, k, v = mixer.qkv(to_tokens(x)).chunk(3, -1)
    mixed = torch.zeros_like(q)
    for i in range(height):
        for j in range(width):
            top = min(max(i - window // 2, 0), max(height - window, 0))
            left = min(max(j - window // 2, 0), max(width - window, 0))
            keys = [row * width + column for row in range(top, min(top + window, height))
                    for column in range(left, min(left + window, width))]  # fmt: skip
            for head in (slice(0, 4), slice(4, 8)):
                query = q[:, i * width + j, head].unsqueeze(1)
                weights = (query @ k[:, keys, head].transpose(1, 2) / 4**0.5).softmax(-1)
                mixed[:, i * width + j, head] = (weights @ v[:, keys, head]).squeeze(1)
    return mixer.proj(mixed).unflatten(1, (height, width)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [1, 3, 7])
def test_it_is_attention_to_the_window_of_each_token(size, window):
    mixer, x = made(window, size)
    torch.testing.assert_close(mixer(x), by_definition(mixer, x, window), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "window"), [((7, 5), 7), ((4, 4), 5), ((18, 17), 19), ((1, 1), 3)])
def test_a_window_that_covers_the_map_is_global_attention(size, window):
    mixer, x = made(window, size)
    attention = configured("attention", 8, size, "mixer.head_dim=4").double()
    attention.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), attention(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_all_ways_agree_and_so_do_their_gradients(size, monkeypatch):
    found = []
    for few, flex in ((0, False), (10**6, False), (0, True)):
        monkeypatch.setattr(neighbourhood, "FEW", few)
        monkeypatch.setattr(neighbourhood, "_flexible", lambda q, flex=flex: flex)
        mixer, x = made(5, size)
        with torch.set_grad_enabled(not flex):  # without compilation, which CUDA has, it does not learn
            y = mixer(x)
        if not flex:
            y.square().sum().backward()
            found += [(y.detach(), x.grad, mixer.qkv.weight.grad)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y, found[0][0], rtol=1e-10, atol=1e-10)


def test_there_is_a_kernel_for_each_of_many_shapes(monkeypatch):
    """After eight, torch would go on without kernels and keep the weights of all pairs."""
    limits = []

    def attend(q, k, v, block_mask):
        limits.append(torch._dynamo.config.recompile_limit)
        return v

    monkeypatch.setattr(neighbourhood, "flex_attention", attend)
    monkeypatch.setattr(neighbourhood, "_flexible", lambda q: True)
    before = torch._dynamo.config.recompile_limit
    mixer, x = made(3, (5, 6))
    mixer(x)
    assert limits == [neighbourhood.KERNELS]
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.parametrize(
    ("size", "window", "keys"), [((20, 17), 7, 49), ((14, 14), 3, 9), ((4, 9), 7, 28), ((4, 4), 7, 16)]
)
def test_macs_are_those_of_the_window_whichever_way_they_are_computed(size, window, keys):
    tokens = size[0] * size[1]
    for device in ("cpu", "meta"):
        with torch.device(device):
            mixer = NeighbourhoodAttention(64, window)
        assert count(mixer, (64, *size)).macs == tokens * (4 * 64**2 + 2 * keys * 64)


def test_the_memory_of_many_tokens_is_linear_in_them():
    def saved_bytes(side: int) -> int:
        from metaformer.models.cost import saved_bytes

        return saved_bytes(NeighbourhoodAttention(32, 3), torch.zeros(1, 32, side, 32))

    assert saved_bytes(96) - saved_bytes(64) == pytest.approx(saved_bytes(64) - saved_bytes(32), rel=0.01)


def test_an_even_window_is_refused():
    with pytest.raises(ValueError, match="kernel_size=4 is even: only an odd window keeps the resolution"):
        NeighbourhoodAttention(64, 4)
