"""With torch.compile the same run comes out, up to rounding, and its weights have the same names."""

import pytest
import torch
from torch._dynamo.utils import counters
from trained import equal, go, weights

pytestmark = pytest.mark.compile


@pytest.mark.parametrize("mixer", ["pooling", "attention"])
def test_a_compiled_run_is_the_run(mixer):
    options = (f"mixer={mixer}", "recipe.epochs=1")
    plain, compiled = go(*options), go(*options, "runtime.compile=true", "runtime.runs=compiled")
    assert (plain.result.compiled, compiled.result.compiled) == (False, True)
    first, second = weights(plain.folder), weights(compiled.folder)
    assert first.keys() == second.keys()
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 3e-3
    a, b = (run.result.metrics["val_loss"] for run in (plain, compiled))
    assert a == pytest.approx(b, abs=1e-3)


def test_the_seeds_of_a_cell_share_what_is_compiled():
    words = ("recipe.epochs=1", "runtime.compile=true")
    go(*words, "seed=0")
    compiled = counters["stats"]["unique_graphs"]
    shared = go(*words, "seed=1").folder
    assert counters["stats"]["unique_graphs"] == compiled > 0
    go(*words, "mixer=identity")
    assert counters["stats"]["unique_graphs"] > compiled
    torch.compiler.reset()
    assert equal(shared, go(*words, "seed=1", "runtime.runs=alone").folder)
