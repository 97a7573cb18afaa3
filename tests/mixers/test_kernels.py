"""Which of the mixers with a kernel for CUDA take it, and that to ask costs a network that is compiled nothing."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaformer.mixers import neighbourhood, state_space
from metaformer.mixers.layout import may_fuse


def on_cuda(**other: object) -> SimpleNamespace:
    """In place of tokens on CUDA: what each kernel is for, but for what is said otherwise."""
    return SimpleNamespace(**{"is_cuda": True, "dtype": torch.float32, "shape": (1, 1, 4, 4, 16)} | other)


@pytest.mark.parametrize("takes", [neighbourhood._flexible, state_space._fits])
def test_a_kernel_is_asked_for_without_cutting_a_network_that_is_compiled(takes, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)  # a run leaves it on
    assert takes(on_cuda())
    with sdpa_kernel(SDPBackend.MATH):
        assert not takes(on_cuda())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", None)  # it would fail
    assert takes(on_cuda())


def test_what_flex_attention_is_for():
    for other in ({"is_cuda": False}, {"dtype": torch.float64}, {"shape": (1, 1, 4, 4, 8)}):
        assert not neighbourhood._flexible(on_cuda(**other))


def test_that_of_mamba_is_not_for_trainings_that_have_to_be_the_same_twice(monkeypatch):
    """It adds up gradients in any order."""
    assert not state_space._fits(on_cuda(dtype=torch.float64))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not state_space._fits(on_cuda())
    with torch.no_grad():
        assert state_space._fits(on_cuda())


def test_to_ask_cuts_nothing():
    def asks(x: torch.Tensor) -> torch.Tensor:
        return x.relu() if may_fuse() else x

    assert torch._dynamo.explain(asks)(torch.ones(2)).graph_break_count == 0
